//! All integration tests, in one binary.

#[cfg(all(unix, feature = "cli"))]
mod bench;
mod cases;
mod cells;
mod choose;
#[cfg(all(feature = "cli", unix))]
mod cli;
mod composition;
#[cfg(feature = "files")]
mod data;
mod embedding;
#[cfg(feature = "files")]
mod experiment;
mod gpu;
mod gradients;
mod masks;
mod onnx;
#[cfg(all(feature = "cli", unix))]
mod ot;
mod parity;
mod plan;
mod primitives;
#[cfg(feature = "files")]
mod runs;
mod torch;
mod transport;
mod values;
mod zoo;
