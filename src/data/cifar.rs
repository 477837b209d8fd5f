//! The binary versions of CIFAR-10 (`data_batch_N.bin`, `test_batch.bin`) and CIFAR-100 (`train.bin`, `test.bin`,
//! fine labels). Images are planar there and become NHWC here.

use std::path::{Path, PathBuf};

use super::files::{self, MAX_BYTES};
use super::{Geometry, Images, Raw};
use crate::error::{Error, Result};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const GEOMETRY: Geometry = Geometry { height: SIDE, width: SIDE, channels: 3 };
/// The most bytes of a list of class names.
const MAX_NAMES: u64 = 1 << 20;

/// One of the two datasets.
struct Variant {
    classes: usize,
    /// Label bytes before the pixels of a record; the last one is the label used.
    label_bytes: usize,
    names: &'static str,
}

const CIFAR10: Variant = Variant { classes: 10, label_bytes: 1, names: "batches.meta.txt" };
const CIFAR100: Variant = Variant { classes: 100, label_bytes: 2, names: "fine_label_names.txt" };

/// Reads the folder at `path`, or the folder of the official archive inside it.
pub(super) fn load(path: &Path) -> Result<Raw> {
    files::expect_folder(path, "cifar")?;
    for folder in [path, &path.join("cifar-10-batches-bin"), &path.join("cifar-100-binary")] {
        let batches = batches(folder)?;
        let (variant, train, test) = if !batches.is_empty() {
            (CIFAR10, batches, folder.join("test_batch.bin"))
        } else if folder.join("train.bin").is_file() {
            (CIFAR100, vec![folder.join("train.bin")], folder.join("test.bin"))
        } else {
            continue;
        };
        let train = read(&train, &variant)?;
        let test = if test.exists() { Some(read(&[test], &variant)?) } else { None };
        return Ok(Raw { classes: names(folder, &variant)?, train, test, notes: Vec::new() });
    }
    Err(Error::input(path, "holds neither data_batch_1.bin (CIFAR-10) nor train.bin (CIFAR-100)"))
}

/// `data_batch_1.bin` and so on. A gap in the numbers is an error: a part of the download is missing.
fn batches(folder: &Path) -> Result<Vec<PathBuf>> {
    let name = |number: usize| folder.join(format!("data_batch_{number}.bin"));
    let present: Vec<usize> = (1..=99).filter(|&number| name(number).exists()).collect();
    if let Some(&last) = present.last()
        && last != present.len()
    {
        let missing = (1..).find(|number| !present.contains(number)).unwrap_or(last);
        return Err(Error::input(name(missing), format!("is missing, though data_batch_{last}.bin is there")));
    }
    Ok(present.into_iter().map(name).collect())
}

fn read(paths: &[PathBuf], variant: &Variant) -> Result<Images> {
    let record = variant.label_bytes + 3 * PLANE;
    let mut images = Images { geometry: GEOMETRY, pixels: Vec::new(), labels: Vec::new() };
    for path in paths {
        let bytes = files::read_bounded(path, MAX_BYTES - images.pixels.len() as u64)?;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            let found = bytes.len();
            return Err(Error::input(
                path,
                format!("{found} bytes are not a whole number of records of {record} bytes: truncated or not CIFAR"),
            ));
        }
        for (i, record) in bytes.chunks_exact(record).enumerate() {
            let label = record[variant.label_bytes - 1];
            if usize::from(label) >= variant.classes {
                let classes = variant.classes;
                return Err(Error::input(path, format!("record {i} has label {label}, beyond the {classes} classes")));
            }
            images.labels.push(u32::from(label));
            let planes = &record[variant.label_bytes..];
            images.pixels.extend((0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]));
        }
    }
    Ok(images)
}

/// Class names from the list beside the data, or numbers.
fn names(folder: &Path, variant: &Variant) -> Result<Vec<String>> {
    let path = folder.join(variant.names);
    if !path.exists() {
        return Ok((0..variant.classes).map(|class| class.to_string()).collect());
    }
    let text = files::read_text(&path, MAX_NAMES)?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string).collect();
    if names.len() != variant.classes {
        return Err(Error::input(path, format!("{} class names, expected {}", names.len(), variant.classes)));
    }
    Ok(names)
}
