//! Max and average pooling of one map in one op, with the batch statistics of the results, and the global mean.
//! Max pads with minus infinity, ties go to the first pixel of the window in row order; average divides by the number
//! of pixels within the image (`count_include_pad = False`). The pooled maps of a state serve all edges that leave it.

use super::elementwise::TermView;
use super::{Cost, Family, Real, norm};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Output, Shape, Tensor, TermKind};

/// Geometry and wishes. Inputs `x`; outputs `[max, [mean, var]], [average, [mean, var]]`.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// Window size.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Padding on each side.
    pub pad: usize,
    /// The maximum is wanted.
    pub max: bool,
    /// The average is wanted.
    pub average: bool,
    /// Mean and variance of each result are among the outputs.
    pub statistics: bool,
}

/// One pooled map.
#[derive(Clone, Copy, Debug)]
pub struct Pooled {
    /// The map.
    pub y: Tensor,
    /// Mean and variance, if wanted.
    pub statistics: Option<(Tensor, Tensor)>,
}

impl Pool {
    /// Output extent.
    pub fn output(&self, x: Shape) -> Shape {
        let side = |s: usize| (s + 2 * self.pad + self.stride).saturating_sub(self.kernel) / self.stride;
        Shape::map(x.n, side(x.h), side(x.w), x.c)
    }

    /// Records the op; `statistics` holds where mean and variance of each wanted result go, maximum first.
    ///
    /// # Errors
    /// [`Error::Shape`] if the map is smaller than the window, or only some results have a place for statistics.
    pub fn record(graph: &mut Graph, op: Self, x: Tensor, statistics: &[(Tensor, Tensor)]) -> Result<Vec<Pooled>> {
        let op = Self { statistics: !statistics.is_empty(), ..op };
        let shape = op.output(graph.shape(x));
        if shape.is_empty() {
            let message = format!("a window of {} does not fit a map {}", op.kernel, graph.shape(x));
            return Err(Error::Shape { op: Self::NAME, message });
        }
        let kinds = usize::from(op.max) + usize::from(op.average);
        if op.statistics && statistics.len() != kinds {
            let message =
                format!("{} places for statistics of {kinds} results of {}", statistics.len(), graph.shape(x));
            return Err(Error::Shape { op: Self::NAME, message });
        }
        norm::check_places(graph, Self::NAME, shape.c, statistics)?;
        let (mut outputs, mut pooled) = (Vec::<Output>::new(), Vec::new());
        for i in 0..kinds {
            let y = graph.tensor(shape, if op.max && i == 0 { "max pool" } else { "average pool" });
            let statistics = statistics.get(i).copied();
            outputs.push(y.into());
            outputs.extend(statistics.into_iter().flat_map(|(m, v)| [Output::from(m), Output::from(v)]));
            pooled.push(Pooled { y, statistics });
        }
        graph.push(op, vec![x], outputs);
        Ok(pooled)
    }

    /// Calls `f(input row)` for the pixels of a window, in row order.
    fn window(&self, x: Shape, y: Shape, out: usize, mut f: impl FnMut(usize)) {
        let (n, oy, ox) = (out / (y.h * y.w), out / y.w % y.h, out % y.w);
        for tap in 0..self.kernel * self.kernel {
            let iy = (oy * self.stride + tap / self.kernel).wrapping_sub(self.pad);
            let ix = (ox * self.stride + tap % self.kernel).wrapping_sub(self.pad);
            if iy < x.h && ix < x.w {
                f((n * x.h + iy) * x.w + ix);
            }
        }
    }

    fn argmax<T: Real>(&self, x: &View<T>, y: Shape, out: usize, c: usize) -> usize {
        let mut best: Option<usize> = None;
        self.window(x.shape, y, out, |row| {
            if best.is_none_or(|b| x.get(row, c) > x.get(b, c)) {
                best = Some(row);
            }
        });
        best.expect("every window holds a pixel of the image")
    }

    /// Outputs of one pooled map.
    pub fn stride_of_outputs(&self) -> usize {
        1 + 2 * usize::from(self.statistics)
    }
}

impl Family for Pool {
    const NAME: &'static str = "pool";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let kinds = usize::from(self.max) + usize::from(self.average);
        Cost::touching(kinds * self.kernel * self.kernel * outputs[0].len(), inputs, outputs)
    }

    fn scratch(&self, _inputs: &[Shape], outputs: &[Shape]) -> usize {
        let maps = usize::from(self.max) + usize::from(self.average);
        if self.statistics { maps * norm::moments_scratch(outputs[0]) } else { 0 }
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        let y = io.outputs[0].shape;
        let average = if self.max { self.stride_of_outputs() } else { 0 };
        for out in 0..y.rows() {
            for c in 0..y.c {
                if self.max {
                    io.put(0, out, c, x.get(self.argmax(x, y, out, c), c));
                }
                if self.average {
                    let (mut sum, mut count) = (T::of(0.0), 0.0);
                    self.window(x.shape, y, out, |row| {
                        sum += x.get(row, c);
                        count += 1.0;
                    });
                    io.put(average, out, c, sum / T::of(count));
                }
            }
        }
        if self.statistics {
            for at in (0..io.outputs.len()).step_by(3) {
                norm::statistics(&io.outputs[at], &io.outputs[at + 1], &io.outputs[at + 2]);
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let x = tape.input(0);
        let mut inputs = vec![x];
        let mut take = |tape: &mut Backward<'_>, wanted: bool, at: usize| {
            if !wanted {
                return Vec::new();
            }
            let y = tape.output(at);
            let terms = tape.terms(y);
            if terms.iter().any(|t| t.coef.is_some()) {
                inputs.push(y);
            }
            terms.iter().map(|t| t.push(&mut inputs)).collect()
        };
        let max: Vec<TermKind> = take(tape, self.max, 0);
        let average = take(tape, self.average, if self.max { self.stride_of_outputs() } else { 0 });
        // The skip connections of the same state wait at x as terms with coefficients (a, 0, 0): add them here.
        let direct = tape.absorb(x);
        if direct.iter().any(|t| t.coef.is_some()) {
            inputs.push(x);
        }
        let direct = direct.iter().map(|t| t.push(&mut inputs)).collect();
        let slot = tape.slot(x);
        tape.push(PoolBackward { pool: *self, max, average, direct }, inputs, vec![slot]);
        Ok(())
    }
}

