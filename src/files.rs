//! Files that are either whole or not there, written beside their place and moved into it; and where the repository's
//! own folders are.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes a file so that a reader never sees a part of it, even if the process or the machine stops in between.
///
/// # Errors
/// [`Error::Io`] naming the file; what stood there before is untouched and no partial file stays behind.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = path.with_file_name(name);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(source) = written {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
        return Err(Error::io(path, "write")(source));
    }
    fs::rename(&partial, path).map_err(|source| {
        let _ = fs::remove_file(&partial);
        Error::io(path, "replace")(source)
    })
}

/// Where what can be computed again is kept between runs (decoded images, embeddings, compiled kernels): `SUPERNET_CACHE`, else `supernet` in the user's cache folder. None
/// where neither is known, or `SUPERNET_CACHE` is empty.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let base = || variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let folder = variable("SUPERNET_CACHE").or_else(|| base().map(|base| base.join("supernet")));
    folder.filter(|folder| !folder.as_os_str().is_empty())
}

/// Where a folder of the repository may be: below the working directory, the folders above the program (which is in
/// `target/` of a checkout), and the checkout that the program was built from.
pub(crate) fn repository_folders(name: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    folders.extend(std::env::current_dir().ok().map(|folder| folder.join(name)));
    if let Ok(program) = std::env::current_exe() {
        folders.extend(program.ancestors().skip(1).map(|folder| folder.join(name)));
    }
    folders.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name));
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}
