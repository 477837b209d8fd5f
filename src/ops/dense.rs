//! Dense convolution: `y = conv(relu?(x)) + bias?`, any kernel, stride and padding, with the batch statistics of `y`.
//! Serves the stem (3x3), the preprocessing of cells (1x1), the auxiliary head (1x1, 2x2) and linear layers (1x1 on a
//! map of one pixel). Weights `[kernel * kernel * c_in, c_out]`, tap-major.

use super::elementwise::TermView;
use super::{Cost, Family, Real, area, norm};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Output, Shape, Tensor, TermKind};

/// Inputs `x, w, [bias]`; outputs `y, [mean, var]`.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// Kernel size.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Zero padding on each side.
    pub pad: usize,
    /// ReLU on the input.
    pub relu: bool,
    /// A bias vector is among the inputs.
    pub bias: bool,
    /// Mean and variance are among the outputs.
    pub statistics: bool,
}

impl Dense {
    /// A 1x1 convolution on `relu(x)` with statistics.
    pub const RELU_POINTWISE: Self = Self { kernel: 1, stride: 1, pad: 0, relu: true, bias: false, statistics: true };

    /// Output extent.
    pub fn output(&self, x: Shape, c: usize) -> Shape {
        let side = |s: usize| (s + 2 * self.pad + self.stride).saturating_sub(self.kernel) / self.stride;
        Shape::map(x.n, side(x.h), side(x.w), c)
    }

    /// Records the op; `statistics` says where mean and variance go.
    ///
    /// # Errors
    /// [`Error::Shape`] if weights, bias and map disagree or the map is smaller than the kernel.
    pub fn record(
        graph: &mut Graph,
        op: Self,
        x: Tensor,
        w: Tensor,
        bias: Option<Tensor>,
        statistics: Option<(Tensor, Tensor)>,
    ) -> Result<Tensor> {
        let (xs, ws) = (graph.shape(x), graph.shape(w));
        let op = Self { bias: bias.is_some(), statistics: statistics.is_some(), ..op };
        let ys = op.output(xs, ws.c);
        let bias_fits = bias.is_none_or(|b| graph.shape(b).len() == ws.c);
        if ws.rows() != op.kernel * op.kernel * xs.c || !bias_fits || ys.is_empty() {
            let message = format!("{op:?} with weights {ws} on a map {xs}");
            return Err(Error::Shape { op: Self::NAME, message });
        }
        norm::check_places(graph, Self::NAME, ws.c, statistics.as_slice())?;
        let y = graph.tensor(ys, "map");
        let mut outputs: Vec<Output> = vec![y.into()];
        outputs.extend(statistics.into_iter().flat_map(|(m, v)| [Output::from(m), Output::from(v)]));
        let inputs = [Some(x), Some(w), bias].into_iter().flatten().collect();
        graph.push(op, inputs, outputs);
        Ok(y)
    }

    /// Calls `f(tap, output row, input row)` for every tap within the image.
    fn taps(&self, x: Shape, y: Shape, mut f: impl FnMut(usize, usize, usize)) {
        for out in 0..y.rows() {
            let (n, oy, ox) = (out / (y.h * y.w), out / y.w % y.h, out % y.w);
            for tap in 0..self.kernel * self.kernel {
                let iy = (oy * self.stride + tap / self.kernel).wrapping_sub(self.pad);
                let ix = (ox * self.stride + tap % self.kernel).wrapping_sub(self.pad);
                if iy < x.h && ix < x.w {
                    f(tap, out, (n * x.h + iy) * x.w + ix);
                }
            }
        }
    }

    fn active<T: Real>(&self, x: &View<T>, row: usize, c: usize) -> T {
        let value = x.get(row, c);
        if self.relu { value.rectified() } else { value }
    }
}

