//! A picture of a dataset: one row a class, its first training images side by side.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, RgbImage};

use super::atomic;
use super::files::MAX_PIXELS;
use super::resize::Fit;
use super::{Dataset, Geometry};
use crate::error::{Error, Result};

/// White pixels around every image.
const GAP: usize = 2;
/// Smaller images are enlarged by a whole factor to about this height, to be seen at all.
const LEAST_HEIGHT: usize = 48;

/// Writes a PNG with a row for each class, in the order of the labels, of its first `per_class` training images.
/// The file appears whole or not at all.
///
/// # Errors
/// [`Error::Usage`] if `per_class` is zero or the sheet would be too large, [`Error::Io`] if it cannot be written.
pub fn contact_sheet(dataset: &Dataset, path: &Path, per_class: usize) -> Result<()> {
    let Geometry { height, width, .. } = dataset.train.geometry;
    let factor = (LEAST_HEIGHT / height).max(1);
    let (rows, columns) = (dataset.classes.len(), per_class);
    let (cell_height, cell_width) = (height * factor + GAP, width * factor + GAP);
    let area = (rows * cell_height + GAP) as u64 * (columns as u64).saturating_mul(cell_width as u64);
    if columns == 0 || area > MAX_PIXELS {
        return Err(Error::usage(format!(
            "a contact sheet of {rows} classes with {columns} images each is not possible; use 1 to {}",
            (MAX_PIXELS / ((rows * cell_height + GAP) * cell_width) as u64).max(1)
        )));
    }
    let size = |cells: usize, cell: usize| (cells * cell + GAP) as u32;
    let mut sheet = RgbImage::from_pixel(size(columns, cell_width), size(rows, cell_height), image::Rgb([255; 3]));

    let colour = Geometry { height, width, channels: 3 };
    let fit = Fit::new(dataset.train.geometry, colour);
    let mut shown = vec![0; rows];
    let mut pixels = vec![0; colour.values()];
    for (i, &label) in dataset.train.labels.iter().enumerate() {
        let row = label as usize;
        let column = shown[row];
        if column == columns {
            continue;
        }
        shown[row] += 1;
        fit.apply(dataset.train.image(i), &mut pixels);
        for y in 0..height * factor {
            for x in 0..width * factor {
                let at = 3 * ((y / factor) * width + x / factor);
                let (x, y) = (column * cell_width + GAP + x, row * cell_height + GAP + y);
                sheet.put_pixel(x as u32, y as u32, image::Rgb([pixels[at], pixels[at + 1], pixels[at + 2]]));
            }
        }
    }
    let mut png = Cursor::new(Vec::new());
    sheet.write_to(&mut png, ImageFormat::Png).map_err(|error| Error::input(path, error.to_string()))?;
    atomic::write_atomically(path, |file| file.write_all(png.get_ref()))
}
