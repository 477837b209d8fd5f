//! Optimisers over flat parameter vectors: global norm, SGD with momentum and coupled weight decay after clipping,
//! Adam with coupled weight decay. One op updates all tensors. A gradient whose norm is not finite changes nothing and
//! raises a flag.

use super::{Cost, Family, Real};
use crate::device::view::Io;
use crate::graph::{Graph, Shape, Tensor};

/// Elements summed into one partial of a norm.
pub const NORM_BLOCK: usize = 4096;

/// Euclidean norm of a vector: input `x`; output `[1]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalNorm;

impl GlobalNorm {
    /// Records the op.
    pub fn record(graph: &mut Graph, x: Tensor, name: &str) -> Tensor {
        let norm = graph.tensor(Shape::vector(1), name);
        graph.push(Self, vec![x], vec![norm.into()]);
        norm
    }
}

impl Family for GlobalNorm {
    const NAME: &'static str = "global_norm";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(2 * inputs[0].len(), inputs, outputs)
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        inputs[0].len().div_ceil(NORM_BLOCK)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        // Blocked, so that f32 keeps its accuracy over millions of elements.
        let x = &io.inputs[0];
        let mut total = T::of(0.0);
        for start in (0..x.shape.len()).step_by(NORM_BLOCK) {
            let mut partial = T::of(0.0);
            for i in start..(start + NORM_BLOCK).min(x.shape.len()) {
                partial += x.at(i) * x.at(i);
            }
            total += partial;
        }
        io.put(0, 0, 0, total.sqrt());
    }
}

/// `s = min(1, clip / (norm + 1e-6)); v = momentum v + s g + decay w; w -= lr v`.
/// Inputs `g, norm [1], lr [1]`; outputs (in place) `w, v, flag [1]`.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Momentum.
    pub momentum: f64,
    /// Coupled weight decay, added after clipping.
    pub decay: f64,
    /// Largest norm of the gradient.
    pub clip: f64,
}

impl Sgd {
    /// Factor that clipping applies.
    pub fn scale<T: Real>(&self, norm: T) -> T {
        let scale = T::of(self.clip) / (norm + T::of(1e-6));
        if scale < T::of(1.0) { scale } else { T::of(1.0) }
    }
}

impl Family for Sgd {
    const NAME: &'static str = "sgd";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let mut cost = Cost::touching(6 * inputs[0].len(), inputs, outputs);
        cost.bytes += 8.0 * inputs[0].len() as f64;
        cost
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (g, norm, lr) = (&io.inputs[0], io.inputs[1].at(0), io.inputs[2].at(0));
        let (w, v, flag) = (&io.outputs[0], &io.outputs[1], &io.outputs[2]);
        if !norm.finite() {
            flag.set(0, 0, T::of(1.0));
            return;
        }
        let scale = self.scale(norm);
        for i in 0..g.shape.len() {
            let step = T::of(self.momentum) * v.get(0, i) + scale * g.at(i) + T::of(self.decay) * w.get(0, i);
            v.set(0, i, step);
            w.set(0, i, w.get(0, i) - lr * step);
        }
    }
}

/// Adam (Kingma & Ba 2015) with the decay added to the gradient.
/// Inputs `g, norm [1], lr [1]`; outputs (in place) `p, m, v, steps [1], flag [1]`.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Coupled weight decay.
    pub decay: f64,
}

impl Family for Adam {
    const NAME: &'static str = "adam";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(14 * inputs[0].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (g, norm, lr) = (&io.inputs[0], io.inputs[1].at(0), io.inputs[2].at(0));
        let [p, m, v, steps, flag] = io.outputs else { unreachable!("recorded with five outputs") };
        if !norm.finite() {
            flag.set(0, 0, T::of(1.0));
            return;
        }
        let t = steps.at(0) + T::of(1.0);
        steps.set(0, 0, t);
        let correction = |beta: f64| T::of(1.0 - beta.powf(t.wide()));
        let (c1, c2) = (correction(self.beta1), correction(self.beta2));
        for i in 0..g.shape.len() {
            let gradient = g.at(i) + T::of(self.decay) * p.get(0, i);
            let first = T::of(self.beta1) * m.get(0, i) + T::of(1.0 - self.beta1) * gradient;
            let second = T::of(self.beta2) * v.get(0, i) + T::of(1.0 - self.beta2) * gradient * gradient;
            m.set(0, i, first);
            v.set(0, i, second);
            let root = (second / c2).sqrt() + T::of(self.eps);
            p.set(0, i, p.get(0, i) - lr * (first / c1) / root);
        }
    }
}
