//! All integration tests, in one binary.

#[cfg(feature = "files")]
mod data;
#[cfg(feature = "files")]
mod runs;
mod torch;
