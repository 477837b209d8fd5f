//! Entropic optimal transport: a batch of problems of different sizes, solved side by side.
//!
//! A problem moves weights `a [n]` to weights `b [m]` at a cost `C [n, m]`. With potentials `f [n]`, `g [m]` and the
//! regularisation `eps`, its plan is `P = a b exp((f + g - C) / eps)` (Cuturi 2013; in this form Feydy et al. 2019).
//! The sizes of all problems stand in a [`Table`]; what differs between replays (eps, tolerances) stands in tensors.
//!
//! Costs are stored ([`PairCost`] writes them, or a user gives them), or, where a matrix would be too large, computed from
//! the points while they are used: a table is of one kind or the other, by its [`Source`].
//!
//! The ops are iterative solvers: [`Sinkhorn`] does a number of iterations a replay, problems that have converged
//! return at once, and the host reads one state between replays. No gradient flows through them.

mod certificate;
mod extent;
mod sinkhorn;

use std::sync::Arc;

pub use certificate::{Certificate, put};
pub use extent::CostExtent;
pub use sinkhorn::{Progress, Rule, Sinkhorn};

use super::{Cost, Family, Real};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, Tensor};

/// Elements to which rows of a cost matrix and the potentials of a problem are rounded: the widest vector.
pub const LANES: usize = 16;

/// Columns of the schedule: what the host says of a problem.
pub const SCHEDULE: usize = 8;
/// Columns of the status: what the device says of a problem.
pub const STATUS: usize = 4;
/// Columns of a certificate: [`VALUES`] numbers, each as a float and the remainder that the float rounds off.
pub const CERTIFICATE: usize = 2 * VALUES;
/// Columns of an extent: the sum of costs and the largest.
pub const EXTENT: usize = 2;
/// Numbers of a certificate.
pub const VALUES: usize = 7;

/// A problem as devices see it: extents and places in the shared vectors, in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Problem {
    /// Points on the left.
    pub n: u32,
    /// Points on the right.
    pub m: u32,
    /// First row of the left points.
    pub x: u32,
    /// First row of the right points.
    pub y: u32,
    /// First of `n` potentials and weights on the left.
    pub f: u32,
    /// First of `m` potentials and weights on the right; the same as `f` in a symmetric problem.
    pub g: u32,
    /// First element of the cost matrix; 0 where costs are computed while they are used.
    pub cost: u32,
    /// Elements from one row of the cost matrix to the next: `m` rounded up to [`LANES`].
    pub stride: u32,
    /// 1 for a problem between a measure and itself, which has one potential.
    pub symmetric: u32,
}

impl Problem {
    /// Costs, with the padding of rows.
    pub fn pairs(&self) -> usize {
        self.n as usize * self.stride as usize
    }
}

/// All problems of a batch.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The problems.
    pub problems: Vec<Problem>,
    /// Elements of the vector of potentials, and of that of weights.
    pub potentials: usize,
    /// Elements of all cost matrices.
    pub costs: usize,
    /// Whether there are no cost matrices: costs are computed while they are used.
    pub matrix_free: bool,
}

impl Table {
    /// A table of problems without cost matrices.
    pub fn matrix_free() -> Self {
        Self { matrix_free: true, ..Self::default() }
    }

    /// Costs of all problems, with the padding of rows, whether stored or not.
    pub fn pairs(&self) -> usize {
        self.problems.iter().map(Problem::pairs).sum()
    }

