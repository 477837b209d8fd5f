//! Sums of tensors, pending gradients, constants, statistics, and the vector arithmetic of the optimisers.

use std::ptr::null;

use super::common::{Areas, BatchMoments, Terms, contiguous, far, image, pixels, take_terms};
use super::kernel::{Context, Kernel, Launch};
use super::micro::{self, Source, WeightedSum};
use crate::device::view::View;
use crate::ops::elementwise::{Affine, Fill, Linear};
use crate::ops::optimiser::{Adam, NORM_BLOCK, Sgd};
use crate::ops::second_order::{Perturb, Unroll, radius};

/// Elements of a vector that one task takes.
const BLOCK: usize = 16 * NORM_BLOCK;

/// Calls `f(first element, elements)` for the blocks of a vector.
fn blocks(context: &Context<'_>, len: usize, f: impl Fn(usize, usize) + Sync + Send) {
    context.parallel(len.div_ceil(BLOCK), |i, _| f(i * BLOCK, BLOCK.min(len - i * BLOCK)));
}

/// `out = sum of factor * vector` for up to four vectors of the same length.
fn combine(context: &Context<'_>, terms: &[(&View<f32>, f32)], out: &View<f32>) {
    blocks(context, out.shape.len(), |start, n| {
        let mut list = [(null(), 0.0); 4];
        for (entry, (view, factor)) in list.iter_mut().zip(terms) {
            *entry = (view.ptr().wrapping_add(start).cast_const(), *factor);
        }
        let args = micro::Linear { n, terms: list, out: out.ptr().wrapping_add(start) };
        // SAFETY: all vectors are contiguous and as long as `out`, of which each task has its own block.
        unsafe { (context.micro.linear)(&args) };
    });
}

/// See [`Linear`].
pub struct LinearKernel {
    terms: Vec<(View<f32>, f32)>,
    out: View<f32>,
    accumulate: bool,
    /// Each term's factor for every channel, where the tensors are maps with gaps.
    factors: Option<Vec<f32>>,
}

impl LinearKernel {
    /// The kernel.
    pub fn new(op: &Linear, launch: &Launch<'_>) -> Self {
        let terms: Vec<_> = launch.inputs.iter().copied().zip(op.coefs.iter().map(|&k| k as f32)).collect();
        let (out, accumulate) = (launch.outputs[0], launch.accumulate[0]);
        let flat = contiguous(&out) && terms.iter().all(|t| contiguous(&t.0));
        let factors = (!flat).then(|| terms.iter().flat_map(|t| std::iter::repeat_n(t.1, out.shape.c)).collect());
        Self { terms, out, accumulate, factors }
    }
}

impl Kernel for LinearKernel {
    fn run(&self, context: &Context<'_>) {
        let Some(factors) = &self.factors else {
            let (mut rest, mut accumulate) = (&self.terms[..], self.accumulate);
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(4 - usize::from(accumulate)));
                let mut list = [(&self.out, 1.0); 4];
                let first = usize::from(accumulate);
                list[first..].iter_mut().zip(now).for_each(|(entry, (view, k))| *entry = (view, *k));
                combine(context, &list[..first + now.len()], &self.out);
                (rest, accumulate) = (later, true);
            }
            return;
        };
        let shape = self.out.shape;
        context.parallel(shape.n, |n, _| {
            for (i, (term, _)) in self.terms.iter().enumerate() {
                let scale = factors[i * shape.c..].as_ptr();
                let args = WeightedSum {
                    sources: &[Source { y: image(term, n), ld: term.row_stride, scale }],
                    bias: null(),
                    rows: pixels(shape),
                    c: shape.c,
                    out: image(&self.out, n),
                    ldo: self.out.row_stride,
                    accumulate: self.accumulate || i > 0,
                    far: far(1, shape.len()),
                };
                // SAFETY: the views cover the image, the factors have one element a channel.
                unsafe { (context.micro.weighted_sum)(&args) };
            }
        });
    }
}

/// See [`Affine`].
pub struct AffineKernel {
    terms: Terms,
    out: View<f32>,
    accumulate: bool,
}

impl AffineKernel {
    /// The kernel.
    pub fn new(op: &Affine, launch: &Launch<'_>) -> Self {
        let terms = take_terms(&op.terms, &mut &launch.inputs[..]);
        Self { terms, out: launch.outputs[0], accumulate: launch.accumulate[0] }
    }
}

impl Kernel for AffineKernel {
    fn run(&self, context: &Context<'_>) {
        context.parallel(self.out.shape.n, |n, _| {
            self.terms.write(context.micro, n, image(&self.out, n), self.out.row_stride, self.accumulate);
        });
    }
}

/// See [`Fill`].
pub struct FillKernel {
    value: f32,
    out: View<f32>,
}

