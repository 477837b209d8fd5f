//! Optimal transport: costs, Sinkhorn iterations and certificates of a batch of problems of different sizes.
//!
//! Small problems are tasks of their own and keep everything in the tile memory of their thread, so a kernel matrix
//! stays in its cache. Large ones, and all without a matrix, are cut into blocks of rows whose column sums are folded in
//! order. Both do the same arithmetic: a problem gives the same bits alone, in any batch and with any number of threads.

mod certificate;
mod cost;
mod extent;
mod sinkhorn;

pub use certificate::{CertificateKernel, certificate_scratch};
pub use cost::PairCostKernel;
pub use extent::{Extent, PointExtent};
pub use sinkhorn::{SinkhornKernel, sinkhorn_scratch};

use super::common::element;
use super::kernel::{Context, Tile};
use crate::device::view::View;
use crate::ops::transport::Problem;

/// Elements of a cost matrix up to which a problem is one task: a kernel matrix of 1 MiB.
const SMALL: usize = 1 << 18;
/// Exponent of padding columns, whose mass is nothing.
const NOTHING: f32 = -1e30;
/// Most blocks of a problem with many rows: each has column sums of its own.
const BLOCKS: usize = 64;

/// Rows of a block; a function of the size of the problem only.
fn block(n: usize) -> usize {
    let usual = if n > 1024 { 128 } else { 64 };
    n.div_ceil(BLOCKS).next_multiple_of(16).max(usual)
}

/// Calls `f(first row, rows, number of the block, tile)` for the blocks of `n` rows: spread over the threads if `wide`,
/// else one after the other in `tile`.
fn blocks(
    context: &Context<'_>,
    wide: bool,
    tile: Tile,
    n: usize,
    f: impl Fn(usize, usize, usize, Tile) + Sync + Send,
) {
    let size = block(n);
    let task = |b: usize, tile: Tile| f(b * size, size.min(n - b * size), b, tile);
    if wide {
        context.parallel(n.div_ceil(size), task);
    } else {
        (0..n.div_ceil(size)).for_each(|b| task(b, tile));
    }
}

fn small(p: &Problem) -> bool {
    p.pairs() <= SMALL
}

/// A part of a vector as a pointer.
fn part(view: &View<f32>, start: u32, len: usize) -> *mut f32 {
    assert!(start as usize + len <= view.shape.len(), "a problem reaches beyond its tensors");
    element(view, start as usize)
}

/// A pointer that tasks share, each for a part of its own or for reading.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: as the tasks share it.
unsafe impl<T> Sync for Shared<T> {}
// SAFETY: as the tasks share it.
unsafe impl<T> Send for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}
