//! The CPU device's kernels: vector types for each instruction set, the micro-kernels built on them, and the tuned
//! implementations of the ops.
//!
//! The crate is compiled for the baseline of its target; everything hot is reached through [`micro::Micro`], a table
//! of kernels chosen once at run time for the instruction set that the machine has.

mod augment;
pub mod ceiling;
mod common;
mod dense;
mod flat;
mod folded;
pub mod kernel;
pub mod micro;
mod mixture;
mod pool;
mod reduce;
mod separable;
mod separable_backward;
pub mod simd;
#[cfg(test)]
mod tests;
pub mod transport;
