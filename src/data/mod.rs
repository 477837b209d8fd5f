//! Labelled image datasets: readers for the common layouts, seeded splits, statistics and batches.
//!
//! [`load`] turns a [`Spec`] into a [`Dataset`]: images of one size as bytes, NHWC, with a training and a test
//! part. Readers only find and decode what is stored; conversion to one geometry (`resize`), the split where no
//! test part exists, and all checks that every format shares are done here. Files are not trusted: whatever they
//! declare is bounded before memory is taken, and an error names the file and what to do.
//!
//! Nothing depends on the number of threads or on the order in which a file system lists a folder.

mod cifar;
#[cfg(feature = "files")]
mod contact_sheet;
mod describe;
mod files;
pub(crate) mod hash;
mod idx;
mod labels;
mod loader;
mod resize;
mod spec;
mod split;

#[cfg(feature = "files")]
mod atomic;
#[cfg(feature = "files")]
mod builtin;
#[cfg(feature = "files")]
mod cache;
#[cfg(feature = "files")]
mod csv;
#[cfg(feature = "files")]
mod decode;
#[cfg(feature = "files")]
mod folder;
#[cfg(feature = "files")]
mod listing;
#[cfg(feature = "files")]
mod meta_album;
#[cfg(feature = "files")]
mod npy;
#[cfg(feature = "files")]
mod npz;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[cfg(feature = "files")]
pub use contact_sheet::contact_sheet;
pub use describe::{ClassCount, Description, Normalisation, describe, normalisation};
pub use loader::{Batch, Loader};
#[cfg(feature = "files")]
pub use npy::{Matrix, read_matrix};
pub use spec::{BUILTINS, Spec};
pub use split::{permutation, stratified_split, stratified_subset};

use files::{MAX_CLASSES, MAX_PIXELS};

/// Size of an image. Shown as `HxWxC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
}

impl Geometry {
    /// Values of one image: `height * width * channels`.
    pub fn values(&self) -> usize {
        self.height * self.width * self.channels
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

/// Labelled images, `u8`, NHWC, all of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Size of every image.
    pub geometry: Geometry,
    /// `n * height * width * channels` values, 0 to 255.
    pub pixels: Vec<u8>,
    /// Class of each image.
    pub labels: Vec<u32>,
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The values of image `i`, HWC.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn image(&self, i: usize) -> &[u8] {
        let values = self.geometry.values();
        &self.pixels[i * values..][..values]
    }

    /// Copies of the images at `indices`, in that order.
    ///
    /// # Panics
    /// If an index is not below [`Images::len`].
    pub fn subset(&self, indices: &[usize]) -> Images {
        let mut pixels = Vec::with_capacity(indices.len() * self.geometry.values());
        indices.iter().for_each(|&i| pixels.extend_from_slice(self.image(i)));
        Images { geometry: self.geometry, pixels, labels: indices.iter().map(|&i| self.labels[i]).collect() }
    }

    /// The images brought to a geometry: bilinear, antialiased where they shrink, grey replicated to three channels.
    ///
    /// # Errors
    /// [`Error::Usage`] if the channels cannot be converted.
    pub fn converted(self, to: Geometry) -> Result<Images> {
        let from = self.geometry;
        if !resize::channels_convertible(from.channels, to.channels) {
            return Err(Error::usage(format!("images {from} cannot become {to}; use 1 or 3 channels")));
        }
        Ok(resize::convert(self, to))
    }

    /// How many images each of `classes` classes has.
    ///
    /// # Panics
    /// If a label is not below `classes`.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        self.labels.iter().for_each(|&label| counts[label as usize] += 1);
        counts
    }
}

/// A dataset in memory. Both parts have the same geometry and every class has training images.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Short name: of the built-in, or of the file or folder.
    pub name: String,
    /// Hash of geometry, pixels, labels and class names, 32 hexadecimal digits; checkpoints carry it.
    pub identity: String,
    /// Class names; labels index them.
    pub classes: Vec<String>,
    /// The training part.
    pub train: Images,
    /// The test part.
    pub test: Images,
    /// Remarks for the user, such as that the test part was split off.
    pub notes: Vec<String>,
}

