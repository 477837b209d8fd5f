//! Names of datasets on the command line: `builtin:NAME`, `folder:PATH` and so on.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::Error;

/// The datasets that come with the program.
pub const BUILTINS: [&str; 6] = ["fashion", "mnist", "animal", "scripts", "textures", "emoji"];

/// Where a dataset is and how to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `builtin:NAME`, one of [`BUILTINS`].
    Builtin(String),
    /// `idx:PATH`: a folder of IDX files in MNIST's layout, plain or `.gz`.
    Idx(PathBuf),
    /// `folder:PATH`: a folder of class folders of PNG or JPEG files, with or without `train/` and `test/`.
    Folder(PathBuf),
    /// `cifar:PATH`: a folder of CIFAR-10 or CIFAR-100 binary files.
    Cifar(PathBuf),
    /// `npz:PATH`: a NumPy archive of images and labels.
    Npz(PathBuf),
    /// `meta-album:PATH`: a Meta-Album folder with `labels.csv` and `images/`.
    MetaAlbum(PathBuf),
}

const FORMS: &str = "builtin:NAME, idx:PATH, folder:PATH, cifar:PATH, npz:PATH or meta-album:PATH";

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((kind, rest)) = text.split_once(':') else {
            let hint =
                if BUILTINS.contains(&text) { format!(" (did you mean builtin:{text}?)") } else { String::new() };
            return Err(Error::usage(format!("dataset `{text}`: expected {FORMS}{hint}")));
        };
        if rest.is_empty() {
            return Err(Error::usage(format!("dataset `{text}`: nothing follows the colon; expected {FORMS}")));
        }
        Ok(match kind {
            "builtin" if BUILTINS.contains(&rest) => Self::Builtin(rest.to_string()),
            "builtin" => {
                let known = BUILTINS.join(", ");
                return Err(Error::usage(format!("dataset `{text}`: no such built-in; there are {known}")));
            }
            "idx" => Self::Idx(rest.into()),
            "folder" => Self::Folder(rest.into()),
            "cifar" => Self::Cifar(rest.into()),
            "npz" => Self::Npz(rest.into()),
            "meta-album" => Self::MetaAlbum(rest.into()),
            _ => return Err(Error::usage(format!("dataset `{text}`: unknown kind `{kind}`; expected {FORMS}"))),
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin(name) => write!(f, "builtin:{name}"),
            Self::Idx(path) => write!(f, "idx:{}", path.display()),
            Self::Folder(path) => write!(f, "folder:{}", path.display()),
            Self::Cifar(path) => write!(f, "cifar:{}", path.display()),
            Self::Npz(path) => write!(f, "npz:{}", path.display()),
            Self::MetaAlbum(path) => write!(f, "meta-album:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_round_trip() {
        for text in ["builtin:fashion", "idx:a/b", "folder:/c d", "cifar:x:y", "npz:a.npz", "meta-album:."] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_specs_say_what_is_possible() {
        for (text, part) in [
            ("fashion", "did you mean builtin:fashion?"),
            ("./data", "expected builtin:NAME"),
            ("idx:", "nothing follows the colon"),
            ("builtin:cifar", "there are fashion, mnist"),
            ("tar:x", "unknown kind `tar`"),
            ("", "expected builtin:NAME"),
        ] {
            let message = text.parse::<Spec>().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
