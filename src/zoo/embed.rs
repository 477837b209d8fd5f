//! Zoo entries and embeddings: the trunk of an entry as an embedder, and coresets of an entry's sources, for which the very
//! training images are loaded that the entry was trained on.

use std::path::Path;

use serde::Serialize;

use super::Entry;
use crate::config::SearchConfig;
use crate::data::{Dataset, Normalisation};
use crate::device::DeviceSpec;
use crate::embedding::embedder::Trunk;
use crate::embedding::{Coreset, Embedder, Profile, Sample};
use crate::error::{Error, Result};
use crate::run::{self, Observer};

/// The trunk of an entry as the embedder `zoo`. Pixels are normalised by the statistics of the entry's sources, each with
/// the same share, whatever dataset they belong to. `on`: the device, and the threads of the processor.
///
/// # Errors
/// [`Error::Usage`] for the profile `paper`, [`Error::Input`] if the entry lacks a tensor.
pub fn trunk(entry: &Entry, path: &Path, profile: Profile, on: (DeviceSpec, usize)) -> Result<Embedder> {
    let network = entry.network();
    let trunk = Trunk {
        weights: entry.tensors.get_weights(path, "", &network.layout)?,
        running: entry.tensors.get_running(path, "", &network.layout)?,
        alphas: entry.tensors.get(path, "alphas", network.space.alphas_len())?.to_vec(),
        normalisation: mixture(entry.meta.sources.iter().map(|s| &s.normalisation)),
        hash: entry.tensors.checksum(),
        network,
    };
    Embedder::trunk(trunk, profile, on)
}

/// Statistics of the mixture of datasets in which each has the same share.
fn mixture<'a>(sources: impl Iterator<Item = &'a Normalisation> + Clone) -> Normalisation {
    let share = 1.0 / sources.clone().count().max(1) as f32;
    let channels = sources.clone().map(|s| s.mean.len()).min().unwrap_or(0);
    let mean: Vec<f32> = (0..channels).map(|c| sources.clone().map(|s| share * s.mean[c]).sum()).collect();
    let deviation = |c: usize| {
        let part = |s: &Normalisation| share * (s.std[c].powi(2) + (s.mean[c] - mean[c]).powi(2));
        sources.clone().map(part).sum::<f32>().sqrt()
    };
    let std = (0..channels).map(deviation).collect();
    Normalisation { mean, std }
}

/// How much of a source is embedded and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoresetOptions {
    /// Points that the entry keeps of each source; more where it has more classes.
    pub points: usize,
    /// Images of each source whose points make the statistics of its classes.
    pub images: usize,
    /// Seed of the choice.
    pub seed: u64,
}

impl Default for CoresetOptions {
    fn default() -> Self {
        Self { points: 512, images: 2048, seed: 0 }
    }
}

/// A coreset that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Name of the dataset.
    pub dataset: String,
    /// Name of the embedder.
    pub embedder: String,
    /// Points kept.
    pub points: usize,
    /// Whether the embedding came from the cache.
    pub cached: bool,
}

/// The sources of an entry, as its training loaded them.
///
/// # Errors
/// [`Error::Input`] naming the entry's file and a source that cannot be loaded or is not the dataset it was.
pub fn sources(entry: &Entry, path: &Path) -> Result<Vec<Dataset>> {
    let config: SearchConfig = serde_json::from_value(entry.meta.record.config.clone())
        .map_err(|e| Error::input(path, format!("does not tell where its datasets are ({e})")))?;
    let specs = config.data.list();
    if specs.len() != entry.meta.sources.len() {
        return Err(Error::input(path, format!("names {} datasets, but was trained on others", specs.len())));
    }
    let channels = (specs.len() > 1).then_some(3);
    let load = |(spec, source): (&String, &crate::checkpoint::Source)| {
        let dataset = run::load_dataset(spec, config.size, channels, config.train_images, config.seed);
        let dataset = dataset
            .map_err(|e| Error::input(path, format!("its source {spec} cannot be loaded to be embedded: {e}")))?;
        if dataset.identity != source.identity {
            return Err(Error::input(
                path,
                format!("its source {spec} has changed since the training; embed the dataset that it was trained on"),
            ));
        }
        Ok(dataset)
    };
    specs.iter().zip(&entry.meta.sources).map(load).collect()
}

/// Embeds the sources and puts their coresets into the entry, which the caller saves.
///
/// # Errors
/// Those of [`Embedder::embed`] and [`Coreset::new`].
pub fn add_coresets(
    entry: &mut Entry,
    sources: &[Dataset],
    embedder: &mut Embedder,
    options: CoresetOptions,
    (cache, observer): (Option<&Path>, &mut dyn Observer),
) -> Result<Vec<Made>> {
    let CoresetOptions { points, images, seed } = options;
    let mut made = Vec::new();
    for (number, dataset) in sources.iter().enumerate() {
        let points = points.max(dataset.classes.len());
        let sample = Sample { max: images.max(points), seed };
        let (embedded, cached) = embedder.embed(dataset, sample, cache, observer)?;
        let coreset = Coreset::new(&embedded, number, Sample { max: points, seed })?;
        entry.put_coreset(&coreset);
        let (dataset, embedder) = (dataset.name.clone(), coreset.meta.signature.embedder.clone());
        made.push(Made { dataset, embedder, points: coreset.meta.points, cached });
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datasets_of_one_brightness_differ_between_and_within() {
        let of = |mean: f32, std: f32| Normalisation { mean: vec![mean], std: vec![std] };
        assert_eq!(mixture([of(0.25, 0.5)].iter()), of(0.25, 0.5));
        let both = mixture([of(0.2, 0.3), of(0.8, 0.3)].iter());
        assert!((both.mean[0] - 0.5).abs() < 1e-6 && (both.std[0] - (0.09f32 + 0.09).sqrt()).abs() < 1e-6, "{both:?}");
    }
}
