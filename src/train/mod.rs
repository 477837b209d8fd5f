//! Training and evaluation of a derived network.

pub mod run;
pub mod step;
