//! Checkpoints: the named tensors of a network in PyTorch's layout, its optimisers' state, and a description of the run.
//! Alphas are among the tensors: the published DARTS code forgets them.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Geometry, Normalisation};
use crate::error::Result;
use crate::network::{Genotype, SearchSpace};
use crate::tensors::{FileKind, Storage, Tensors};

const KIND: FileKind = FileKind { key: "supernet", format: 2, name: "checkpoint" };

/// What kind of network a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A supernet with its search space.
    Supernet(SearchSpace),
    /// A derived network.
    Derived {
        /// Its cells.
        genotype: Genotype,
        /// Channels of the first cell.
        channels: usize,
        /// Cells.
        layers: usize,
        /// Whether it has an auxiliary head.
        auxiliary: bool,
    },
}

/// Prefix of what a head has to itself: running statistics and sums.
pub fn head_prefix(head: usize) -> String {
    if head == 0 { String::new() } else { format!("head{head}/") }
}

/// A dataset that a network was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Name of the dataset.
    pub dataset: String,
    /// Content hash of the dataset.
    pub identity: String,
    /// Class names, in order of the logits.
    pub classes: Vec<String>,
    /// Normalisation of its images.
    pub normalisation: Normalisation,
    /// Training images that were used.
    pub images: usize,
}

impl Source {
    /// Of a dataset under a normalisation.
    pub fn new(dataset: &Dataset, normalisation: Normalisation) -> Self {
        Self {
            dataset: dataset.name.clone(),
            identity: dataset.identity.clone(),
            classes: dataset.classes.clone(),
            normalisation,
            images: dataset.train.len(),
        }
    }
}

/// Description of the run that wrote a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the contents.
    pub format: u32,
    /// Version of the program.
    pub version: String,
    /// The network.
    pub network: Network,
    /// Extent of its images.
    pub size: Geometry,
    /// Its datasets, at least one; each has a head of its own.
    pub sources: Vec<Source>,
    /// Seed.
    pub seed: u64,
    /// Epoch in which to continue.
    pub epoch: usize,
    /// Step of that epoch at which to continue.
    pub step: usize,
    /// Seconds spent so far.
    pub seconds: f64,
    /// The settings of the run, as JSON.
    pub config: serde_json::Value,
}

/// A checkpoint in memory: a description and the tensors, to which it dereferences.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The description.
    pub meta: Meta,
    tensors: Tensors,
}

impl Deref for Checkpoint {
    type Target = Tensors;

    fn deref(&self) -> &Tensors {
        &self.tensors
    }
}

impl DerefMut for Checkpoint {
    fn deref_mut(&mut self) -> &mut Tensors {
        &mut self.tensors
    }
}

impl Checkpoint {
    /// A checkpoint without tensors.
    pub fn new(meta: Meta) -> Self {
        let version = env!("CARGO_PKG_VERSION").into();
        Self { meta: Meta { format: KIND.format, version, ..meta }, tensors: Tensors::default() }
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`crate::Error::Io`] naming the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.tensors.save(path, KIND, &self.meta, |_| Storage::F32)
    }

    /// Reads and verifies a file.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it cannot be read, [`crate::Error::Input`] if it is damaged or not one of ours.
    pub fn load(path: &Path) -> Result<Self> {
        let (tensors, meta): (Tensors, Meta) = Tensors::load(path, KIND)?;
        if meta.sources.is_empty() {
            return Err(crate::Error::input(path, "is damaged: it names no dataset"));
        }
        Ok(Self { meta, tensors })
    }
}
