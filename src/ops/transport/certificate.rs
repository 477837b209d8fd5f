//! What a solution is worth: bounds of the optimal cost.

use std::sync::Arc;

use super::super::{Cost, Family, Real};
use super::{CERTIFICATE, STATUS, SinkhornTensors, Source, Table, VALUES, costs_of};
use crate::device::view::{Io, View};
use crate::error::Result;
use crate::graph::{Graph, Shape, Tensor};

/// What a solution is worth. Inputs: costs or points, weights, potentials, status (for
/// eps), for labelled points their labels and `W`; output a row of [`CERTIFICATE`] a
/// problem: `<P, C>`; `<P', C>` of the plan rounded to exact marginals (Altschuler, Weed and Rigollet 2017, algorithm
/// 2), which bounds the optimal cost from above; the unregularised dual value of the c-transformed potentials, which
/// bounds it from below; the dual value `<a, f> + <b, g>` of the regularised problem; the marginal errors of rows and
/// columns, `sum |P 1 - a|`; the mass of P. Sums are in f64.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The problems.
    pub table: Arc<Table>,
    /// Where costs come from.
    pub source: Source,
}

impl Certificate {
    /// Records the op; returns the rows.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if a tensor does not fit the table.
    pub fn record(graph: &mut Graph, op: Self, tensors: SinkhornTensors) -> Result<Tensor> {
        tensors.check(Self::NAME, graph, &op.table, op.source)?;
        let SinkhornTensors { cost, weights, potentials, status, .. } = tensors;
        let rows = graph.tensor(Shape::matrix(op.table.problems.len(), CERTIFICATE), "certificates");
        let inputs = [cost, weights, potentials, status].into_iter().chain(tensors.label_inputs(op.source)).collect();
        graph.push(op, inputs, vec![rows.into()]);
        Ok(rows)
    }
}

impl Family for Certificate {
    const NAME: &'static str = "transport_certificate";
    const DETACHED: bool = true;

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let each = match self.source {
            Source::Stored => 60,
            Source::Points { .. } => 60 + 6 * inputs[0].c,
        };
        Cost::touching(each * self.table.pairs(), inputs, outputs)
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        crate::cpu::transport::certificate_scratch(self, inputs[0].c)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [_, weights, potentials, status, ..] = io.inputs else { unreachable!("four inputs and more are recorded") };
        for (number, p) in self.table.problems.iter().enumerate() {
            let eps = status.at(number * STATUS + 1).wide();
            let wide = |from: &View<T>, start: u32, len: u32| -> Vec<f64> {
                (start as usize..(start + len) as usize).map(|i| from.at(i).wide()).collect()
            };
            let (a, b) = (wide(weights, p.f, p.n), wide(weights, p.g, p.m));
            let (f, g) = (wide(potentials, p.f, p.n), wide(potentials, p.g, p.m));
            let costs = costs_of(self.source, p, io.inputs, 3);
            let c = |i: usize, j: usize| costs[i * p.m as usize + j].wide();
            let plan: Vec<Vec<f64>> = (0..a.len())
                .map(|i| (0..b.len()).map(|j| a[i] * b[j] * ((f[i] + g[j] - c(i, j)) / eps).exp()).collect())
                .collect();
            let values = certify(&a, &b, &f, &g, &plan, &c);
            put(&io.outputs[0], number, values);
        }
    }
}

/// Writes the numbers of a certificate as floats with remainders.
pub fn put<T: Real>(rows: &View<T>, row: usize, values: [f64; VALUES]) {
    for (i, value) in values.into_iter().enumerate() {
        let top = T::of(value);
        rows.set(row, 2 * i, top);
        rows.set(row, 2 * i + 1, T::of(value - top.wide()));
    }
}

fn certify(a: &[f64], b: &[f64], f: &[f64], g: &[f64], plan: &[Vec<f64>], c: &dyn Fn(usize, usize) -> f64) -> [f64; 7] {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let value = |plan: &[Vec<f64>]| -> f64 {
        plan.iter().enumerate().map(|(i, row)| row.iter().enumerate().map(|(j, p)| p * c(i, j)).sum::<f64>()).sum()
    };
    let rows = |plan: &[Vec<f64>]| -> Vec<f64> { plan.iter().map(|row| row.iter().sum()).collect() };
    let columns =
        |plan: &[Vec<f64>]| -> Vec<f64> { (0..b.len()).map(|j| plan.iter().map(|row| row[j]).sum()).collect() };
    let distance = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).sum::<f64>();
    let (r, s) = (rows(plan), columns(plan));
    let mut rounded = plan.to_vec();
    for (i, row) in rounded.iter_mut().enumerate() {
        row.iter_mut().for_each(|p| *p *= (a[i] / r[i]).min(1.0));
    }
    let s2 = columns(&rounded);
    for row in &mut rounded {
        row.iter_mut().enumerate().for_each(|(j, p)| *p *= (b[j] / s2[j]).min(1.0));
    }
    let missing = |whole: &[f64], have: Vec<f64>| -> Vec<f64> { whole.iter().zip(have).map(|(w, h)| w - h).collect() };
    let (da, db) = (missing(a, rows(&rounded)), missing(b, columns(&rounded)));
    let short: f64 = da.iter().sum();
    let mut upper = value(&rounded);
    if short > 0.0 {
        for (i, da) in da.iter().enumerate() {
            upper += da / short * db.iter().enumerate().map(|(j, db)| db * c(i, j)).sum::<f64>();
        }
    }
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
    let gc: Vec<f64> = (0..b.len()).map(|j| least(&mut (0..a.len()).map(|i| c(i, j) - f[i]))).collect();
    let fc: Vec<f64> = (0..a.len()).map(|i| least(&mut (0..b.len()).map(|j| c(i, j) - gc[j]))).collect();
    let lower = dot(a, &fc) + dot(b, &gc);
    let dual = dot(a, f) + dot(b, g);
    [value(plan), upper, lower, dual, distance(&r, a), distance(&s, b), r.iter().sum()]
}
