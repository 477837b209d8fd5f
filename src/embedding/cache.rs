//! The disk cache of embeddings: one file a dataset, embedder and sample, named by the hash of what its points depend on:
//! the images and labels themselves, the embedder with its weights, the size, the profile and the version of the format.
//!
//! A file that is damaged in any way counts as absent and is written anew. The folder can be deleted at any time.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Embedded, Signature};
use crate::data::Images;
use crate::data::hash::Hasher;
use crate::error::{Error, Result};
use crate::tensors::{FileKind, Storage, Tensors};

const KIND: FileKind = FileKind { key: "supernet_embedding", format: 1, name: "embedding" };

/// What a cache file says of itself.
#[derive(Serialize, Deserialize)]
struct Description {
    format: u32,
    key: String,
    signature: Signature,
}

/// Hash of everything that the points of these images depend on, 32 hexadecimal digits.
pub fn key(images: &Images, signature: &Signature) -> String {
    let mut hasher = Hasher::new("embedding");
    hasher.number(KIND.format.into());
    hasher.field(signature.embedder.as_bytes());
    hasher.field(signature.weights.as_bytes());
    hasher.field(signature.profile.name().as_bytes());
    for geometry in [signature.size, images.geometry] {
        [geometry.height, geometry.width, geometry.channels].iter().for_each(|&side| hasher.number(side as u64));
    }
    hasher.field(&images.pixels);
    images.labels.iter().for_each(|&label| hasher.number(label.into()));
    hasher.hex()
}

/// File of a key in the program's cache folder.
pub fn file(folder: &Path, key: &str) -> PathBuf {
    folder.join("embeddings").join(format!("{key}.safetensors"))
}

/// The points of `images` kept under a key: how many elements each has, and all of them. None if there is no sound file.
pub(super) fn read(folder: &Path, key: &str, images: usize) -> Option<(usize, Vec<f32>)> {
    let (tensors, description): (Tensors, Description) = Tensors::load(&file(folder, key), KIND).ok()?;
    let (shape, points) = tensors.find("points")?;
    match shape {
        &[n, dim] if n == images && description.key == key => Some((dim, points.to_vec())),
        _ => None,
    }
}

/// Keeps an embedding.
pub(super) fn write(folder: &Path, key: &str, embedded: &Embedded) -> Result<()> {
    let path = file(folder, key);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io(parent, "create the folder"))?;
    }
    let mut tensors = Tensors::default();
    tensors.put_shaped("points", vec![embedded.len(), embedded.dim], embedded.points.clone());
    let description = Description { format: KIND.format, key: key.to_string(), signature: embedded.signature.clone() };
    tensors.save(&path, KIND, &description, |_| Storage::F32)
}
