//! Bounded decoding of PNG and JPEG files. The contents decide the format, not the extension.
//!
//! Palettes are expanded, 16 bits become 8, EXIF orientation is applied, and a JPEG that ends before its
//! end-of-image marker is refused (decoders would fill the rest with grey).

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits};

use super::Geometry;
use super::files::{self, MAX_PIXELS};
use crate::error::{Error, Result};

/// The most bytes of one compressed file.
const MAX_FILE: u64 = 256 << 20;
/// What a decoder may allocate: the largest image at 16 bits and four channels, and half of that to work with.
const MAX_MEMORY: u64 = MAX_PIXELS * 8 * 3 / 2;

/// Size and channels of the image in a file, without decoding it. Alpha counts as none, as it is composited away.
pub(super) fn probe(path: &Path) -> Result<Geometry> {
    let bytes = files::read_bounded(path, MAX_FILE)?;
    let mut decoder = decoder(path, &bytes)?;
    let (width, height) = decoder.dimensions();
    let turned = matches!(
        orientation(path, &mut decoder)?,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    let (height, width) = if turned { (width, height) } else { (height, width) };
    let channels = if decoder.color_type().has_color() { 3 } else { 1 };
    Ok(Geometry { height: height as usize, width: width as usize, channels })
}

/// The image in a file, upright, as 8-bit samples with the channels that it has: grey, grey and alpha, RGB or RGBA.
pub(super) fn decode(path: &Path) -> Result<(Geometry, Vec<u8>)> {
    let bytes = files::read_bounded(path, MAX_FILE)?;
    let mut decoder = decoder(path, &bytes)?;
    let orientation = orientation(path, &mut decoder)?;
    let mut image = damaged(path, DynamicImage::from_decoder(decoder))?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    let channels = usize::from(image.color().channel_count());
    let pixels = match channels {
        1 => image.into_luma8().into_raw(),
        2 => image.into_luma_alpha8().into_raw(),
        3 => image.into_rgb8().into_raw(),
        _ => image.into_rgba8().into_raw(),
    };
    Ok((Geometry { height, width, channels }, pixels))
}

/// A decoder that has read the header, which is within the limits.
fn decoder<'a>(path: &Path, bytes: &'a [u8]) -> Result<impl ImageDecoder + 'a> {
    let format = match bytes {
        [0x89, b'P', b'N', b'G', ..] => ImageFormat::Png,
        [0xff, 0xd8, 0xff, ..] => ImageFormat::Jpeg,
        [] => return Err(Error::input(path, "is empty, not an image; remove it or fetch it again")),
        _ => return Err(Error::input(path, "is neither PNG nor JPEG in spite of its name; remove or convert it")),
    };
    // Looked at before the decoder sees it, whose messages would not name the size.
    if format == ImageFormat::Png
        && let Some(&[a, b, c, d, e, f, g, h]) = bytes.get(16..24).and_then(|size| size.first_chunk())
    {
        let (width, height) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        files::check_image_size(path, height.into(), width.into(), 1)?;
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_MEMORY);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = damaged(path, reader.into_decoder())?;
    let (width, height) = decoder.dimensions();
    files::check_image_size(path, height.into(), width.into(), 1)?;
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(Error::input(path, "ends before the JPEG end-of-image marker: truncated; remove or replace it"));
    }
    Ok(decoder)
}

fn orientation(path: &Path, decoder: &mut impl ImageDecoder) -> Result<Orientation> {
    damaged(path, decoder.orientation())
}

fn damaged<T>(path: &Path, result: ImageResult<T>) -> Result<T> {
    result.map_err(|error| {
        Error::input(path, format!("cannot be decoded ({error}): damaged or truncated; remove or replace it"))
    })
}

/// Whether the markers of a JPEG lead to its end-of-image marker. Segments are skipped by their lengths, so that
/// the markers of an embedded thumbnail do not count.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    let mut at = 2;
    loop {
        // Between segments there may be padding; within a scan, data: both end at the next true marker.
        let Some(offset) = bytes.get(at..).and_then(|rest| {
            rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff | 0x01 | 0xd0..=0xd7))
        }) else {
            return false;
        };
        at += offset + 2;
        match (bytes[at - 1], bytes.get(at..at + 2)) {
            (END, _) => return true,
            (_, Some(&[high, low])) => at += usize::from(u16::from_be_bytes([high, low])).max(2),
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jpeg_markers_are_walked() {
        // A thumbnail with its own end marker inside APP1, then a scan with stuffing and a restart marker.
        let thumbnail = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 2, 1, 2, 0xff, 0, 3, 0xff, 0xd3, 4];
        let whole = [&[0xff, 0xd8][..], &thumbnail, &scan, &[0xff, 0xd9]].concat();
        assert!(jpeg_is_complete(&whole));
        for end in 0..whole.len() {
            assert!(!jpeg_is_complete(&whole[..end]), "{end}");
        }
    }
}
