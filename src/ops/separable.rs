//! The fused separable convolution: `y = pointwise(depthwise(relu(h(x))))`, `h` an optional normalisation, with the batch
//! statistics of `y`. One op holds many branches: all primitives of all edges that leave one state read the same map.
//!
//! Depthwise: kernel k (odd), stride, dilation, padding `dilation * (k - 1) / 2`, so the output has `ceil(size / stride)`
//! pixels a side. The pre-normalisation map `y` is stored, the depthwise result is computed again in the backward.
//! sep_conv is two branches in a row, the second reading the first's map through its normalisation; dil_conv is one.

use super::elementwise::TermView;
use super::norm::{self, Norm, Normalised};
use super::{Cost, Family, Real, area};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Output, Shape, Tensor, Term, TermKind};

/// Geometry of one branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Branch {
    /// Depthwise kernel size, odd.
    pub kernel: usize,
    /// Spacing of the taps.
    pub dilation: usize,
    /// Stride of the depthwise convolution.
    pub stride: usize,
    /// Normalisation of the input.
    pub norm: Option<Norm>,
    /// Whether mean and variance of the output are wanted.
    pub statistics: bool,
}

impl Branch {
    /// Padding on each side.
    pub fn pad(&self) -> usize {
        self.dilation * (self.kernel - 1) / 2
    }

    /// Output extent for an input map and output channels.
    pub fn output(&self, x: Shape, c: usize) -> Shape {
        Shape::map(x.n, x.h.div_ceil(self.stride), x.w.div_ceil(self.stride), c)
    }

    fn flops(&self, y: Shape, c: usize) -> usize {
        2 * y.rows() * c * (self.kernel * self.kernel + y.c)
    }
}

/// What a branch is recorded from.
#[derive(Clone, Copy, Debug)]
pub struct BranchInput {
    /// The map, with the normalisation under which it is read.
    pub x: Normalised,
    /// Depthwise weights `[k * k, c]`.
    pub depthwise: Tensor,
    /// Pointwise weights `[c, c_out]`.
    pub pointwise: Tensor,
    /// Kernel, dilation, stride.
    pub geometry: (usize, usize, usize),
    /// Where mean and variance go, if wanted.
    pub statistics: Option<(Tensor, Tensor)>,
}

/// Inputs a branch: `x, [mean, var, [gamma, beta]], depthwise, pointwise`. Outputs a branch: `y, [mean, var]`.
#[derive(Clone, Debug)]
pub struct Separable {
    /// The branches.
    pub branches: Vec<Branch>,
}

impl Separable {
    /// Records all branches as one op; returns the map of each.
    ///
    /// # Errors
    /// [`Error::Shape`] if weights and map disagree.
    pub fn record(graph: &mut Graph, branches: &[BranchInput]) -> Result<Vec<Tensor>> {
        let (mut inputs, mut outputs, mut maps, mut list) = (Vec::new(), Vec::<Output>::new(), Vec::new(), Vec::new());
        for b in branches {
            let (kernel, dilation, stride) = b.geometry;
            let x = graph.shape(b.x.y);
            let (dw, pw) = (graph.shape(b.depthwise), graph.shape(b.pointwise));
            if dw != Shape::matrix(kernel * kernel, x.c) || pw.rows() != x.c || kernel % 2 == 0 {
                let message = format!("kernel {kernel}, depthwise {dw} and pointwise {pw} for a map {x}");
                return Err(Error::Shape { op: Self::NAME, message });
            }
            let images = graph.shape(branches[0].x.y).n;
            if x.n != images {
                let message = format!("maps of {images} and {} images in one op", x.n);
                return Err(Error::Shape { op: Self::NAME, message });
            }
            b.x.check(graph, Self::NAME)?;
            norm::check_places(graph, Self::NAME, pw.c, b.statistics.as_slice())?;
            let norm = b.x.push(&mut inputs);
            inputs.extend([b.depthwise, b.pointwise]);
            let branch = Branch { kernel, dilation, stride, norm, statistics: b.statistics.is_some() };
            let y = graph.tensor(branch.output(x, pw.c), "map");
            outputs.push(y.into());
            outputs.extend(b.statistics.into_iter().flat_map(|(m, v)| [Output::from(m), Output::from(v)]));
            maps.push(y);
            list.push(branch);
        }
        graph.push(Self { branches: list }, inputs, outputs);
        Ok(maps)
    }
}

