//! Batch statistics and the arithmetic of normalisation, shared by every family that reads or writes normalised maps.
//!
//! `y_hat = (y - mean) / sqrt(var + eps)`, `h = gamma * y_hat + beta`; mean and (biased) variance over all rows of the
//! batch, a channel. Statistics are auxiliary outputs of the op that writes `y`: no gradient flows through them in the
//! graph. Whoever normalises owns the whole backward of batch normalisation (Ioffe & Szegedy 2015): with `g = dL/dh`,
//! `s1 = sum g`, `s2 = sum g y_hat` over N rows,
//! `dL/dy = gamma inv (g - s1/N - y_hat s2/N)`, which is affine in `g` and `y` and handed on as coefficients.

use super::{Cost, Family, Real};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, Tensor};

/// How a map is normalised where it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// gamma and beta follow mean and variance among the inputs.
    pub affine: bool,
    /// Added to the variance.
    pub eps: f64,
}

/// A map that is normalised where it is read.
#[derive(Clone, Copy, Debug)]
pub struct Normalised {
    /// The map before normalisation.
    pub y: Tensor,
    /// Mean, variance, and the rule; None: used as it is.
    pub norm: Option<NormTensors>,
}

/// The tensors of a normalisation, each `[c]`.
#[derive(Clone, Copy, Debug)]
pub struct NormTensors {
    /// Mean a channel.
    pub mean: Tensor,
    /// Biased variance a channel.
    pub var: Tensor,
    /// gamma and beta.
    pub affine: Option<(Tensor, Tensor)>,
    /// Added to the variance.
    pub eps: f64,
}

impl Normalised {
    /// A map used as it is.
    pub fn plain(y: Tensor) -> Self {
        Self { y, norm: None }
    }

    /// Appends `y, [mean, var, [gamma, beta]]` to an input list.
    pub fn push(&self, inputs: &mut Vec<Tensor>) -> Option<Norm> {
        inputs.push(self.y);
        self.norm.map(|n| {
            inputs.extend([n.mean, n.var]);
            inputs.extend(n.affine.into_iter().flat_map(|(g, b)| [g, b]));
            Norm { affine: n.affine.is_some(), eps: n.eps }
        })
    }

    /// Checks that the statistics fit the map.
    pub fn check(&self, graph: &Graph, op: &'static str) -> Result<()> {
        let c = graph.shape(self.y).c;
        let Some(norm) = self.norm else { return Ok(()) };
        let vectors = [Some(norm.mean), Some(norm.var), norm.affine.map(|a| a.0), norm.affine.map(|a| a.1)];
        for vector in vectors.into_iter().flatten() {
            if graph.shape(vector).len() != c {
                let message = format!("statistics {} for a map of {c} channels", graph.shape(vector));
                return Err(Error::Shape { op, message });
            }
        }
        Ok(())
    }
}

/// Checks that mean and variance of `c` channels fit where they are to go.
///
/// # Errors
/// [`Error::Shape`] if a place has another length.
pub fn check_places(graph: &Graph, op: &'static str, c: usize, places: &[(Tensor, Tensor)]) -> Result<()> {
    let wrong = places.iter().flat_map(|&(mean, var)| [mean, var]).find(|&t| graph.shape(t).len() != c);
    wrong.map_or(Ok(()), |t| {
        let message = format!("a place {} for statistics of {c} channels", graph.shape(t));
        Err(Error::Shape { op, message })
    })
}

/// Number of inputs that `Normalised::push` appends.
pub fn inputs_of(norm: Option<Norm>) -> usize {
    match norm {
        None => 1,
        Some(norm) => 3 + 2 * usize::from(norm.affine),
    }
}

/// Mean, inverse deviation, gamma and beta of one channel, from the inputs that follow a map.
pub fn channel<T: Real>(norm: Option<Norm>, inputs: &[View<T>], c: usize) -> (T, T, T, T) {
    let Some(norm) = norm else { return (T::of(0.0), T::of(1.0), T::of(1.0), T::of(0.0)) };
    let (mean, var) = (inputs[1].at(c), inputs[2].at(c));
    let inv = T::of(1.0) / (var + T::of(norm.eps)).sqrt();
    let (gamma, beta) = if norm.affine { (inputs[3].at(c), inputs[4].at(c)) } else { (T::of(1.0), T::of(0.0)) };
    (mean, inv, gamma, beta)
}

/// Coefficients `(a, b, d)` with `dL/dy = a g + b y + d`, for a normalised map whose output is used with weight `w`.
/// `s1 = sum g`, `s2 = sum g y_hat`, over `n` rows.
pub fn coefficients<T: Real>((mean, inv, gamma): (T, T, T), w: T, s1: T, s2: T, n: usize) -> (T, T, T) {
    let n = T::of(n as f64);
    let a = w * gamma * inv;
    let b = -(a * inv * s2 / n);
    (a, b, -(a * s1 / n) - b * mean)
}

/// Reference mean and biased variance of each channel, written to `mean` and `var`.
pub fn statistics<T: Real>(y: &View<T>, mean: &View<T>, var: &View<T>) {
    let rows = y.shape.rows();
    let n = T::of(rows as f64);
    for c in 0..y.shape.c {
        let mut sum = T::of(0.0);
        for r in 0..rows {
            sum += y.get(r, c);
        }
        let m = sum / n;
        let mut m2 = T::of(0.0);
        for r in 0..rows {
            let d = y.get(r, c) - m;
            m2 += d * d;
        }
        mean.set(c / mean.shape.c, c % mean.shape.c, m);
        var.set(c / var.shape.c, c % var.shape.c, m2 / n);
    }
}

/// Images that one partial of a reduction covers, so that a batch gives at most 16 partials: the shape of every
/// reduction depends on tensor shapes only, never on the number of threads.
pub fn images_a_chunk(n: usize) -> usize {
    n.div_ceil(16)
}

/// Partials of a reduction over `n` images.
pub fn chunks(n: usize) -> usize {
    n.div_ceil(images_a_chunk(n).max(1))
}

/// Elements of scratch for the batch statistics of `y`: mean and squared deviations of each image.
pub fn moments_scratch(y: Shape) -> usize {
    super::area(2 * y.n * y.c)
}

/// Elements of scratch for a normalisation prepared as factors and summands.
pub fn prologue_scratch(norm: Option<Norm>, c: usize) -> usize {
    if norm.is_some() { super::area(4 * c) } else { 0 }
}

/// Mean and biased variance of a map: inputs `y`; outputs mean `[c]`, var `[c]`.
#[derive(Clone, Debug)]
pub struct Statistics;

impl Statistics {
    /// Records the op; returns (mean, var).
    pub fn record(graph: &mut Graph, y: Tensor) -> (Tensor, Tensor) {
        let shape = Shape::vector(graph.shape(y).c);
        let (mean, var) = (graph.tensor(shape, "mean"), graph.tensor(shape, "var"));
        graph.push(Self, vec![y], vec![mean.into(), var.into()]);
        (mean, var)
    }
}

impl Family for Statistics {
    const NAME: &'static str = "statistics";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(3 * inputs[0].len(), inputs, outputs)
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        moments_scratch(inputs[0])
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        statistics(&io.inputs[0], &io.outputs[0], &io.outputs[1]);
    }
}
