//! `supernet`: neural architecture search that starts from pretrained DARTS supernets.

pub mod cpu;
pub mod error;

pub use error::{Error, Result};
