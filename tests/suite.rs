//! All integration tests, in one binary.

mod cases;
mod composition;
mod gradients;
mod parity;
mod plan;
mod torch;
mod values;
