//! The vector updates of the unrolled architecture step on GPUs: one launch each, a thread four neighbouring
//! elements.

use super::optimiser::{blocks, wide};
use super::{Launch, Lower, Places, Slots, Spot, record};
use crate::ops::second_order::{HessianTerm, Perturb, Unroll};

record! {
    /// Parameters of `unroll`.
    UnrollParams {
        /// Blocks that have work.
        blocks: u32,
        /// Elements.
        len: u32,
        /// Whether the result is added to what is there.
        accumulate: u32,
        /// Zero.
        unused: u32,
        /// Weights.
        w: Spot,
        /// Velocity.
        v: Spot,
        /// Gradient.
        g: Spot,
        /// Learning rate.
        lr: Spot,
        /// Moved weights.
        out: Spot,
        /// See [`Unroll`].
        momentum: f32,
        /// See [`Unroll`].
        decay: f32,
    }
}

record! {
    /// Parameters of `perturb`.
    PerturbParams {
        /// Blocks that have work.
        blocks: u32,
        /// Elements.
        len: u32,
        /// Whether the result is added to what is there.
        accumulate: u32,
        /// See [`Perturb`].
        radius: f32,
        /// Weights.
        w: Spot,
        /// Direction.
        d: Spot,
        /// Its norm.
        norm: Spot,
        /// Moved weights.
        out: Spot,
    }
}

record! {
    /// Parameters of `hessian_term`.
    HessianParams {
        /// Blocks that have work.
        blocks: u32,
        /// Elements.
        len: u32,
        /// Whether the Hessian term is added to what is there.
        accumulate_hessian: u32,
        /// Whether the total is added to what is there.
        accumulate_total: u32,
        /// Gradient of the alphas at the unrolled weights.
        direct: Spot,
        /// Their gradient on the one side of the weights.
        plus: Spot,
        /// On the other.
        minus: Spot,
        /// Norm of the direction between both.
        norm: Spot,
        /// Learning rate of the weights.
        lr: Spot,
        /// The term.
        hessian: Spot,
        /// The whole gradient.
        total: Spot,
        /// See [`HessianTerm`].
        radius: f32,
        /// Zero.
        unused: u32,
    }
}

impl Lower for Unroll {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let len = at.inputs[0].shape.len();
        let vectors = [at.inputs[0], at.inputs[1], at.inputs[2], at.outputs[0]].map(|place| place.vector(len));
        let [w, v, g, out] = vectors;
        let blocks = blocks(len);
        let mut slots = Slots::default();
        let params = UnrollParams {
            blocks: blocks as u32,
            len: len as u32,
            accumulate: u32::from(at.accumulate[0]),
            unused: 0,
            w: slots.reads(w),
            v: slots.reads(v),
            g: slots.reads(g),
            lr: slots.reads(at.inputs[3]),
            out: slots.writes(out),
            momentum: self.momentum as f32,
            decay: self.decay as f32,
        };
        vec![slots.launch(["second_order", "unroll"], wide(&vectors), blocks, &params)]
    }
}

impl Lower for Perturb {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let len = at.inputs[0].shape.len();
        let vectors = [at.inputs[0], at.inputs[1], at.outputs[0]].map(|place| place.vector(len));
        let [w, d, out] = vectors;
        let blocks = blocks(len);
        let mut slots = Slots::default();
        let params = PerturbParams {
            blocks: blocks as u32,
            len: len as u32,
            accumulate: u32::from(at.accumulate[0]),
            radius: self.radius as f32,
            w: slots.reads(w),
            d: slots.reads(d),
            norm: slots.reads(at.inputs[2]),
            out: slots.writes(out),
        };
        vec![slots.launch(["second_order", "perturb"], wide(&vectors), blocks, &params)]
    }
}

impl Lower for HessianTerm {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let len = at.inputs[0].shape.len();
        let vectors = [at.inputs[0], at.inputs[1], at.inputs[2], at.outputs[0], at.outputs[1]];
        let vectors = vectors.map(|place| place.vector(len));
        let [direct, plus, minus, hessian, total] = vectors;
        let blocks = blocks(len);
        let mut slots = Slots::default();
        let params = HessianParams {
            blocks: blocks as u32,
            len: len as u32,
            accumulate_hessian: u32::from(at.accumulate[0]),
            accumulate_total: u32::from(at.accumulate[1]),
            direct: slots.reads(direct),
            plus: slots.reads(plus),
            minus: slots.reads(minus),
            norm: slots.reads(at.inputs[3]),
            lr: slots.reads(at.inputs[4]),
            hessian: slots.writes(hessian),
            total: slots.writes(total),
            radius: self.radius as f32,
            unused: 0,
        };
        vec![slots.launch(["second_order", "hessian_term"], wide(&vectors), blocks, &params)]
    }
}
