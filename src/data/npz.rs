//! NumPy archives: MedMNIST's keys (`train_images`, `train_labels`, `val_*`, `test_*`), Keras' (`x_train`,
//! `y_train`, `x_test`, `y_test`), one part only (`images` and `labels`, or `x` and `y`), and the layout of the
//! built-in datasets (MedMNIST's keys plus `class_names`, one name a line of UTF-8 text in a `uint8` array).

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use zip::ZipArchive;

use super::files::{self, MAX_IMAGES};
use super::labels;
use super::npy::Array;
use super::{Geometry, Images, Raw};
use crate::error::{Error, Result};

type Archive = ZipArchive<BufReader<File>>;

const TRAIN: &[(&str, &str)] = &[("train_images", "train_labels"), ("x_train", "y_train")];
const VALIDATION: &[(&str, &str)] = &[("val_images", "val_labels"), ("x_val", "y_val")];
const TEST: &[(&str, &str)] = &[("test_images", "test_labels"), ("x_test", "y_test")];
const WHOLE: &[(&str, &str)] = &[("images", "labels"), ("x", "y"), ("X", "y")];

/// Reads the archive at `path`.
pub(super) fn load(path: &Path) -> Result<Raw> {
    let file = BufReader::new(files::open(path)?);
    let mut archive = ZipArchive::new(file).map_err(|error| {
        Error::input(path, format!("is not a readable .npz archive ({error}); if truncated, fetch it again"))
    })?;
    let mut notes = Vec::new();
    let (mut train, mut test) = match read_part(path, &mut archive, TRAIN)? {
        Some(mut train) => {
            if let Some(validation) = read_part(path, &mut archive, VALIDATION)? {
                let n = validation.len();
                append(path, &mut train, validation)?;
                notes.push(format!("the {n} images of the validation part were added to the training part"));
            }
            (train, read_part(path, &mut archive, TEST)?)
        }
        None => match read_part(path, &mut archive, WHOLE)? {
            Some(whole) => (whole, None),
            None => {
                let found: Vec<_> = archive.file_names().flatten().take(8).collect();
                let message = format!(
                    "has no images and labels: expected train_images and train_labels, x_train and y_train, images \
                     and labels, or x and y; found {found:?}"
                );
                return Err(Error::input(path, message));
            }
        },
    };
    let classes = match read_array(path, &mut archive, "class_names")? {
        Some(names) => class_names(path, names)?,
        None => labels::numeric(&mut train.labels, test.as_mut().map(|test| &mut test.labels), &mut notes),
    };
    Ok(Raw { classes, train, test, notes })
}

/// The array `name`, if the archive has it.
fn read_array(path: &Path, archive: &mut Archive, name: &str) -> Result<Option<Array>> {
    let Some(index) = archive.index_for_name(&format!("{name}.npy")) else { return Ok(None) };
    let entry = archive
        .by_index(index)
        .map_err(|error| Error::input(path, format!("array `{name}` cannot be read ({error}); fetch it again")))?;
    Array::read(path, name, entry).map(Some)
}

/// The first of the pairs of keys that is there. Half a pair is an error.
fn read_part(path: &Path, archive: &mut Archive, keys: &[(&str, &str)]) -> Result<Option<Images>> {
    for &(images_key, labels_key) in keys {
        let Some(images) = read_array(path, archive, images_key)? else { continue };
        let Some(labels) = read_array(path, archive, labels_key)? else {
            return Err(Error::input(path, format!("has `{images_key}` but no `{labels_key}`")));
        };
        return part(path, (images_key, images), (labels_key, labels)).map(Some);
    }
    Ok(None)
}

fn part(path: &Path, (images_key, images): (&str, Array), (labels_key, labels): (&str, Array)) -> Result<Images> {
    if !images.is_bytes() {
        return Err(Error::input(path, format!("array `{images_key}` is not uint8; save images of 0 to 255 as uint8")));
    }
    let (n, height, width, channels) = match images.shape[..] {
        [n, height, width] => (n, height, width, 1),
        [n, height, width, channels] => (n, height, width, channels),
        _ => {
            let shape = &images.shape;
            let message = format!("array `{images_key}` has shape {shape:?}, not (images, height, width[, channels])");
            return Err(Error::input(path, message));
        }
    };
    if n == 0 {
        return Err(Error::input(path, format!("array `{images_key}` holds no images")));
    }
    if n > MAX_IMAGES {
        return Err(Error::input(path, format!("array `{images_key}` holds {n} images, above {MAX_IMAGES}")));
    }
    files::check_image_size(path, height, width, channels)?;
    match labels.shape[..] {
        [m] | [m, 1] if m == n => {}
        [m] | [m, 1] => return Err(Error::input(path, format!("`{labels_key}`: {m} labels for {n} images"))),
        _ => {
            let shape = &labels.shape;
            let message =
                format!("array `{labels_key}` has shape {shape:?}, not ({n},) or ({n}, 1): one label an image");
            return Err(Error::input(path, message));
        }
    }
    let labels = labels.labels(path, labels_key)?;
    let geometry = Geometry { height: height as usize, width: width as usize, channels: channels as usize };
    Ok(Images { geometry, pixels: images.bytes, labels })
}

fn append(path: &Path, train: &mut Images, validation: Images) -> Result<()> {
    if train.geometry != validation.geometry {
        let (a, b) = (train.geometry, validation.geometry);
        return Err(Error::input(path, format!("training images are {a} but validation images {b}")));
    }
    train.pixels.extend(validation.pixels);
    train.labels.extend(validation.labels);
    Ok(())
}

fn class_names(path: &Path, names: Array) -> Result<Vec<String>> {
    let text = if names.is_bytes() { String::from_utf8(names.bytes).ok() } else { None };
    let text = text.ok_or_else(|| Error::input(path, "array `class_names` is not UTF-8 text in uint8"))?;
    Ok(text.lines().map(str::to_string).collect())
}