/// Positions of a branch's tensors in the lists of the forward op.
pub struct Layout {
    /// The branch.
    pub branch: Branch,
    /// First input: `x`.
    pub input: usize,
    /// First output: `y`.
    pub output: usize,
}

impl Layout {
    /// Positions of all branches.
    pub fn all(branches: &[Branch]) -> Vec<Self> {
        let (mut input, mut output) = (0, 0);
        branches
            .iter()
            .map(|&branch| {
                let layout = Self { branch, input, output };
                input += norm::inputs_of(branch.norm) + 2;
                output += 1 + 2 * usize::from(branch.statistics);
                layout
            })
            .collect()
    }

    /// Position of the depthwise weights; the pointwise weights follow.
    pub fn weights(&self) -> usize {
        self.input + norm::inputs_of(self.branch.norm)
    }
}

/// `relu(h(x))` and the derivative's mask `h(x) > 0` at a pixel.
fn activation<T: Real>(norm: Option<Norm>, inputs: &[View<T>], row: usize, c: usize) -> T {
    let (mean, inv, gamma, beta) = norm::channel(norm, inputs, c);
    (gamma * ((inputs[0].get(row, c) - mean) * inv) + beta).rectified()
}

/// Calls `f(tap, output row, input row)` for every tap that lies within the image.
pub fn taps(branch: &Branch, x: Shape, y: Shape, mut f: impl FnMut(usize, usize, usize)) {
    let pad = branch.pad() as isize;
    for n in 0..y.n {
        for (oy, ox) in (0..y.h).flat_map(|oy| (0..y.w).map(move |ox| (oy, ox))) {
            for tap in 0..branch.kernel * branch.kernel {
                let iy = (oy * branch.stride + tap / branch.kernel * branch.dilation) as isize - pad;
                let ix = (ox * branch.stride + tap % branch.kernel * branch.dilation) as isize - pad;
                if iy >= 0 && ix >= 0 && (iy as usize) < x.h && (ix as usize) < x.w {
                    let row = (n * x.h + iy as usize) * x.w + ix as usize;
                    f(tap, (n * y.h + oy) * y.w + ox, row);
                }
            }
        }
    }
}

/// The depthwise result, `[rows of y][c]`.
fn depthwise<T: Real>(branch: &Branch, inputs: &[View<T>], weights: &View<T>, y: Shape) -> Vec<T> {
    let x = inputs[0].shape;
    let active: Vec<T> = (0..x.len()).map(|i| activation(branch.norm, inputs, i / x.c, i % x.c)).collect();
    let mut d = vec![T::of(0.0); y.rows() * x.c];
    taps(branch, x, y, |tap, out, row| {
        for c in 0..x.c {
            d[out * x.c + c] += weights.get(tap, c) * active[row * x.c + c];
        }
    });
    d
}

