//! Training and evaluation of a derived network.

pub mod step;
