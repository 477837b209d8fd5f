//! Measuring: kernels at the shapes of real searches, whole steps, and the image loader, each beside what the machine
//! itself can do.
//!
//! [`cases`] lists kernels as recorded graphs ([`recorder`]), [`parity`] compares them with the f64 reference before
//! they are timed ([`kernels`]); [`step`] and [`growth`] time whole steps, [`loader`] what brings images to them, [`solves`]
//! whole transport problems. All are measured and summarised in one way ([`measure`]; on GPUs by their own clock, [`gpu`]), held
//! against the machine's [`ceiling`], written as one form of JSON ([`report`]), drawn ([`chart`]) and compared with earlier
//! results ([`compare`]).

pub mod cases;
pub mod ceiling;
pub mod chart;
pub mod compare;
mod folded;
pub mod gpu;
pub mod growth;
pub mod kernels;
pub mod loader;
pub mod measure;
pub mod parity;
pub mod recorder;
pub mod report;
pub mod solves;
pub mod step;
mod transport;
