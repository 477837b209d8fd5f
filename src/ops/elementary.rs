//! Elementary ops, each with the one formula of its name. Networks record the fused families; tests record the same
//! cell from these and compare outputs and all gradients.

use super::norm::{self, Norm};
use super::separable::{Branch, taps};
use super::{Cost, Family, Real};
use crate::device::view::Io;
use crate::error::Result;
use crate::graph::{Backward, Graph, Shape, Tensor};

/// `max(x, 0)`.
#[derive(Clone, Copy, Debug)]
pub struct Relu;

impl Relu {
    /// Records the op.
    pub fn record(graph: &mut Graph, x: Tensor) -> Tensor {
        let y = graph.tensor(graph.shape(x), "relu");
        graph.push(Self, vec![x], vec![y.into()]);
        y
    }
}

impl Family for Relu {
    const NAME: &'static str = "relu";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        for i in 0..x.shape.len() {
            let (r, c) = (i / x.shape.c, i % x.shape.c);
            io.put(0, r, c, x.get(r, c).rectified());
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        let x = tape.input(0);
        let slot = tape.slot(x);
        tape.push(ReluBackward, vec![x, g], vec![slot]);
        Ok(())
    }
}

/// `dx = g` where `x > 0`: inputs x, g; output dx.
#[derive(Clone, Copy, Debug)]
pub struct ReluBackward;

impl Family for ReluBackward {
    const NAME: &'static str = "relu_backward";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (x, g) = (&io.inputs[0], &io.inputs[1]);
        for i in 0..x.shape.len() {
            let (r, c) = (i / x.shape.c, i % x.shape.c);
            io.put(0, r, c, if x.get(r, c) > T::of(0.0) { g.get(r, c) } else { T::of(0.0) });
        }
    }
}

/// Depthwise convolution with "same" padding: inputs `x`, `w [k * k, c]`; output y.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise {
    /// Kernel size, odd.
    pub kernel: usize,
    /// Spacing of the taps.
    pub dilation: usize,
    /// Stride.
    pub stride: usize,
}

impl Depthwise {
    /// The same convolution as the branch of a fused one.
    pub(super) fn branch(&self) -> Branch {
        let Self { kernel, dilation, stride } = *self;
        Branch { kernel, dilation, stride, norm: None, statistics: false }
    }

    /// Records the op.
    pub fn record(graph: &mut Graph, op: Self, x: Tensor, w: Tensor) -> Tensor {
        let shape = graph.shape(x);
        let y = graph.tensor(op.branch().output(shape, shape.c), "depthwise");
        graph.push(op, vec![x, w], vec![y.into()]);
        y
    }
}

impl Family for Depthwise {
    const NAME: &'static str = "depthwise";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(2 * self.kernel * self.kernel * outputs[0].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (x, w, y) = (&io.inputs[0], &io.inputs[1], io.outputs[0].shape);
        let mut sums = vec![T::of(0.0); y.len()];
        taps(&self.branch(), x.shape, y, |tap, out, row| {
            for c in 0..y.c {
                sums[out * y.c + c] += w.get(tap, c) * x.get(row, c);
            }
        });
        for (i, &sum) in sums.iter().enumerate() {
            io.put(0, i / y.c, i % y.c, sum);
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        let (x, w) = (tape.input(0), tape.input(1));
        let outputs = vec![tape.slot(x), tape.slot(w)];
        tape.push(DepthwiseBackward { depthwise: *self }, vec![x, w, g], outputs);
        Ok(())
    }
}

/// Inputs x, w, g; outputs dx, dw.
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseBackward {
    /// The forward op.
    pub depthwise: Depthwise,
}

impl Family for DepthwiseBackward {
    const NAME: &'static str = "depthwise_backward";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(4 * self.depthwise.kernel.pow(2) * inputs[2].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [x, w, g] = io.inputs else { unreachable!("recorded with three inputs") };
        let c = x.shape.c;
        let (mut dx, mut dw) = (vec![T::of(0.0); x.shape.len()], vec![T::of(0.0); w.shape.len()]);
        taps(&self.depthwise.branch(), x.shape, g.shape, |tap, out, row| {
            for i in 0..c {
                dx[row * c + i] += w.get(tap, i) * g.get(out, i);
                dw[tap * c + i] += x.get(row, i) * g.get(out, i);
            }
        });
        for (output, values) in [dx, dw].iter().enumerate() {
            for (i, &value) in values.iter().enumerate() {
                io.put(output, i / c, i % c, value);
            }
        }
    }
}

/// Batch norm with batch statistics: inputs `x, [gamma, beta]`; outputs `y, mean, var`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// gamma and beta are among the inputs.
    pub affine: bool,
    /// Added to the variance.
    pub eps: f64,
}

