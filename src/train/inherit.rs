//! Weights that a training starts from instead of fresh ones: those of the supernet in which its cells were found (every
//! operation of the genotype takes the weights that it had on its edge), or those of the same network trained on another
//! dataset. The classifiers are always new; the optimiser and the schedule start afresh.

use std::path::Path;

use crate::checkpoint::{Checkpoint, Network};
use crate::error::{Error, Result};
use crate::network::{Derived, Genotype, SearchSpace, is_reduction};
use crate::search::transfer::{Fate, TransferReport, adapt_stem};
use crate::tensors::Tensors;
use crate::zoo::Entry;

/// The start of a training.
#[derive(Clone, Debug)]
pub struct Inherited {
    /// Flat weights.
    pub weights: Vec<f32>,
    /// Flat running statistics.
    pub running: Vec<f32>,
    /// What became of each tensor.
    pub report: TransferReport,
}

/// A network with weights: what it is, and its tensors.
struct Parent {
    network: Network,
    tensors: Tensors,
}

impl Parent {
    /// Reads a checkpoint of a search or a training, or a zoo entry.
    fn load(path: &Path) -> Result<Self> {
        if Entry::is_one(path)? {
            let entry = Entry::load(path)?;
            return Ok(Self { network: Network::Supernet(entry.meta.space), tensors: entry.tensors });
        }
        let checkpoint = Checkpoint::load(path)?;
        Ok(Self { network: checkpoint.meta.network.clone(), tensors: Tensors::clone(&checkpoint) })
    }

    /// Whether its tensors can be those of `child`.
    fn check(&self, path: &Path, child: &Derived) -> Result<()> {
        let ours = &child.config;
        let (channels, layers) = match &self.network {
            Network::Supernet(space) => (space.channels, space.layers),
            Network::Derived { genotype, channels, layers, .. } => {
                if genotype != &ours.genotype {
                    return Err(Error::input(path, "was trained with other cells; give its genotype.json"));
                }
                (*channels, *layers)
            }
        };
        if (channels, layers) != (ours.channels, ours.layers) {
            let message = format!(
                "has channels {channels}, layers {layers}; this training has channels {}, layers {}: give --channels \
                 {channels} --layers {layers}",
                ours.channels, ours.layers
            );
            return Err(Error::input(path, message));
        }
        Ok(())
    }

    /// Name that a tensor of the child has here; None if this network has no such tensor.
    fn name(&self, name: &str, genotype: &Genotype) -> Option<String> {
        match &self.network {
            Network::Derived { .. } => Some(name.into()),
            Network::Supernet(space) => supernet_name(space, genotype, name),
        }
    }
}

/// `cells.2._ops.5.op.1.weight` is the sixth operation of a genotype's cell: its edge and its place among the primitives of
/// that edge name the tensor in the supernet. Tensors outside of operations have the same name.
fn supernet_name(space: &SearchSpace, genotype: &Genotype, name: &str) -> Option<String> {
    let mut parts = name.splitn(5, '.');
    let (Some("cells"), Some(layer), Some("_ops"), Some(op), Some(rest)) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Some(name.into());
    };
    let (layer, op): (usize, usize) = (layer.parse().ok()?, op.parse().ok()?);
    let pairs = if is_reduction(layer, space.layers) { &genotype.reduce } else { &genotype.normal };
    let &(primitive, state) = pairs.get(op)?;
    let edge = SearchSpace::first_edge(op / 2) + state;
    let place = space.edges.get(edge)?.iter().position(|&p| p == primitive)?;
    Some(format!("cells.{layer}._ops.{edge}._ops.{place}.{rest}"))
}

/// Prepares the start of a training from a file; what is not there is drawn with the seed.
///
/// # Errors
/// [`Error::Input`] if the file is damaged, or its network has other channels, cells or (trained) another genotype.
pub fn inherit(path: &Path, child: &Derived, seed: u64) -> Result<Inherited> {
    let parent = Parent::load(path)?;
    parent.check(path, child)?;
    let genotype = &child.config.genotype;
    let mut tensors = Vec::new();
    let mut weights = child.layout.initial_weights(seed);
    for p in child.layout.parameters() {
        let head = p.name.starts_with("classifier") || p.name.starts_with("auxiliary_head.");
        let stored = parent.name(&p.name, genotype).filter(|_| !head).and_then(|name| parent.tensors.find(&name));
        let shape = p.torch_shape();
        let adapted = |found: &[usize], values: &[f32]| {
            let taps = shape.iter().skip(2).product();
            (p.name == "stem.0.weight").then(|| adapt_stem(values, found[1], shape[1], taps)).flatten()
        };
        let (fate, values) = match stored {
            None => (Fate::New, None),
            Some((found, values)) if found == shape => (Fate::Copied, Some(values.to_vec())),
            Some((found, values)) => match adapted(found, values) {
                Some(values) => (Fate::Adapted, Some(values)),
                None => (Fate::New, None),
            },
        };
        for i in 0..values.as_ref().map_or(0, |_| p.shape.len()) {
            weights[p.offset + i] = values.as_ref().map_or(0.0, |v| v[p.torch_index(i)]);
        }
        let remark = if head { "the classes differ" } else { "" };
        tensors.push((p.name.clone(), fate, remark.into()));
    }
    let mut running = child.layout.initial_running();
    for s in child.layout.statistics() {
        let stored = |part: &str| {
            let name = parent.name(&s.names[0], genotype)?;
            let (_, values) = parent.tensors.find(&format!("{name}.{part}"))?;
            (values.len() == s.channels).then_some(values)
        };
        let fate = match (stored("running_mean"), stored("running_var")) {
            (Some(mean), Some(variance)) => {
                running[s.offset..s.offset + s.channels].copy_from_slice(mean);
                running[s.offset + s.channels..s.offset + 2 * s.channels].copy_from_slice(variance);
                Fate::Copied
            }
            _ => Fate::New,
        };
        tensors.push((format!("{} (statistics)", s.names[0]), fate, String::new()));
    }
    let count = |fate: Fate| tensors.iter().filter(|t| t.1 == fate).count();
    let counts = [Fate::Copied, Fate::Adapted, Fate::New].map(count);
    let report = TransferReport { source: path.display().to_string(), counts, tensors };
    Ok(Inherited { weights, running, report })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_found_on_its_edge() {
        let space = SearchSpace::darts(4, 3).unwrap();
        let genotype = Genotype::named("DARTS_V2").unwrap();
        // The third pair of V2's normal cell belongs to node 1: ("sep_conv_3x3", 0), edge 2, the fifth primitive.
        let (primitive, state) = genotype.normal[2];
        let place = space.edges[2].iter().position(|&p| p == primitive).unwrap();
        let expected = format!("cells.0._ops.{}._ops.{place}.op.1.weight", 2 + state);
        assert_eq!(supernet_name(&space, &genotype, "cells.0._ops.2.op.1.weight"), Some(expected));
        let own = "cells.0.preprocess1.op.1.weight";
        assert_eq!(supernet_name(&space, &genotype, own), Some(own.into()));
        assert_eq!(supernet_name(&space, &genotype, "cells.0._ops.9.op.1.weight"), None);
    }
}
