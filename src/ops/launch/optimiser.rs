//! Optimisers and running statistics on GPUs: updates of flat vectors, a thread four neighbouring elements. The
//! norm sums blocks of [`NORM_BLOCK`] elements, then the blocks. Every update reads the norm itself and leaves its
//! outputs alone if it is not finite.

use super::{BLOCK, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, record};
use crate::graph::Shape;
use crate::ops::optimiser::{Adam, GlobalNorm, NORM_BLOCK, Sgd};
use crate::ops::running::RunningUpdate;

/// Elements from one partial of a norm to the next: blocks write side by side, and shaders whose pages are vectors store
/// whole ones.
pub const PARTIAL: usize = 4;
/// Most stretches of statistics that one launch updates: `TABLE` in the shader.
pub const TABLE: usize = 1024;

record! {
    /// Parameters of `norm_partial` and `norm_fold`.
    NormParams {
        /// Blocks that have work.
        blocks: u32,
        /// Elements.
        len: u32,
        /// Partial sums.
        partials: u32,
        /// Whether the norm is added to what is there.
        accumulate: u32,
        /// The vector.
        x: Spot,
        /// Its norm.
        norm: Spot,
        /// Sums of squares, one a block.
        partial: Spot,
        /// Zero.
        unused: Spot,
    }
}

record! {
    /// Parameters of `sgd`.
    SgdParams {
        /// Blocks that have work.
        blocks: u32,
        /// Elements.
        len: u32,
        /// Gradient.
        g: Spot,
        /// Its norm.
        norm: Spot,
        /// Learning rate.
        lr: Spot,
        /// Weights.
        w: Spot,
        /// Velocity.
        v: Spot,
        /// Set to 1 if the norm is not finite.
        flag: Spot,
        /// See [`Sgd`].
        momentum: f32,
        /// See [`Sgd`].
        decay: f32,
        /// See [`Sgd`].
        clip: f32,
        /// Zero.
        unused: f32,
        /// Zero.
        unused_1: Spot,
    }
}

record! {
    /// Parameters of `adam` and `adam_count`.
    AdamParams {
        /// Blocks that have work.
        blocks: u32,
        /// Elements.
        len: u32,
        /// Gradient.
        g: Spot,
        /// Its norm.
        norm: Spot,
        /// Learning rate.
        lr: Spot,
        /// Parameters.
        p: Spot,
        /// First moment.
        m: Spot,
        /// Second moment.
        v: Spot,
        /// Steps taken.
        steps: Spot,
        /// Set to 1 if the norm is not finite.
        flag: Spot,
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// 1 - beta1.
        rest1: f32,
        /// 1 - beta2.
        rest2: f32,
        /// log(beta1).
        log1: f32,
        /// log(beta2).
        log2: f32,
        /// See [`Adam`].
        eps: f32,
        /// See [`Adam`].
        decay: f32,
        /// Zero.
        unused: Spot,
    }
}

record! {
    /// Parameters of `running_update`.
    RunningParams {
        /// Blocks that have work, one a record of the table.
        blocks: u32,
        /// Share of the old value.
        keep: f32,
        /// Share of the new one.
        share: f32,
        /// Zero.
        unused: u32,
        /// Statistics of the batch.
        batch: Spot,
        /// Nothing changes if it is not finite.
        guard: Spot,
        /// Running statistics.
        running: Spot,
        /// Zero.
        unused_1: Spot,
    }
}

record! {
    /// A stretch of statistics, of at most [`BLOCK`] elements.
    RunningStretch {
        /// First element.
        offset: u32,
        /// Elements.
        len: u32,
        /// Factor of the batch's values.
        factor: f32,
        /// Zero.
        unused: u32,
    }
}

const _: () = assert!(TABLE * size_of::<RunningStretch>() <= TABLE_BYTES);

/// Blocks that update a vector. There is one at least: the first one also writes the flag.
pub(super) fn blocks(len: usize) -> usize {
    len.div_ceil(4 * BLOCK as usize).max(1)
}

/// Whether all vectors allow 16-byte accesses.
pub(super) fn wide(vectors: &[Place]) -> bool {
    vectors.iter().all(|v| v.wide())
}

