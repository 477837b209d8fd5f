//! The `.npy` format, versions 1 to 3, in C order: one-byte pixels, integer labels, and matrices of any real type.

use std::io::{BufReader, Read};
use std::path::Path;

use super::files::{self, MAX_CLASSES};
use crate::error::{Error, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The most bytes of a header; NumPy's own are below 200.
const MAX_HEADER: usize = 1 << 16;

/// A matrix of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows, at least one.
    pub rows: usize,
    /// Columns, at least one.
    pub columns: usize,
    /// The elements, row after row.
    pub values: Vec<f64>,
}

/// Reads a matrix of integers or floats of 4 or 8 bytes; a vector counts as one column.
///
/// # Errors
/// [`Error::Input`] for whatever is no such file, [`Error::Io`] if it cannot be read.
pub fn read_matrix(path: &Path) -> Result<Matrix> {
    let name = path.file_stem().map_or_else(|| "matrix".into(), |stem| stem.to_string_lossy());
    let array = Array::read_as(path, &name, BufReader::new(files::open(path)?), true)?;
    let (rows, columns) = match array.shape[..] {
        [rows] => (rows, 1),
        [rows, columns] => (rows, columns),
        _ => {
            let shape = &array.shape;
            return Err(Error::input(path, format!("has the shape {shape:?}; a matrix (rows, columns) is needed")));
        }
    };
    if rows == 0 || columns == 0 {
        return Err(Error::input(path, format!("is empty: {rows} rows of {columns} columns")));
    }
    let values = array.bytes.chunks_exact(array.kind.size).map(|bytes| array.kind.real(bytes)).collect();
    Ok(Matrix { rows: rows as usize, columns: columns as usize, values })
}

/// An array as it was stored.
pub(super) struct Array {
    /// The extents, outermost first.
    pub(super) shape: Vec<u64>,
    /// The elements in C order.
    pub(super) bytes: Vec<u8>,
    kind: Kind,
}

/// A type of elements: `<i8` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    class: Class,
    size: usize,
    big_endian: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Unsigned,
    Signed,
    Float,
}

impl Array {
    /// Reads the array `name` of integers of the archive at `path`.
    pub(super) fn read(path: &Path, name: &str, reader: impl Read) -> Result<Self> {
        Self::read_as(path, name, reader, false)
    }

    fn read_as(path: &Path, name: &str, mut reader: impl Read, floats: bool) -> Result<Self> {
        let header = read_header(path, name, &mut reader)?;
        let Header { descr, fortran_order, shape } = parse_header(&header)
            .ok_or_else(|| Error::input(path, format!("array `{name}`: the .npy header is not one of NumPy's")))?;
        if fortran_order {
            let message = format!("array `{name}` is in Fortran order; save numpy.ascontiguousarray({name}) instead");
            return Err(Error::input(path, message));
        }
        let kind = Kind::parse(&descr).filter(|kind| floats || kind.class != Class::Float).ok_or_else(|| {
            let needed =
                if floats { "float32, float64 or integers are needed" } else { "integers are needed (images: uint8)" };
            Error::input(path, format!("array `{name}` has type `{descr}`; {needed}"))
        })?;
        let bytes = |size: usize| files::declared_bytes(path, &[&shape[..], &[size as u64]].concat());
        if floats {
            // What becomes of the elements must fit as well.
            bytes(size_of::<f64>())?;
        }
        let bytes = bytes(kind.size)?;
        let bytes = files::read_declared(path, reader, bytes, &format!("array `{name}` of shape {shape:?}"))?;
        Ok(Self { shape, bytes, kind })
    }

    /// Whether the elements are unsigned bytes.
    pub(super) fn is_bytes(&self) -> bool {
        self.kind.size == 1 && self.kind.class == Class::Unsigned
    }

    /// The elements as class labels; an error names the first that cannot be one.
    pub(super) fn labels(&self, path: &Path, name: &str) -> Result<Vec<u32>> {
        let label = |(i, bytes): (usize, &[u8])| {
            let value = self.kind.value(bytes);
            if (0..MAX_CLASSES as i128).contains(&value) {
                return Ok(value as u32);
            }
            let message = format!("array `{name}`: label {value} of image {i} is not in 0..{MAX_CLASSES}");
            Err(Error::input(path, message))
        };
        self.bytes.chunks_exact(self.kind.size).enumerate().map(label).collect()
    }
}

impl Kind {
    fn parse(descr: &str) -> Option<Self> {
        let [order, letter, size] = <[u8; 3]>::try_from(descr.as_bytes()).ok()?;
        let class = match letter {
            b'i' => Class::Signed,
            b'u' => Class::Unsigned,
            b'f' => Class::Float,
            _ => return None,
        };
        let size = match size {
            b'1' | b'2' if class != Class::Float => usize::from(size - b'0'),
            b'4' | b'8' => usize::from(size - b'0'),
            _ => return None,
        };
        let big_endian = match order {
            b'<' => false,
            b'>' => true,
            b'|' if size == 1 => false,
            _ => return None,
        };
        Some(Self { class, size, big_endian })
    }

