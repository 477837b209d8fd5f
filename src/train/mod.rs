//! Training and evaluation of a derived network.

pub mod inherit;
pub mod run;
pub mod step;
