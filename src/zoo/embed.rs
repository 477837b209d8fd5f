//! Coresets of an entry's sources: loads the very training images that the entry was trained on and embeds them.

use std::path::Path;

use serde::Serialize;

use super::Entry;
use crate::config::SearchConfig;
use crate::data::Dataset;
use crate::embedding::{Coreset, Embedder, Sample};
use crate::error::{Error, Result};
use crate::run::{self, Observer};

/// How much of a source is embedded and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoresetOptions {
    /// Points that the entry keeps of each source.
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
        let sample = Sample { max: images.max(points), seed };
        let (embedded, cached) = embedder.embed(dataset, sample, cache, observer)?;
        let coreset = Coreset::new(&embedded, number, Sample { max: points, seed })?;
        entry.put_coreset(&coreset);
        let (dataset, embedder) = (dataset.name.clone(), coreset.meta.signature.embedder.clone());
        made.push(Made { dataset, embedder, points: coreset.meta.points, cached });
    }
    Ok(made)
}
