//! Small dataset files, sound ones; the tests damage them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use supernet::Error;
use supernet::data::{Dataset, LoadOptions, load};

/// A folder that goes away with the value.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("data-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file, with the folders above it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The dataset `kind:` of this folder.
    pub fn load(&self, kind: &str) -> Result<Dataset, Error> {
        self.load_with(kind, &LoadOptions::default())
    }

    pub fn load_with(&self, kind: &str, options: &LoadOptions) -> Result<Dataset, Error> {
        let path = if kind == "npz" { self.join("a.npz") } else { self.0.clone() };
        load(&format!("{kind}:{}", path.display()).parse().unwrap(), options)
    }

    /// The message with which loading fails; it must be about the dataset (exit code 2) and name a path in it.
    pub fn message(&self, kind: &str) -> String {
        let error = self.load(kind).expect_err("the dataset is bad");
        assert_eq!(error.exit_code(), 2, "{error}");
        let message = error.to_string();
        assert!(message.contains(self.0.to_str().unwrap()), "no path in: {message}");
        message
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn assert_contains(message: &str, part: &str) {
    assert!(message.contains(part), "expected `{part}` in: {message}");
}

/// An IDX array of bytes.
pub fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|extent| bytes.extend(extent.to_be_bytes()));
    bytes.extend(data);
    bytes
}

pub fn gz(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A `.npy` file, version 1.
pub fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let extents: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    npy_with_header(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}\n"), data)
}

pub fn npy_with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

pub fn npz(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Images of one grey value each.
pub fn flat_images(values: &[u8], pixels: usize) -> Vec<u8> {
    values.iter().flat_map(|&value| std::iter::repeat_n(value, pixels)).collect()
}

/// A grey image of one value, as PNG.
pub fn grey_png(height: u32, width: u32, value: u8) -> Vec<u8> {
    encode(image::GrayImage::from_pixel(width, height, image::Luma([value])).into(), image::ImageFormat::Png)
}

/// An RGB image of one colour.
pub fn colour(height: u32, width: u32, value: [u8; 3], format: image::ImageFormat) -> Vec<u8> {
    encode(image::RgbImage::from_pixel(width, height, image::Rgb(value)).into(), format)
}

pub fn encode(image: image::DynamicImage, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG that declares any size at all, with nothing behind its header.
pub fn png_header(height: u32, width: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 0, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..]);
    bytes.extend(crc.sum().to_be_bytes());
    bytes
}

/// MNIST's four files with 2x2 images: six for training and three for test, of three classes.
pub fn mnist(folder: &Folder) {
    folder.write("train-images-idx3-ubyte", idx(&[6, 2, 2], &flat_images(&[0, 1, 2, 3, 4, 5], 4)));
    folder.write("train-labels-idx1-ubyte", idx(&[6], &[0, 1, 2, 0, 1, 2]));
    folder.write("t10k-images-idx3-ubyte", idx(&[3, 2, 2], &flat_images(&[6, 7, 8], 4)));
    folder.write("t10k-labels-idx1-ubyte", idx(&[3], &[2, 1, 0]));
}

/// Two class folders of five 3x4 PNGs each, in the given folder of the root (`""` for the root itself).
pub fn class_folders(folder: &Folder, part: &str) {
    for (class, base) in [("cat", 0), ("dog", 100)] {
        for i in 0..5 {
            folder.write(format!("{part}/{class}/{i}.png").trim_start_matches('/'), grey_png(3, 4, base + i));
        }
    }
}

/// A Meta-Album folder with two categories of three images.
pub fn meta_album(folder: &Folder) {
    let mut table = "FILE_NAME,CATEGORY,SUPER_CATEGORY\n".to_string();
    for i in 0..6 {
        folder.write(&format!("images/{i}.png"), grey_png(3, 4, 10 * i));
        table += &format!("{i}.png,\"{}\",x\n", if i % 2 == 0 { "oak, old" } else { "ash" });
    }
    folder.write("labels.csv", table);
}
