//! Files of an embedding for other programs: safetensors with points and labels, or NumPy arrays.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Embedded, Signature};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::tensors::{FileKind, Storage, Tensors};

const KIND: FileKind = FileKind { key: "supernet_points", format: 1, name: "file of points" };

/// What a safetensors file says of its points.
#[derive(Serialize)]
struct Description<'a> {
    format: u32,
    name: &'a str,
    classes: &'a [String],
    signature: &'a Signature,
}

/// Checks that a file can be written, before the time for an embedding is spent.
///
/// # Errors
/// [`Error::Usage`] if the name ends in neither `.safetensors` nor `.npy`.
pub fn check(path: &Path) -> Result<()> {
    match ending(path) {
        "safetensors" | "npy" => Ok(()),
        _ => Err(Error::usage(format!("{}: name a file that ends in .safetensors or .npy", path.display()))),
    }
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

/// Writes `points` (f32, n x dim) and `labels` as one safetensors file (labels as f32), or as `FILE.npy` and
/// `FILE.labels.npy` (labels as u32). Returns the files.
///
/// # Errors
/// [`Error::Usage`] for another ending, [`Error::Io`] naming a file that cannot be written.
pub fn write(path: &Path, embedded: &Embedded) -> Result<Vec<PathBuf>> {
    check(path)?;
    let Embedded { name, dim, points, labels, classes, signature } = embedded;
    if ending(path) == "safetensors" {
        let mut tensors = Tensors::default();
        tensors.put_shaped("points", vec![labels.len(), *dim], points.clone());
        tensors.put("labels", &labels.iter().map(|&label| label as f32).collect::<Vec<_>>());
        let description = Description { format: KIND.format, name, classes, signature };
        tensors.save(path, KIND, &description, |_| Storage::F32)?;
        return Ok(vec![path.to_path_buf()]);
    }
    let beside = path.with_extension("labels.npy");
    let bytes: Vec<u8> = points.iter().flat_map(|v| v.to_le_bytes()).collect();
    write_atomically(path, &npy("<f4", &[labels.len(), *dim], &bytes))?;
    let bytes: Vec<u8> = labels.iter().flat_map(|v| v.to_le_bytes()).collect();
    write_atomically(&beside, &npy("<u4", &[labels.len()], &bytes))?;
    Ok(vec![path.to_path_buf(), beside])
}

/// A NumPy array, version 1.0, in C order.
fn npy(descr: &str, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let extents: String = shape.iter().map(|side| format!("{side},")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
    // Magic, version, length, header and the line feed that ends it fill a multiple of 64 bytes.
    let padding = (10 + header.len() + 1).next_multiple_of(64) - (10 + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.bytes());
    file.extend(bytes);
    file
}
