//! Devices: allocate the store and the arena, run programs and replay them. `reference` runs any program in f32 or f64
//! by the plain implementations in `ops`; `cpu` runs the tuned kernels. Whoever computes holds an [`any::Device`], of the
//! kind that a [`spec::DeviceSpec`] names.

pub mod any;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod memory;
pub mod needs;
pub mod paged;
pub mod pages;
pub mod precision;
pub mod reference;
pub mod source;
pub mod spec;
pub mod view;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::sync::Arc;

use crate::graph::Program;
pub use any::Device;
pub use precision::Precision;
pub use spec::{DeviceSpec, Starting};

/// A program that a device has prepared; runs on that device only.
#[derive(Clone, Debug)]
pub struct Executable {
    /// Its place among what the device has prepared.
    index: usize,
    program: Arc<Program>,
}

impl Executable {
    /// The program behind it.
    pub fn program(&self) -> &Program {
        &self.program
    }
}
