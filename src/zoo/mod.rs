//! The zoo: a folder of pretrained supernets, one file each. A file holds everything that a transfer needs and nothing
//! that must be looked up elsewhere: weights, running statistics, alphas, search space, datasets, training record.

pub mod embed;
pub mod entry;

use std::path::{Path, PathBuf};

pub use entry::{Entry, EntryMeta, Record};

use crate::error::{Error, Result};

/// Ending of an entry's file.
const ENDING: &str = "safetensors";

/// A folder of entries.
#[derive(Clone, Debug)]
pub struct Zoo {
    path: PathBuf,
}

/// Checks a name: it becomes a file's.
///
/// # Errors
/// [`Error::Usage`] with what a name may be.
pub fn check_name(name: &str) -> Result<()> {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let reserved = ["none", "auto", "multi"].contains(&name);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(sound) || reserved {
        return Err(Error::usage(format!(
            "`{name}` cannot name a zoo entry; use letters, digits, `-`, `_` and `.`, but not `none`, `auto` or `multi`"
        )));
    }
    Ok(())
}

impl Zoo {
    /// Channels and cells of the supernets in the zoo that comes with the program.
    pub const SHIPPED_SPACE: (usize, usize) = (8, 5);

    /// The zoo that comes with the program, a folder of the repository found as the built-in datasets are.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the folders that were tried.
    pub fn shipped() -> Result<Self> {
        let folders = crate::files::repository_folders("zoo");
        match folders.iter().find(|folder| folder.join(format!("all.{ENDING}")).is_file()) {
            Some(folder) => Ok(Self::new(folder)),
            None => {
                let tried: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
                Err(Error::usage(format!(
                    "the zoo of the repository was not found; tried {}. Give its folder with --zoo",
                    tried.join(", ")
                )))
            }
        }
    }

    /// The zoo in a folder, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File of an entry.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.{ENDING}"))
    }

    /// Files of all entries, in order of their names.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let listed = std::fs::read_dir(&self.path).map_err(Error::io(&self.path, "list the zoo"))?;
        let mut files = Vec::new();
        for entry in listed {
            let path = entry.map_err(Error::io(&self.path, "list the zoo"))?.path();
            if path.extension().is_some_and(|e| e == ENDING) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the entries that there are, [`Error::Input`] if the file is damaged.
    pub fn load(&self, name: &str) -> Result<Entry> {
        check_name(name)?;
        let path = self.file(name);
        if !path.exists() {
            let stem = |p: PathBuf| p.file_stem().map(|s| s.to_string_lossy().into_owned());
            let known: Vec<String> = self.files()?.into_iter().filter_map(stem).collect();
            let known = if known.is_empty() { "it is empty".into() } else { format!("it has {}", known.join(", ")) };
            let zoo = self.path.display();
            return Err(Error::usage(format!("the zoo {zoo} has no entry `{name}`; {known}")));
        }
        Entry::load(&path)
    }

    /// Name of the entry that was pretrained on the most datasets, if one was on several; None also without a zoo.
    ///
    /// # Errors
    /// As [`Entry::load`].
    pub fn broadest(&self) -> Result<Option<String>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let mut best: Option<EntryMeta> = None;
        for path in self.files()? {
            let meta = Entry::load(&path)?.meta;
            let known = best.as_ref().map_or(1, |b| b.sources.len());
            if meta.sources.len() > known {
                best = Some(meta);
            }
        }
        Ok(best.map(|meta| meta.name))
    }

    /// Checks that an entry can be added under a name; returns its file.
    ///
    /// # Errors
    /// [`Error::Usage`] if the name is taken and not to be replaced, or cannot be one.
    pub fn check_free(&self, name: &str, replace: bool) -> Result<PathBuf> {
        check_name(name)?;
        let path = self.file(name);
        if path.exists() && !replace {
            return Err(Error::usage(format!(
                "{} exists; choose another --name, remove it with `supernet zoo remove`, or give --replace",
                path.display()
            )));
        }
        Ok(path)
    }

    /// Adds an entry under its name.
    ///
    /// # Errors
    /// [`Error::Usage`] if the name is taken or cannot be one, [`Error::Io`] if the file cannot be written.
    pub fn add(&self, entry: &Entry, replace: bool) -> Result<PathBuf> {
        let path = self.check_free(&entry.meta.name, replace)?;
        std::fs::create_dir_all(&self.path).map_err(Error::io(&self.path, "create the zoo"))?;
        entry.save(&path)?;
        Ok(path)
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// As [`Zoo::load`]; a damaged entry can be removed.
    pub fn remove(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        let path = self.file(name);
        if !path.exists() {
            self.load(name)?;
        }
        std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        Ok(path)
    }
}
