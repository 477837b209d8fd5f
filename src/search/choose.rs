//! Which zoo entry a search starts from: the one that was named, the one pretrained on the most datasets, or the one whose
//! source lies nearest to the target by optimal transport.

use serde::{Deserialize, Serialize};

use crate::data::Dataset;
use crate::device::DeviceSpec;
use crate::embedding::{Coreset, Embedder, Sample, Signature};
use crate::error::{Error, Result};
use crate::network::SearchSpace;
use crate::run::Control;
use crate::transport::{self, OtddOptions, Ranked};
use crate::zoo::{self, Entry, Zoo};

/// The `warm_start` that takes the nearest source.
pub const AUTO: &str = "auto";
/// The `warm_start` that takes the supernet of the most datasets.
pub const MULTI: &str = "multi";

/// What a search starts from, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Name of the entry.
    pub source: String,
    /// Why this one, as a sentence.
    pub reason: String,
    /// The embedder by which distances were taken; None without a ranking.
    pub signature: Option<Signature>,
    /// Sources in the order of their distance, the nearest first; empty where none was taken.
    pub ranking: Vec<Ranked>,
    /// Entries that could not be chosen, and why.
    pub skipped: Skipped,
}

impl Choice {
    /// An entry that the user named.
    pub fn named(name: &str) -> Self {
        let (source, reason) = (name.into(), "as named".into());
        Self { source, reason, signature: None, ranking: Vec::new(), skipped: Vec::new() }
    }
}

/// Names of entries, and why each could not be chosen.
type Skipped = Vec<(String, String)>;

/// Entries of a zoo that a search of this space can start from; the others with the reason.
fn candidates(zoo: &Zoo, space: &SearchSpace) -> Result<(Vec<Entry>, Skipped)> {
    let (mut fit, mut skipped) = (Vec::new(), Vec::new());
    for path in zoo.files()? {
        let entry = Entry::load(&path)?;
        let theirs = &entry.meta.space;
        if theirs == space {
            fit.push(entry);
        } else {
            let reason = format!("its space has channels {}, layers {}", theirs.channels, theirs.layers);
            skipped.push((entry.meta.name, reason));
        }
    }
    Ok((fit, skipped))
}

/// Resolves a `warm_start` for a target. `without`: names of entries that may not be chosen (an experiment leaves out
/// what has seen the target). The device and the threads of the processor embed and solve.
///
/// # Errors
/// [`Error::Usage`] if the zoo has nothing to choose from, and says what would help; those of loading entries, of
/// embedding and of transport.
pub fn choose(
    warm_start: &str,
    zoo: &Zoo,
    space: &SearchSpace,
    target: &Dataset,
    (device, threads): (DeviceSpec, usize),
    without: &[String],
    control: &mut Control<'_>,
) -> Result<Choice> {
    let (mut fit, skipped) = candidates(zoo, space)?;
    fit.retain(|entry| !without.contains(&entry.meta.name));
    if warm_start == MULTI {
        let best = fit.iter().filter(|e| e.meta.multi()).max_by_key(|e| e.meta.sources.len());
        let Some(best) = best else { return Err(nothing(zoo, space, "pretrained on several datasets")) };
        let datasets: Vec<&str> = best.meta.sources.iter().map(|s| s.dataset.as_str()).collect();
        let reason = format!("of the most datasets ({})", datasets.join(", "));
        return Ok(Choice { source: best.meta.name.clone(), reason, signature: None, ranking: Vec::new(), skipped });
    }
    let sources: Vec<&Entry> = fit.iter().filter(|e| !e.meta.multi()).collect();
    if sources.is_empty() {
        return Err(nothing(zoo, space, "pretrained on one dataset"));
    }
    let Some((signature, coresets)) = common_embedding(zoo, &sources)? else {
        let names: Vec<&str> = sources.iter().map(|e| e.meta.name.as_str()).collect();
        return Err(Error::usage(format!(
            "no embedder has points of all of {} in {}: run `supernet zoo embed`",
            names.join(", "),
            zoo.path().display()
        )));
    };
    let mut embedder = embedder(&signature, zoo, (device, threads))?;
    let points = coresets.iter().map(|c| c.meta.points).max().unwrap_or(0).max(target.classes.len());
    let sample = Sample { max: points, seed: coresets[0].meta.seed };
    let cache = crate::files::cache_folder();
    let (embedded, _) = embedder.embed(target, sample, cache.as_deref(), control.observer)?;
    let named = |(entry, coreset): (&&Entry, &Coreset)| {
        transport::Sample::from(coreset.embedded(&entry.meta.name, &entry.meta.sources[0].classes))
    };
    let samples: Vec<transport::Sample> = sources.iter().zip(&coresets).map(named).collect();
    let options =
        OtddOptions { max_samples: points, device, threads, profile: signature.profile, ..OtddOptions::default() };
    let ranking = transport::rank(&embedded.into(), &samples, &options, control.stop)?;
    let first = &ranking[0];
    let sure = first
        .nearest
        .map_or(String::new(), |share| format!(", the nearest in {:.0} % of bootstrap draws", 100.0 * share));
    let next = ranking.get(1).map_or(String::new(), |r| format!("; next {} at {:.4}", r.name, r.distance));
    let reason = format!("nearest to {} at {:.4}{sure}{next}", target.name, first.distance);
    Ok(Choice { source: first.name.clone(), reason, signature: Some(signature), ranking, skipped })
}

