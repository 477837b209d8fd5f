//! The derived network: cells of a genotype, batch norm with scale and shift, drop path, auxiliary head. The auxiliary
//! head of DARTS needs a map of 8x8; here its pooling window is `min(5, side)` and its last convolution
//! `min(2, side)`, with a global mean behind it, so that any image size works and 8x8 gives DARTS' own head.

use super::cell::Preprocess;
use super::genotype::Genotype;
use super::parameters::{Kind, Layout, Pass, Weight};
use super::primitives::{self, BatchNorm, EdgeOp};
use super::supernet::{Classifier, Stem};
use super::{Geometry, is_reduction};
use crate::error::Result;
use crate::graph::{Shape, Tensor};
use crate::ops::dense::Dense;
use crate::ops::elementary::Relu;
use crate::ops::mixture::{Mixture, SourceInput};
use crate::ops::norm::Normalised;
use crate::ops::pool::{GlobalPool, Pool};

/// Size of a derived network.
#[derive(Clone, Debug, PartialEq)]
pub struct DerivedConfig {
    /// The cells.
    pub genotype: Genotype,
    /// Channels of the first cell.
    pub channels: usize,
    /// Cells.
    pub layers: usize,
    /// Whether there is an auxiliary head.
    pub auxiliary: bool,
}

struct Auxiliary {
    /// Cell whose output it reads.
    layer: usize,
    narrow: Weight,
    narrow_norm: BatchNorm,
    wide: Weight,
    wide_kernel: usize,
    wide_norm: BatchNorm,
    classifier: Classifier,
}

struct Cell {
    reduction: bool,
    channels: usize,
    preprocess: [Preprocess; 2],
    /// The operations and the states that they read, two a node.
    ops: Vec<(EdgeOp, usize)>,
    concat: Vec<usize>,
}

/// The network, its parameters declared.
pub struct Derived {
    /// Its cells and size.
    pub config: DerivedConfig,
    /// Extent of its images.
    pub size: Geometry,
    /// Classes it tells apart.
    pub classes: usize,
    /// Its parameters.
    pub layout: Layout,
    stem: Stem,
    cells: Vec<Cell>,
    classifier: Classifier,
    auxiliary: Option<Auxiliary>,
    droppable: usize,
}

impl Derived {
    /// Declares the network.
    pub fn new(config: DerivedConfig, size: Geometry, classes: usize) -> Self {
        let mut layout = Layout::default();
        let stem_channels = 3 * config.channels;
        let stem = Stem::declare(&mut layout, size.channels, stem_channels);
        let (mut c_pp, mut c_p, mut c) = (stem_channels, stem_channels, config.channels);
        let (mut cells, mut reduction_prev, mut droppable) = (Vec::with_capacity(config.layers), false, 0);
        let (mut height, mut width) = (size.height, size.width);
        let mut auxiliary = None;
        for layer in 0..config.layers {
            let reduction = is_reduction(layer, config.layers);
            if reduction {
                c *= 2;
                (height, width) = (height.div_ceil(2), width.div_ceil(2));
            }
            let genotype = &config.genotype;
            let (pairs, concat) = if reduction {
                (&genotype.reduce, &genotype.reduce_concat)
            } else {
                (&genotype.normal, &genotype.normal_concat)
            };
            let name = format!("cells.{layer}");
            let preprocess = [
                Preprocess::declare(&mut layout, &format!("{name}.preprocess0"), c_pp, c, reduction_prev, true),
                Preprocess::declare(&mut layout, &format!("{name}.preprocess1"), c_p, c, false, true),
            ];
            let ops: Vec<(EdgeOp, usize)> = pairs
                .iter()
                .enumerate()
                .map(|(i, &(primitive, state))| {
                    let stride = if reduction && state < 2 { 2 } else { 1 };
                    let name = format!("{name}._ops.{i}");
                    (EdgeOp::declare(&mut layout, &name, primitive, (c, stride), true, None), state)
                })
                .collect();
            droppable += ops.iter().filter(|(op, _)| op.droppable()).count();
            cells.push(Cell { reduction, channels: c, preprocess, ops, concat: concat.clone() });
            (c_pp, c_p, reduction_prev) = (c_p, concat.len() * c, reduction);
            if config.auxiliary && layer == 2 * config.layers / 3 {
                auxiliary = Some(Self::declare_auxiliary(&mut layout, layer, c_p, height.min(width), classes));
            }
        }
        let classifier = Classifier::declare(&mut layout, "classifier", c_p, classes);
        Self { config, size, classes, layout, stem, cells, classifier, auxiliary, droppable }
    }

    fn declare_auxiliary(layout: &mut Layout, layer: usize, c: usize, side: usize, classes: usize) -> Auxiliary {
        let name = |i: usize| format!("auxiliary_head.features.{i}");
        let pooled = (side - side.min(5)) / 3 + 1;
        let wide_kernel = pooled.min(2);
        let dense = |layout: &mut Layout, i, kernel: usize, c_in, c| {
            layout.weight(
                format!("{}.weight", name(i)),
                Shape::matrix(kernel * kernel * c_in, c),
                Kind::Dense { kernel },
            )
        };
        let narrow = dense(layout, 2, 1, c, 128);
        let narrow_norm = BatchNorm::declare(layout, &name(3), 128, true);
        let wide = dense(layout, 5, wide_kernel, 128, 768);
        let wide_norm = BatchNorm::declare(layout, &name(6), 768, true);
        let classifier = Classifier::declare(layout, "auxiliary_head.classifier", 768, classes);
        Auxiliary { layer, narrow, narrow_norm, wide, wide_kernel, wide_norm, classifier }
    }