/// How to load a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// Height and width that every image is resized to; `None` for the dataset's own, which must then be one.
    pub size: Option<(usize, usize)>,
    /// 1 (grey) or 3 (colour); `None` for the stored number of channels.
    pub channels: Option<usize>,
    /// Seed of the split into training and test part.
    pub split_seed: u64,
    /// Share of the images that become the test part where the dataset has none; between 0 and 1.
    pub test_fraction: f64,
    /// Folder in which decoded image files are kept for the next time; `None` to decode every time.
    pub cache: Option<PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { size: None, channels: None, split_seed: 0, test_fraction: 0.2, cache: None }
    }
}

/// What a reader returns: parts as stored.
struct Raw {
    classes: Vec<String>,
    train: Images,
    test: Option<Images>,
    notes: Vec<String>,
}

/// Loads a dataset.
///
/// # Errors
/// [`Error::Usage`] if the options make no sense or a built-in is not installed, [`Error::Io`] if a path cannot be
/// read, [`Error::Input`] if the contents cannot be used.
pub fn load(spec: &Spec, options: &LoadOptions) -> Result<Dataset> {
    check(options)?;
    let (path, raw) = read(spec, options)?;
    let name = match spec {
        Spec::Builtin(name) => name.clone(),
        Spec::Npz(_) => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        _ => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
    };
    finish(name, &path, raw, options)
}

fn check(options: &LoadOptions) -> Result<()> {
    if let Some((height, width)) = options.size
        && (height == 0 || width == 0 || (height as u64).saturating_mul(width as u64) > MAX_PIXELS)
    {
        let limit = MAX_PIXELS / 1_000_000;
        return Err(Error::usage(format!("size {height}x{width}: images have 1 pixel to {limit} million")));
    }
    if let Some(channels) = options.channels
        && !(1..=4).contains(&channels)
    {
        return Err(Error::usage(format!("{channels} channels: images have 1 to 4")));
    }
    let fraction = options.test_fraction;
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::usage(format!("test fraction {fraction}: must be between 0 and 1, both excluded")));
    }
    Ok(())
}

#[cfg(feature = "files")]
fn read(spec: &Spec, options: &LoadOptions) -> Result<(PathBuf, Raw)> {
    Ok(match spec {
        Spec::Builtin(name) => builtin::load(name)?,
        Spec::Idx(path) => (path.clone(), idx::load(path)?),
        Spec::Folder(path) => (path.clone(), folder::list(path)?.load(path, options)?),
        Spec::Cifar(path) => (path.clone(), cifar::load(path)?),
        Spec::Npz(path) => (path.clone(), npz::load(path)?),
        Spec::MetaAlbum(path) => (path.clone(), meta_album::list(path)?.load(path, options)?),
    })
}

#[cfg(not(feature = "files"))]
fn read(spec: &Spec, _: &LoadOptions) -> Result<(PathBuf, Raw)> {
    Ok(match spec {
        Spec::Idx(path) => (path.clone(), idx::load(path)?),
        Spec::Cifar(path) => (path.clone(), cifar::load(path)?),
        _ => {
            return Err(Error::usage(format!(
                "{spec}: this build reads only idx: and cifar: (feature `files` is off)"
            )));
        }
    })
}

/// Checks what a reader returned, splits it if it has one part only, and converts it.
fn finish(name: String, path: &Path, raw: Raw, options: &LoadOptions) -> Result<Dataset> {
    let Raw { classes, train, test, mut notes } = raw;
    check_classes(path, &classes)?;
    check_labels(path, "training", &train, &classes)?;
    let counts = train.class_counts(classes.len());
    if let Some(empty) = counts.iter().position(|&n| n == 0) {
        let name = &classes[empty];
        return Err(Error::input(path, format!("class `{name}` (label {empty}) is empty: it has no training images")));
    }
    let (train, test) = match test {
        Some(test) => {
            if test.is_empty() {
                return Err(Error::input(path, "the test part is empty; add images or remove it"));
            }
            check_labels(path, "test", &test, &classes)?;
            (train, test)
        }
        None => {
            let (fraction, seed) = (options.test_fraction, options.split_seed);
            let (kept, off) = stratified_split(&train.labels, classes.len(), 1.0 - fraction, seed);
            if kept.is_empty() || off.is_empty() {
                let n = train.len();
                return Err(Error::input(path, format!("{n} images are too few to split off a test part; add images")));
            }
            let percent = 100.0 * fraction;
            notes.push(format!("no test part found: {percent} % split off, stratified, seed {seed}"));
            (train.subset(&kept), train.subset(&off))
        }
    };
    check_every_class(path, &train, &test, &classes, &mut notes)?;
    let train = convert(path, train, options)?;
    let test = convert(path, test, options)?;
    if train.geometry != test.geometry {
        let (a, b) = (train.geometry, test.geometry);
        let message = format!("training images are {a}, test images {b}: pass --size HxW and channels to convert both");
        return Err(Error::input(path, message));
    }
    let identity = identity(&classes, &train, &test);
    Ok(Dataset { name, identity, classes, train, test, notes })
}

