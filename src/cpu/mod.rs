//! The CPU device: vector types for each instruction set and the micro-kernels built on them.
//!
//! The crate is compiled for the baseline of its target; everything hot is reached through [`micro::Micro`], a table
//! of kernels chosen once at run time for the instruction set that the machine has.

pub mod micro;
pub mod simd;
