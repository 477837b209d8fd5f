//! How large costs are: what eps and its schedule are measured in.

use std::sync::Arc;

use super::super::{Cost, Family, Real};
use super::{EXTENT, Source, Table, check_points, costs_of, expect};
use crate::device::view::Io;
use crate::error::Result;
use crate::graph::{Graph, Shape, Tensor};

/// Sum and largest of the costs of each problem, the latter 0 at least. Inputs: costs or points, for labelled points their
/// labels and `W`; output a row of [`EXTENT`] a problem.
#[derive(Clone, Debug)]
pub struct CostExtent {
    /// The problems.
    pub table: Arc<Table>,
    /// Where costs come from.
    pub source: Source,
}

impl CostExtent {
    /// Records the op; returns the rows. `labels`: the labels and the matrix of their distances.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if costs or points do not fit the table.
    pub fn record(graph: &mut Graph, op: Self, cost: Tensor, labels: Option<(Tensor, Tensor)>) -> Result<Tensor> {
        match op.source {
            Source::Stored => expect(Self::NAME, graph, cost, op.table.costs, "costs")?,
            Source::Points { .. } => check_points(Self::NAME, graph, &op.table, cost, labels)?,
        }
        let rows = graph.tensor(Shape::matrix(op.table.problems.len(), EXTENT), "extents");
        let labels = labels.filter(|_| op.source != Source::Stored);
        let inputs = [cost].into_iter().chain(labels.into_iter().flat_map(|(labels, w)| [labels, w])).collect();
        graph.push(op, inputs, vec![rows.into()]);
        Ok(rows)
    }
}

impl Family for CostExtent {
    const NAME: &'static str = "cost_extent";
    const DETACHED: bool = true;

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let each = match self.source {
            Source::Stored => 2,
            Source::Points { .. } => 2 + 3 * inputs[0].c,
        };
        Cost::touching(each * self.table.pairs(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        for (number, p) in self.table.problems.iter().enumerate() {
            let costs = costs_of(self.source, p, io.inputs, 0);
            let largest = costs.iter().map(|c| c.wide()).fold(0.0, f64::max);
            io.outputs[0].set(number, 0, T::of(costs.iter().map(|c| c.wide()).sum()));
            io.outputs[0].set(number, 1, T::of(largest));
        }
    }
}