impl FillKernel {
    /// The kernel, unless the constant is to be added.
    pub fn new(op: &Fill, launch: &Launch<'_>) -> Option<Self> {
        (!launch.accumulate[0]).then_some(Self { value: op.value as f32, out: launch.outputs[0] })
    }
}

impl Kernel for FillKernel {
    fn run(&self, context: &Context<'_>) {
        let shape = self.out.shape;
        context.parallel(shape.n, |n, _| {
            for row in n * pixels(shape)..(n + 1) * pixels(shape) {
                // SAFETY: a row of the view, of an image that belongs to this task.
                unsafe { std::slice::from_raw_parts_mut(self.out.row(row), shape.c) }.fill(self.value);
            }
        });
    }
}

/// See [`Statistics`](crate::ops::norm::Statistics).
pub struct StatisticsKernel {
    images: usize,
    moments: BatchMoments,
}

impl StatisticsKernel {
    /// The kernel.
    pub fn new(launch: &Launch<'_>) -> Self {
        let (y, mut areas) = (launch.inputs[0], Areas::new(launch.scratch));
        let moments = BatchMoments::new(&[y, launch.outputs[0], launch.outputs[1]], &mut areas);
        Self { images: y.shape.n, moments }
    }
}

impl Kernel for StatisticsKernel {
    fn run(&self, context: &Context<'_>) {
        context.parallel(self.images, |n, _| self.moments.image(context.micro, n));
        self.moments.fold();
    }
}

/// See [`GlobalNorm`](crate::ops::optimiser::GlobalNorm).
pub struct GlobalNormKernel {
    x: View<f32>,
    norm: View<f32>,
    accumulate: bool,
    partials: View<f32>,
}

impl GlobalNormKernel {
    /// The kernel, unless the vector has gaps.
    pub fn new(launch: &Launch<'_>) -> Option<Self> {
        let x = launch.inputs[0];
        let partials = Areas::new(launch.scratch).take(x.shape.len().div_ceil(NORM_BLOCK));
        let (norm, accumulate) = (launch.outputs[0], launch.accumulate[0]);
        contiguous(&x).then_some(Self { x, norm, accumulate, partials })
    }
}

impl Kernel for GlobalNormKernel {
    fn run(&self, context: &Context<'_>) {
        let len = self.x.shape.len();
        blocks(context, len, |start, n| {
            for at in (start..start + n).step_by(NORM_BLOCK) {
                let part = NORM_BLOCK.min(start + n - at);
                // SAFETY: the part lies within the vector.
                let sum = unsafe { (context.micro.sum_of_squares)(self.x.ptr().add(at), part) };
                self.partials.set(0, at / NORM_BLOCK, sum);
            }
        });
        let total: f64 = self.partials.slice().iter().map(|&p| f64::from(p)).sum();
        self.norm.put(0, 0, total.sqrt() as f32, self.accumulate);
    }
}

/// See [`Sgd`].
pub struct SgdKernel {
    op: Sgd,
    inputs: [View<f32>; 3],
    outputs: [View<f32>; 3],
}

impl SgdKernel {
    /// The kernel, unless a vector has gaps.
    pub fn new(op: &Sgd, launch: &Launch<'_>) -> Option<Self> {
        let [g, norm, lr] = launch.inputs[..] else { return None };
        let [w, v, flag] = launch.outputs[..] else { return None };
        let serves = [g, w, v].iter().all(contiguous);
        serves.then_some(Self { op: *op, inputs: [g, norm, lr], outputs: [w, v, flag] })
    }
}

impl Kernel for SgdKernel {
    fn run(&self, context: &Context<'_>) {
        let ([g, norm, lr], [w, v, flag]) = (&self.inputs, &self.outputs);
        let (norm, lr) = (norm.at(0), lr.at(0));
        if !norm.is_finite() {
            flag.set(0, 0, 1.0);
            return;
        }
        let (momentum, decay) = (self.op.momentum as f32, self.op.decay as f32);
        blocks(context, g.shape.len(), |start, n| {
            let at = |view: &View<f32>| view.ptr().wrapping_add(start);
            let clip_scale = self.op.scale(norm);
            let args = micro::Sgd { w: at(w), g: at(g), v: at(v), n, lr, momentum, decay, clip_scale };
            // SAFETY: the three vectors are contiguous and equally long; each task has its own block.
            unsafe { (context.micro.sgd)(&args) };
        });
    }
}

/// See [`Adam`].
pub struct AdamKernel {
    op: Adam,
    inputs: [View<f32>; 3],
    outputs: [View<f32>; 5],
}