impl Family for Separable {
    const NAME: &'static str = "separable";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let layouts = Layout::all(&self.branches);
        let flops = layouts.iter().map(|l| l.branch.flops(outputs[l.output], inputs[l.input].c)).sum();
        let mut cost = Cost::touching(flops, inputs, outputs);
        // Branches that share a map read it once.
        let shared: usize = layouts
            .windows(2)
            .filter(|p| p[1].branch.norm.is_none() && p[0].branch.norm.is_none())
            .map(|p| inputs[p[1].input].len())
            .sum();
        cost.bytes -= 4.0 * shared as f64;
        cost
    }

    fn scratch(&self, inputs: &[Shape], outputs: &[Shape]) -> usize {
        let branch = |l: &Layout| {
            let moments = if l.branch.statistics { norm::moments_scratch(outputs[l.output]) } else { 0 };
            norm::prologue_scratch(l.branch.norm, inputs[l.input].c) + moments
        };
        Layout::all(&self.branches).iter().map(branch).sum()
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        for layout in Layout::all(&self.branches) {
            let inputs = &io.inputs[layout.input..];
            let (dw, pw) = (&io.inputs[layout.weights()], &io.inputs[layout.weights() + 1]);
            let y = &io.outputs[layout.output];
            let c = inputs[0].shape.c;
            let d = depthwise(&layout.branch, inputs, dw, y.shape);
            for r in 0..y.shape.rows() {
                for o in 0..y.shape.c {
                    let mut sum = T::of(0.0);
                    for i in 0..c {
                        sum += d[r * c + i] * pw.get(i, o);
                    }
                    io.put(layout.output, r, o, sum);
                }
            }
            if layout.branch.statistics {
                norm::statistics(y, &io.outputs[layout.output + 1], &io.outputs[layout.output + 2]);
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let (mut inputs, mut outputs, mut list, mut leave) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for layout in Layout::all(&self.branches) {
            let at = |i: usize| tape.input(i);
            let (x, dw, pw) = (at(layout.input), at(layout.weights()), at(layout.weights() + 1));
            let affine = layout.branch.norm.filter(|n| n.affine).map(|_| (at(layout.input + 3), at(layout.input + 4)));
            let y = tape.output(layout.output);
            let want_affine = affine.is_some_and(|(g, b)| tape.wants(g) || tape.wants(b));
            let (input, weight) = (tape.wants(x) || want_affine, tape.wants(dw) || tape.wants(pw));
            if !(input || weight) {
                continue;
            }
            let Some(term) = tape.single(y) else { continue };
            inputs.extend_from_slice(&tape.inputs()[layout.input..layout.weights() + 2]);
            if term.coef.is_some() {
                inputs.push(y);
            }
            let kind = term.push(&mut inputs);
            if input {
                match layout.branch.norm {
                    None => outputs.push(tape.slot(x)),
                    Some(_) => {
                        let shape = tape.shape(x);
                        let g = tape.tensor(shape, x, "d normalised");
                        let coef = tape.tensor(Shape::matrix(3, shape.c), x, "coefficients");
                        outputs.extend([Output::from(g), Output::from(coef)]);
                        leave.push((x, Term { g, coef: Some(coef), mask: None }));
                        if let Some((gamma, beta)) = affine {
                            outputs.extend([tape.slot(gamma), tape.slot(beta)]);
                        }
                    }
                }
            }
            if weight {
                outputs.extend([tape.slot(dw), tape.slot(pw)]);
            }
            list.push(BackwardBranch { branch: layout.branch, term: kind, input, weight });
        }
        if !list.is_empty() {
            tape.push(SeparableBackward { branches: list }, inputs, outputs);
        }
        for (x, term) in leave {
            tape.leave(x, term);
        }
        Ok(())
    }
}

/// One branch of the backward op.
#[derive(Clone, Copy, Debug)]
pub struct BackwardBranch {
    /// Geometry.
    pub branch: Branch,
    /// How the gradient at `y` is given.
    pub term: TermKind,
    /// Whether the gradient of the input is wanted.
    pub input: bool,
    /// Whether the gradients of the weights are wanted.
    pub weight: bool,
}

/// Inputs a branch: those of the forward, then `[y], g, [coef], [mask]` (`y` with coefficients).
/// Outputs a branch: if `input`: `dx` without normalisation, else the gradient `g1` at the normalised map, the
/// coefficients `[3, c]` that complete it, and `dgamma, dbeta` if affine; if `weight`: `d depthwise, d pointwise`.
#[derive(Clone, Debug)]
pub struct SeparableBackward {
    /// The branches.
    pub branches: Vec<BackwardBranch>,
}

/// Positions of a backward branch's tensors.
pub struct BackwardLayout {
    /// The branch.
    pub branch: BackwardBranch,
    /// First input: `x`.
    pub input: usize,
    /// The depthwise weights; the pointwise weights follow.
    pub weights: usize,
    /// First tensor of the gradient: `y` if there are coefficients, else `g`.
    pub gradient: usize,
    /// First output.
    pub output: usize,
    /// First output of the weights' gradients.
    pub weight_output: usize,
}

impl BackwardLayout {
    /// Positions of all branches.
    pub fn all(branches: &[BackwardBranch]) -> Vec<Self> {
        let (mut input, mut output) = (0, 0);
        branches
            .iter()
            .map(|&branch| {
                let weights = input + norm::inputs_of(branch.branch.norm);
                let gradient = weights + 2;
                let own = match (branch.input, branch.branch.norm) {
                    (false, _) => 0,
                    (true, None) => 1,
                    (true, Some(norm)) => 2 + 2 * usize::from(norm.affine),
                };
                let weight_output = output + own;
                let layout = Self { branch, input, weights, gradient, output, weight_output };
                input = gradient + 1 + 2 * usize::from(branch.term.coef) + usize::from(branch.term.mask.is_some());
                output = weight_output + 2 * usize::from(branch.weight);
                layout
            })
            .collect()
    }
}

impl Family for SeparableBackward {
    const NAME: &'static str = "separable_backward";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let flops = BackwardLayout::all(&self.branches)
            .iter()
            .map(|l| {
                let (x, pw) = (inputs[l.input], inputs[l.weights + 1]);
                let once = l.branch.branch.flops(l.branch.branch.output(x, pw.c), x.c);
                // The weights' gradients need the depthwise result again, which is not counted.
                (usize::from(l.branch.input) + usize::from(l.branch.weight)) * once
            })
            .sum();
        Cost::touching(flops, inputs, outputs)
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        let branch = |l: &BackwardLayout| {
            let (x, dw, pw) = (inputs[l.input], inputs[l.weights], inputs[l.weights + 1]);
            let chunks = norm::chunks(x.n);
            let mut len = norm::prologue_scratch(l.branch.branch.norm, x.c);
            if l.branch.input && l.branch.branch.norm.is_some() {
                len += 2 * area(chunks * x.c);
            }
            // The taps in reverse, the pointwise weights transposed; partial sums of each chunk of images.
            len += area(dw.len()) + area(pw.len());
            if l.branch.weight {
                len += area(chunks * dw.len()) + area(chunks * pw.len());
            }
            len
        };
        BackwardLayout::all(&self.branches).iter().map(branch).sum::<usize>()
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        for l in BackwardLayout::all(&self.branches) {
            let BackwardBranch { branch, term, input, weight } = l.branch;
            let inputs = &io.inputs[l.input..l.weights];
            let (dw, pw) = (&io.inputs[l.weights], &io.inputs[l.weights + 1]);
            let x = inputs[0].shape;
            let mut rest = &io.inputs[l.gradient..];
            let map = term.coef.then(|| rest[0]);
            if term.coef {
                rest = &rest[1..];
            }
            let g = TermView::take(term, &mut rest);
            let y = branch.output(x, pw.shape.c);
            let dy: Vec<T> = (0..y.len())
                .map(|i| {
                    let (r, c) = (i / y.c, i % y.c);
                    g.value(r / (y.h * y.w), r, c, || map.expect("present with coefficients").get(r, c))
                })
                .collect();
            let mut dd = vec![T::of(0.0); y.rows() * x.c];
            for r in 0..y.rows() {
                for i in 0..x.c {
                    for o in 0..y.c {
                        dd[r * x.c + i] += dy[r * y.c + o] * pw.get(i, o);
                    }
                }
            }
            if weight {
                let d = depthwise(&branch, inputs, dw, y);
                for i in 0..x.c {
                    for o in 0..y.c {
                        let mut sum = T::of(0.0);
                        for r in 0..y.rows() {
                            sum += d[r * x.c + i] * dy[r * y.c + o];
                        }
                        io.put(l.weight_output + 1, i, o, sum);
                    }
                }
                let mut sums = vec![T::of(0.0); dw.shape.len()];
                taps(&branch, x, y, |tap, out, row| {
                    for c in 0..x.c {
                        sums[tap * x.c + c] += dd[out * x.c + c] * activation(branch.norm, inputs, row, c);
                    }
                });
                for (i, &sum) in sums.iter().enumerate() {
                    io.put(l.weight_output, i / x.c, i % x.c, sum);
                }
            }
            if input {
                let mut dr = vec![T::of(0.0); x.len()];
                taps(&branch, x, y, |tap, out, row| {
                    for c in 0..x.c {
                        dr[row * x.c + c] += dd[out * x.c + c] * dw.get(tap, c);
                    }
                });
                for (i, value) in dr.iter_mut().enumerate() {
                    let open = activation(branch.norm, inputs, i / x.c, i % x.c) > T::of(0.0);
                    *value = if open { *value } else { T::of(0.0) };
                    io.put(l.output, i / x.c, i % x.c, *value);
                }
                if let Some(norm) = branch.norm {
                    for c in 0..x.c {
                        let (mean, inv, gamma, _) = norm::channel(Some(norm), inputs, c);
                        let (mut s1, mut s2) = (T::of(0.0), T::of(0.0));
                        for r in 0..x.rows() {
                            s1 += dr[r * x.c + c];
                            s2 += dr[r * x.c + c] * ((inputs[0].get(r, c) - mean) * inv);
                        }
                        let (a, b, d) = norm::coefficients((mean, inv, gamma), T::of(1.0), s1, s2, x.rows());
                        for (row, value) in [a, b, d].into_iter().enumerate() {
                            io.put(l.output + 1, row, c, value);
                        }
                        if norm.affine {
                            io.outputs[l.output + 2].put(0, c, s2, io.accumulate[l.output + 2]);
                            io.outputs[l.output + 3].put(0, c, s1, io.accumulate[l.output + 3]);
                        }
                    }
                }
            }
        }
    }
}
