//! The DARTS supernet: stem, cells in which every edge is a mixture of all primitives, classifier.

use std::ops::Range;

use super::cell::Cell;
use super::parameters::{Kind, Layout, Pass, Weight};
use super::primitives::BatchNorm;
use super::space::SearchSpace;
use super::{Geometry, is_reduction};
use crate::error::Result;
use crate::graph::{Shape, Tensor};
use crate::ops::dense::Dense;
use crate::ops::mixture::Mixture;
use crate::ops::pool::GlobalPool;
use crate::ops::softmax::Softmax;
use crate::random::{philox4x32_10, uniform};

/// 3x3 convolution and batch norm, without ReLU.
#[derive(Clone, Debug)]
pub(super) struct Stem {
    weight: Weight,
    norm: BatchNorm,
}

impl Stem {
    pub(super) fn declare(layout: &mut Layout, c_in: usize, c: usize) -> Self {
        let weight = layout.weight("stem.0.weight", Shape::matrix(9 * c_in, c), Kind::Dense { kernel: 3 });
        Self { weight, norm: BatchNorm::declare(layout, "stem.1", c, true) }
    }

    pub(super) fn record(&self, pass: &mut Pass<'_>, images: Tensor) -> Result<Tensor> {
        let w = pass.weight(self.weight)?;
        let rows = pass.graph.shape(images).rows();
        let statistics = pass.written(self.norm.running, rows)?;
        let op = Dense { kernel: 3, stride: 1, pad: 1, relu: false, bias: false, statistics: false };
        let y = Dense::record(pass.graph, op, images, w, None, statistics)?;
        let map = pass.normalised(y, self.norm.running, self.norm.affine)?;
        Mixture::normalise(pass.graph, map, "stem")
    }
}

/// Global mean and linear layer.
#[derive(Clone, Debug)]
pub(super) struct Classifier {
    weight: Weight,
    bias: Weight,
}

impl Classifier {
    pub(super) fn declare(layout: &mut Layout, name: &str, c: usize, classes: usize) -> Self {
        let weight = layout.weight(format!("{name}.weight"), Shape::matrix(c, classes), Kind::Linear);
        let bias = layout.weight(format!("{name}.bias"), Shape::vector(classes), Kind::Bias { fan_in: c });
        Self { weight, bias }
    }

    pub(super) fn record(&self, pass: &mut Pass<'_>, x: Tensor, relu: bool) -> Result<Tensor> {
        let (w, bias) = (pass.weight(self.weight)?, pass.weight(self.bias)?);
        Dense::record(pass.graph, Self::op(relu), x, w, Some(bias), None)
    }

    fn op(relu: bool) -> Dense {
        Dense { kernel: 1, stride: 1, pad: 0, relu, bias: true, statistics: false }
    }
}

/// The network, its parameters declared.
pub struct Supernet {
    /// The space it spans.
    pub space: SearchSpace,
    /// Extent of its images.
    pub size: Geometry,
    /// Classes that each head tells apart: one head a dataset.
    pub heads: Vec<usize>,
    /// Its parameters.
    pub layout: Layout,
    stem: Stem,
    cells: Vec<Cell>,
    classifiers: Vec<Classifier>,
    /// Weights in front of the heads'.
    trunk: usize,
}

/// Purpose of the draws that fill fresh alphas.
const PURPOSE_ALPHAS: u32 = 17;

impl Supernet {
    /// Declares the network with one head.
    pub fn new(space: SearchSpace, size: Geometry, classes: usize) -> Self {
        Self::with_heads(space, size, &[classes])
    }

    /// Declares the network with one head a dataset, each for so many classes; the heads lie behind all other weights.
    ///
    /// # Panics
    /// Without any head.
    pub fn with_heads(space: SearchSpace, size: Geometry, heads: &[usize]) -> Self {
        assert!(!heads.is_empty(), "a network has at least one head");
        let mut layout = Layout::default();
        let stem_channels = space.stem_multiplier * space.channels;
        let stem = Stem::declare(&mut layout, size.channels, stem_channels);
        let (mut c_pp, mut c_p, mut c) = (stem_channels, stem_channels, space.channels);
        let (mut cells, mut reduction_prev) = (Vec::with_capacity(space.layers), false);
        for layer in 0..space.layers {
            let reduction = is_reduction(layer, space.layers);
            if reduction {
                c *= 2;
            }
            let name = format!("cells.{layer}");
            cells.push(Cell::declare(&mut layout, &space, &name, (c_pp, c_p, c), (reduction, reduction_prev)));
            (c_pp, c_p, reduction_prev) = (c_p, space.nodes * c, reduction);
        }
        let trunk = layout.weights_len();
        let name = |head: usize| if heads.len() == 1 { "classifier".into() } else { format!("classifiers.{head}") };
        let declare = |(head, &classes)| Classifier::declare(&mut layout, &name(head), c_p, classes);
        let classifiers = heads.iter().enumerate().map(declare).collect();
        Self { space, size, heads: heads.to_vec(), layout, stem, cells, classifiers, trunk }
    }

