//! Augmentation and drop-path masks on GPUs. Every thread draws for itself: a draw is a pure function of seed and
//! counter, and costs less than sharing it.

use super::{BLOCK, Lanes, Launch, Lower, Places, Slots, Spot, TABLE_BYTES, grid, record};
use crate::ops::augment::{Augment, DropMask};

/// Pixels of one image that a thread of `augment_forward` writes.
pub const ROWS: usize = 4;
/// Most quads of channels: `TABLE` in the shader.
pub const TABLE: usize = 512;

record! {
    /// Parameters of `augment_forward`.
    AugmentParams {
        /// Blocks that have work.
        blocks: u32,
        /// Channels of the map.
        channels: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Chunks of pixels of one image; a block writes one.
        chunks: u32,
        /// Pixels of a column.
        height: u32,
        /// Pixels of a row.
        width: u32,
        /// See [`Augment::pad`].
        pad: u32,
        /// Whether half of the images are mirrored.
        flip: u32,
        /// See [`Augment::cutout`].
        cutout: u32,
        /// Low word of the seed.
        seed_low: u32,
        /// High word of the seed.
        seed_high: u32,
        /// Elements from one pixel of `map` to the next.
        map_stride: u32,
        /// Elements from one pixel of `out` to the next.
        out_stride: u32,
        /// Whether the output is added to what is there.
        accumulate: u32,
        /// Zero.
        unused: u32,
        /// Pixels in 0..255.
        map: Spot,
        /// Index of each image.
        index: Spot,
        /// The epoch.
        epoch: Spot,
        /// Augmented pixels.
        out: Spot,
    }
}

record! {
    /// Normalisation of four neighbouring channels.
    AugmentQuad {
        /// Mean of the first.
        mean_0: f32,
        /// Mean of the second.
        mean_1: f32,
        /// Mean of the third.
        mean_2: f32,
        /// Mean of the fourth.
        mean_3: f32,
        /// Deviation of the first.
        deviation_0: f32,
        /// Deviation of the second.
        deviation_1: f32,
        /// Deviation of the third.
        deviation_2: f32,
        /// Deviation of the fourth.
        deviation_3: f32,
    }
}

const _: () = assert!(TABLE * size_of::<AugmentQuad>() <= TABLE_BYTES);

record! {
    /// Parameters of `drop_mask`.
    DropMaskParams {
        /// Blocks that have work.
        blocks: u32,
        /// Factors to write.
        elements: u32,
        /// Images of the batch.
        columns: u32,
        /// Elements from one path to the next.
        out_stride: u32,
        /// Low word of the seed.
        seed_low: u32,
        /// High word of the seed.
        seed_high: u32,
        /// Whether the output is added to what is there.
        accumulate: u32,
        /// Zero.
        unused_0: u32,
        /// Probability of a zero.
        probability: Spot,
        /// The step.
        step: Spot,
        /// Factors, a row a path.
        out: Spot,
        /// Zero.
        unused_1: Spot,
    }
}

impl Lower for Augment {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (map, out) = (at.inputs[0], at.outputs[0]);
        let shape = map.shape;
        let lanes = Lanes::new(shape.c);
        let quads = shape.c.div_ceil(4);
        assert!(quads <= TABLE, "augmentation of {} channels, at most {}", shape.c, 4 * TABLE);
        let chunks = (shape.h * shape.w).div_ceil(lanes.rows * ROWS);
        let blocks = shape.n * chunks * lanes.groups;
        let mut slots = Slots::default();
        let params = AugmentParams {
            blocks: blocks as u32,
            channels: shape.c as u32,
            lanes: lanes.lanes as u32,
            groups: lanes.groups as u32,
            chunks: chunks as u32,
            height: shape.h as u32,
            width: shape.w as u32,
            pad: self.pad as u32,
            flip: u32::from(self.flip),
            cutout: self.cutout as u32,
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
            map_stride: map.row_stride,
            out_stride: out.row_stride,
            accumulate: u32::from(at.accumulate[0]),
            unused: 0,
            map: slots.reads(map),
            index: slots.reads(at.inputs[1].vector(shape.n)),
            epoch: slots.reads(at.inputs[2].vector(1)),
            out: slots.writes(out),
        };
        let quad = |quad: usize| {
            let mean = |k: usize| self.mean.get(4 * quad + k).copied().unwrap_or(0.0);
            let deviation = |k: usize| self.std.get(4 * quad + k).copied().unwrap_or(1.0);
            AugmentQuad {
                mean_0: mean(0),
                mean_1: mean(1),
                mean_2: mean(2),
                mean_3: mean(3),
                deviation_0: deviation(0),
                deviation_1: deviation(1),
                deviation_2: deviation(2),
                deviation_3: deviation(3),
            }
        };
        let table: Vec<_> = (0..quads).map(quad).collect();
        vec![Launch {
            source: "augment",
            kernel: "augment_forward",
            wide: map.wide() && out.wide(),
            halves: slots.halves,
            params: bytemuck::bytes_of(&params).to_vec(),
            table: bytemuck::cast_slice(&table).to_vec(),
            pages: slots.pages,
            grid: grid(blocks),
            block: BLOCK,
            jobs: None,
            reads: Vec::new(),
            writes: Vec::new(),
        }]
    }
}

impl Lower for DropMask {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let out = at.outputs[0];
        let blocks = out.shape.len().div_ceil(BLOCK as usize);
        let mut slots = Slots::default();
        let params = DropMaskParams {
            blocks: blocks as u32,
            elements: out.shape.len() as u32,
            columns: out.shape.c as u32,
            out_stride: out.row_stride,
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
            accumulate: u32::from(at.accumulate[0]),
            probability: slots.reads(at.inputs[0].vector(1)),
            step: slots.reads(at.inputs[1].vector(1)),
            out: slots.writes(out),
            ..Default::default()
        };
        // Single elements are written: wide accesses would write their neighbours too.
        vec![Launch {
            source: "augment",
            kernel: "drop_mask",
            wide: false,
            halves: slots.halves,
            params: bytemuck::bytes_of(&params).to_vec(),
            table: Vec::new(),
            pages: slots.pages,
            grid: grid(blocks),
            block: BLOCK,
            jobs: None,
            reads: Vec::new(),
            writes: Vec::new(),
        }]
    }
}
