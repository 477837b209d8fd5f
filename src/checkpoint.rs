//! Checkpoints: one safetensors file with the named tensors of a network in PyTorch's layout, its optimisers' state, and
//! a description of the run. Alphas are among the tensors: the published DARTS code forgets them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use crate::data::hash::Hasher;
use crate::data::{Geometry, Normalisation};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::network::{Genotype, Layout, SearchSpace};

/// Version of the file's contents. Raised when an older program could not read them.
const FORMAT: u32 = 1;

/// Key of the description in the file's metadata.
const KEY: &str = "supernet";

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
    /// Class names, in order of the logits.
    pub classes: Vec<String>,
    /// Name of the dataset.
    pub dataset: String,
    /// Content hash of the dataset.
    pub identity: String,
    /// Normalisation of its images.
    pub normalisation: Normalisation,
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

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The description.
    pub meta: Meta,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

fn checksum(description: &str, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> String {
    let mut hasher = Hasher::new("checkpoint");
    hasher.field(description.as_bytes());
    for (name, (shape, values)) in tensors {
        hasher.field(name.as_bytes());
        shape.iter().for_each(|&side| hasher.number(side as u64));
        hasher.field(bytemuck::cast_slice(values));
    }
    hasher.hex()
}

impl Checkpoint {
    /// A checkpoint without tensors.
    pub fn new(meta: Meta) -> Self {
        Self {
            meta: Meta { format: FORMAT, version: env!("CARGO_PKG_VERSION").into(), ..meta },
            tensors: BTreeMap::new(),
        }
    }

    /// Hash of names, shapes and values of all tensors, without the description (which holds the seconds spent).
    pub fn checksum(&self) -> String {
        checksum("", &self.tensors)
    }

    /// Adds a plain vector.
    pub fn put(&mut self, name: &str, values: &[f32]) {
        self.tensors.insert(name.into(), (vec![values.len()], values.to_vec()));
    }

    /// Adds a flat vector laid out like the weights as named tensors `prefix + name`, in PyTorch's layout.
    pub fn put_weights(&mut self, prefix: &str, layout: &Layout, flat: &[f32]) {
        for p in layout.parameters() {
            let mut torch = vec![0.0; p.shape.len()];
            for (i, &value) in flat[p.offset..p.offset + p.shape.len()].iter().enumerate() {
                torch[p.torch_index(i)] = value;
            }
            self.tensors.insert(format!("{prefix}{}", p.name), (p.torch_shape(), torch));
        }
    }

    /// Adds running statistics under the names of all layers that share them.
    pub fn put_running(&mut self, prefix: &str, layout: &Layout, flat: &[f32]) {
        for s in layout.statistics() {
            for (part, at) in [("running_mean", s.offset), ("running_var", s.offset + s.channels)] {
                for name in &s.names {
                    self.put(&format!("{prefix}{name}.{part}"), &flat[at..at + s.channels]);
                }
            }
        }
    }

    /// Reads a plain vector of a known length.
    ///
    /// # Errors
    /// [`Error::Input`] if it is missing or has another length.
    pub fn get(&self, path: &Path, name: &str, len: usize) -> Result<&[f32]> {
        let (shape, values) =
            self.tensors.get(name).ok_or_else(|| Error::input(path, format!("has no tensor `{name}`")))?;
        if values.len() != len {
            return Err(Error::input(path, format!("tensor `{name}` is {shape:?}; {len} elements are needed")));
        }
        Ok(values)
    }

    /// Reads tensors in PyTorch's layout into a flat vector.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first tensor that is missing or of another shape.
    pub fn get_weights(&self, path: &Path, prefix: &str, layout: &Layout) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; layout.weights_len()];
        for p in layout.parameters() {
            let torch = self.get(path, &format!("{prefix}{}", p.name), p.shape.len())?;
            for i in 0..p.shape.len() {
                flat[p.offset + i] = torch[p.torch_index(i)];
            }
        }
        Ok(flat)
    }

    /// Reads running statistics into a flat vector.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first tensor that is missing or of another shape.
    pub fn get_running(&self, path: &Path, prefix: &str, layout: &Layout) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; layout.running_len()];
        for s in layout.statistics() {
            for (part, at) in [("running_mean", s.offset), ("running_var", s.offset + s.channels)] {
                let values = self.get(path, &format!("{prefix}{}.{part}", s.names[0]), s.channels)?;
                flat[at..at + s.channels].copy_from_slice(values);
            }
        }
        Ok(flat)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let views: BTreeMap<&str, TensorView<'_>> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values));
                (name.as_str(), view.expect("shape and values were stored together"))
            })
            .collect();
        let description = serde_json::to_string(&self.meta).expect("the description is plain data");
        let sum = checksum(&description, &self.tensors);
        let metadata = HashMap::from([(KEY.to_string(), description), ("checksum".to_string(), sum)]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|e| Error::input(path, format!("cannot be encoded: {e}")))?;
        write_atomically(path, &bytes)
    }

    /// Reads and verifies a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] if it is damaged or not one of ours.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read the checkpoint"))?;
        let damaged = |what: String| Error::input(path, format!("is damaged or no checkpoint ({what})"));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let description = metadata.get(KEY).ok_or_else(|| {
            Error::input(path, "is a safetensors file of another program: its metadata has no key `supernet`")
        })?;
        let meta: serde_json::Value = serde_json::from_str(description).map_err(|e| damaged(e.to_string()))?;
        let format = meta["format"].as_u64().unwrap_or_default();
        if format != u64::from(FORMAT) {
            let message = format!("has format {format}, this version reads {FORMAT}; use the version that wrote it");
            return Err(Error::input(path, message));
        }
        let meta = serde_json::from_value(meta).map_err(|e| damaged(e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(damaged(format!("tensor `{name}` is {:?}, not f32", view.dtype())));
            }
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            tensors.insert(name, (view.shape().to_vec(), values));
        }
        if metadata.get("checksum") != Some(&checksum(description, &tensors)) {
            return Err(Error::input(path, "is damaged: its checksum does not match; use an earlier checkpoint"));
        }
        Ok(Self { meta, tensors })
    }
}
