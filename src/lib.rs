//! `supernet`: neural architecture search that starts from pretrained DARTS supernets.

pub mod data;
pub mod error;
pub mod random;

pub use error::{Error, Result};
