//! All integration tests, in one binary.

#[cfg(feature = "files")]
mod data;
