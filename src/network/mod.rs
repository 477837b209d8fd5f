//! Networks: what parameters there are, and how they are recorded into a graph. Weights come as one flat tensor, so that
//! the same network can be recorded with unrolled or perturbed weights in their place; batch statistics likewise lie in
//! one flat vector, which one op folds into the running statistics.

pub mod derived;
pub mod genotype;
pub mod parameters;
pub mod primitives;
pub mod space;
pub mod supernet;

pub use derived::{Derived, DerivedConfig};
pub use genotype::Genotype;
pub use parameters::{Layout, Parameter, Pass, Statistic};
pub use space::{Primitive, SearchSpace};
pub use supernet::Supernet;

/// Extent of the images that a network reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageSize {
    /// Pixel rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// 1 to 4.
    pub channels: usize,
}

impl std::fmt::Display for ImageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

/// Stage of a network of `layers` cells at which the resolution halves: cells `layers / 3` and `2 * layers / 3`.
pub fn is_reduction(layer: usize, layers: usize) -> bool {
    layer == layers / 3 || layer == 2 * layers / 3
}
