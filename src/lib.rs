//! `supernet`: neural architecture search that starts from pretrained DARTS supernets, on a kernel engine of its own.

pub mod cpu;
pub mod device;
pub mod error;
pub mod graph;
pub mod ops;
pub mod random;

pub use error::{Error, Result};
