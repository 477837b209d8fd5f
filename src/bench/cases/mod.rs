//! The kernels at the shapes of real searches and trainings: what `supernet bench kernels` and the benches run.
//!
//! A name reads `op/channels/size/batch/what`: `separable/c16/32x32/b64/dil_conv_5x5`. Ops that a search records for all
//! edges of a state at once appear so too (`4_edges`). `layer` cases time a primitive's forward and backward together,
//! as a user of any framework would write it. To add a case, push one in the function of its family
//! in `maps`, `vectors` or `layers`.

mod layers;
mod maps;
mod vectors;

use super::recorder::{Built, Recorder};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::graph::Shape;

/// What of a case is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// The heaviest op of this name.
    Op(&'static str),
    /// Everything but the loss: forward and backward.
    Layer,
}

impl Timed {
    /// Whether the case needs gradients.
    pub fn backward(self) -> bool {
        match self {
            Self::Op(op) => op.ends_with("_backward"),
            Self::Layer => true,
        }
    }

    /// Name of the op, or `layer`.
    pub fn op(self) -> &'static str {
        match self {
            Self::Op(op) => op,
            Self::Layer => "layer",
        }
    }
}

type Record = Box<dyn Fn(&mut Recorder, usize) -> Result<()> + Send + Sync>;

/// One case.
pub struct Case {
    /// Name.
    pub name: String,
    /// What of it is timed.
    pub timed: Timed,
    /// Images of a batch, or transport problems; 1 where there are neither.
    pub batch: usize,
    record: Record,
}

impl Case {
    /// A case with a batch of images or of transport problems.
    pub(super) fn of(
        name: String,
        timed: Timed,
        batch: usize,
        record: impl Fn(&mut Recorder, usize) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { name, timed, batch, record: Box::new(record) }
    }

    /// Records the case for a number of images, to be run in a precision.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not fit, which is a mistake in the case.
    pub fn build(&self, batch: usize, precision: Precision) -> Result<Built> {
        let mut recorder = Recorder::new(precision);
        (self.record)(&mut recorder, batch)?;
        recorder.finish(&self.name, self.timed)
    }
}

/// Channels, side and batch of a map.
#[derive(Clone, Copy, Debug)]
struct At {
    c: usize,
    side: usize,
    batch: usize,
}

const fn at(c: usize, side: usize, batch: usize) -> At {
    At { c, side, batch }
}

impl At {
    fn shape(self, batch: usize) -> Shape {
        Shape::map(batch, self.side, self.side, self.c)
    }
}

/// The stages of a search with C=16, L=8, batch 64, 32x32.
const SEARCH: [At; 3] = [at(16, 32, 64), at(32, 16, 64), at(64, 8, 64)];
/// The stages of a training with C=36, batch 96.
const TRAINING: [At; 3] = [at(36, 32, 96), at(72, 16, 96), at(144, 8, 96)];
/// Other sizes that are searched: 28x28 with few channels and its smallest maps, larger images, larger batches.
const OTHERS: [At; 4] = [at(8, 28, 32), at(8, 7, 32), at(16, 64, 16), at(16, 32, 256)];

/// Kernel and dilation of the convolutions.
const CONVOLUTIONS: [(&str, usize, usize); 4] =
    [("sep_conv_3x3", 3, 1), ("sep_conv_5x5", 5, 1), ("dil_conv_3x3", 3, 2), ("dil_conv_5x5", 5, 2)];

/// The list being built.
#[derive(Default)]
struct List(Vec<Case>);

