//! Networks: what parameters there are, and how they are recorded into a graph. Weights come as one flat tensor, so that
//! the same network can be recorded with unrolled or perturbed weights in their place; batch statistics likewise lie in
//! one flat vector, which one op folds into the running statistics.

pub mod cell;
pub mod derived;
pub mod genotype;
pub mod parameters;
pub mod primitives;
pub mod space;
pub mod supernet;

pub use cell::Cell;
pub use derived::{Derived, DerivedConfig};
pub use genotype::Genotype;
pub use parameters::{Layout, Parameter, Pass, Statistic};
pub use space::{Primitive, SearchSpace};
pub use supernet::Supernet;

pub use crate::data::Geometry;

/// Whether a cell halves the resolution and doubles the channels: cells `layers / 3` and `2 * layers / 3` do.
pub fn is_reduction(layer: usize, layers: usize) -> bool {
    layer == layers / 3 || layer == 2 * layers / 3
}
