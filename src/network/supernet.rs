//! The DARTS supernet: stem, cells in which every edge is a mixture of all primitives, classifier.

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
        let op = Dense { kernel: 1, stride: 1, pad: 0, relu, bias: true, statistics: false };
        Dense::record(pass.graph, op, x, w, Some(bias), None)
    }
}

/// The network, its parameters declared.
pub struct Supernet {
    /// The space it spans.
    pub space: SearchSpace,
    /// Extent of its images.
    pub size: Geometry,
    /// Classes it tells apart.
    pub classes: usize,
    /// Its parameters.
    pub layout: Layout,
    stem: Stem,
    cells: Vec<Cell>,
    classifier: Classifier,
}

/// Purpose of the draws that fill fresh alphas.
const PURPOSE_ALPHAS: u32 = 17;

impl Supernet {
    /// Declares the network.
    pub fn new(space: SearchSpace, size: Geometry, classes: usize) -> Self {
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
        let classifier = Classifier::declare(&mut layout, "classifier", c_p, classes);
        Self { space, size, classes, layout, stem, cells, classifier }
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

    /// Records the forward; `images` are normalised, `alphas` the flat vector of both cell types. Returns the logits.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if images or alphas do not fit.
    pub fn forward(&self, pass: &mut Pass<'_>, images: Tensor, alphas: Tensor) -> Result<Tensor> {
        let weights = self.mixing_weights(pass, alphas)?;
        pass.graph.scope("stem.");
        let stem = self.stem.record(pass, images)?;
        let (mut s0, mut s1) = (stem, stem);
        for (layer, cell) in self.cells.iter().enumerate() {
            pass.graph.scope(format!("cells.{layer}."));
            let out = cell.record(pass, &self.space, (s0, s1), weights[usize::from(cell.reduction())])?;
            (s0, s1) = (s1, out);
        }
        pass.graph.scope("classifier.");
        let pooled = GlobalPool::record(pass.graph, s1);
        let logits = self.classifier.record(pass, pooled, false)?;
        pass.graph.scope("");
        Ok(logits)
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
