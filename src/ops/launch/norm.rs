//! Batch statistics on GPUs: each block reduces a chunk of rows to moments (count, mean, M2), a second launch merges
//! the chunks' moments. Merging follows Chan, Golub & LeVeque (1979): centred throughout, never the mean of squares minus the squared mean.

use super::jobs::{self, Job};
use super::{Lanes, Launch, Lower, Place, Places, Spot, fold, record};
use crate::graph::Shape;
use crate::ops::norm::Statistics;

/// Rows that a thread holds in registers at once.
pub const TILE: usize = 4;
/// Most chunks that one block merges.
const CHUNKS: usize = 128;

record! {
    /// A map whose moments are wanted.
    StatisticsJob {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Rows of the map.
        rows: u32,
        /// Channels of the map.
        channels: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Rows of a chunk; the last one may have fewer.
        chunk_rows: u32,
        /// Elements from one pixel to the next.
        map_stride: u32,
        /// The map.
        map: Spot,
        /// Moments of each chunk: see `fold::moments_len`.
        partial: Spot,
    }
}

/// Chunks of a map.
pub(super) fn chunks(shape: Shape) -> usize {
    chunk(shape).1
}

/// Rows of a chunk, and chunks.
fn chunk(shape: Shape) -> (usize, usize) {
    Lanes::new(shape.c).chunks(shape.rows(), TILE, CHUNKS)
}

/// Moments of the chunks of maps, each with the scratch that they go to.
pub(super) fn partial(maps: &[(Place, Place)]) -> Vec<Launch> {
    jobs::launches("statistics", "statistics_partial", maps, |&(map, partial), slots| {
        let Lanes { lanes, groups, .. } = Lanes::new(map.shape.c);
        let (chunk_rows, chunks) = chunk(map.shape);
        let record = StatisticsJob {
            rows: map.shape.rows() as u32,
            channels: map.shape.c as u32,
            lanes: lanes as u32,
            groups: groups as u32,
            chunk_rows: chunk_rows as u32,
            map_stride: map.row_stride,
            map: slots.reads(map),
            partial: slots.writes(partial),
            ..Default::default()
        };
        Job { records: vec![record], blocks: chunks * groups, wide: map.wide() }
    })
}

impl Lower for Statistics {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        fold::moments_len(inputs[0].c, chunks(inputs[0]))
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let map = at.inputs[0];
        let mut launches = partial(&[(map, at.scratch)]);
        let chunks = chunks(map.shape);
        let moments = fold::Moments { partial: at.scratch, chunks, mean: at.outputs[0], variance: at.outputs[1] };
        launches.extend(fold::moments(&[moments]));
        launches
    }
}
