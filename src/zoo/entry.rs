//! One entry of the zoo: a supernet without its optimisers. Values lie in the file as f16, which halves it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Network, Source, head_prefix};
use crate::data::Geometry;
use crate::error::{Error, Result};
use crate::network::{SearchSpace, Supernet};
use crate::tensors::{FileKind, Storage, Tensors};

const KIND: FileKind = FileKind { key: "supernet_zoo", format: 1, name: "zoo entry" };

/// How a supernet was trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Epochs that were finished.
    pub epochs: usize,
    /// Seconds of the training.
    pub seconds: f64,
    /// The settings, as JSON.
    pub config: serde_json::Value,
    /// Version of the program.
    pub version: String,
}

/// Description of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryMeta {
    /// Version of the contents.
    pub format: u32,
    /// Name, also of the file.
    pub name: String,
    /// The search space.
    pub space: SearchSpace,
    /// Extent of the images.
    pub size: Geometry,
    /// The datasets.
    pub sources: Vec<Source>,
    /// Licence of the datasets and so of the weights, as told by who added the entry.
    pub licence: String,
    /// The training.
    pub record: Record,
}

impl EntryMeta {
    /// Whether it was trained on several datasets.
    pub fn multi(&self) -> bool {
        self.sources.len() > 1
    }
}

/// An entry in memory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The description.
    pub meta: EntryMeta,
    /// Weights and running statistics under PyTorch's names, and `alphas`.
    pub tensors: Tensors,
}

impl Entry {
    /// Makes an entry of the checkpoint of a search or a pretraining. The running statistics of several datasets become
    /// one: means of the means; variances of the mixture that gives every dataset the same share.
    ///
    /// # Errors
    /// [`Error::Input`] if the checkpoint holds a derived network or lacks a tensor.
    pub fn from_checkpoint(checkpoint: &Checkpoint, path: &Path, name: &str, licence: &str) -> Result<Self> {
        let meta = &checkpoint.meta;
        let Network::Supernet(space) = &meta.network else {
            return Err(Error::input(path, "holds a derived network; a zoo entry is a supernet (`supernet pretrain`)"));
        };
        let heads: Vec<usize> = meta.sources.iter().map(|s| s.classes.len()).collect();
        let network = Supernet::with_heads(space.clone(), meta.size, &heads);
        let layout = &network.layout;
        let mut tensors = Tensors::default();
        tensors.put_weights("", layout, &checkpoint.get_weights(path, "", layout)?);
        let all: Vec<Vec<f32>> = (0..heads.len())
            .map(|head| checkpoint.get_running(path, &head_prefix(head), layout))
            .collect::<Result<_>>()?;
        let mut running = vec![0.0; layout.running_len()];
        for s in layout.statistics() {
            for c in 0..s.channels {
                let (at_mean, at_var) = (s.offset + c, s.offset + s.channels + c);
                let share = 1.0 / all.len() as f32;
                let mean: f32 = all.iter().map(|r| share * r[at_mean]).sum();
                running[at_mean] = mean;
                running[at_var] = all.iter().map(|r| share * (r[at_var] + (r[at_mean] - mean).powi(2))).sum();
            }
        }
        tensors.put_running("", layout, &running);
        tensors.put("alphas", checkpoint.get(path, "alphas", network.space.alphas_len())?);
        let record = Record {
            epochs: meta.epoch,
            seconds: meta.seconds,
            config: meta.config.clone(),
            version: meta.version.clone(),
        };
        let meta = EntryMeta {
            format: KIND.format,
            name: name.into(),
            space: space.clone(),
            size: meta.size,
            sources: meta.sources.clone(),
            licence: licence.into(),
            record,
        };
        Ok(Self { meta, tensors })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, [`Error::Input`] if a value does not fit into half precision.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.tensors.save(path, KIND, &self.meta, Storage::F16)
    }

    /// Reads and verifies a file: its checksum, and that every tensor of its network is there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] naming what is wrong with it.
    pub fn load(path: &Path) -> Result<Self> {
        let (tensors, meta): (Tensors, EntryMeta) = Tensors::load(path, KIND)?;
        if meta.sources.is_empty() {
            return Err(Error::input(path, "is damaged: it names no dataset"));
        }
        meta.space.check().map_err(|message| Error::input(path, format!("holds an unsound space: {message}")))?;
        let heads: Vec<usize> = meta.sources.iter().map(|s| s.classes.len()).collect();
        let network = Supernet::with_heads(meta.space.clone(), meta.size, &heads);
        tensors.get_weights(path, "", &network.layout)?;
        tensors.get_running(path, "", &network.layout)?;
        let alphas = tensors.get(path, "alphas", network.space.alphas_len())?;
        if let Some(value) = alphas.iter().find(|a| !a.is_finite()) {
            return Err(Error::input(path, format!("has an alpha of {value}")));
        }
        Ok(Self { meta, tensors })
    }
}