impl List {
    fn push(
        &mut self,
        ops: &[&'static str],
        at: At,
        what: &str,
        record: impl Fn(&mut Recorder, usize) -> Result<()> + Send + Sync + Clone + 'static,
    ) {
        for &op in ops {
            let timed = if op == "layer" { Timed::Layer } else { Timed::Op(op) };
            let name = format!("{op}/c{}/{}x{}/b{}/{what}", at.c, at.side, at.side, at.batch);
            self.0.push(Case { name, timed, batch: at.batch, record: Box::new(record.clone()) });
        }
    }

    /// A case without images: a vector of `len` elements.
    fn flat(
        &mut self,
        op: &'static str,
        len: usize,
        record: impl Fn(&mut Recorder) -> Result<()> + Send + Sync + 'static,
    ) {
        let record: Record = Box::new(move |r, _| record(r));
        self.0.push(Case { name: format!("{op}/n{len}"), timed: Timed::Op(op), batch: 1, record });
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut list = List::default();
    maps::separable(&mut list);
    maps::dense(&mut list);
    maps::pools(&mut list);
    maps::reduce(&mut list);
    maps::mixture(&mut list);
    maps::elementwise(&mut list);
    maps::ends(&mut list);
    vectors::vectors(&mut list);
    layers::elementary(&mut list);
    layers::layers(&mut list);
    list.0.extend(super::folded::cases());
    list.0.extend(super::transport::cases());
    list.0
}

/// The cases whose names hold one of the comma-separated parts of a filter; all without a filter.
///
/// # Errors
/// [`Error::Usage`] if a part is in no name.
pub fn matching(filter: Option<&str>) -> Result<Vec<Case>> {
    let cases = all();
    let Some(filter) = filter else { return Ok(cases) };
    let parts: Vec<&str> = filter.split(',').map(str::trim).collect();
    if let Some(part) = parts.iter().find(|part| part.is_empty() || !cases.iter().any(|c| c.name.contains(*part))) {
        let mut ops: Vec<&str> = cases.iter().map(|c| c.timed.op()).collect();
        ops.sort_unstable();
        ops.dedup();
        return Err(Error::usage(format!(
            "--filter {filter}: no case has `{part}` in its name; names read op/channels/size/batch/what, such as {}; the \
             ops are {}",
            cases[0].name,
            ops.join(", ")
        )));
    }
    Ok(cases.into_iter().filter(|c| parts.iter().any(|part| c.name.contains(part))).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::recorder::PROBE;
    use super::*;
    use crate::graph::Node;
    use crate::ops::Op;

    #[test]
    fn every_op_has_a_case_under_a_name_of_its_own() {
        let cases = all();
        let ops: HashSet<&str> = cases.iter().map(|c| c.timed.op()).collect();
        for name in Op::NAMES {
            assert!(ops.contains(name), "op `{name}` is never measured: add a case to bench/cases/");
        }
        let names: HashSet<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn every_case_can_be_recorded_and_times_what_its_name_says() {
        for (case, precision) in all().iter().flat_map(|case| [(case, Precision::F32), (case, Precision::Bf16)]) {
            let built = case.build(case.batch.min(2), precision).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert!(built.cost.bytes > 0.0 && !built.results.is_empty(), "{}", case.name);
            let graph = built.program.graph();
            let of_loss = |node: &Node| node.outputs.iter().any(|o| graph.info(o.tensor).name.contains(PROBE));
            let timed_nodes = || built.ops.iter().flat_map(|ops| &built.program.nodes()[ops.clone()]);
            assert!(!timed_nodes().any(of_loss), "{}: the loss is timed", case.name);
            let timed: Vec<&str> = timed_nodes().map(|n| n.op.name()).collect();
            match case.timed {
                Timed::Op(op) => assert_eq!(timed, [op], "{}", case.name),
                Timed::Layer => {
                    assert!(timed.iter().any(|op| op.ends_with("_backward")), "{}: {timed:?}", case.name);
                    assert!(timed.len() >= 3 && timed.len() <= 8, "{}: {timed:?}", case.name);
                }
            }
        }
    }

    /// What a step has in halves, the ops have that are timed.
    #[test]
    fn timed_ops_meet_halves() {
        const OPS: [&str; 10] = [
            "statistics",
            "mixture",
            "mixture_backward",
            "separable",
            "separable_backward",
            "dense",
            "dense_backward",
            "pool",
            "pool_backward",
            "reduce",
        ];
        let meets = |case: &Case, precision: Precision| {
            let built = case.build(case.batch.min(2), precision).unwrap();
            let halves = precision.halves(&built.program);
            let nodes = built.ops.iter().flat_map(|ops| &built.program.nodes()[ops.clone()]);
            let mut tensors = nodes.flat_map(|n| n.inputs.iter().copied().chain(n.outputs.iter().map(|o| o.tensor)));
            tensors.any(|tensor| halves.contains(&built.program.graph().base(tensor)))
        };
        // A classifier is followed by no normalisation.
        let wide = |c: &Case| c.name.contains("/c16/") || c.name.contains("/c64/") && !c.name.contains("classifier");
        for op in OPS {
            let own: Vec<Case> = all().into_iter().filter(|c| c.timed.op() == op && wide(c)).collect();
            assert!(!own.is_empty(), "{op}");
            for case in own {
                assert!(meets(&case, Precision::Bf16), "{}", case.name);
                assert!(!meets(&case, Precision::Tf32), "{}", case.name);
            }
        }
    }

    #[test]
    fn filters_choose_by_parts_of_names() {
        let chosen = matching(Some("pool/c16,softmax")).unwrap();
        assert!(chosen.iter().all(|c| c.name.contains("pool/c16") || c.name.contains("softmax")));
        assert!(chosen.iter().any(|c| c.name.starts_with("softmax_backward")));
        for bad in ["", "pool,", "no such op"] {
            let Err(error) = matching(Some(bad)) else { panic!("`{bad}` is accepted") };
            assert!(error.to_string().contains("--filter") && error.exit_code() == 2, "{error}");
        }
        assert_eq!(matching(None).unwrap().len(), all().len());
    }
}
