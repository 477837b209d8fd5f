//! Devices: allocate the store and the arena, run programs and replay them. `reference` runs any program in f32 or f64
//! by the plain implementations in `ops`; `cpu` runs the tuned kernels.

pub mod cpu;
mod memory;
pub mod pages;
pub mod reference;
pub mod source;
pub mod view;
