//! All integration tests, in one binary.
mod onnx;
mod torch;
