//! One entry of the zoo: a supernet without its optimisers, and coresets of its sources. Weights and points lie in the
//! file as f16, which halves it; labels and statistics of coresets lie there as f32.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Network, Source, head_prefix};
use crate::data::Geometry;
use crate::embedding::{Coreset, CoresetMeta};
use crate::error::{Error, Result};
use crate::network::{SearchSpace, Supernet};
use crate::tensors::{FileKind, Storage, Tensors};

const KIND: FileKind = FileKind { key: "supernet_zoo", format: 1, name: "zoo entry" };

/// What the names of the tensors of coresets start with.
const CORESETS: &str = "coreset.";

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
    /// Coresets of the sources; entries of earlier versions have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coresets: Vec<CoresetMeta>,
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
    /// `coreset.<embedder>.<source>.{points,labels,mean,variance,counts}`.
    coresets: Tensors,
}

/// What the names of the tensors of one coreset start with.
fn coreset_prefix(embedder: &str, source: usize) -> String {
    format!("{CORESETS}{embedder}.{source}.")
}

/// How a tensor lies in the file.
fn storage(name: &str) -> Storage {
    let exact = name.starts_with(CORESETS) && !name.ends_with(".points");
    if exact { Storage::F32 } else { Storage::F16 }
}

impl Entry {
    /// The network, its parameters declared.
    pub fn network(&self) -> Supernet {
        let heads: Vec<usize> = self.meta.sources.iter().map(|s| s.classes.len()).collect();
        Supernet::with_heads(self.meta.space.clone(), self.meta.size, &heads)
    }

    /// Puts a coreset in, in place of the one of the same embedder and source.
    pub fn put_coreset(&mut self, coreset: &Coreset) {
        let meta = &coreset.meta;
        let own = |m: &CoresetMeta| (m.signature.embedder == meta.signature.embedder) && m.source == meta.source;
        self.meta.coresets.retain(|m| !own(m));
        self.meta.coresets.push(meta.clone());
        let prefix = coreset_prefix(&meta.signature.embedder, meta.source);
        let (points, dim, classes) = (meta.points, meta.dim, coreset.counts.len());
        let as_floats = |values: &[u32]| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let tensors = &mut self.coresets;
        tensors.put_shaped(&format!("{prefix}points"), vec![points, dim], coreset.points.clone());
        tensors.put(&format!("{prefix}labels"), &as_floats(&coreset.labels));
        tensors.put_shaped(&format!("{prefix}mean"), vec![classes, dim], coreset.mean.clone());
        tensors.put_shaped(&format!("{prefix}variance"), vec![classes, dim], coreset.variance.clone());
        tensors.put(&format!("{prefix}counts"), &as_floats(&coreset.counts));
    }

    /// The coreset of a source by an embedder, if the entry has it; `path` is the entry's, for messages.
    ///
    /// # Errors
    /// [`Error::Input`] naming a tensor that is missing or of another size.
    pub fn coreset(&self, path: &Path, embedder: &str, source: usize) -> Result<Option<Coreset>> {
        let found = self.meta.coresets.iter().find(|m| m.signature.embedder == embedder && m.source == source);
        let Some(meta) = found else { return Ok(None) };
        let classes = self.meta.sources.get(source).map(|s| s.classes.len());
        let classes = classes.ok_or_else(|| Error::input(path, format!("is damaged: it has no source {source}")))?;
        let prefix = coreset_prefix(embedder, source);
        let get = |part: &str, len: usize| self.coresets.get(path, &format!("{prefix}{part}"), len);
        let whole = |values: &[f32]| values.iter().map(|&v| v as u32).collect::<Vec<_>>();
        let (points, dim) = (meta.points, meta.dim);
        let labels = whole(get("labels", points)?);
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::input(path, format!("is damaged: a point has label {label} of {classes} classes")));
        }
        Ok(Some(Coreset {
            meta: meta.clone(),
            points: get("points", points * dim)?.to_vec(),
            labels,
            mean: get("mean", classes * dim)?.to_vec(),
            variance: get("variance", classes * dim)?.to_vec(),
            counts: whole(get("counts", classes)?),
        }))
    }

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
            coresets: Vec::new(),
        };
        Ok(Self { meta, tensors, coresets: Tensors::default() })
    }

    /// Whether a file is an entry, rather than a checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub fn is_one(path: &Path) -> Result<bool> {
        Tensors::is(path, KIND)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, [`Error::Input`] if a value does not fit into half precision.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut all = self.tensors.clone();
        all.extend(&self.coresets);
        all.save(path, KIND, &self.meta, storage)
    }

    /// Reads and verifies a file: its checksum, and that every tensor of its network is there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] naming what is wrong with it.
    pub fn load(path: &Path) -> Result<Self> {
        let (mut tensors, meta): (Tensors, EntryMeta) = Tensors::load(path, KIND)?;
        let coresets = tensors.take(CORESETS);
        if meta.sources.is_empty() {
            return Err(Error::input(path, "is damaged: it names no dataset"));
        }
        meta.space.check().map_err(|message| Error::input(path, format!("holds an unsound space: {message}")))?;
        let entry = Self { meta, tensors, coresets };
        let network = entry.network();
        entry.tensors.get_weights(path, "", &network.layout)?;
        entry.tensors.get_running(path, "", &network.layout)?;
        let alphas = entry.tensors.get(path, "alphas", network.space.alphas_len())?;
        if let Some(value) = alphas.iter().find(|a| !a.is_finite()) {
            return Err(Error::input(path, format!("has an alpha of {value}")));
        }
        for m in &entry.meta.coresets {
            entry.coreset(path, &m.signature.embedder, m.source)?;
        }
        Ok(entry)
    }
}
