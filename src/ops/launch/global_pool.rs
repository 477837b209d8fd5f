//! The mean over all pixels of each image on GPUs, and its gradient: one launch each. A block takes a group of
//! channels of an image.

use super::{Lanes, Launch, Lower, Place, Places, Slots, Spot, record};
use crate::ops::pool::{GlobalPool, GlobalPoolBackward};

/// Rows that a thread of `global_pool_backward` writes.
pub const ROWS: usize = 4;

record! {
    /// Parameters of `global_pool` and `global_pool_backward`.
    GlobalPoolParams {
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
        /// Rows of one image.
        pixels: u32,
        /// Whether the result is added to what is there.
        accumulate: u32,
        /// Elements from one pixel of the map to the next.
        map_stride: u32,
        /// The map, or its gradient.
        map: Spot,
        /// Means, or their gradient.
        mean: Spot,
        /// Elements from one image's means to the next.
        mean_stride: u32,
        /// Zero.
        unused: u32,
        /// Zero.
        unused_1: Spot,
    }
}

fn params(at: &Places<'_>, map: Place, mean: Place) -> GlobalPoolParams {
    let Lanes { lanes, groups, .. } = Lanes::new(map.shape.c);
    GlobalPoolParams {
        rows: map.shape.rows() as u32,
        channels: map.shape.c as u32,
        lanes: lanes as u32,
        groups: groups as u32,
        pixels: (map.shape.h * map.shape.w) as u32,
        accumulate: u32::from(at.accumulate[0]),
        map_stride: map.row_stride,
        mean_stride: mean.row_stride,
        ..Default::default()
    }
}

impl Lower for GlobalPool {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (map, mean) = (at.inputs[0], at.outputs[0]);
        let blocks = map.shape.n * Lanes::new(map.shape.c).groups;
        let mut slots = Slots::default();
        let params = GlobalPoolParams {
            blocks: blocks as u32,
            map: slots.reads(map),
            mean: slots.writes(mean),
            ..params(at, map, mean)
        };
        vec![slots.launch(["global_pool", "global_pool"], map.wide() && mean.wide(), blocks, &params)]
    }
}

impl Lower for GlobalPoolBackward {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (mean, map) = (at.inputs[0], at.outputs[0]);
        let lanes = Lanes::new(map.shape.c);
        let blocks = map.shape.rows().div_ceil(lanes.rows * ROWS) * lanes.groups;
        let mut slots = Slots::default();
        let params = GlobalPoolParams {
            blocks: blocks as u32,
            map: slots.writes(map),
            mean: slots.reads(mean),
            ..params(at, map, mean)
        };
        vec![slots.launch(["global_pool", "global_pool_backward"], map.wide() && mean.wide(), blocks, &params)]
    }
}
