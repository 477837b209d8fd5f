//! Convolutions of pretrained networks at inference: `y = activation(conv(x) + bias + residual?)`, batch norm folded into
//! weights and bias beforehand. Dense (weights `[kernel * kernel * c_in, c_out]`, tap-major) or depthwise
//! (`[kernel * kernel, c]`). No gradient: such networks embed, nobody trains them here.

use super::{Cost, Family, Real};
use crate::device::view::Io;
use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, Tensor};

/// What follows a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

impl Activation {
    /// Bounds between which values are kept.
    pub fn bounds(self) -> (f64, f64) {
        match self {
            Self::Identity => (f64::NEG_INFINITY, f64::INFINITY),
            Self::Relu => (0.0, f64::INFINITY),
            Self::Relu6 => (0.0, 6.0),
        }
    }
}

/// Where the zeros around a map lie. Either way a side of the output has `ceil(size / stride)` pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// TensorFlow's `SAME`: of the `(ceil(size / stride) - 1) * stride + kernel - size` zeros that the last window needs,
    /// half lie in front (rounded down), so with stride 2 an even map has more behind it than in front of it.
    Same,
    /// `(kernel - 1) / 2` zeros in front, as PyTorch's networks have them; for odd kernels.
    Centred,
}

/// Inputs `x, w, bias, [residual]`; output `y`, `ceil(size / stride)` pixels a side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Folded {
    /// One filter a channel instead of all channels to all.
    pub depthwise: bool,
    /// Kernel size.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Zeros around the map.
    pub padding: Padding,
    /// What follows.
    pub activation: Activation,
    /// A map of the output's extent is among the inputs.
    pub residual: bool,
}

impl Folded {
    /// Records the op.
    ///
    /// # Errors
    /// [`Error::Shape`] if weights, bias, residual and map disagree.
    pub fn record(graph: &mut Graph, op: Self, [x, w, bias]: [Tensor; 3], residual: Option<Tensor>) -> Result<Tensor> {
        let op = Self { residual: residual.is_some(), ..op };
        let (xs, ws) = (graph.shape(x), graph.shape(w));
        let taps = op.kernel * op.kernel;
        let rows = if op.depthwise { taps } else { taps * xs.c };
        let fits = ws.rows() == rows && (!op.depthwise || ws.c == xs.c) && graph.shape(bias).len() == ws.c;
        let even = op.padding == Padding::Centred && op.kernel.is_multiple_of(2);
        if !fits || even || op.stride == 0 || op.kernel == 0 || xs.is_empty() {
            let message = format!("{op:?} with weights {ws} and bias {} on a map {xs}", graph.shape(bias));
            return Err(Error::Shape { op: Self::NAME, message });
        }
        let ys = op.output(xs, ws.c);
        if let Some(residual) = residual.map(|r| graph.shape(r)).filter(|&r| r != ys) {
            return Err(Error::Shape { op: Self::NAME, message: format!("a residual {residual} for a map {ys}") });
        }
        let y = graph.tensor(ys, "map");
        let inputs = [Some(x), Some(w), Some(bias), residual].into_iter().flatten().collect();
        graph.push(op, inputs, vec![y.into()]);
        Ok(y)
    }

    /// Output extent.
    pub fn output(&self, x: Shape, c: usize) -> Shape {
        Shape::map(x.n, x.h.div_ceil(self.stride), x.w.div_ceil(self.stride), c)
    }

    /// Zeros in front of a side of `size` pixels.
    pub fn before(&self, size: usize) -> usize {
        match self.padding {
            Padding::Same => ((size.div_ceil(self.stride) - 1) * self.stride + self.kernel).saturating_sub(size) / 2,
            Padding::Centred => (self.kernel - 1) / 2,
        }
    }

    /// Calls `f(tap, output row, input row)` for every tap within the image.
    fn taps(&self, x: Shape, y: Shape, mut f: impl FnMut(usize, usize, usize)) {
        let (top, left) = (self.before(x.h), self.before(x.w));
        for out in 0..y.rows() {
            let (n, oy, ox) = (out / (y.h * y.w), out / y.w % y.h, out % y.w);
            for tap in 0..self.kernel * self.kernel {
                let iy = (oy * self.stride + tap / self.kernel).wrapping_sub(top);
                let ix = (ox * self.stride + tap % self.kernel).wrapping_sub(left);
                if iy < x.h && ix < x.w {
                    f(tap, out, (n * x.h + iy) * x.w + ix);
                }
            }
        }
    }
}

impl Family for Folded {
    const NAME: &'static str = "folded";

    const DETACHED: bool = true;

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let taps = if self.depthwise { self.kernel * self.kernel } else { inputs[1].rows() };
        Cost::touching(2 * taps * outputs[0].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (x, w, bias, y) = (&io.inputs[0], &io.inputs[1], &io.inputs[2], io.outputs[0].shape);
        let mut sums: Vec<T> = (0..y.len()).map(|i| bias.at(i % y.c)).collect();
        self.taps(x.shape, y, |tap, out, row| {
            for o in 0..y.c {
                if self.depthwise {
                    sums[out * y.c + o] += x.get(row, o) * w.get(tap, o);
                    continue;
                }
                for i in 0..x.shape.c {
                    sums[out * y.c + o] += x.get(row, i) * w.get(tap * x.shape.c + i, o);
                }
            }
        });
        let (low, high) = self.activation.bounds();
        for (i, &sum) in sums.iter().enumerate() {
            let value = if self.residual { sum + io.inputs[3].get(i / y.c, i % y.c) } else { sum };
            let value = if value < T::of(low) { T::of(low) } else { value };
            io.put(0, i / y.c, i % y.c, if value > T::of(high) { T::of(high) } else { value });
        }
    }
}