    /// Places a problem of `n` by `m` points from rows `x` and `y` on. A symmetric one has `n == m`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an empty problem, [`Error::Memory`] where 32 bits cannot address the batch.
    pub fn push(&mut self, (n, x): (usize, usize), (m, y): (usize, usize), symmetric: bool) -> Result<()> {
        if n == 0 || m == 0 || (symmetric && n != m) {
            return Err(Error::usage(format!("a transport problem of {n} by {m} points: both sides need some")));
        }
        let stride = m.next_multiple_of(LANES);
        let f = self.potentials;
        let g = if symmetric { f } else { f + n.next_multiple_of(LANES) };
        let end = if self.matrix_free { 0 } else { self.costs + n * stride };
        if end.max(g + stride).max(x + n).max(y + m) > u32::MAX as usize {
            let what = if self.matrix_free { "potentials" } else { "costs" };
            let elements = end.max(g + stride);
            let message =
                format!("{elements} elements of transport {what} exceed 32 bits: solve fewer problems at once");
            return Err(Error::Memory(message));
        }
        self.problems.push(Problem {
            n: n as u32,
            m: m as u32,
            x: x as u32,
            y: y as u32,
            f: f as u32,
            g: g as u32,
            cost: self.costs as u32,
            stride: stride as u32,
            symmetric: symmetric.into(),
        });
        (self.potentials, self.costs) = (g + stride, end);
        Ok(())
    }
}

fn expect(op: &'static str, graph: &Graph, tensor: Tensor, len: usize, what: &str) -> Result<()> {
    let shape = graph.shape(tensor);
    if shape.len() == len {
        return Ok(());
    }
    Err(Error::Shape { op, message: format!("{what} {shape} instead of {len} elements") })
}

/// Where [`Sinkhorn`] and [`Certificate`] have their costs from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    /// From matrices.
    Stored,
    /// From the points, by the formula of [`PairCost`], as often as they are used.
    Points {
        /// Factor of the squared distance of points.
        point_scale: f64,
        /// Factor of the distance of labels.
        label_scale: f64,
    },
}

/// Tensors of [`Sinkhorn`] and [`Certificate`].
#[derive(Clone, Copy, Debug)]
pub struct SinkhornTensors {
    /// All cost matrices; the points of [`Source::Points`].
    pub cost: Tensor,
    /// With [`Source::Points`]: the labels and the matrix of their distances, if they add to the costs.
    pub labels: Option<(Tensor, Tensor)>,
    /// All weights.
    pub weights: Tensor,
    /// A row of [`SCHEDULE`] a problem.
    pub schedule: Tensor,
    /// All potentials.
    pub potentials: Tensor,
    /// A row of [`STATUS`] a problem.
    pub status: Tensor,
}

impl SinkhornTensors {
    /// Checks what both ops have.
    fn check(&self, op: &'static str, graph: &Graph, table: &Table, source: Source) -> Result<()> {
        if table.matrix_free != (source != Source::Stored) {
            let message = "a table without cost matrices needs points, one with them the matrices".into();
            return Err(Error::Shape { op, message });
        }
        match source {
            Source::Stored => expect(op, graph, self.cost, table.costs, "costs")?,
            Source::Points { .. } => check_points(op, graph, table, self.cost, self.labels)?,
        }
        expect(op, graph, self.weights, table.potentials, "weights")?;
        expect(op, graph, self.potentials, table.potentials, "potentials")?;
        expect(op, graph, self.status, table.problems.len() * STATUS, "a status")
    }

    /// What follows the other inputs.
    fn label_inputs(&self, source: Source) -> impl Iterator<Item = Tensor> + use<> {
        let labels = self.labels.filter(|_| source != Source::Stored);
        labels.into_iter().flat_map(|(labels, w)| [labels, w])
    }
}

fn check_points(
    op: &'static str,
    graph: &Graph,
    table: &Table,
    points: Tensor,
    labels: Option<(Tensor, Tensor)>,
) -> Result<()> {
    let rows = graph.shape(points).rows();
    let end = table.problems.iter().map(|p| (p.x + p.n).max(p.y + p.m) as usize).max().unwrap_or(0);
    if end > rows {
        let message = format!("a problem needs points up to {end} of {}", graph.shape(points));
        return Err(Error::Shape { op, message });
    }
    labels.map_or(Ok(()), |(labels, _)| expect(op, graph, labels, rows, "labels"))
}

