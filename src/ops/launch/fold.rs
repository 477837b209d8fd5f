//! Second halves of reductions, shared by every op that leaves partial results a chunk: moments of batch statistics, and
//! sums of weight gradients. They are made of jobs, so that those of many ops share a launch.

use super::jobs::{self, Job};
use super::pool::{FOLD, PoolJob};
use super::{BLOCK, Lanes, Launch, Place, Spot, record};

record! {
    /// Chunks of sums that become one.
    FoldSums {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Elements of the result.
        elements: u32,
        /// Elements of one of its rows.
        columns: u32,
        /// Elements from one of its rows to the next.
        stride: u32,
        /// Chunks.
        chunks: u32,
        /// Elements from one chunk to the next.
        chunk_stride: u32,
        /// Add to what is there.
        accumulate: u32,
        /// The first chunk: the elements of the result, row by row without gaps.
        partial: Spot,
        /// The result.
        out: Spot,
    }
}

/// Elements of scratch for the moments of `channels` in `chunks` chunks. Chunk by chunk: a row of means, a row of M2, of the
/// channels rounded up to quads, then the number of values and three elements of nothing.
pub(super) fn moments_len(channels: usize, chunks: usize) -> usize {
    chunks * (2 * channels.next_multiple_of(4) + 4)
}

/// Moments to be merged.
pub(super) struct Moments {
    /// [`moments_len`] elements of scratch.
    pub partial: Place,
    /// Chunks.
    pub chunks: usize,
    /// Where the mean goes; its extent tells the channels.
    pub mean: Place,
    /// Where the variance goes.
    pub variance: Place,
}

/// Merges moments, all maps of an op in one launch, which pools of other ops may join.
pub(super) fn moments(items: &[Moments]) -> Vec<Launch> {
    jobs::launches("pool", "pool_forward", items, |m, slots| {
        let channels = m.mean.shape.len();
        let (mean, variance) = (m.mean.vector(channels), m.variance.vector(channels));
        let Lanes { lanes, groups, .. } = Lanes::new(channels);
        let record = PoolJob {
            flags: FOLD,
            channels: channels as u32,
            lanes: lanes as u32,
            groups: groups as u32,
            chunks: m.chunks as u32,
            partial: slots.reads(m.partial),
            mean: slots.writes(mean),
            variance: slots.writes(variance),
            ..Default::default()
        };
        Job { records: vec![record], blocks: groups, wide: mean.packed() && variance.packed() }
    })
}

/// Sums to be added up.
pub(super) struct Sums {
    /// The first chunk, in scratch.
    pub partial: Place,
    /// Chunks.
    pub chunks: usize,
    /// Elements from one chunk to the next.
    pub chunk_stride: usize,
    /// Where the result goes.
    pub out: Place,
    /// Add to what is there.
    pub accumulate: bool,
}

/// Adds sums up, all results of an op in one launch.
pub(super) fn sums(items: &[Sums]) -> Vec<Launch> {
    jobs::launches("fold", "fold_sums", items, |s, slots| {
        let elements = s.out.shape.len();
        let record = FoldSums {
            elements: elements as u32,
            columns: s.out.shape.c as u32,
            stride: s.out.row_stride,
            chunks: s.chunks as u32,
            chunk_stride: s.chunk_stride as u32,
            accumulate: u32::from(s.accumulate),
            partial: slots.reads(s.partial),
            out: slots.writes(s.out),
            ..Default::default()
        };
        Job { records: vec![record], blocks: elements.div_ceil(BLOCK as usize), wide: false }
    })
}
