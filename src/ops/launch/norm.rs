//! Batch statistics on GPUs: each block reduces a chunk of rows to moments (count, mean, M2), a second launch merges
//! the chunks' moments. Merging follows Chan, Golub & LeVeque (1979): centred throughout, never the mean of squares minus the squared mean.

use super::{BLOCK, Lanes, Launch, Lower, Places, Slots, Spot, grid, record};
use crate::graph::Shape;
use crate::ops::norm::Statistics;

/// Rows that a thread holds in registers at once.
pub const TILE: usize = 4;
/// Most chunks that one block merges.
const CHUNKS: usize = 128;

record! {
    /// Parameters of `statistics_partial` and `statistics_fold`.
    StatisticsParams {
        /// Blocks that have work.
        blocks: u32,
        /// Rows of the map.
        rows: u32,
        /// Channels of the map.
        channels: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Chunks of rows.
        chunks: u32,
        /// Rows of a chunk; the last one may have fewer.
        chunk_rows: u32,
        /// Elements from one pixel to the next.
        map_stride: u32,
        /// The map.
        map: Spot,
        /// Mean a channel.
        mean: Spot,
        /// Biased variance a channel.
        variance: Spot,
        /// Moments: a chunk two rows, mean and M2, of the channels rounded up to quads.
        partial: Spot,
    }
}

fn chunks(shape: Shape) -> (usize, usize) {
    Lanes::new(shape.c).chunks(shape.rows(), TILE, CHUNKS)
}

impl Lower for Statistics {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        chunks(inputs[0]).1 * 2 * inputs[0].c.next_multiple_of(4)
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let shape = at.inputs[0].shape;
        let (mean, var) = (at.outputs[0].vector(shape.c), at.outputs[1].vector(shape.c));
        let Lanes { lanes, groups, .. } = Lanes::new(shape.c);
        let (chunk_rows, chunks) = chunks(shape);
        let mut slots = Slots::default();
        let params = StatisticsParams {
            blocks: (chunks * groups) as u32,
            rows: shape.rows() as u32,
            channels: shape.c as u32,
            lanes: lanes as u32,
            groups: groups as u32,
            chunks: chunks as u32,
            chunk_rows: chunk_rows as u32,
            map_stride: at.inputs[0].row_stride,
            map: slots.reads(at.inputs[0]),
            mean: slots.writes(mean),
            variance: slots.writes(var),
            partial: slots.writes(at.scratch),
        };
        let launch = |kernel, wide, params: StatisticsParams| Launch {
            source: "statistics",
            kernel,
            wide,
            grid: grid(params.blocks as usize),
            params: bytemuck::bytes_of(&params).to_vec(),
            table: Vec::new(),
            pages: slots.pages.clone(),
            block: BLOCK,
        };
        vec![
            launch("statistics_partial", at.inputs[0].wide(), params),
            launch("statistics_fold", mean.wide() && var.wide(), StatisticsParams { blocks: groups as u32, ..params }),
        ]
    }
}
