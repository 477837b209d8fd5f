//! Cross-entropy on GPUs. Some threads of a warp share a row; a block sums the losses and hits of its rows, and if
//! there is more than one block, a second launch sums the blocks. The backward counts the valid rows anew in every
//! block: labels are few, and the count need not travel.

use super::{BLOCK, Launch, Lower, Places, Slots, Spot, record};
use crate::graph::Shape;
use crate::ops::loss::{Accumulate, CrossEntropy, CrossEntropyBackward};

record! {
    /// Parameters of the cross-entropy kernels.
    LossParams {
        /// Blocks that have work.
        blocks: u32,
        /// Rows of logits.
        rows: u32,
        /// Classes.
        classes: u32,
        /// Threads that share a row, a power of two.
        lanes: u32,
        /// Rows that each of these groups takes, one after another.
        rounds: u32,
        /// Partial sums.
        partials: u32,
        /// Whether the loss, or the gradient, is added to what is there.
        accumulate: u32,
        /// Whether the counts are.
        accumulate_counts: u32,
        /// Label smoothing.
        smoothing: f32,
        /// Elements from one row of logits to the next.
        logits_stride: u32,
        /// Elements from one row of the gradient to the next.
        dlogits_stride: u32,
        /// Zero.
        unused: u32,
        /// Logits.
        logits: Spot,
        /// Labels, below zero for rows that do not count.
        labels: Spot,
        /// Mean loss.
        loss: Spot,
        /// Hits at rank 1 and 5, valid rows.
        counts: Spot,
        /// Sums of loss, hits at rank 1 and 5, and valid rows, four elements a block.
        partial: Spot,
        /// Gradient of the loss.
        g: Spot,
        /// Gradient of the logits.
        dlogits: Spot,
        /// Zero.
        unused_1: Spot,
    }
}

record! {
    /// Parameters of `accumulate_sums`.
    AccumulateParams {
        /// Blocks that have work.
        blocks: u32,
        /// Zero.
        unused: u32,
        /// Mean loss of a step.
        loss: Spot,
        /// Its counts.
        counts: Spot,
        /// Sums of an epoch.
        sums: Spot,
    }
}

/// Threads that share a row, and rows that a block covers at once.
fn lanes(logits: Shape) -> (usize, usize) {
    let lanes = logits.c.next_power_of_two().min(32);
    (lanes, BLOCK as usize / lanes)
}

/// Rounds of a block, and blocks: a thread reads some 64 logits at most if rows are that short.
fn rounds(logits: Shape) -> (usize, usize) {
    let (lanes, rows) = lanes(logits);
    let rounds = (64 / logits.c.div_ceil(lanes)).clamp(1, 8);
    (rounds, logits.rows().div_ceil(rows * rounds))
}

fn params(at: &Places<'_>, smoothing: f64, slots: &mut Slots) -> LossParams {
    let logits = at.inputs[0];
    LossParams {
        rows: logits.shape.rows() as u32,
        classes: logits.shape.c as u32,
        lanes: lanes(logits.shape).0 as u32,
        accumulate: u32::from(at.accumulate[0]),
        smoothing: smoothing as f32,
        logits_stride: logits.row_stride,
        logits: slots.reads(logits),
        labels: slots.reads(at.inputs[1].vector(logits.shape.rows())),
        ..Default::default()
    }
}

impl Lower for CrossEntropy {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        4 * rounds(inputs[0]).1
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (rounds, blocks) = rounds(at.inputs[0].shape);
        let mut slots = Slots::default();
        let params = LossParams {
            blocks: blocks as u32,
            rounds: rounds as u32,
            partials: blocks as u32,
            accumulate_counts: u32::from(at.accumulate[1]),
            loss: slots.writes(at.outputs[0]),
            counts: slots.writes(at.outputs[1].vector(3)),
            partial: slots.writes(at.scratch),
            ..params(at, self.smoothing, &mut slots)
        };
        let mut launches = vec![slots.launch(["loss", "cross_entropy"], false, blocks, &params)];
        if blocks > 1 {
            let params = LossParams { blocks: 1, ..params };
            launches.push(slots.launch(["loss", "cross_entropy_fold"], false, 1, &params));
        }
        launches
    }
}

impl Lower for CrossEntropyBackward {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let shape = at.inputs[0].shape;
        let blocks = shape.rows().div_ceil(lanes(shape).1);
        let mut slots = Slots::default();
        let params = LossParams {
            blocks: blocks as u32,
            g: slots.reads(at.inputs[2]),
            dlogits: slots.writes(at.outputs[0]),
            dlogits_stride: at.outputs[0].row_stride,
            ..params(at, self.smoothing, &mut slots)
        };
        vec![slots.launch(["loss", "cross_entropy_backward"], false, blocks, &params)]
    }
}

impl Lower for Accumulate {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let mut slots = Slots::default();
        let params = AccumulateParams {
            blocks: 1,
            unused: 0,
            loss: slots.reads(at.inputs[0]),
            counts: slots.reads(at.inputs[1].vector(3)),
            sums: slots.writes(at.outputs[0].vector(4)),
        };
        vec![slots.launch(["loss", "accumulate_sums"], false, 1, &params)]
    }
}