impl BatchNorm {
    /// Records the op; returns (y, mean, var).
    pub fn record(graph: &mut Graph, x: Tensor, affine: Option<(Tensor, Tensor)>, eps: f64) -> [Tensor; 3] {
        let shape = graph.shape(x);
        let y = graph.tensor(shape, "normalised");
        let [mean, var] = ["mean", "var"].map(|name| graph.tensor(Shape::vector(shape.c), name));
        let mut inputs = vec![x];
        inputs.extend(affine.into_iter().flat_map(|(g, b)| [g, b]));
        let op = Self { affine: affine.is_some(), eps };
        graph.push(op, inputs, vec![y.into(), mean.into(), var.into()]);
        [y, mean, var]
    }
}

impl Family for BatchNorm {
    const NAME: &'static str = "batch_norm";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        norm::statistics(x, &io.outputs[1], &io.outputs[2]);
        for c in 0..x.shape.c {
            let inv = T::of(1.0) / (io.outputs[2].at(c) + T::of(self.eps)).sqrt();
            let mean = io.outputs[1].at(c);
            let (gamma, beta) =
                if self.affine { (io.inputs[1].at(c), io.inputs[2].at(c)) } else { (T::of(1.0), T::of(0.0)) };
            for r in 0..x.shape.rows() {
                io.put(0, r, c, gamma * ((x.get(r, c) - mean) * inv) + beta);
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        let mut inputs = tape.inputs().to_vec();
        let outputs = inputs.clone().into_iter().map(|t| tape.slot(t)).collect();
        inputs.extend([tape.output(1), tape.output(2), g]);
        tape.push(BatchNormBackward { norm: *self }, inputs, outputs);
        Ok(())
    }
}

/// Inputs `x, [gamma, beta], mean, var, g`; outputs `dx, [dgamma, dbeta]`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormBackward {
    /// The forward op.
    pub norm: BatchNorm,
}

impl Family for BatchNormBackward {
    const NAME: &'static str = "batch_norm_backward";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let rest = &io.inputs[1 + 2 * usize::from(self.norm.affine)..];
        let (x, mean, var, g) = (io.inputs[0], rest[0], rest[1], rest[2]);
        let resolved =
            if self.norm.affine { vec![x, mean, var, io.inputs[1], io.inputs[2]] } else { vec![x, mean, var] };
        let norm = Some(Norm { affine: self.norm.affine, eps: self.norm.eps });
        for c in 0..x.shape.c {
            let (mean, inv, gamma, _) = norm::channel(norm, &resolved, c);
            let (mut s1, mut s2) = (T::of(0.0), T::of(0.0));
            for r in 0..x.shape.rows() {
                s1 += g.get(r, c);
                s2 += g.get(r, c) * ((x.get(r, c) - mean) * inv);
            }
            let (a, b, d) = norm::coefficients((mean, inv, gamma), T::of(1.0), s1, s2, x.shape.rows());
            for r in 0..x.shape.rows() {
                io.put(0, r, c, a * g.get(r, c) + b * x.get(r, c) + d);
            }
            if self.norm.affine {
                io.put(1, 0, c, s2);
                io.put(2, 0, c, s1);
            }
        }
    }
}

/// `y = w[index] * x`: inputs x, w; output y.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Index of the factor.
    pub index: usize,
}

impl Scale {
    /// Records the op.
    pub fn record(graph: &mut Graph, x: Tensor, w: Tensor, index: usize) -> Tensor {
        let y = graph.tensor(graph.shape(x), "scaled");
        graph.push(Self { index }, vec![x, w], vec![y.into()]);
        y
    }
}

impl Family for Scale {
    const NAME: &'static str = "scale";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        for i in 0..x.shape.len() {
            let (r, c) = (i / x.shape.c, i % x.shape.c);
            io.put(0, r, c, io.inputs[1].at(self.index) * x.get(r, c));
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        let (x, w) = (tape.input(0), tape.input(1));
        let outputs = vec![tape.slot(x), tape.slot(w)];
        tape.push(ScaleBackward { index: self.index }, vec![x, w, g], outputs);
        Ok(())
    }
}

/// Inputs x, w, g; outputs dx, dw (zero but at the index).
#[derive(Clone, Copy, Debug)]
pub struct ScaleBackward {
    /// Index of the factor.
    pub index: usize,
}

impl Family for ScaleBackward {
    const NAME: &'static str = "scale_backward";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [x, w, g] = io.inputs else { unreachable!("recorded with three inputs") };
        let mut dot = T::of(0.0);
        for i in 0..x.shape.len() {
            let (r, c) = (i / x.shape.c, i % x.shape.c);
            dot += x.get(r, c) * g.get(r, c);
            io.put(0, r, c, w.at(self.index) * g.get(r, c));
        }
        for i in 0..w.shape.len() {
            let value = if i == self.index { dot } else { T::of(0.0) };
            io.put(1, i / w.shape.c, i % w.shape.c, value);
        }
    }
}