    /// Weights without those of the auxiliary head, as papers count them.
    pub fn parameters(&self) -> usize {
        let own = |p: &&super::Parameter| !p.name.starts_with("auxiliary_head.");
        self.layout.parameters().iter().filter(own).map(|p| p.shape.len()).sum()
    }

    /// Paths that drop path may cut: the rows of its mask.
    pub fn droppable(&self) -> usize {
        self.droppable
    }

    /// Records the forward; `mask` holds drop path's factors `[droppable, n]`. Returns the logits and, in a training
    /// pass of a network with an auxiliary head, that head's.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if images or mask do not fit.
    pub fn forward(
        &self,
        pass: &mut Pass<'_>,
        images: Tensor,
        mask: Option<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        pass.graph.scope("stem.");
        let stem = self.stem.record(pass, images)?;
        let (mut s0, mut s1) = (stem, stem);
        let (mut path, mut side_logits) = (0, None);
        for (layer, cell) in self.cells.iter().enumerate() {
            pass.graph.scope(format!("cells.{layer}."));
            let out = self.record_cell(pass, cell, s0, s1, mask, &mut path)?;
            (s0, s1) = (s1, out);
            let auxiliary = self.auxiliary.as_ref().filter(|a| a.layer == layer);
            if let (Some(auxiliary), super::parameters::Mode::Train) = (auxiliary, pass.mode) {
                pass.graph.scope("auxiliary.");
                side_logits = Some(Self::record_auxiliary(pass, auxiliary, out)?);
            }
        }
        pass.graph.scope("classifier.");
        let pooled = GlobalPool::record(pass.graph, s1);
        let logits = self.classifier.record(pass, pooled, false)?;
        pass.graph.scope("");
        Ok((logits, side_logits))
    }

    fn record_cell(
        &self,
        pass: &mut Pass<'_>,
        cell: &Cell,
        s0: Tensor,
        s1: Tensor,
        mask: Option<Tensor>,
        path: &mut usize,
    ) -> Result<Tensor> {
        let mut states =
            vec![cell.preprocess[0].record(pass, s0, "input 0")?, cell.preprocess[1].record(pass, s1, "input 1")?];
        let input = pass.graph.shape(states[1]);
        let stride = if cell.reduction { 2 } else { 1 };
        let nodes = cell.ops.len() / 2;
        let shape = Shape::map(input.n, input.h.div_ceil(stride), input.w.div_ceil(stride), cell.channels);
        let concat = pass.graph.tensor(shape.with_channels(cell.concat.len() * cell.channels), "output");
        // Rows of the mask in order of the genotype, whatever the order of recording.
        let rows: Vec<Option<usize>> = cell
            .ops
            .iter()
            .map(|(op, _)| {
                op.droppable().then(|| {
                    *path += 1;
                    *path - 1
                })
            })
            .collect();
        let mut maps: Vec<Option<Normalised>> = vec![None; cell.ops.len()];
        for node in 0..nodes {
            let ready = if node == 0 { 0..2 } else { node + 1..node + 2 };
            for state in ready {
                let leaving: Vec<usize> = (0..cell.ops.len()).filter(|&i| cell.ops[i].1 == state).collect();
                if leaving.is_empty() {
                    continue;
                }
                let ops: Vec<&EdgeOp> = leaving.iter().map(|&i| &cell.ops[i].0).collect();
                let stride = if cell.reduction && state < 2 { 2 } else { 1 };
                for (&i, map) in leaving.iter().zip(primitives::record(pass, states[state], stride, &ops)?) {
                    maps[i] = map;
                }
            }
            let sources: Vec<SourceInput> = (2 * node..2 * node + 2)
                .filter_map(|i| {
                    maps[i].map(|map| SourceInput { map, weight: None, mask: rows[i].filter(|_| mask.is_some()) })
                })
                .collect();
            let out = match cell.concat.iter().position(|&s| s == node + 2) {
                Some(place) => pass.graph.channels(concat, place * cell.channels, cell.channels)?,
                None => pass.graph.tensor(shape, "node"),
            };
            Mixture::record(pass.graph, &sources, None, mask, out)?;
            states.push(out);
        }
        Ok(concat)
    }

    fn record_auxiliary(pass: &mut Pass<'_>, head: &Auxiliary, x: Tensor) -> Result<Tensor> {
        let shape = pass.graph.shape(x);
        let active = Relu::record(pass.graph, x);
        let kernel = shape.h.min(shape.w).min(5);
        let pool = Pool { kernel, stride: 3, pad: 0, max: false, average: true, statistics: false };
        let pooled = Pool::record(pass.graph, pool, active, &[])?[0].y;
        let mut map = pooled;
        for (weight, kernel, norm, relu) in
            [(head.narrow, 1, head.narrow_norm, false), (head.wide, head.wide_kernel, head.wide_norm, true)]
        {
            let op = Dense { kernel, stride: 1, pad: 0, relu, bias: false, statistics: false };
            let w = pass.weight(weight)?;
            let shape = pass.graph.shape(map);
            let rows = op.output(shape, 1).rows();
            let statistics = pass.written(norm.running, rows)?;
            let y = Dense::record(pass.graph, op, map, w, None, statistics)?;
            let normalised = pass.normalised(y, norm.running, norm.affine)?;
            map = Mixture::normalise(pass.graph, normalised, "normalised")?;
        }
        let active = Relu::record(pass.graph, map);
        let pooled = GlobalPool::record(pass.graph, active);
        head.classifier.record(pass, pooled, false)
    }
}
