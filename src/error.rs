//! The one error type of the crate. Every message names the thing that was wrong (file, value, op), what is
//! wrong with it, and what to do; [`Error::exit_code`] maps it to the exit status of the command line.

use std::path::{Path, PathBuf};

/// Result with the crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, grouped by what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value given by the user (flag, configuration key, specification) cannot be used.
    #[error("{0}")]
    Usage(String),
    /// A file of a dataset, checkpoint or genotype has unusable contents.
    #[error("{}: {message}", path.display())]
    Input {
        /// The file or folder that was read.
        path: PathBuf,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was attempted, as a verb phrase ("read", "create the folder").
        action: &'static str,
        /// The operating system's own error.
        source: std::io::Error,
    },
    /// Tensors of shapes that an op cannot combine.
    #[error("op `{op}`: {message}")]
    Shape {
        /// The op that was being recorded.
        op: &'static str,
        /// The shapes and the rule that they break.
        message: String,
    },
    /// The program needs more memory than it may take.
    #[error("{0}")]
    Memory(String),
    /// A computation gave NaN or infinity.
    #[error("{0}")]
    NonFinite(String),
    /// A kernel computes something else than the reference.
    #[error("{0}")]
    Parity(String),
    /// A device is not usable, was lost, or refused a kernel.
    #[error("{0}")]
    Device(String),
    /// The user asked to stop; a checkpoint was written.
    #[error("interrupted; the state is saved in {}, continue with --resume", checkpoint.display())]
    Interrupted {
        /// The checkpoint from which `--resume` continues.
        checkpoint: PathBuf,
    },
}

impl Error {
    /// A value given by the user cannot be used.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// A device is not usable, was lost, or refused a kernel.
    pub fn device(message: impl Into<String>) -> Self {
        Self::Device(message.into())
    }

    /// The contents of `path` cannot be used.
    pub fn input(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// Wraps an I/O error: `map_err(Error::io(path, "read"))`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// Exit status of the command line: 2 bad input or usage, 3 interrupted with a checkpoint, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Input { .. } => 2,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 2,
            Self::Interrupted { .. } => 3,
            _ => 1,
        }
    }
}
