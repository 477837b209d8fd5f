//! Convolutions of pretrained networks on GPUs. Pointwise: a product in tiles that blocks share. Depthwise, and dense ones
//! with larger windows (the stem: few input channels): a thread owns a quad of output channels and a run of neighbouring
//! pixels, for which it reads each weight once.

use super::{BLOCK, Lanes, Launch, Lower, Places, Slots, Spot, grid, record};
use crate::ops::folded::{Activation, Folded};

/// Rows and channels of the output that a block of `folded_pointwise` computes.
pub const TILE: usize = 64;
/// Neighbouring pixels that a thread of the other kernels computes.
pub const RUN: usize = 4;

/// Values below 0 become 0.
pub const RELU: u32 = 1;
/// A residual is added.
pub const RESIDUAL: u32 = 2;
/// The output is added to what is there.
pub const ACCUMULATE: u32 = 4;
/// Values above 6 become 6.
pub const SIX: u32 = 8;

record! {
    /// Parameters of all kernels.
    FoldedParams {
        /// Blocks that have work.
        blocks: u32,
        /// Rows of the output.
        rows: u32,
        /// Channels of the output.
        channels: u32,
        /// Channels of the input.
        inputs: u32,
        /// See [`Lanes`]; of the output.
        lanes: u32,
        /// See [`Lanes`]; in `folded_pointwise`, tiles side by side.
        groups: u32,
        /// What applies.
        flags: u32,
        /// Runs of pixels that cover a line of the output.
        line_runs: u32,
        /// Size of the window.
        kernel: u32,
        /// Stride.
        stride: u32,
        /// Zeros above the map.
        top: u32,
        /// Zeros to its left.
        left: u32,
        /// Extent of the map.
        height: u32,
        /// Extent of the map.
        width: u32,
        /// Extent of the output.
        out_height: u32,
        /// Extent of the output.
        out_width: u32,
        /// Elements from one pixel of the map to the next.
        x_stride: u32,
        /// Elements from one row of the weights to the next.
        w_stride: u32,
        /// Elements from one pixel of the residual to the next.
        residual_stride: u32,
        /// Elements from one pixel of the output to the next.
        y_stride: u32,
        /// Runs of pixels in all.
        runs: u32,
        /// Zero.
        unused: u32,
        /// The map.
        x: Spot,
        /// The weights.
        w: Spot,
        /// A summand a channel.
        bias: Spot,
        /// A map like the output.
        residual: Spot,
        /// The output.
        y: Spot,
    }
}

impl Lower for Folded {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let [x, w, bias] = [0, 1, 2].map(|i| at.inputs[i]);
        let (y, residual) = (at.outputs[0], self.residual.then(|| at.inputs[3]));
        let (xs, ys) = (x.shape, y.shape);
        let pointwise = !self.depthwise && self.kernel == 1 && self.stride == 1;
        let lanes = Lanes::new(ys.c);
        let line_runs = ys.w.div_ceil(RUN);
        let runs = ys.n * ys.h * line_runs;
        let (kernel, groups, tiles) = match (pointwise, self.depthwise) {
            (true, _) => ("folded_pointwise", ys.c.div_ceil(TILE), ys.rows().div_ceil(TILE)),
            (_, true) => ("folded_depthwise", lanes.groups, runs.div_ceil(lanes.rows)),
            _ => ("folded_dense", lanes.groups, runs.div_ceil(lanes.rows)),
        };
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let mut slots = Slots::default();
        let params = FoldedParams {
            blocks: (groups * tiles) as u32,
            rows: ys.rows() as u32,
            channels: ys.c as u32,
            inputs: xs.c as u32,
            lanes: lanes.lanes as u32,
            groups: groups as u32,
            flags: flag(self.activation != Activation::Identity, RELU)
                | flag(self.activation == Activation::Relu6, SIX)
                | flag(self.residual, RESIDUAL)
                | flag(at.accumulate[0], ACCUMULATE),
            line_runs: line_runs as u32,
            kernel: self.kernel as u32,
            stride: self.stride as u32,
            top: self.before(xs.h) as u32,
            left: self.before(xs.w) as u32,
            height: xs.h as u32,
            width: xs.w as u32,
            out_height: ys.h as u32,
            out_width: ys.w as u32,
            x_stride: x.row_stride,
            w_stride: w.row_stride,
            residual_stride: residual.map_or(0, |r| r.row_stride),
            y_stride: y.row_stride,
            runs: runs as u32,
            unused: 0,
            x: slots.reads(x),
            w: slots.reads(w),
            bias: slots.reads(bias.vector(ys.c)),
            residual: residual.map_or(Spot::default(), |r| slots.reads(r)),
            y: slots.writes(y),
        };
        // folded_dense reads the map element by element.
        let quads = [Some(w), Some(bias), Some(y), residual, (kernel != "folded_dense").then_some(x)];
        vec![Launch {
            source: "folded",
            kernel,
            wide: quads.into_iter().flatten().all(super::Place::wide),
            halves: slots.halves,
            params: bytemuck::bytes_of(&params).to_vec(),
            table: Vec::new(),
            pages: slots.pages,
            grid: grid(params.blocks as usize),
            block: BLOCK,
            jobs: None,
            reads: Vec::new(),
            writes: Vec::new(),
        }]
    }
}
