//! Where the built-in datasets are: `.npz` files of the repository, found beside the program or named by the
//! environment variable `SUPERNET_DATA`.

use std::path::PathBuf;

use super::{Raw, npz};
use crate::error::{Error, Result};

/// Environment variable with the folder of the `.npz` files.
const VARIABLE: &str = "SUPERNET_DATA";

/// Finds and reads a built-in dataset; returns also its path, for messages.
pub(super) fn load(name: &str) -> Result<(PathBuf, Raw)> {
    let candidates: Vec<PathBuf> = folders().iter().map(|folder| folder.join(format!("{name}.npz"))).collect();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok((path.clone(), npz::load(path)?)),
        None => {
            let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
            Err(Error::usage(format!(
                "built-in dataset `{name}` was not found; tried {}. Set {VARIABLE} to the folder data/builtin of the \
                 repository",
                tried.join(", ")
            )))
        }
    }
}

/// The folders to look in: the variable, then those of [`crate::files::repository_folders`].
fn folders() -> Vec<PathBuf> {
    let given = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    given.into_iter().chain(crate::files::repository_folders("data/builtin")).collect()
}