impl Family for Dense {
    const NAME: &'static str = "dense";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(2 * outputs[0].rows() * inputs[1].len(), inputs, outputs)
    }

    fn scratch(&self, _inputs: &[Shape], outputs: &[Shape]) -> usize {
        if self.statistics { norm::moments_scratch(outputs[0]) } else { 0 }
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (x, w, y) = (&io.inputs[0], &io.inputs[1], io.outputs[0].shape);
        let mut sums = vec![T::of(0.0); y.len()];
        self.taps(x.shape, y, |tap, out, row| {
            for i in 0..x.shape.c {
                let value = self.active(x, row, i);
                for o in 0..y.c {
                    sums[out * y.c + o] += value * w.get(tap * x.shape.c + i, o);
                }
            }
        });
        for (i, &sum) in sums.iter().enumerate() {
            let bias = if self.bias { io.inputs[2].at(i % y.c) } else { T::of(0.0) };
            io.put(0, i / y.c, i % y.c, sum + bias);
        }
        if self.statistics {
            norm::statistics(&io.outputs[0], &io.outputs[1], &io.outputs[2]);
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let (x, w, y) = (tape.input(0), tape.input(1), tape.output(0));
        let (input, weight) = (tape.wants(x), tape.wants(w));
        let Some(term) = tape.single(y) else { return Ok(()) };
        let mut inputs = vec![x, w];
        if term.coef.is_some() {
            inputs.push(y);
        }
        let kind = term.push(&mut inputs);
        let bias = self.bias && tape.wants(tape.input(2));
        let mut outputs = Vec::new();
        if input {
            outputs.push(tape.slot(x));
        }
        if weight {
            outputs.push(tape.slot(w));
        }
        if bias {
            outputs.push(tape.slot(tape.input(2)));
        }
        tape.push(DenseBackward { dense: *self, term: kind, input, weight, bias }, inputs, outputs);
        Ok(())
    }
}

/// Inputs `x, w, [y], g, [coef], [mask]`; outputs `[dx], [dw], [dbias]`.
#[derive(Clone, Copy, Debug)]
pub struct DenseBackward {
    /// The forward op.
    pub dense: Dense,
    /// How the gradient at `y` is given.
    pub term: TermKind,
    /// dx is wanted.
    pub input: bool,
    /// dw is wanted.
    pub weight: bool,
    /// dbias is wanted.
    pub bias: bool,
}

impl Family for DenseBackward {
    const NAME: &'static str = "dense_backward";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let y = self.dense.output(inputs[0], inputs[1].c);
        let parts = usize::from(self.input) + usize::from(self.weight);
        Cost::touching(parts * 2 * y.rows() * inputs[1].len(), inputs, outputs)
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        // Partial sums of each chunk of images, and the transposed weights.
        let (chunks, w) = (norm::chunks(inputs[0].n), inputs[1]);
        let weight = if self.weight { area(chunks * w.len()) } else { 0 };
        let bias = if self.bias { area(chunks * w.c) } else { 0 };
        weight + bias + area(w.len())
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (x, w) = (&io.inputs[0], &io.inputs[1]);
        let y = self.dense.output(x.shape, w.shape.c);
        let mut rest = &io.inputs[2..];
        let map = self.term.coef.then(|| rest[0]);
        if self.term.coef {
            rest = &rest[1..];
        }
        let g = TermView::take(self.term, &mut rest);
        let dy: Vec<T> = (0..y.len())
            .map(|i| {
                let (r, c) = (i / y.c, i % y.c);
                g.value(r / (y.h * y.w), r, c, || map.expect("present with coefficients").get(r, c))
            })
            .collect();
        let mut at = 0;
        if self.input {
            let mut dx = vec![T::of(0.0); x.shape.len()];
            self.dense.taps(x.shape, y, |tap, out, row| {
                for i in 0..x.shape.c {
                    for o in 0..y.c {
                        dx[row * x.shape.c + i] += dy[out * y.c + o] * w.get(tap * x.shape.c + i, o);
                    }
                }
            });
            for (i, &value) in dx.iter().enumerate() {
                let (r, c) = (i / x.shape.c, i % x.shape.c);
                let passes = !self.dense.relu || x.get(r, c) > T::of(0.0);
                io.put(at, r, c, if passes { value } else { T::of(0.0) });
            }
            at += 1;
        }
        if self.weight {
            let mut dw = vec![T::of(0.0); w.shape.len()];
            self.dense.taps(x.shape, y, |tap, out, row| {
                for i in 0..x.shape.c {
                    let value = self.dense.active(x, row, i);
                    for o in 0..y.c {
                        dw[(tap * x.shape.c + i) * y.c + o] += value * dy[out * y.c + o];
                    }
                }
            });
            for (i, &value) in dw.iter().enumerate() {
                io.put(at, i / y.c, i % y.c, value);
            }
            at += 1;
        }
        if self.bias {
            for o in 0..y.c {
                let mut sum = T::of(0.0);
                for r in 0..y.rows() {
                    sum += dy[r * y.c + o];
                }
                io.put(at, 0, o, sum);
            }
        }
    }
}
