//! A pretrained convolutional network as a list of inference layers: what `efficientnet` builds from a file of weights and
//! the embedder records. Batch norms are folded into weights and biases when a network is built.

use std::path::Path;

use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, Tensor};
use crate::ops::folded::Folded;
use crate::ops::pool::GlobalPool;
use crate::tensors::Tensors;

/// One convolution.
#[derive(Clone, Debug)]
struct Layer {
    op: Folded,
    /// Extent of the weights.
    weights: Shape,
    /// First element of weights, then bias, in the flat vector.
    offset: usize,
    /// The layer whose output is added, counted from the first.
    residual: Option<usize>,
}

/// The layers, each behind the one before, and their weights as one flat vector.
#[derive(Clone, Debug, Default)]
pub struct ConvNet {
    layers: Vec<Layer>,
    weights: Vec<f32>,
}

/// Names of a convolution and of the batch norm behind it in a file of weights.
pub(super) struct Names<'a> {
    pub(super) convolution: &'a str,
    pub(super) norm: &'a str,
}

impl ConvNet {
    /// Weights and biases of all layers.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Number of the layer that was added last.
    pub(super) fn last(&self) -> usize {
        self.layers.len() - 1
    }

    /// Adds a convolution of `c_in` to `c` channels, followed by a batch norm, which is folded in f64: with
    /// `k = gamma / sqrt(var + eps)` the weights become `k w` and the bias `beta - k mean`.
    ///
    /// # Errors
    /// [`Error::Input`] naming a tensor that is missing, of another shape, or not finite.
    pub(super) fn push(
        &mut self,
        (tensors, path): (&Tensors, &Path),
        names: &Names<'_>,
        (op, eps, residual): (Folded, f64, Option<usize>),
        (c_in, c): (usize, usize),
    ) -> Result<()> {
        let taps = op.kernel * op.kernel;
        let each = if op.depthwise { 1 } else { c_in };
        let get = |name: &str, shape: &[usize]| -> Result<&[f32]> {
            let (found, values) =
                tensors.find(name).ok_or_else(|| Error::input(path, format!("has no tensor `{name}`")))?;
            if found != shape {
                return Err(Error::input(path, format!("tensor `{name}` is {found:?}; {shape:?} is needed")));
            }
            match values.iter().find(|v| !v.is_finite()) {
                Some(value) => Err(Error::input(path, format!("tensor `{name}` has a value {value}"))),
                None => Ok(values),
            }
        };
        let torch = get(&format!("{}.weight", names.convolution), &[c, each, op.kernel, op.kernel])?;
        let vector = |part: &str| get(&format!("{}.{part}", names.norm), &[c]);
        let (gamma, beta) = (vector("weight")?, vector("bias")?);
        let (mean, var) = (vector("running_mean")?, vector("running_var")?);
        if let Some(value) = var.iter().find(|&&v| v < 0.0) {
            let name = names.norm;
            return Err(Error::input(path, format!("tensor `{name}.running_var` has a value {value} below 0")));
        }
        let factor: Vec<f64> =
            gamma.iter().zip(var).map(|(&g, &v)| f64::from(g) / (f64::from(v) + eps).sqrt()).collect();
        let offset = self.weights.len();
        let weights = Shape::matrix(taps * each, c);
        // From [c][each][tap] to [tap][each][c].
        for (tap, i) in (0..taps).flat_map(|tap| (0..each).map(move |i| (tap, i))) {
            let folded = |o: usize| (factor[o] * f64::from(torch[(o * each + i) * taps + tap])) as f32;
            self.weights.extend((0..c).map(folded));
        }
        self.weights.extend((0..c).map(|o| (f64::from(beta[o]) - factor[o] * f64::from(mean[o])) as f32));
        self.layers.push(Layer { op, weights, offset, residual });
        Ok(())
    }

    /// Records the network on normalised images; `weights` is the flat vector. Returns the means of its last maps, `n x c`.
    ///
    /// # Errors
    /// [`Error::Shape`] if images or weights do not fit.
    pub fn record(&self, graph: &mut Graph, images: Tensor, weights: Tensor) -> Result<Tensor> {
        let mut maps: Vec<Tensor> = Vec::with_capacity(self.layers.len());
        for (number, layer) in self.layers.iter().enumerate() {
            graph.scope(format!("layers.{number}."));
            let x = maps.last().copied().unwrap_or(images);
            let w = graph.slice(weights, layer.offset, layer.weights)?;
            let bias = graph.slice(weights, layer.offset + layer.weights.len(), Shape::vector(layer.weights.c))?;
            maps.push(Folded::record(graph, layer.op, [x, w, bias], layer.residual.map(|at| maps[at]))?);
        }
        graph.scope("");
        Ok(GlobalPool::record(graph, maps.last().copied().unwrap_or(images)))
    }
}