impl AdamKernel {
    /// The kernel, unless a vector has gaps.
    pub fn new(op: &Adam, launch: &Launch<'_>) -> Option<Self> {
        let [g, norm, lr] = launch.inputs[..] else { return None };
        let [p, m, v, steps, flag] = launch.outputs[..] else { return None };
        let serves = [g, p, m, v].iter().all(contiguous);
        serves.then_some(Self { op: *op, inputs: [g, norm, lr], outputs: [p, m, v, steps, flag] })
    }
}

impl Kernel for AdamKernel {
    fn run(&self, context: &Context<'_>) {
        let ([g, norm, lr], [p, m, v, steps, flag]) = (&self.inputs, &self.outputs);
        if !norm.at(0).is_finite() {
            flag.set(0, 0, 1.0);
            return;
        }
        let Adam { beta1, beta2, eps, decay } = self.op;
        let (lr, t) = (lr.at(0), steps.at(0) + 1.0);
        steps.set(0, 0, t);
        let correction = |beta: f64| (1.0 - beta.powf(f64::from(t))) as f32;
        let (c1, c2) = (correction(beta1), correction(beta2));
        let [keep1, keep2, share1, share2] = [beta1, beta2, 1.0 - beta1, 1.0 - beta2].map(|x| x as f32);
        let (eps, decay) = (eps as f32, decay as f32);
        blocks(context, g.shape.len(), |start, n| {
            // SAFETY: the vectors are contiguous and equally long; each task has its own block.
            let block = |view: &View<f32>| unsafe { std::slice::from_raw_parts_mut(view.ptr().add(start), n) };
            let (p, m, v, g) = (block(p), block(m), block(v), &g.slice()[start..start + n]);
            for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                let gradient = g + decay * *p;
                *m = keep1 * *m + share1 * gradient;
                *v = keep2 * *v + share2 * gradient * gradient;
                *p -= lr * (*m / c1) / ((*v / c2).sqrt() + eps);
            }
        });
    }
}

/// See [`Softmax`](crate::ops::softmax::Softmax).
pub struct SoftmaxKernel {
    x: View<f32>,
    out: View<f32>,
    accumulate: bool,
}

impl SoftmaxKernel {
    /// The kernel.
    pub fn new(launch: &Launch<'_>) -> Self {
        Self { x: launch.inputs[0], out: launch.outputs[0], accumulate: launch.accumulate[0] }
    }
}

impl Kernel for SoftmaxKernel {
    fn run(&self, _context: &Context<'_>) {
        let columns = self.x.shape.c;
        for row in 0..self.x.shape.rows() {
            let value = |c: usize| self.x.get(row, c);
            let top = (1..columns).map(value).fold(value(0), |a, b| if b > a { b } else { a });
            let sum: f32 = (0..columns).map(|c| (value(c) - top).exp()).sum();
            (0..columns).for_each(|c| self.out.put(row, c, (value(c) - top).exp() / sum, self.accumulate));
        }
    }
}

/// See [`Unroll`].
pub struct UnrollKernel {
    op: Unroll,
    inputs: [View<f32>; 4],
    out: View<f32>,
}

impl UnrollKernel {
    /// The kernel, unless a vector has gaps or the result is to be added.
    pub fn new(op: &Unroll, launch: &Launch<'_>) -> Option<Self> {
        let [w, v, g, lr] = launch.inputs[..] else { return None };
        let out = launch.outputs[0];
        let serves = [w, v, g, out].iter().all(contiguous) && !launch.accumulate[0];
        serves.then_some(Self { op: *op, inputs: [w, v, g, lr], out })
    }
}

impl Kernel for UnrollKernel {
    fn run(&self, context: &Context<'_>) {
        let [w, v, g, lr] = &self.inputs;
        let lr = f64::from(lr.at(0));
        let keep = (1.0 - lr * self.op.decay) as f32;
        combine(context, &[(w, keep), (v, (-lr * self.op.momentum) as f32), (g, -lr as f32)], &self.out);
    }
}

/// See [`Perturb`].
pub struct PerturbKernel {
    op: Perturb,
    inputs: [View<f32>; 3],
    out: View<f32>,
}

impl PerturbKernel {
    /// The kernel, unless a vector has gaps or the result is to be added.
    pub fn new(op: &Perturb, launch: &Launch<'_>) -> Option<Self> {
        let [w, d, norm] = launch.inputs[..] else { return None };
        let out = launch.outputs[0];
        let serves = [w, d, out].iter().all(contiguous) && !launch.accumulate[0];
        serves.then_some(Self { op: *op, inputs: [w, d, norm], out })
    }
}

impl Kernel for PerturbKernel {
    fn run(&self, context: &Context<'_>) {
        let [w, d, norm] = &self.inputs;
        combine(context, &[(w, 1.0), (d, radius(self.op.radius, norm.at(0)))], &self.out);
    }
}
