//! Optimal transport on the host's side: batches of problems, their certificates, and distances between labelled
//! datasets. The arithmetic runs on the engine's ops ([`crate::ops::transport`]); nothing here loops over cost matrices
//! but to prepare or to read them.
//!
//! [`points`] brings clouds into the form of the kernels, [`solver`] solves batches, [`divergence`] debiases, [`mod@bures`] has
//! the closed forms for Gaussians, [`otdd`] the distance of labelled datasets with its floor and the confidence of a
//! ranking.

pub mod bures;
pub mod divergence;
pub mod otdd;
pub mod points;
pub mod solver;
mod weights;

pub use bures::{Gaussian, bures};
pub use divergence::{Divergence, divergences};
pub use otdd::{Distances, Inner, OtddOptions, Ranked, Sample, distances, rank};
pub use points::{Cloud, Metric, Points, Values};
pub use solver::{Costs, Domain, Epsilon, Held, Labels, Memory, Options, Problem, Schedule, Solution, solve};
