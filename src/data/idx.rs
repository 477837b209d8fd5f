//! IDX files in MNIST's layout: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the `t10k-` (or `test-`)
//! pair, plain or `.gz`, with a dash or a dot before `idx`, with or without a prefix such as `emnist-letters-`.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::files::{self, MAX_IMAGES};
use super::labels;
use super::{Geometry, Images, Raw};
use crate::error::{Error, Result};

/// Type code of unsigned bytes, the third byte of an IDX file.
const UNSIGNED_BYTE: u8 = 0x08;

/// Reads the folder at `path`.
pub(super) fn load(path: &Path) -> Result<Raw> {
    files::expect_folder(path, "idx")?;
    let names = names(path)?;
    let part = |prefix: &str| -> Result<Option<Images>> {
        let images =
            find(path, &names, &[format!("{prefix}-images-idx3-ubyte"), format!("{prefix}-images-idx4-ubyte")])?;
        let labels = find(path, &names, &[format!("{prefix}-labels-idx1-ubyte")])?;
        match (images, labels) {
            (Some(images), Some(labels)) => read_part(&images, &labels).map(Some),
            (None, None) => Ok(None),
            (Some(images), None) => Err(Error::input(images, format!("has no {prefix}-labels-idx1-ubyte beside it"))),
            (None, Some(labels)) => Err(Error::input(labels, format!("has no {prefix}-images-idx3-ubyte beside it"))),
        }
    };
    let mut train = part("train")?.ok_or_else(|| {
        Error::input(path, "holds no train-images-idx3-ubyte and train-labels-idx1-ubyte (plain or .gz)")
    })?;
    let mut test = match part("t10k")? {
        Some(test) => Some(test),
        None => part("test")?,
    };
    let mut notes = Vec::new();
    let classes = labels::numeric(&mut train.labels, test.as_mut().map(|test| &mut test.labels), &mut notes);
    Ok(Raw { classes, train, test, notes })
}

/// The file names of a folder that are UTF-8 (all of ours are), sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The one file whose normalised name ends in one of `endings`; of a plain and a compressed twin the plain one.
fn find(folder: &Path, names: &[String], endings: &[String]) -> Result<Option<PathBuf>> {
    let stem = |name: &str| name.strip_suffix(".gz").unwrap_or(name).to_string();
    let matches = |name: &&String| {
        let normal = stem(name).replace(".idx", "-idx");
        let whole_word = |ending: &String| {
            normal.strip_suffix(ending.as_str()).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-'))
        };
        endings.iter().any(whole_word)
    };
    let mut found: Vec<&String> = names.iter().filter(matches).collect();
    // Sorted, a plain file comes right before its compressed twin.
    found.dedup_by(|next, kept| stem(next) == stem(kept));
    match found[..] {
        [] => Ok(None),
        [name] => Ok(Some(folder.join(name))),
        [first, second, ..] => {
            Err(Error::input(folder, format!("`{first}` and `{second}` could both be meant; keep one of them")))
        }
    }
}

fn read_part(images: &Path, labels: &Path) -> Result<Images> {
    let (shape, pixels) = read_array(images, &[3, 4])?;
    let (label_shape, bytes) = read_array(labels, &[1])?;
    let channels = shape.get(3).copied().unwrap_or(1);
    if shape[0] == 0 {
        return Err(Error::input(images, "holds no images"));
    }
    if shape[0] != label_shape[0] {
        let (n, m) = (shape[0], label_shape[0]);
        return Err(Error::input(labels, format!("{m} labels for the {n} images of {}", images.display())));
    }
    files::check_image_size(images, shape[1], shape[2], channels)?;
    let geometry = Geometry { height: shape[1] as usize, width: shape[2] as usize, channels: channels as usize };
    Ok(Images { geometry, pixels, labels: bytes.into_iter().map(u32::from).collect() })
}

/// Shape and elements of an array of unsigned bytes with one of the given numbers of dimensions.
fn read_array(path: &Path, dimensions: &[u8]) -> Result<(Vec<u64>, Vec<u8>)> {
    let mut reader = files::open_maybe_gz(path)?;
    let mut word = [0; 4];
    reader.read_exact(&mut word).map_err(|error| files::read_error(path, error))?;
    let [zero, also_zero, kind, count] = word;
    if (zero, also_zero) != (0, 0) || kind != UNSIGNED_BYTE || !dimensions.contains(&count) {
        let magic = u32::from_be_bytes(word);
        let expected = u32::from_be_bytes([0, 0, UNSIGNED_BYTE, dimensions[0]]);
        return Err(Error::input(
            path,
            format!("is not an IDX file of the expected kind: it starts with {magic:#010x}, not {expected:#010x}"),
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..count {
        reader.read_exact(&mut word).map_err(|error| files::read_error(path, error))?;
        shape.push(u64::from(u32::from_be_bytes(word)));
    }
    if shape[0] > MAX_IMAGES {
        return Err(Error::input(path, format!("declares {} items, above the limit of {MAX_IMAGES}", shape[0])));
    }
    let bytes = files::declared_bytes(path, &shape)?;
    let data = files::read_declared(path, reader, bytes, &format!("array of shape {shape:?}"))?;
    Ok((shape, data))
}
