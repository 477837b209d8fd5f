//! Bilevel search over a supernet's weights and alphas.

pub mod run;
pub mod schedule;
pub mod step;
