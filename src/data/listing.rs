//! Datasets of one file an image: decided geometry, parallel decoding in a fixed order, and the cache of the result.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;

use super::cache::Cache;
use super::files::{self, MAX_IMAGES};
use super::hash::Hasher;
use super::resize::{self, Fit};
use super::{Geometry, Images, LoadOptions, Raw, decode};
use crate::error::{Error, Result};

/// What a reader found before anything is decoded.
pub(super) struct Listing {
    /// Class names; the labels index them.
    pub(super) classes: Vec<String>,
    /// The training images, or all where there is no test part.
    pub(super) train: Vec<Source>,
    /// The test images.
    pub(super) test: Option<Vec<Source>>,
    /// Remarks for the user.
    pub(super) notes: Vec<String>,
}

/// One image file and its class.
pub(super) struct Source {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its class.
    pub(super) label: u32,
}

impl Listing {
    /// Decodes all images to one geometry, or takes them from the cache.
    pub(super) fn load(mut self, root: &Path, options: &LoadOptions) -> Result<Raw> {
        let sources: Vec<&Source> = self.train.iter().chain(self.test.iter().flatten()).collect();
        if sources.len() as u64 > MAX_IMAGES {
            return Err(Error::input(root, format!("{} images, above the limit of {MAX_IMAGES}", sources.len())));
        }
        let cache = match &options.cache {
            Some(folder) => Some(Cache::new(folder, key(root, &sources, options)?)),
            None => None,
        };
        let cached = cache.as_ref().and_then(|cache| cache.read(sources.len()));
        let (geometry, mut pixels) = match cached {
            Some(found) => found,
            None => {
                let (geometry, pixels) = decode_all(root, &sources, options)?;
                // A cache that cannot be written costs time, not the run.
                if let Some(Err(error)) = cache.map(|cache| cache.write(geometry, &pixels)) {
                    self.notes.push(format!("the decoded images were not cached: {error}"));
                }
                (geometry, pixels)
            }
        };
        let labels = |sources: &[Source]| sources.iter().map(|source| source.label).collect();
        let test = self.test.as_deref().map(|sources| Images {
            geometry,
            pixels: pixels.split_off(self.train.len() * geometry.values()),
            labels: labels(sources),
        });
        let train = Images { geometry, pixels, labels: labels(&self.train) };
        Ok(Raw { classes: self.classes, train, test, notes: self.notes })
    }
}

/// What the decoded images depend on: the files by path, size and time of change, in order, and the conversion.
fn key(root: &Path, sources: &[&Source], options: &LoadOptions) -> Result<String> {
    let mut hasher = Hasher::new("decoded images, version 1");
    let absolute = root.canonicalize().map_err(Error::io(root, "read"))?;
    hasher.field(absolute.as_os_str().as_encoded_bytes());
    let (height, width) = options.size.unwrap_or((0, 0));
    for number in [height, width, options.channels.unwrap_or(0)] {
        hasher.number(number as u64);
    }
    for source in sources {
        let path = &source.path;
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
        // Times before 1970 and file systems without times count as zero.
        let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let changed = changed.unwrap_or_default();
        hasher.field(path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes());
        hasher.number(metadata.len());
        hasher.number(changed.as_secs());
        hasher.number(changed.subsec_nanos().into());
    }
    Ok(hasher.hex())
}

fn decode_all(root: &Path, sources: &[&Source], options: &LoadOptions) -> Result<(Geometry, Vec<u8>)> {
    let found = in_order(sources.par_iter().map(|source| decode::probe(&source.path)).collect())?;
    let geometry = common_geometry(sources, &found, options)?;
    let bytes = files::declared_bytes(root, &[sources.len() as u64, geometry.values() as u64])?;
    let mut pixels = vec![0; bytes];
    let done = pixels.par_chunks_mut(geometry.values()).zip(sources).map(|(out, source)| {
        let (from, image) = decode::decode(&source.path)?;
        if !resize::channels_convertible(from.channels, geometry.channels) {
            let (from, to) = (from.channels, geometry.channels);
            return Err(Error::input(&source.path, format!("{from} channels cannot become {to}; use 1 or 3")));
        }
        Fit::new(from, geometry).apply(&image, out);
        Ok(())
    });
    in_order(done.collect())?;
    Ok((geometry, pixels))
}

/// The first error in the order of the list, whichever thread met one first.
fn in_order<T>(results: Vec<Result<T>>) -> Result<Vec<T>> {
    results.into_iter().collect()
}

/// The geometry asked for; what is not asked for comes from the files: their one size, and colour if any has it.
fn common_geometry(sources: &[&Source], found: &[Geometry], options: &LoadOptions) -> Result<Geometry> {
    let first = found[0];
    let (height, width) = match options.size {
        Some(size) => size,
        None => {
            let same = |other: &Geometry| (other.height, other.width) == (first.height, first.width);
            if let Some(other) = found.iter().position(|other| !same(other)) {
                let (a, b) = (&sources[0].path, found[other]);
                return Err(Error::input(
                    &sources[other].path,
                    format!(
                        "is {}x{} but {} is {}x{}: pass --size HxW to resize images of mixed size",
                        b.height,
                        b.width,
                        a.display(),
                        first.height,
                        first.width
                    ),
                ));
            }
            (first.height, first.width)
        }
    };
    let stored = if found.iter().any(|geometry| geometry.channels == 3) { 3 } else { 1 };
    Ok(Geometry { height, width, channels: options.channels.unwrap_or(stored) })
}