/// Inputs `x`, then for maximum, average and x itself: `[y]` if any of its terms has coefficients, and the terms.
/// Output `dx`.
#[derive(Clone, Debug)]
pub struct PoolBackward {
    /// The forward op.
    pub pool: Pool,
    /// Gradient at the maximum.
    pub max: Vec<TermKind>,
    /// Gradient at the average.
    pub average: Vec<TermKind>,
    /// Further terms of dx itself.
    pub direct: Vec<TermKind>,
}

/// A group of terms with the map that their coefficients multiply.
pub struct TermGroup<T> {
    /// The map.
    pub y: Option<View<T>>,
    /// The terms.
    pub terms: Vec<TermView<T>>,
}

impl<T: Real> TermGroup<T> {
    /// Takes a group off the front of an input list.
    pub fn take(kinds: &[TermKind], inputs: &mut &[View<T>]) -> Self {
        let y = kinds.iter().any(|k| k.coef).then(|| {
            let y = inputs[0];
            *inputs = &inputs[1..];
            y
        });
        Self { y, terms: kinds.iter().map(|&k| TermView::take(k, inputs)).collect() }
    }

    /// Sum of the terms at a pixel.
    pub fn value(&self, n: usize, row: usize, c: usize) -> T {
        let mut sum = T::of(0.0);
        for term in &self.terms {
            sum += term.value(n, row, c, || self.y.as_ref().expect("present with coefficients").get(row, c));
        }
        sum
    }
}

impl Family for PoolBackward {
    const NAME: &'static str = "pool_backward";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let kinds = usize::from(self.pool.max) + usize::from(self.pool.average);
        let y = self.pool.output(inputs[0]);
        Cost::touching(kinds * self.pool.kernel * self.pool.kernel * y.len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        let y = self.pool.output(x.shape);
        let mut rest = &io.inputs[1..];
        let max = TermGroup::take(&self.max, &mut rest);
        let average = TermGroup::take(&self.average, &mut rest);
        let direct = TermGroup::take(&self.direct, &mut rest);
        let c = x.shape.c;
        let mut dx = vec![T::of(0.0); x.shape.len()];
        for out in 0..y.rows() {
            let n = out / (y.h * y.w);
            for ch in 0..c {
                if !max.terms.is_empty() {
                    dx[self.pool.argmax(x, y, out, ch) * c + ch] += max.value(n, out, ch);
                }
                if !average.terms.is_empty() {
                    let mut count = 0.0;
                    self.pool.window(x.shape, y, out, |_| count += 1.0);
                    let share = average.value(n, out, ch) / T::of(count);
                    self.pool.window(x.shape, y, out, |row| dx[row * c + ch] += share);
                }
            }
        }
        for (i, &value) in dx.iter().enumerate() {
            let row = i / c;
            io.put(0, row, i % c, value + direct.value(row / (x.shape.h * x.shape.w), row, i % c));
        }
    }
}

/// Mean over all pixels of each image: input `[n, h, w, c]`; output `[n, 1, 1, c]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalPool;

impl GlobalPool {
    /// Records the op.
    pub fn record(graph: &mut Graph, x: Tensor) -> Tensor {
        let shape = graph.shape(x);
        let y = graph.tensor(Shape::map(shape.n, 1, 1, shape.c), "global pool");
        graph.push(Self, vec![x], vec![y.into()]);
        y
    }
}

impl Family for GlobalPool {
    const NAME: &'static str = "global_pool";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(inputs[0].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        let pixels = x.shape.h * x.shape.w;
        for n in 0..x.shape.n {
            for c in 0..x.shape.c {
                let mut sum = T::of(0.0);
                for p in 0..pixels {
                    sum += x.get(n * pixels + p, c);
                }
                io.put(0, n, c, sum / T::of(pixels as f64));
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        let slot = tape.slot(tape.input(0));
        tape.push(GlobalPoolBackward, vec![g], vec![slot]);
        Ok(())
    }
}

/// Input `g [n, 1, 1, c]`; output `dx [n, h, w, c]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalPoolBackward;

impl Family for GlobalPoolBackward {
    const NAME: &'static str = "global_pool_backward";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let shape = io.outputs[0].shape;
        let pixels = shape.h * shape.w;
        for row in 0..shape.rows() {
            for c in 0..shape.c {
                io.put(0, row, c, io.inputs[0].get(row / pixels, c) / T::of(pixels as f64));
            }
        }
    }
}