impl Lower for GlobalNorm {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        inputs[0].len().div_ceil(NORM_BLOCK) * PARTIAL
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let len = at.inputs[0].shape.len();
        let x = at.inputs[0].vector(len);
        let partials = len.div_ceil(NORM_BLOCK);
        let mut slots = Slots::default();
        let params = NormParams {
            blocks: partials as u32,
            len: len as u32,
            partials: partials as u32,
            accumulate: u32::from(at.accumulate[0]),
            x: slots.reads(x),
            norm: slots.writes(at.outputs[0]),
            partial: slots.writes(at.scratch),
            ..Default::default()
        };
        vec![
            slots.launch(["optimiser", "norm_partial"], wide(&[x, at.scratch]), partials, &params),
            slots.launch(["optimiser", "norm_fold"], false, 1, &NormParams { blocks: 1, ..params }),
        ]
    }
}

impl Lower for Sgd {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let len = at.inputs[0].shape.len();
        let [g, w, v] = [at.inputs[0], at.outputs[0], at.outputs[1]].map(|place| place.vector(len));
        let blocks = blocks(len);
        let mut slots = Slots::default();
        let params = SgdParams {
            blocks: blocks as u32,
            len: len as u32,
            g: slots.reads(g),
            norm: slots.reads(at.inputs[1]),
            lr: slots.reads(at.inputs[2]),
            w: slots.writes(w),
            v: slots.writes(v),
            flag: slots.writes(at.outputs[2]),
            momentum: self.momentum as f32,
            decay: self.decay as f32,
            clip: self.clip as f32,
            ..Default::default()
        };
        vec![slots.launch(["optimiser", "sgd"], wide(&[g, w, v]), blocks, &params)]
    }
}

impl Lower for Adam {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let len = at.inputs[0].shape.len();
        let vectors = [at.inputs[0], at.outputs[0], at.outputs[1], at.outputs[2]].map(|place| place.vector(len));
        let [g, p, m, v] = vectors;
        // exp(-100) is zero beside 1; minus infinity would be nothing that WGSL has to get right.
        let log = |beta: f64| beta.ln().max(-100.0) as f32;
        let blocks = blocks(len);
        let mut slots = Slots::default();
        let params = AdamParams {
            blocks: blocks as u32,
            len: len as u32,
            g: slots.reads(g),
            norm: slots.reads(at.inputs[1]),
            lr: slots.reads(at.inputs[2]),
            p: slots.writes(p),
            m: slots.writes(m),
            v: slots.writes(v),
            steps: slots.writes(at.outputs[3]),
            flag: slots.writes(at.outputs[4]),
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            log1: log(self.beta1),
            log2: log(self.beta2),
            eps: self.eps as f32,
            decay: self.decay as f32,
            ..Default::default()
        };
        vec![
            slots.launch(["optimiser", "adam"], wide(&vectors), blocks, &params),
            // All blocks of the first launch read the count.
            slots.launch(["optimiser", "adam_count"], false, 1, &AdamParams { blocks: 1, ..params }),
        ]
    }
}

impl RunningUpdate {
    fn stretches(&self) -> Vec<RunningStretch> {
        let cut = |s: &crate::ops::running::Segment| {
            let (end, factor) = (s.offset + s.len, s.factor as f32);
            let stretch = move |offset: usize| {
                let len = (end - offset).min(BLOCK as usize) as u32;
                RunningStretch { offset: offset as u32, len, factor, unused: 0 }
            };
            (s.offset..end).step_by(BLOCK as usize).map(stretch)
        };
        self.segments.iter().flat_map(cut).collect()
    }
}

impl Lower for RunningUpdate {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let len = at.inputs[0].shape.len();
        let mut slots = Slots::default();
        let params = RunningParams {
            keep: (1.0 - self.momentum) as f32,
            share: self.momentum as f32,
            batch: slots.reads(at.inputs[0].vector(len)),
            guard: slots.reads(at.inputs[1]),
            running: slots.writes(at.outputs[0].vector(len)),
            ..Default::default()
        };
        let launch = |table: &[RunningStretch]| {
            let params = RunningParams { blocks: table.len() as u32, ..params };
            let launch = slots.launch(["optimiser", "running_update"], false, table.len(), &params);
            Launch { table: bytemuck::cast_slice(table).to_vec(), ..launch }
        };
        self.stretches().chunks(TABLE).map(launch).collect()
    }
}
