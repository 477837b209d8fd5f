//! How a GPU stores feature maps: in f32, or in halves of a word, which take half the memory and half the traffic; and how it
//! multiplies matrices: in f32, or on tensor cores, where both factors are rounded to tf32 and sums are f32. Whatever is stored,
//! all else is computed in f32, and statistics, gradients, weights and all states are f32.
//!
//! Halved are the maps that fill the memory of a step: what convolutions and pools write for a normalisation to read. The
//! normalisation takes their scale away, so that neither the range of f16 nor the coarseness of bf16 adds up along the
//! network; the sums that nodes are, and all gradients, stay whole.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::DeviceSpec;
use crate::error::{Error, Result};
use crate::graph::{Graph, Info, Node, Program, Root, Tensor};
use crate::ops::Op;

/// How feature maps are stored and matrices multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Maps as they are computed, products in f32.
    #[default]
    F32,
    /// Maps as they are computed, products in tf32, on CUDA.
    Tf32,
    /// Maps in f16, products in f32, on wgpu.
    F16,
    /// Maps in bf16, products in tf32, on CUDA.
    Bf16,
}

impl Precision {
    /// Whether it is f32, as settings assume where they name no precision.
    pub fn is_full(&self) -> bool {
        *self == Self::F32
    }

    /// Whether maps are stored in halves.
    pub fn has_halves(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// Whether matrices are multiplied in tf32, by a device that can.
    pub fn has_tf32(self) -> bool {
        matches!(self, Self::Tf32 | Self::Bf16)
    }

    /// Refuses what a device does not have.
    ///
    /// # Errors
    /// [`Error::Usage`] saying what it can.
    pub fn check(self, device: DeviceSpec) -> Result<()> {
        let (kind, has): (_, &[Self]) = match device {
            DeviceSpec::Cpu => ("the processor", &[Self::F32]),
            DeviceSpec::Wgpu(_) => ("wgpu", &[Self::F32, Self::F16]),
            DeviceSpec::Cuda { .. } => ("cuda", &[Self::F32, Self::Tf32, Self::Bf16]),
        };
        if has.contains(&self) {
            return Ok(());
        }
        let has: Vec<String> = has.iter().map(Self::to_string).collect();
        Err(Error::usage(format!(
            "precision {self} is not to be had on --device {device}: {kind} has {} (f16 is for wgpu, tf32 and bf16 for cuda)",
            has.join(", ")
        )))
    }

    /// The two numbers of a word of halves.
    pub(super) fn unpack(self, word: f32) -> [f32; 2] {
        let bits = word.to_bits();
        [bits as u16, (bits >> 16) as u16].map(|half| self.decode(half))
    }

    /// The number that a half stands for.
    pub fn decode(self, half: u16) -> f32 {
        if self == Self::Bf16 { bf16::from_bits(half).to_f32() } else { f16::from_bits(half).to_f32() }
    }

    /// The half that is nearest to a number.
    pub fn encode(self, value: f32) -> u16 {
        if self == Self::Bf16 { bf16::from_f32(value).to_bits() } else { f16::from_f32(value).to_bits() }
    }

    /// The bases of a program whose maps are stored in halves.
    pub fn halves(self, program: &Program) -> HashSet<Tensor> {
        if !self.has_halves() {
            return HashSet::new();
        }
        let graph = program.graph();
        let mut halves = in_quads(program);
        halves.retain(|&base| graph.info(base).root == Root::Arena);
        if !program.halved_results {
            program.results.iter().for_each(|&result| {
                halves.remove(&graph.base(result));
            });
        }
        halves
    }
}

/// Bases of maps that kernels touch in quads only, through accesses that know halves, and that no other op writes than those
/// whose maps are halved. Gradients are therefore never among them; that kernels read those as they lie is not asked.
pub fn in_quads(program: &Program) -> HashSet<Tensor> {
    let graph = program.graph();
    let (mut found, mut unfit) = (HashSet::new(), HashSet::new());
    let mut touch = |tensor: Tensor, fits: bool| {
        let base = graph.base(tensor);
        found.insert(base);
        if !(fits && quads(graph.info(tensor)) && quads(graph.info(base))) {
            unfit.insert(base);
        }
    };
    for node in program.nodes() {
        node.inputs.iter().enumerate().for_each(|(index, &input)| touch(input, reads(node, index, graph)));
        node.outputs.iter().for_each(|output| touch(output.tensor, !output.accumulate && writes(node, graph)));
    }
    found.retain(|base| !unfit.contains(base));
    found
}

/// Whether a tensor is a map of whole quads. Weights, coefficients and masks are matrices, of one line.
fn quads(info: &Info) -> bool {
    info.shape.n * info.shape.h > 1 && [info.shape.c, info.offset, info.row_stride].iter().all(|n| n.is_multiple_of(4))
}

/// Whether the maps that an op writes are halved, and can be: its kernels store them in quads.
fn writes(node: &Node, graph: &Graph) -> bool {
    match node.op {
        Op::Separable(_) | Op::Dense(_) | Op::Pool(_) => true,
        Op::Reduce(_) => reduces_quads(node, graph),
        _ => false,
    }
}

/// Whether an op's kernels read an input that is a map, and no gradient, in quads only. Patches of dense convolutions are
/// read element by element, and what is pooled is never halved.
fn reads(node: &Node, input: usize, graph: &Graph) -> bool {
    match node.op {
        Op::Statistics(_) | Op::Mixture(_) | Op::Separable(_) | Op::SeparableBackward(_) => true,
        Op::MixtureBackward(_) | Op::DenseBackward(_) | Op::PoolBackward(_) => input > 0,
        Op::ReduceBackward(_) => input > 0 && reduces_quads(node, graph),
        _ => false,
    }
}

/// Whether the two products that make up a map of a factorized reduce have whole quads of columns each.
fn reduces_quads(node: &Node, graph: &Graph) -> bool {
    let whole = |&first: &usize| [0, 1].iter().all(|i| graph.shape(node.inputs[first + i]).c.is_multiple_of(4));
    match &node.op {
        Op::Reduce(op) => (0..op.edges).map(|edge| 1 + 2 * edge).all(|first| whole(&first)),
        Op::ReduceBackward(op) => op.weights().all(|first| whole(&first)),
        _ => false,
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::F32, Self::Tf32, Self::F16, Self::Bf16];
        let found = all.into_iter().find(|precision| precision.to_string() == text);
        found.ok_or_else(|| {
            Error::usage(format!("precision `{text}`: expected f32, f16 (on wgpu), tf32 or bf16 (on cuda)"))
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SearchConfig, TrainConfig};

    #[test]
    fn names_round_trip() {
        for text in ["f32", "tf32", "f16", "bf16"] {
            let precision: Precision = text.parse().unwrap();
            assert_eq!(precision.to_string(), text);
            assert_eq!(serde_json::to_string(&precision).unwrap(), format!("\"{text}\""));
        }
        assert!("half".parse::<Precision>().unwrap_err().to_string().contains("expected f32, f16"));
    }

    #[test]
    fn each_device_has_its_precisions() {
        let [cpu, wgpu, cuda] = ["cpu", "wgpu", "cuda:1"].map(|name| DeviceSpec::try_from(name.to_string()).unwrap());
        for device in [cpu, wgpu, cuda] {
            Precision::F32.check(device).unwrap();
        }
        Precision::F16.check(wgpu).unwrap();
        Precision::Bf16.check(cuda).unwrap();
        Precision::Tf32.check(cuda).unwrap();
        for (precision, device, has) in [
            (Precision::F16, cpu, "the processor has f32 ("),
            (Precision::Bf16, cpu, "the processor has f32 ("),
            (Precision::Tf32, cpu, "the processor has f32 ("),
            (Precision::Bf16, wgpu, "wgpu has f32, f16 ("),
            (Precision::Tf32, wgpu, "wgpu has f32, f16 ("),
            (Precision::F16, cuda, "cuda has f32, tf32, bf16 ("),
        ] {
            let message = precision.check(device).unwrap_err().to_string();
            assert!(message.contains(has) && message.contains(&format!("--device {device}")), "{message}");
        }
    }

    #[test]
    fn settings_refuse_what_their_device_does_not_have() {
        let search = SearchConfig { precision: Precision::F16, ..SearchConfig::default() };
        let train = TrainConfig { precision: Precision::Bf16, ..TrainConfig::default() };
        for error in [search.check().unwrap_err(), train.check().unwrap_err()] {
            assert!(matches!(error, Error::Usage(_)), "{error}");
            assert!(error.to_string().contains("the processor has f32 ("), "{error}");
        }
        let kept = |config: &SearchConfig| serde_json::to_string(config).unwrap();
        assert!(
            kept(&search).contains("\"precision\":\"f16\"") && !kept(&SearchConfig::default()).contains("precision")
        );
    }

    #[test]
    fn words_hold_two_numbers() {
        let word = f32::from_bits(0xc000_3f80);
        assert_eq!(Precision::Bf16.unpack(word), [1.0, -2.0]);
        assert_eq!(Precision::F16.unpack(f32::from_bits(0xc000_3c00)), [1.0, -2.0]);
    }
}
