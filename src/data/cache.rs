//! One file of decoded images, named by the hash of what they depend on.
//!
//! Layout, little-endian: magic (8 bytes), height, width, channels, images (`u32` each), pixels, hash of all before
//! (16 bytes). A file that is damaged in any way counts as absent. Files of older states of a dataset are left
//! where they are: the folder is a cache and can be deleted at any time.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Geometry;
use super::atomic;
use super::files::{self, MAX_BYTES};
use super::hash::Hasher;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"SNPIXEL1";
const HEADER: usize = 8 + 4 * 4;
const CHECKSUM: usize = 16;

/// The cache file of one dataset in one geometry.
pub(super) struct Cache {
    path: PathBuf,
}

impl Cache {
    /// The file for `key` in `folder`, which need not exist yet.
    pub(super) fn new(folder: &Path, key: String) -> Self {
        Self { path: folder.join(format!("{key}.pixels")) }
    }

    /// Geometry and pixels of the `images` cached images; `None` if there is no sound file of that many.
    pub(super) fn read(&self, images: usize) -> Option<(Geometry, Vec<u8>)> {
        let file = files::open(&self.path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut reader = std::io::BufReader::new(file);
        let mut header = [0; HEADER];
        reader.read_exact(&mut header).ok()?;
        let number = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[8 + 4 * i + byte])) as usize;
        let geometry = Geometry { height: number(0), width: number(1), channels: number(2) };
        let shape = [number(0), number(1), number(2), number(3)].map(|extent| extent as u64);
        let bytes = files::declared_bytes(&self.path, &shape).ok()?;
        let sound = header[..8] == *MAGIC
            && number(3) == images
            && length <= MAX_BYTES + (HEADER + CHECKSUM) as u64
            && length == (HEADER + bytes + CHECKSUM) as u64;
        if !sound {
            return None;
        }
        let mut pixels = vec![0; bytes];
        reader.read_exact(&mut pixels).ok()?;
        let mut checksum = [0; CHECKSUM];
        reader.read_exact(&mut checksum).ok()?;
        (checksum == hash(&header, &pixels)).then_some((geometry, pixels))
    }

    /// Stores the pixels of whole images.
    pub(super) fn write(&self, geometry: Geometry, pixels: &[u8]) -> Result<()> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        }
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        let numbers = [geometry.height, geometry.width, geometry.channels, pixels.len() / geometry.values()];
        for (slot, number) in header[8..].chunks_exact_mut(4).zip(numbers) {
            // All four are bounded far below 2^32 by the limits of the readers.
            slot.copy_from_slice(&(number as u32).to_le_bytes());
        }
        atomic::write_atomically(&self.path, |file| {
            file.write_all(&header)?;
            file.write_all(pixels)?;
            file.write_all(&hash(&header, pixels))
        })
    }
}

fn hash(header: &[u8], pixels: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = Hasher::new("cache file");
    hasher.field(header);
    hasher.field(pixels);
    hasher.finish()
}
