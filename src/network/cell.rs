//! A search cell: two inputs brought to its channels, and nodes that mix all primitives of all their edges. Everything
//! that leaves one state is recorded together, so that its input is read once.

use super::parameters::{Kind, Layout, Pass, Weight};
use super::primitives::{self, BatchNorm, EdgeOp, FactorizedReduce};
use super::space::SearchSpace;
use crate::error::Result;
use crate::graph::{Shape, Tensor};
use crate::ops::dense::Dense;
use crate::ops::mixture::{Mixture, SourceInput};
use crate::ops::norm::Normalised;

/// ReLU, 1x1 convolution, batch norm; or factorized reduce behind a reduction cell.
#[derive(Clone, Debug)]
pub(super) enum Preprocess {
    Pointwise(Weight, BatchNorm),
    Reduce(FactorizedReduce),
}

impl Preprocess {
    pub(super) fn declare(layout: &mut Layout, name: &str, c_in: usize, c: usize, reduce: bool, affine: bool) -> Self {
        if reduce {
            return Self::Reduce(FactorizedReduce::declare(layout, name, c_in, c, affine));
        }
        let shape = Shape::matrix(c_in, c);
        let weight = layout.weight(format!("{name}.op.1.weight"), shape, Kind::Dense { kernel: 1 });
        Self::Pointwise(weight, BatchNorm::declare(layout, &format!("{name}.op.2"), c, affine))
    }

    pub(super) fn record(&self, pass: &mut Pass<'_>, x: Tensor, name: &str) -> Result<Tensor> {
        let map = match self {
            Self::Pointwise(weight, norm) => {
                let w = pass.weight(*weight)?;
                let rows = pass.graph.shape(x).rows();
                let statistics = pass.written(norm.running, rows)?;
                let y = Dense::record(pass.graph, Dense::RELU_POINTWISE, x, w, None, statistics)?;
                pass.normalised(y, norm.running, norm.affine)?
            }
            Self::Reduce(op) => FactorizedReduce::record(pass, x, &[*op])?[0],
        };
        Mixture::normalise(pass.graph, map, name)
    }
}

/// A search cell, its parameters declared.
pub struct Cell {
    reduction: bool,
    channels: usize,
    preprocess: [Preprocess; 2],
    /// A list of operations for each edge.
    edges: Vec<Vec<EdgeOp>>,
}

impl Cell {
    /// Declares the parameters under `name`. The channels are those of the output before last, of the last output, and
    /// of the cell's own states. A cell behind a reduction brings its first input to the resolution of the second.
    pub fn declare(
        layout: &mut Layout,
        space: &SearchSpace,
        name: &str,
        (c_pp, c_p, channels): (usize, usize, usize),
        (reduction, reduction_prev): (bool, bool),
    ) -> Self {
        let preprocess = [
            Preprocess::declare(layout, &format!("{name}.preprocess0"), c_pp, channels, reduction_prev, false),
            Preprocess::declare(layout, &format!("{name}.preprocess1"), c_p, channels, false, false),
        ];
        // The pools of a state are the same for all edges that leave it, and so are their statistics.
        let mut pools = vec![[None; 2]; space.nodes + 2];
        let edges = space
            .endpoints()
            .into_iter()
            .enumerate()
            .map(|(edge, (state, _))| {
                let stride = if reduction && state < 2 { 2 } else { 1 };
                let declare = |(k, &primitive)| {
                    let name = format!("{name}._ops.{edge}._ops.{k}");
                    let pools = Some(&mut pools[state]);
                    EdgeOp::declare(layout, &name, primitive, (channels, stride), false, pools)
                };
                space.edges[edge].iter().enumerate().map(declare).collect()
            })
            .collect();
        Self { reduction, channels, preprocess, edges }
    }

    /// Whether it halves the resolution.
    pub fn reduction(&self) -> bool {
        self.reduction
    }

    /// Records the forward of inputs `(s0, s1)`, both `n x h x w x c` (behind a reduction `s0` is twice as large), with
    /// the softmaxed `weights` of its kind of cell, flat in the order of [`SearchSpace::alpha_offsets`]. Returns the
    /// concatenation of the nodes.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the inputs do not fit the declaration.
    pub fn record(
        &self,
        pass: &mut Pass<'_>,
        space: &SearchSpace,
        (s0, s1): (Tensor, Tensor),
        weights: Tensor,
    ) -> Result<Tensor> {
        let mut states =
            vec![self.preprocess[0].record(pass, s0, "input 0")?, self.preprocess[1].record(pass, s1, "input 1")?];
        let endpoints = space.endpoints();
        let (offsets, len) = space.alpha_offsets();
        let mut maps = vec![Vec::new(); endpoints.len()];
        let input = pass.graph.shape(states[1]);
        let side = |s: usize| s.div_ceil(self.stride(0));
        let shape = Shape::map(input.n, side(input.h), side(input.w), space.nodes * self.channels);
        let concat = pass.graph.tensor(shape, "output");
        for node in 0..space.nodes {
            let ready = if node == 0 { 0..2 } else { node + 1..node + 2 };
            for state in ready {
                self.record_state(pass, (state, states[state]), &endpoints, &mut maps)?;
            }
            let first = SearchSpace::first_edge(node);
            let end = first + node + 2;
            let start = offsets[first];
            let stop = offsets.get(end).copied().unwrap_or(len);
            let own = pass.graph.slice(weights, start, Shape::vector(stop - start))?;
            let mut sources = Vec::new();
            for edge in first..end {
                for (k, map) in maps[edge].iter().enumerate() {
                    let Some(map) = *map else { continue };
                    sources.push(SourceInput { map, weight: Some(offsets[edge] - start + k), mask: None });
                }
            }
            let out = pass.graph.channels(concat, node * self.channels, self.channels)?;
            Mixture::record(pass.graph, &sources, Some(own), None, out)?;
            states.push(out);
        }
        Ok(concat)
    }

    /// Stride of the operations that leave a state.
    fn stride(&self, state: usize) -> usize {
        if self.reduction && state < 2 { 2 } else { 1 }
    }

    /// Records everything that leaves one state and hands each edge its maps.
    fn record_state(
        &self,
        pass: &mut Pass<'_>,
        (state, x): (usize, Tensor),
        endpoints: &[(usize, usize)],
        maps: &mut [Vec<Option<Normalised>>],
    ) -> Result<()> {
        let leaving: Vec<usize> = (0..endpoints.len()).filter(|&e| endpoints[e].0 == state).collect();
        let ops: Vec<&EdgeOp> = leaving.iter().flat_map(|&e| &self.edges[e]).collect();
        if ops.is_empty() {
            return Ok(());
        }
        let mut recorded = primitives::record(pass, x, self.stride(state), &ops)?.into_iter();
        for edge in leaving {
            maps[edge] = recorded.by_ref().take(self.edges[edge].len()).collect();
        }
        Ok(())
    }
}
