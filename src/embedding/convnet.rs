//! A pretrained convolutional network as a list of inference layers: what `efficientnet` and `resnet` build from a file of
//! weights and the embedder records. Batch norms are folded into weights and biases when a network is built.

use std::path::Path;

use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, Tensor};
use crate::ops::folded::Folded;
use crate::ops::pool::{GlobalPool, Pool};
use crate::tensors::Tensors;

/// One layer. Layers are counted from the first.
#[derive(Clone, Debug)]
struct Layer {
    kind: Kind,
    /// The layer whose output it reads; where there is none, the one before it.
    input: Option<usize>,
}

#[derive(Clone, Debug)]
enum Kind {
    Convolution {
        op: Folded,
        /// Extent of the weights.
        weights: Shape,
        /// First element of weights, then bias, in the flat vector.
        offset: usize,
        /// The layer whose output is added.
        residual: Option<usize>,
    },
    MaxPool(Pool),
}

/// The layers, and their weights as one flat vector.
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

    /// Adds a layer and returns its number.
    fn push(&mut self, kind: Kind, input: Option<usize>) -> usize {
        self.layers.push(Layer { kind, input });
        self.layers.len() - 1
    }

    /// Adds a maximum over windows of 3 pixels with stride 2, padded by 1. Returns the layer's number.
    pub(super) fn max_pool(&mut self) -> usize {
        let pool = Pool { kernel: 3, stride: 2, pad: 1, max: true, average: false, statistics: false };
        self.push(Kind::MaxPool(pool), None)
    }

    /// Adds a convolution of `c_in` to `c` channels, followed by a batch norm, which is folded in f64: with
    /// `k = gamma / sqrt(var + eps)` the weights become `k w` and the bias `beta - k mean`. It reads the layer `input`,
    /// the last one where there is none, and adds the layer `residual`. Returns the layer's number.
    ///
    /// # Errors
    /// [`Error::Input`] naming a tensor that is missing, of another shape, or not finite.
    pub(super) fn convolution(
        &mut self,
        (tensors, path): (&Tensors, &Path),
        names: &Names<'_>,
        (op, eps): (Folded, f64),
        (c_in, c): (usize, usize),
        (input, residual): (Option<usize>, Option<usize>),
    ) -> Result<usize> {
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
        Ok(self.push(Kind::Convolution { op, weights, offset, residual }, input))
    }

    /// Records the network on normalised images; `weights` is the flat vector. Returns the means of its last maps, `n x c`.
    ///
    /// # Errors
    /// [`Error::Shape`] if images or weights do not fit.
    pub fn record(&self, graph: &mut Graph, images: Tensor, weights: Tensor) -> Result<Tensor> {
        let mut maps: Vec<Tensor> = Vec::with_capacity(self.layers.len());
        for (number, layer) in self.layers.iter().enumerate() {
            graph.scope(format!("layers.{number}."));
            let x = layer.input.map_or_else(|| maps.last().copied().unwrap_or(images), |at| maps[at]);
            maps.push(match layer.kind {
                Kind::Convolution { op, weights: extent, offset, residual } => {
                    let w = graph.slice(weights, offset, extent)?;
                    let bias = graph.slice(weights, offset + extent.len(), Shape::vector(extent.c))?;
                    Folded::record(graph, op, [x, w, bias], residual.map(|at| maps[at]))?
                }
                Kind::MaxPool(pool) => Pool::record(graph, pool, x, &[])?[0].y,
            });
        }
        graph.scope("");
        Ok(GlobalPool::record(graph, maps.last().copied().unwrap_or(images)))
    }
}
