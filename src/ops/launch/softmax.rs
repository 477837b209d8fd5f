//! Softmax of rows on GPUs. Rows are the primitives of an edge: a few values, so that a thread takes a row.

use super::{BLOCK, Launch, Lower, Place, Places, Slots, Spot, record};
use crate::ops::softmax::{Softmax, SoftmaxBackward};

record! {
    /// Parameters of `softmax` and `softmax_backward`.
    SoftmaxParams {
        /// Blocks that have work.
        blocks: u32,
        /// Rows.
        rows: u32,
        /// Values of a row.
        channels: u32,
        /// Whether the result is added to what is there.
        accumulate: u32,
        /// The rows; in the backward, their softmax.
        x: Spot,
        /// Gradient of the softmax.
        dp: Spot,
        /// Result.
        out: Spot,
        /// Elements from one row of `x` to the next.
        x_stride: u32,
        /// Elements from one row of `dp` to the next.
        dp_stride: u32,
        /// Elements from one row of `out` to the next.
        out_stride: u32,
        /// Zero.
        unused: u32,
        /// Zero.
        unused_1: Spot,
    }
}

fn launch(kernel: &'static str, at: &Places<'_>, dp: Option<Place>) -> Vec<Launch> {
    let (x, out) = (at.inputs[0], at.outputs[0]);
    let blocks = x.shape.rows().div_ceil(BLOCK as usize);
    let mut slots = Slots::default();
    let params = SoftmaxParams {
        blocks: blocks as u32,
        rows: x.shape.rows() as u32,
        channels: x.shape.c as u32,
        accumulate: u32::from(at.accumulate[0]),
        x: slots.reads(x),
        dp: dp.map(|dp| slots.reads(dp)).unwrap_or_default(),
        out: slots.writes(out),
        x_stride: x.row_stride,
        dp_stride: dp.map_or(0, |dp| dp.row_stride),
        out_stride: out.row_stride,
        ..Default::default()
    };
    vec![slots.launch(["softmax", kernel], false, blocks, &params)]
}

impl Lower for Softmax {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        launch("softmax", at, None)
    }
}

impl Lower for SoftmaxBackward {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        launch("softmax_backward", at, Some(at.inputs[1]))
    }
}