fn check_classes(path: &Path, classes: &[String]) -> Result<()> {
    match classes {
        [] => return Err(Error::input(path, "holds no images: the dataset is empty")),
        [only] => {
            return Err(Error::input(path, format!("only one class (`{only}`): classification needs at least two")));
        }
        _ if classes.len() > MAX_CLASSES => {
            return Err(Error::input(path, format!("{} classes, above the limit of {MAX_CLASSES}", classes.len())));
        }
        _ => {}
    }
    let mut seen = HashSet::new();
    for name in classes {
        if name.trim().is_empty() {
            return Err(Error::input(path, "a class has no name"));
        }
        if !seen.insert(name.trim()) {
            return Err(Error::input(path, format!("two classes are named `{name}`; class names must differ")));
        }
    }
    Ok(())
}

fn check_labels(path: &Path, part: &str, images: &Images, classes: &[String]) -> Result<()> {
    match images.labels.iter().position(|&label| label as usize >= classes.len()) {
        None => Ok(()),
        Some(i) => {
            let (label, n) = (images.labels[i], classes.len());
            Err(Error::input(path, format!("{part} image {i} has label {label}, beyond the {n} classes")))
        }
    }
}

/// After a split of single-image classes, or in a test part as it was stored, a class may lack images.
fn check_every_class(
    path: &Path,
    train: &Images,
    test: &Images,
    classes: &[String],
    notes: &mut Vec<String>,
) -> Result<()> {
    let without = |part: &Images| -> Vec<&str> {
        let counts = part.class_counts(classes.len());
        classes.iter().zip(counts).filter(|(_, n)| *n == 0).map(|(name, _)| name.as_str()).collect()
    };
    if let [first, ..] = without(train)[..] {
        let message = format!("class `{first}` has one image, which the split gave to the test part; add images to it");
        return Err(Error::input(path, message));
    }
    let missing = without(test);
    if let [first, ..] = missing[..] {
        notes.push(format!("{} class(es) have no test images, the first `{first}`", missing.len()));
    }
    Ok(())
}

/// Brings one part to the geometry asked for.
fn convert(path: &Path, images: Images, options: &LoadOptions) -> Result<Images> {
    let from = images.geometry;
    let (height, width) = options.size.unwrap_or((from.height, from.width));
    let to = Geometry { height, width, channels: options.channels.unwrap_or(from.channels) };
    if !resize::channels_convertible(from.channels, to.channels) {
        let (from, to) = (from.channels, to.channels);
        return Err(Error::input(path, format!("images of {from} channels cannot become images of {to}; use 1 or 3")));
    }
    files::declared_bytes(path, &[images.len(), height, width, to.channels].map(|extent| extent as u64))?;
    Ok(resize::convert(images, to))
}

fn identity(classes: &[String], train: &Images, test: &Images) -> String {
    let mut hasher = hash::Hasher::new("dataset, version 1");
    hasher.number(classes.len() as u64);
    classes.iter().for_each(|name| hasher.field(name.as_bytes()));
    for part in [train, test] {
        let Geometry { height, width, channels } = part.geometry;
        [height, width, channels, part.len()].iter().for_each(|&extent| hasher.number(extent as u64));
        hasher.field(&part.pixels);
        part.labels.iter().for_each(|&label| hasher.number(label.into()));
    }
    hasher.hex()
}
