//! Networks for other programs: a trained derived network as an ONNX model.

pub mod onnx;
mod protobuf;

pub use onnx::{to_onnx, write_onnx};
