//! `supernet`: neural architecture search that starts from pretrained DARTS supernets, on a kernel engine of its own.

pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod embedding;
pub mod error;
pub mod experiment;
pub mod export;
pub mod files;
pub mod graph;
pub mod machine;
pub mod network;
pub mod ops;
pub mod random;
pub mod run;
pub mod search;
pub mod tensors;
pub mod train;
pub mod transport;
pub mod zoo;

pub use error::{Error, Result};
