//! All integration tests, in one binary.
#[cfg(feature = "files")]
mod runs;
mod torch;
