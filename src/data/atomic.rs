//! Atomic writing: no reader ever sees half a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Writes a file through a temporary neighbour and a rename.
pub(super) fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let temporary = temporary_neighbour(path)?;
    let result = (|| {
        let mut writer = BufWriter::new(File::create_new(&temporary)?);
        write(&mut writer)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if result.is_err() {
        // Best effort: the error that is reported is the one that made the file useless.
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(Error::io(path, "write"))
}

/// A name in the same folder (a rename must not cross file systems) that no other writer has.
fn temporary_neighbour(path: &Path) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| Error::input(path, "is not the name of a file to write"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(hidden))
}
