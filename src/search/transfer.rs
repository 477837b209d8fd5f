//! What a search takes from a pretrained supernet: weights, running statistics and alphas. The classifier is always new,
//! for the classes differ; the optimisers and the schedule start afresh. The fate of every tensor is told.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{AlphaTransfer, SearchConfig, WeightTransfer};
use crate::error::{Error, Result};
use crate::network::{Parameter, Supernet};
use crate::tensors::Tensors;
use crate::zoo::Entry;

/// What became of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Taken as it was.
    Copied,
    /// Taken in another form: a stem for other channels, alphas made flatter.
    Adapted,
    /// Drawn anew.
    New,
}

/// What was transferred.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferReport {
    /// Name of the zoo entry.
    pub source: String,
    /// Tensors that were copied, adapted and drawn anew.
    pub counts: [usize; 3],
    /// Each tensor, with its fate and a remark.
    pub tensors: Vec<(String, Fate, String)>,
}

/// The start of a search.
#[derive(Clone, Debug)]
pub struct Start {
    /// Flat weights.
    pub weights: Vec<f32>,
    /// Flat running statistics.
    pub running: Vec<f32>,
    /// Flat alphas.
    pub alphas: Vec<f32>,
    /// What was transferred.
    pub report: TransferReport,
}

/// How a stem for other image channels follows from the source's `[c_out, c_in, k, k]`.
///
/// A grey image replicated to three channels gives the same map through the three kernels as through their sum; a colour
/// image through three copies of a third of a kernel gives the map of its mean. Other pairs have no such rule.
pub(crate) fn adapt_stem(source: &[f32], from: usize, to: usize, taps: usize) -> Option<Vec<f32>> {
    let c_out = source.len() / (from * taps);
    let at = |o: usize, i: usize, t: usize| source[(o * from + i) * taps + t];
    let value = |o: usize, t: usize| match (from, to) {
        (3, 1) => Some((0..3).map(|i| at(o, i, t)).sum()),
        (1, 3) => Some(at(o, 0, t) / 3.0),
        _ => None,
    };
    let mut out = Vec::with_capacity(c_out * to * taps);
    for o in 0..c_out {
        for _ in 0..to {
            for t in 0..taps {
                out.push(value(o, t)?);
            }
        }
    }
    Some(out)
}

/// Prepares the start of a search of `network` from an entry; what is not taken is drawn with the configuration's seed.
///
/// # Errors
/// [`Error::Input`] if the entry's search space is another one, or a tensor is missing.
pub fn transfer(entry: &Entry, path: &Path, network: &Supernet, config: &SearchConfig) -> Result<Start> {
    let (theirs, ours) = (&entry.meta.space, &network.space);
    if theirs != ours {
        let shown = |s: &crate::network::SearchSpace| {
            format!("channels {}, layers {}, nodes {}", s.channels, s.layers, s.nodes)
        };
        return Err(Error::input(
            path,
            format!(
                "was pretrained in another search space ({}; this search has {}): give --channels {} --layers {}, or use \
                 another entry",
                shown(theirs),
                shown(ours),
                theirs.channels,
                theirs.layers
            ),
        ));
    }
    let mut tensors = Vec::new();
    let mut weights = network.layout.initial_weights(config.seed);
    for p in network.layout.parameters() {
        let (fate, remark, values) = parameter(entry, path, p, config)?;
        if let Some(torch) = values {
            for i in 0..p.shape.len() {
                weights[p.offset + i] = torch[p.torch_index(i)];
            }
        }
        tensors.push((p.name.clone(), fate, remark));
    }
    let keep = config.transfer_weights == WeightTransfer::Keep;
    let running = match keep {
        true => entry.tensors.get_running(path, "", &network.layout)?,
        false => network.layout.initial_running(),
    };
    for s in network.layout.statistics() {
        let fate = if keep { Fate::Copied } else { Fate::New };
        tensors.extend(s.names.iter().map(|name| (format!("{name} (statistics)"), fate, String::new())));
    }
    let drawn = network.initial_alphas(config.seed);
    let stored = entry.tensors.get(path, "alphas", drawn.len())?;
    let (alphas, fate, remark) = match config.transfer_alphas {
        AlphaTransfer::Keep => (stored.to_vec(), Fate::Copied, String::new()),
        AlphaTransfer::Temper => {
            let factor = config.temper as f32;
            (stored.iter().map(|a| factor * a).collect(), Fate::Adapted, format!("scaled by {factor}"))
        }
        AlphaTransfer::Reset => (drawn, Fate::New, "drawn anew as asked".into()),
    };
    tensors.push(("alphas".into(), fate, remark));
    let count = |fate: Fate| tensors.iter().filter(|t| t.1 == fate).count();
    let counts = [Fate::Copied, Fate::Adapted, Fate::New].map(count);
    let report = TransferReport { source: entry.meta.name.clone(), counts, tensors };
    Ok(Start { weights, running, alphas, report })
}

/// Fate of a parameter with a remark, and its values in PyTorch's layout unless it is drawn.
type Fated<'a> = (Fate, String, Option<std::borrow::Cow<'a, [f32]>>);

/// What becomes of one parameter.
fn parameter<'a>(entry: &'a Entry, path: &Path, p: &Parameter, config: &SearchConfig) -> Result<Fated<'a>> {
    if p.name.starts_with("classifier") {
        return Ok((Fate::New, "the classes differ".into(), None));
    }
    if config.transfer_weights == WeightTransfer::Reset {
        return Ok((Fate::New, "drawn anew as asked".into(), None));
    }
    let shape = p.torch_shape();
    let stored: &'a Tensors = &entry.tensors;
    let (found, values) =
        stored.find(&p.name).ok_or_else(|| Error::input(path, format!("has no tensor `{}`", p.name)))?;
    if found == shape {
        return Ok((Fate::Copied, String::new(), Some(values.into())));
    }
    if p.name == "stem.0.weight" && found.len() == 4 && found[0] == shape[0] && found[2..] == shape[2..] {
        return Ok(match adapt_stem(values, found[1], shape[1], shape[2] * shape[3]) {
            Some(adapted) => {
                (Fate::Adapted, format!("from {} to {} image channels", found[1], shape[1]), Some(adapted.into()))
            }
            None => (Fate::New, format!("no rule from {} to {} image channels", found[1], shape[1]), None),
        });
    }
    Err(Error::input(path, format!("tensor `{}` is {found:?}; {shape:?} is needed", p.name)))
}

#[cfg(test)]
mod tests {
    use super::adapt_stem;

    #[test]
    fn an_adapted_stem_keeps_what_grey_images_give() {
        // Two output channels, one tap: kernels (1, 2, 3) and (4, 5, 6).
        let colour = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(adapt_stem(&colour, 3, 1, 1).unwrap(), [6.0, 15.0]);
        assert_eq!(adapt_stem(&[6.0, 15.0], 1, 3, 1).unwrap(), [2.0, 2.0, 2.0, 5.0, 5.0, 5.0]);
        assert_eq!(adapt_stem(&colour, 3, 4, 1), None);
    }
}