    /// Where the weights of the trunk, which all datasets share, lie in the flat vector.
    pub fn trunk(&self) -> Range<usize> {
        0..self.trunk
    }

    /// Where the weights of a head lie in the flat vector.
    pub fn head(&self, head: usize) -> Range<usize> {
        let own = &self.layout.parameters()[self.classifiers[head].weight.index()];
        let bias = &self.layout.parameters()[self.classifiers[head].bias.index()];
        own.offset..bias.offset + bias.shape.len()
    }

    /// Freshly drawn alphas, 1e-3 N(0, 1).
    pub fn initial_alphas(&self, seed: u64) -> Vec<f32> {
        let normal = |i: usize| {
            let bits = philox4x32_10([i as u32, 0, PURPOSE_ALPHAS, 0], [seed as u32, (seed >> 32) as u32]);
            let radius = (-2.0 * f64::from(1.0 - uniform(bits[0])).ln()).sqrt();
            (1e-3 * radius * (std::f64::consts::TAU * f64::from(uniform(bits[1]))).cos()) as f32
        };
        (0..self.space.alphas_len()).map(normal).collect()
    }

    /// Records the forward through a head; `images` are normalised, `alphas` the flat vector of both cell types. Returns
    /// the logits.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if images or alphas do not fit.
    pub fn forward(&self, pass: &mut Pass<'_>, images: Tensor, alphas: Tensor, head: usize) -> Result<Tensor> {
        let features = self.features(pass, images, alphas)?;
        pass.graph.scope("classifier.");
        let logits = self.classifiers[head].record(pass, features, false)?;
        pass.graph.scope("");
        Ok(logits)
    }

    /// Records the forward through a head whose weights are `flat`, a vector of their own instead of a part of the
    /// pass's: nothing flows back into the trunk.
    ///
    /// # Errors
    /// As [`Supernet::forward`].
    pub fn forward_detached(
        &self,
        pass: &mut Pass<'_>,
        images: Tensor,
        alphas: Tensor,
        (head, flat): (usize, Tensor),
    ) -> Result<Tensor> {
        let features = self.features(pass, images, alphas)?;
        let classifier = &self.classifiers[head];
        let start = self.head(head).start;
        let mut own = |weight: Weight| {
            let p = &self.layout.parameters()[weight.index()];
            pass.graph.slice(flat, p.offset - start, p.shape)
        };
        let (w, bias) = (own(classifier.weight)?, own(classifier.bias)?);
        Dense::record(pass.graph, Classifier::op(false), features, w, Some(bias), None)
    }

    /// Channels of [`Supernet::features`].
    pub fn feature_channels(&self) -> usize {
        self.layout.parameters()[self.classifiers[0].weight.index()].shape.w
    }

    /// Records the trunk; returns the means of its last maps, `n x c`: what the heads classify, and the embedding of an
    /// image by a supernet. `images` are normalised, `alphas` the flat vector of both cell types.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if images or alphas do not fit.
    pub fn features(&self, pass: &mut Pass<'_>, images: Tensor, alphas: Tensor) -> Result<Tensor> {
        let weights = self.mixing_weights(pass, alphas)?;
        pass.graph.scope("stem.");
        let stem = self.stem.record(pass, images)?;
        let (mut s0, mut s1) = (stem, stem);
        for (layer, cell) in self.cells.iter().enumerate() {
            pass.graph.scope(format!("cells.{layer}."));
            let out = cell.record(pass, &self.space, (s0, s1), weights[usize::from(cell.reduction())])?;
            (s0, s1) = (s1, out);
        }
        pass.graph.scope("");
        Ok(GlobalPool::record(pass.graph, s1))
    }

    /// Softmax of each edge's alphas, flat, for both cell types. Edges with lists of one length share a launch.
    fn mixing_weights(&self, pass: &mut Pass<'_>, alphas: Tensor) -> Result<[Tensor; 2]> {
        let (_, len) = self.space.alpha_offsets();
        let mut both = [alphas; 2];
        for (kind, weights) in both.iter_mut().enumerate() {
            pass.graph.scope(["normal ", "reduction "][kind]);
            let own = pass.graph.slice(alphas, kind * len, Shape::vector(len))?;
            *weights = Softmax::record(pass.graph, own, &self.space.edges.iter().map(Vec::len).collect::<Vec<_>>())?;
        }
        Ok(both)
    }
}