/// The cost of a pair of points, for reference implementations. `labels`: labels and distances, if they add to it.
fn pair_cost<T: Real>(
    points: &View<T>,
    labels: Option<(&View<T>, &View<T>)>,
    (point_scale, label_scale): (f64, f64),
    (x, y): (usize, usize),
) -> T {
    let mut sum = T::of(0.0);
    for c in 0..points.shape.c {
        let d = points.get(x, c) - points.get(y, c);
        sum += d * d;
    }
    let mut value = T::of(point_scale) * sum;
    if let Some((labels, w)) = labels {
        let label = |row: usize| labels.at(row).wide() as usize;
        value += T::of(label_scale) * w.get(label(x), label(y));
    }
    value
}

/// All costs of a problem, row after row without padding, for reference implementations. `inputs`: the costs or points
/// first, labels behind `others` further ones.
fn costs_of<T: Real>(source: Source, p: &Problem, inputs: &[View<T>], others: usize) -> Vec<T> {
    let pairs = (0..p.n as usize).flat_map(|i| (0..p.m as usize).map(move |j| (i, j)));
    match source {
        Source::Stored => pairs.map(|(i, j)| inputs[0].at(p.cost as usize + i * p.stride as usize + j)).collect(),
        Source::Points { point_scale, label_scale } => {
            let labels = inputs.get(1 + others).zip(inputs.get(2 + others));
            let cost = |(i, j)| {
                let rows = (p.x as usize + i, p.y as usize + j);
                pair_cost(&inputs[0], labels, (point_scale, label_scale), rows)
            };
            pairs.map(cost).collect()
        }
    }
}

/// Pairwise costs: `C[i, j] = point_scale |x_i - y_j|^2 + label_scale W[l(x_i), l(y_j)]`.
///
/// Inputs `points [N, d]` and, for the second term, `labels [N]` and `W [L, L]`; output the cost matrices of all
/// problems, rows padded with zeros. Differences are squared as they are: norms and products would cancel. The cosine
/// distance is half the squared distance of normalised points, so it needs no rule of its own.
#[derive(Clone, Debug)]
pub struct PairCost {
    /// The problems.
    pub table: Arc<Table>,
    /// Factor of the squared distance of points.
    pub point_scale: f64,
    /// Factor of the distance of labels.
    pub label_scale: f64,
}

impl PairCost {
    /// Records the op into `cost`, a state. `labels`: the labels and the matrix of their distances.
    ///
    /// # Errors
    /// [`Error::Shape`] if a problem reaches beyond the points or the costs.
    pub fn record(
        graph: &mut Graph,
        op: Self,
        points: Tensor,
        labels: Option<(Tensor, Tensor)>,
        cost: Tensor,
    ) -> Result<()> {
        check_points(Self::NAME, graph, &op.table, points, labels)?;
        expect(Self::NAME, graph, cost, op.table.costs, "costs")?;
        let inputs = [points].into_iter().chain(labels.into_iter().flat_map(|(labels, w)| [labels, w])).collect();
        graph.push(op, inputs, vec![cost.into()]);
        Ok(())
    }
}

impl Family for PairCost {
    const NAME: &'static str = "pair_cost";
    const DETACHED: bool = true;

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(3 * self.table.costs * inputs[0].c, inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let labels = io.inputs.get(1).zip(io.inputs.get(2));
        for p in &self.table.problems {
            for i in 0..p.n as usize {
                for j in 0..p.stride as usize {
                    let value = if j < p.m as usize {
                        let rows = (p.x as usize + i, p.y as usize + j);
                        pair_cost(&io.inputs[0], labels, (self.point_scale, self.label_scale), rows)
                    } else {
                        T::of(0.0)
                    };
                    io.outputs[0].set(0, p.cost as usize + i * p.stride as usize + j, value);
                }
            }
        }
    }
}