fn nothing(zoo: &Zoo, space: &SearchSpace, what: &str) -> Error {
    Error::usage(format!(
        "the zoo {} has no entry {what} with channels {}, layers {}; make one with `supernet pretrain`, or give --zoo",
        zoo.path().display(),
        space.channels,
        space.layers
    ))
}

/// The embedding that all entries have points of: of several the one that saw the most images.
fn common_embedding(zoo: &Zoo, entries: &[&Entry]) -> Result<Option<(Signature, Vec<Coreset>)>> {
    // What an embedder was pretrained on: a network on ImageNet sees more than a trunk, a trunk more than pixels.
    let order = |s: &Signature| match s.embedder.as_str() {
        "pixels" => 2,
        "zoo" => 1,
        _ => 0,
    };
    let mut known: Vec<&Signature> = entries[0].meta.coresets.iter().map(|m| &m.signature).collect();
    known.sort_by_key(|s| order(s));
    for signature in known {
        let own = |entry: &&Entry| -> Result<Option<Coreset>> {
            let coreset = entry.coreset(&zoo.file(&entry.meta.name), &signature.embedder, 0)?;
            Ok(coreset.filter(|c| &c.meta.signature == signature))
        };
        let all: Vec<Option<Coreset>> = entries.iter().map(own).collect::<Result<_>>()?;
        if let Some(all) = all.into_iter().collect() {
            return Ok(Some((signature.clone(), all)));
        }
    }
    Ok(None)
}

/// The embedder of a signature: a trunk is looked for in the zoo, other weights in the program's cache folder.
fn embedder(signature: &Signature, folder: &Zoo, on: (DeviceSpec, usize)) -> Result<Embedder> {
    let Signature { embedder, weights, size, profile } = signature;
    match embedder.as_str() {
        "pixels" => Ok(Embedder::pixels(*size, *profile)),
        "zoo" => {
            for path in folder.files()? {
                let entry = Entry::load(&path)?;
                if &entry.tensors.checksum() == weights {
                    return zoo::embed::trunk(&entry, &path, *profile, on);
                }
            }
            Err(Error::usage(format!(
                "the points of {} were made by a trunk ({weights}) that is not there any more: run `supernet zoo embed`",
                folder.path().display()
            )))
        }
        other => Err(Error::usage(format!(
            "the points of {} were made by {other}, which a search cannot run: run `supernet zoo embed`",
            folder.path().display()
        ))),
    }
}
