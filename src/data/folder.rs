//! Class folders of PNG or JPEG files: `CLASS/*.png`, or the same inside `train/` and `test/`.
//!
//! Without `test/`, `val/` is the test part; beside `test/` it is added to the training part. Classes are sorted by
//! name. Class folders are searched to a small depth; hidden files are skipped, other files are counted in a note.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::files::{self, MAX_CLASSES};
use super::listing::{Listing, Source};
use crate::error::{Error, Result};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "jpe"];
/// Folders below a class folder that are searched; deeper means a mistake or a loop of links.
const MAX_DEPTH: usize = 4;

const TRAIN: [&str; 2] = ["train", "training"];
const VALIDATION: [&str; 3] = ["val", "valid", "validation"];
const TEST: [&str; 2] = ["test", "testing"];

/// Lists the folder at `root`.
pub(super) fn list(root: &Path) -> Result<Listing> {
    files::expect_folder(root, "folder")?;
    let mut skipped = Skipped::default();
    let mut notes = Vec::new();
    let (train, test) = match part_folder(root, &TRAIN)? {
        None => {
            if let Some(part) = part_folder(root, &TEST)? {
                return Err(Error::input(root, format!("has {} but no folder `train` beside it", part.display())));
            }
            (Part::list(root, &mut skipped)?, None)
        }
        Some(folder) => {
            let mut train = Part::list(&folder, &mut skipped)?;
            let validation = part_folder(root, &VALIDATION)?;
            let test = match (part_folder(root, &TEST)?, validation) {
                (Some(test), None) => Some(test),
                (Some(test), Some(validation)) => {
                    let part = Part::list(&validation, &mut skipped)?;
                    train.expect_same_classes(&part)?;
                    let n = part.sources.len();
                    notes.push(format!("the {n} images of the validation part were added to the training part"));
                    train.sources.extend(part.sources);
                    Some(test)
                }
                (None, Some(validation)) => {
                    notes.push("no test folder: the validation part is the test part".to_string());
                    Some(validation)
                }
                (None, None) => None,
            };
            let test = match test {
                Some(folder) => {
                    let part = Part::list(&folder, &mut skipped)?;
                    train.expect_same_classes(&part)?;
                    Some(part.sources)
                }
                None => None,
            };
            (train, test)
        }
    };
    notes.extend(skipped.note());
    Ok(Listing { classes: train.classes, train: train.sources, test, notes })
}

/// The folder of a part: it has one of the names and holds folders. (A folder `train` of images is a class.)
fn part_folder(root: &Path, names: &[&str]) -> Result<Option<PathBuf>> {
    for path in names.iter().map(|name| root.join(name)).filter(|path| path.is_dir()) {
        if entries(&path)?.iter().any(|entry| entry.is_dir()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// A folder of class folders.
struct Part {
    folder: PathBuf,
    classes: Vec<String>,
    sources: Vec<Source>,
}

impl Part {
    fn list(folder: &Path, skipped: &mut Skipped) -> Result<Self> {
        let mut part = Self { folder: folder.to_path_buf(), classes: Vec::new(), sources: Vec::new() };
        for path in entries(folder)? {
            if !path.is_dir() {
                skipped.add(path);
                continue;
            }
            let name = path.file_name().and_then(OsStr::to_str);
            let name = name.ok_or_else(|| Error::input(&path, "the folder's name, a class name, is not UTF-8"))?;
            let label = part.classes.len();
            if label >= MAX_CLASSES {
                return Err(Error::input(folder, format!("more than {MAX_CLASSES} class folders")));
            }
            let mut images = Vec::new();
            collect(&path, MAX_DEPTH, &mut images, skipped)?;
            if images.is_empty() {
                return Err(Error::input(
                    &path,
                    format!("class `{name}` is empty: no PNG or JPEG file; add images or remove the folder"),
                ));
            }
            part.classes.push(name.to_string());
            part.sources.extend(images.into_iter().map(|path| Source { path, label: label as u32 }));
        }
        if part.classes.is_empty() {
            return Err(Error::input(folder, "holds no class folders; expected one folder of images a class"));
        }
        Ok(part)
    }

    fn expect_same_classes(&self, other: &Self) -> Result<()> {
        let lacks = |part: &Self, of: &Self| of.classes.iter().find(|name| !part.classes.contains(name)).cloned();
        for (a, b) in [(self, other), (other, self)] {
            if let Some(name) = lacks(a, b) {
                let (a, b) = (&a.folder, b.folder.display());
                return Err(Error::input(a, format!("has no class folder `{name}`, which {b} has")));
            }
        }
        Ok(())
    }
}

/// Image files below a folder, sorted within each folder.
fn collect(folder: &Path, depth: usize, images: &mut Vec<PathBuf>, skipped: &mut Skipped) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            if depth == 0 {
                return Err(Error::input(path, "is nested too deeply for a class folder; images belong higher up"));
            }
            collect(&path, depth - 1, images, skipped)?;
        } else if is_image(&path) {
            images.push(path);
        } else {
            skipped.add(path);
        }
    }
    Ok(())
}

/// The visible entries of a folder, sorted by the bytes of their names: no file system's own order shows.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name();
        let bytes = name.as_encoded_bytes();
        if !bytes.starts_with(b".") && bytes != b"__MACOSX" {
            names.push(name);
        }
    }
    names.sort_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

/// Files passed over.
#[derive(Default)]
struct Skipped {
    first: Option<PathBuf>,
    count: usize,
}

impl Skipped {
    fn add(&mut self, path: PathBuf) {
        self.first.get_or_insert(path);
        self.count += 1;
    }

    fn note(&self) -> Option<String> {
        let first = self.first.as_ref()?.display();
        Some(format!("ignored {} file(s) that are not named as PNG or JPEG, the first {first}", self.count))
    }
}