    fn raw(self, bytes: &[u8]) -> u64 {
        let push = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        if self.big_endian { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) }
    }

    /// An element of any type; integers beyond 2^53 are rounded.
    fn real(self, bytes: &[u8]) -> f64 {
        match self {
            Self { class: Class::Float, size: 4, .. } => f32::from_bits(self.raw(bytes) as u32).into(),
            Self { class: Class::Float, .. } => f64::from_bits(self.raw(bytes)),
            _ => self.value(bytes) as f64,
        }
    }

    /// An element of an integer type.
    fn value(self, bytes: &[u8]) -> i128 {
        let raw = self.raw(bytes);
        if self.class == Class::Signed {
            let unused = 64 - 8 * self.size;
            i128::from((raw << unused) as i64 >> unused)
        } else {
            i128::from(raw)
        }
    }
}

fn read_header(path: &Path, name: &str, reader: &mut impl Read) -> Result<String> {
    let mut exact = |buffer: &mut [u8]| reader.read_exact(buffer).map_err(|error| files::read_error(path, error));
    let mut start = [0; 8];
    exact(&mut start)?;
    if &start[..6] != MAGIC {
        return Err(Error::input(path, format!("array `{name}` does not start as a .npy file does")));
    }
    let length = match start[6] {
        1 => {
            let mut length = [0; 2];
            exact(&mut length)?;
            usize::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0; 4];
            exact(&mut length)?;
            u32::from_le_bytes(length) as usize
        }
        version => {
            let message = format!("array `{name}` has .npy version {version}; versions 1 to 3 are known");
            return Err(Error::input(path, message));
        }
    };
    if length > MAX_HEADER {
        let message = format!("array `{name}` declares a header of {length} bytes, above the limit of {MAX_HEADER}");
        return Err(Error::input(path, message));
    }
    let mut header = vec![0; length];
    exact(&mut header)?;
    // Version 1 and 2 headers are Latin-1, but what is looked for is ASCII.
    Ok(String::from_utf8_lossy(&header).into_owned())
}

/// The dictionary of a header.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// Parses `{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }`, keys in any order. Structured types (a
/// list for `descr`) come back as the name `structured`, so that the caller can say what it found.
fn parse_header(text: &str) -> Option<Header> {
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim_start();
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        rest = match key {
            "descr" if value.starts_with('[') => {
                descr = Some("structured".to_string());
                &value[value.rfind(']')? + 1..]
            }
            "descr" => {
                let (name, after) = quoted(value)?;
                descr = Some(name.to_string());
                after
            }
            "fortran_order" => {
                fortran_order = Some(value.starts_with("True"));
                value.strip_prefix("True").or_else(|| value.strip_prefix("False"))?
            }
            "shape" => {
                let (inside, after) = value.strip_prefix('(')?.split_once(')')?;
                let inside = inside.trim();
                let inside = inside.strip_suffix(',').unwrap_or(inside);
                let extents = inside.split(',').map(|extent| extent.trim().trim_end_matches('L').parse().ok());
                shape = Some(if inside.is_empty() { Vec::new() } else { extents.collect::<Option<_>>()? });
                after
            }
            _ => return None,
        };
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(Header { descr: descr?, fortran_order: fortran_order?, shape: shape? })
}

/// A quoted string at the start of `text`, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|&quote| quote == '\'' || quote == '"')?;
    text[1..].split_once(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_numpy_parse() {
        let header = parse_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }   \n").unwrap();
        assert_eq!(header, Header { descr: "|u1".into(), fortran_order: false, shape: vec![2, 3] });
        let header = parse_header("{\"shape\":(7,),\"fortran_order\":True,\"descr\":\"<i8\"}").unwrap();
        assert_eq!(header, Header { descr: "<i8".into(), fortran_order: true, shape: vec![7] });
        assert!(parse_header("{'descr': '<f4', 'fortran_order': False, 'shape': ()}").unwrap().shape.is_empty());
        let header = parse_header("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1L,)}").unwrap();
        assert_eq!(header.descr, "structured");
    }

    #[test]
    fn malformed_headers_are_refused() {
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '|u1'}",
            "{'descr': '|u1', 'fortran_order': Maybe, 'shape': (1,)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1}",
            "{'descr': [, 'fortran_order': False, 'shape': (1,)}",
            "{'é': 1}",
            "{é",
        ] {
            assert_eq!(parse_header(text), None, "{text}");
        }
    }

    #[test]
    fn integers_of_every_kind() {
        let value = |descr: &str, bytes: &[u8]| Kind::parse(descr).unwrap().value(bytes);
        assert_eq!(value("|u1", &[255]), 255);
        assert_eq!(value("|i1", &[255]), -1);
        assert_eq!(value("<i2", &[1, 2]), 0x0201);
        assert_eq!(value(">i2", &[1, 2]), 0x0102);
        assert_eq!(value("<i4", &[0xfe, 0xff, 0xff, 0xff]), -2);
        assert_eq!(value("<u8", &[255; 8]), i128::from(u64::MAX));
        assert_eq!(value(">i8", &[255; 8]), -1);
        let real = |descr: &str, bytes: &[u8]| Kind::parse(descr).unwrap().real(bytes);
        assert_eq!(real("<f4", &(-1.5f32).to_le_bytes()), -1.5);
        assert_eq!(real(">f8", &0.1f64.to_be_bytes()), 0.1);
        assert_eq!(real("|i1", &[255]), -1.0);
        for descr in ["<f2", "|f4", "|b1", "|O", "=i4", "<i3", "|i4", "<u16", ""] {
            assert_eq!(Kind::parse(descr), None, "{descr}");
        }
    }
}
