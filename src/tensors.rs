//! Files of named tensors: safetensors with a JSON description of what they are and a checksum over both. Checkpoints
//! and zoo entries are such files; values are f32 in memory, and may lie in the file as f16.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::data::hash::Hasher;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::network::Layout;

/// How values lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As they are.
    F32,
    /// Rounded to half precision.
    F16,
}

/// What is said of a kind of file.
#[derive(Clone, Copy, Debug)]
pub struct FileKind {
    /// Key of its description in the metadata.
    pub key: &'static str,
    /// Version of its contents. Raised when an older program could not read them.
    pub format: u32,
    /// What to call it in messages.
    pub name: &'static str,
}

/// Shape and values of a tensor.
type Named = (Vec<usize>, Vec<f32>);

/// Named tensors in memory.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    map: BTreeMap<String, Named>,
}

fn checksum(description: &str, tensors: &BTreeMap<String, Named>) -> String {
    let mut hasher = Hasher::new("checkpoint");
    hasher.field(description.as_bytes());
    for (name, (shape, values)) in tensors {
        hasher.field(name.as_bytes());
        shape.iter().for_each(|&side| hasher.number(side as u64));
        hasher.field(bytemuck::cast_slice(values));
    }
    hasher.hex()
}

/// All tensors of a file, widened to f32. `counters`: it may hold tensors of integers, which are left out.
fn values(file: &SafeTensors<'_>, counters: bool) -> Result<BTreeMap<String, Named>, String> {
    let mut map = BTreeMap::new();
    for (name, view) in file.tensors() {
        let values = match view.dtype() {
            Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::I64 if counters => continue,
            other => return Err(format!("tensor `{name}` is {other:?}, neither f32 nor f16")),
        };
        map.insert(name, (view.shape().to_vec(), values));
    }
    Ok(map)
}

impl Tensors {
    /// Hash of names, shapes and values.
    pub fn checksum(&self) -> String {
        checksum("", &self.map)
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Shape and values of a tensor, if it is there.
    pub fn find(&self, name: &str) -> Option<(&[usize], &[f32])> {
        self.map.get(name).map(|(shape, values)| (&shape[..], &values[..]))
    }

    /// Removes the tensors whose names start with a prefix and returns them.
    pub fn take(&mut self, prefix: &str) -> Self {
        let (taken, kept) = std::mem::take(&mut self.map).into_iter().partition(|(name, _)| name.starts_with(prefix));
        self.map = kept;
        Self { map: taken }
    }

    /// Adds all tensors of another collection.
    pub fn extend(&mut self, other: &Self) {
        self.map.extend(other.map.iter().map(|(name, named)| (name.clone(), named.clone())));
    }

    /// Adds a plain vector.
    pub fn put(&mut self, name: &str, values: &[f32]) {
        self.put_shaped(name, vec![values.len()], values.to_vec());
    }

    /// Adds a tensor.
    ///
    /// # Panics
    /// If the shape is not that of the values.
    pub fn put_shaped(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}: shape and values disagree");
        self.map.insert(name.into(), (shape, values));
    }

    /// Adds a flat vector laid out like the weights as named tensors `prefix + name`, in PyTorch's layout.
    pub fn put_weights(&mut self, prefix: &str, layout: &Layout, flat: &[f32]) {
        for p in layout.parameters() {
            let mut torch = vec![0.0; p.shape.len()];
            for (i, &value) in flat[p.offset..p.offset + p.shape.len()].iter().enumerate() {
                torch[p.torch_index(i)] = value;
            }
            self.put_shaped(&format!("{prefix}{}", p.name), p.torch_shape(), torch);
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
        let (shape, values) = self.find(name).ok_or_else(|| Error::input(path, format!("has no tensor `{name}`")))?;
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

    /// Writes a file, whole or not at all. `description` must have a key `format`; `storage` says of each name how its
    /// values lie in the file.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file, [`Error::Input`] if a value does not fit into half precision.
    pub fn save(
        &self,
        path: &Path,
        kind: FileKind,
        description: &impl Serialize,
        storage: impl Fn(&str) -> Storage,
    ) -> Result<()> {
        let mut map = self.map.clone();
        let mut halves: BTreeMap<&str, Vec<f16>> = BTreeMap::new();
        for (name, (_, values)) in map.iter_mut().filter(|(name, _)| storage(name) == Storage::F16) {
            let half: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            if half.iter().zip(&*values).any(|(h, v)| !h.is_finite() && v.is_finite()) {
                return Err(Error::input(path, format!("tensor `{name}` has values beyond half precision")));
            }
            values.iter_mut().zip(&half).for_each(|(v, h)| *v = h.to_f32());
            halves.insert(self.map.get_key_value(name).expect("a name of the same map").0, half);
        }
        let views: BTreeMap<&str, TensorView<'_>> = map
            .iter()
            .map(|(name, (shape, values))| {
                let view = match halves.get(name.as_str()) {
                    Some(half) => TensorView::new(Dtype::F16, shape.clone(), bytemuck::cast_slice(half)),
                    None => TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)),
                };
                (name.as_str(), view.expect("shape and values were stored together"))
            })
            .collect();
        let description = serde_json::to_string(description).expect("descriptions are plain data");
        let sum = checksum(&description, &map);
        let metadata = HashMap::from([(kind.key.to_string(), description), ("checksum".to_string(), sum)]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|e| Error::input(path, format!("cannot be encoded: {e}")))?;
        write_atomically(path, &bytes)
    }

    /// Reads a safetensors file that need not be one of ours: it has no description and no checksum, and counters in it,
    /// such as PyTorch's batch norms keep, are left out.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] if it is no safetensors file of f32 or f16.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read the file"))?;
        let damaged = |what: String| Error::input(path, format!("is damaged or no safetensors file ({what})"));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        Ok(Self { map: values(&file, true).map_err(damaged)? })
    }

    /// Whether a file says that it is of a kind; a damaged file says nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub fn is(path: &Path, kind: FileKind) -> Result<bool> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read the file"))?;
        let header = SafeTensors::read_metadata(&bytes).ok();
        Ok(header.and_then(|(_, h)| h.metadata().clone()).is_some_and(|m| m.contains_key(kind.key)))
    }

    /// Reads and verifies a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] if it is damaged or not one of ours.
    pub fn load<D: DeserializeOwned>(path: &Path, kind: FileKind) -> Result<(Self, D)> {
        let FileKind { key, format, name } = kind;
        let bytes = std::fs::read(path).map_err(Error::io(path, "read the file"))?;
        let damaged = |what: String| Error::input(path, format!("is damaged or no {name} ({what})"));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let description = metadata.get(key).ok_or_else(|| {
            Error::input(path, format!("is a safetensors file, but no {name}: its metadata has no key `{key}`"))
        })?;
        let value: serde_json::Value = serde_json::from_str(description).map_err(|e| damaged(e.to_string()))?;
        let found = value["format"].as_u64().unwrap_or_default();
        if found != u64::from(format) {
            let message = format!("has format {found}, this version reads {format}; use the version that wrote it");
            return Err(Error::input(path, message));
        }
        let described = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        let map = values(&file, false).map_err(damaged)?;
        if metadata.get("checksum") != Some(&checksum(description, &map)) {
            return Err(Error::input(path, "is damaged: its checksum does not match; use another copy of it"));
        }
        Ok((Self { map }, described))
    }
}
