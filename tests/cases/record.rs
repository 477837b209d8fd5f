//! What the families' cases have in common: short names for shapes and ops, and recordings that several of them use.

use supernet::Result;
use supernet::graph::{Graph, Shape, Tensor};
use supernet::ops::dense::Dense;
use supernet::ops::norm::{NormTensors, Normalised, Statistics};
use supernet::ops::pool::Pool;
use supernet::ops::separable::BranchInput;
use supernet::ops::softmax::Softmax;

use super::setup::{Draw, Setup};

pub(super) const EPS: f64 = 1e-5;

pub(super) const fn map(n: usize, h: usize, w: usize, c: usize) -> Shape {
    Shape::map(n, h, w, c)
}

pub(super) fn normalised(y: Tensor, (mean, var): (Tensor, Tensor), affine: Option<(Tensor, Tensor)>) -> Normalised {
    Normalised { y, norm: Some(NormTensors { mean, var, affine, eps: EPS }) }
}

/// A map with statistics recorded for it, so that normalising it is differentiable.
pub(super) fn measured(s: &mut Setup, y: Tensor, affine: bool) -> Normalised {
    let affine = affine.then(|| s.affine(s.graph.shape(y).c));
    let statistics = Statistics::record(&mut s.graph, y);
    normalised(y, statistics, affine)
}

/// Softmax of `rows` by `c` alphas, as a flat vector.
pub fn softmax(graph: &mut Graph, alphas: Tensor, rows: usize, c: usize) -> Result<Tensor> {
    Softmax::record(graph, alphas, &vec![c; rows])
}

pub(super) fn mixing(s: &mut Setup, rows: usize, c: usize) -> Result<Tensor> {
    let alphas = s.var(Shape::vector(rows * c), Draw::Normal(1.0));
    softmax(&mut s.graph, alphas, rows, c)
}

pub(super) fn vector(s: &mut Setup, len: usize, how: Draw) -> Tensor {
    s.constant(Shape::vector(len), how)
}

pub(super) fn convolution(kernel: usize, stride: usize, pad: usize) -> Dense {
    Dense { kernel, stride, pad, relu: false, bias: false, statistics: false }
}

pub(super) const fn window(
    kernel: usize,
    stride: usize,
    pad: usize,
    max: bool,
    average: bool,
    statistics: bool,
) -> Pool {
    Pool { kernel, stride, pad, max, average, statistics }
}

/// One separable branch.
pub(super) fn branch(
    s: &mut Setup,
    x: Normalised,
    c: usize,
    geometry: (usize, usize, usize),
    statistics: bool,
) -> Result<BranchInput> {
    let c_in = s.graph.shape(x.y).c;
    let (depthwise, pointwise) = (s.weight(geometry.0 * geometry.0, c_in), s.weight(c_in, c));
    let statistics = statistics.then(|| s.statistics(c));
    Ok(BranchInput { x, depthwise, pointwise, geometry, statistics })
}
