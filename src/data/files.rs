//! Bounded reading: what every reader shares to survive hostile files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// The most bytes of pixels that one part of a dataset may have.
pub(super) const MAX_BYTES: u64 = 4 << 30;
/// The most pixels of one image.
pub(super) const MAX_PIXELS: u64 = 64_000_000;
/// The most images of one part: up to here an `f32` holds every index exactly.
pub(super) const MAX_IMAGES: u64 = 1 << 24;
/// The most classes.
pub(super) const MAX_CLASSES: usize = 1 << 16;

/// Opens a regular file. Pipes and devices are refused: they could block or never end.
pub(super) fn open(path: &Path) -> Result<File> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
    if !metadata.is_file() {
        return Err(Error::input(path, "is not a regular file"));
    }
    File::open(path).map_err(Error::io(path, "read"))
}

/// Refuses a path that is missing or not a folder.
pub(super) fn expect_folder(path: &Path, kind: &str) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(Error::input(path, format!("is not a folder; `{kind}:` takes the folder that holds the files")))
}

/// A whole file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > limit {
        return Err(Error::input(path, format!("is larger than {limit} bytes, the most that is read of such a file")));
    }
    Ok(bytes)
}

/// A whole UTF-8 text file of at most `limit` bytes, without a byte order mark.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let text = String::from_utf8(read_bounded(path, limit)?).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid].iter().filter(|&&byte| byte == b'\n').count();
        Error::input(path, format!("line {line} is not UTF-8 (byte {valid}); save the file as UTF-8"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

/// Streams a file through a buffer, decompressed if its name ends in `.gz`.
pub(super) fn open_maybe_gz(path: &Path) -> Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(1 << 16, open(path)?);
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz")) {
        return Ok(Box::new(file));
    }
    #[cfg(feature = "files")]
    return Ok(Box::new(flate2::read::GzDecoder::new(file)));
    #[cfg(not(feature = "files"))]
    return Err(Error::usage(format!("{}: reading gzip needs the `files` feature", path.display())));
}

/// An error while reading a stream: damaged contents, unless the operating system itself refused.
pub(super) fn read_error(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error.kind() {
        UnexpectedEof => Error::input(path, "ends too early: truncated; fetch the file again"),
        InvalidData | InvalidInput => Error::input(path, format!("damaged ({error}); fetch the file again")),
        _ => Error::io(path, "read")(error),
    }
}

/// The bytes of an array of one-byte elements, checked against overflow and [`MAX_BYTES`].
pub(super) fn declared_bytes(path: &Path, shape: &[u64]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1u64, |product, &extent| product.checked_mul(extent))
        .filter(|&bytes| bytes <= MAX_BYTES)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| {
            Error::input(path, format!("declares the shape {shape:?}, above the limit of {} GiB", MAX_BYTES >> 30))
        })
}

/// Reads exactly the `declared` bytes that are left of a stream. Memory grows with what is really there, so that a
/// tiny file with a large header costs nothing.
pub(super) fn read_declared(path: &Path, reader: impl Read, declared: usize, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match reader.take(declared as u64 + 1).read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(read_error(path, error)),
    }
    let found = bytes.len();
    if found < declared {
        let message = format!("{what}: {found} of the {declared} bytes that the header declares: truncated");
        return Err(Error::input(path, message + "; fetch the file again"));
    }
    if found > declared {
        let message = format!("{what}: more than the {declared} bytes that the header declares; the header or");
        return Err(Error::input(path, message + " the file is wrong"));
    }
    Ok(bytes)
}

/// The extents of one image as a reader found them: none zero, not too many pixels, 1 to 4 channels.
pub(super) fn check_image_size(path: &Path, height: u64, width: u64, channels: u64) -> Result<()> {
    if height == 0 || width == 0 {
        return Err(Error::input(path, format!("zero-size image ({height}x{width})")));
    }
    if height.checked_mul(width).is_none_or(|pixels| pixels > MAX_PIXELS) {
        let limit = MAX_PIXELS / 1_000_000;
        return Err(Error::input(
            path,
            format!("an image of {height}x{width} pixels is above the limit of {limit} million; shrink it first"),
        ));
    }
    if !(1..=4).contains(&channels) {
        return Err(Error::input(path, format!("{channels} channels: images have 1 to 4")));
    }
    Ok(())
}
