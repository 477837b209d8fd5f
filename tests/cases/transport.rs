//! Cases of the transport solver: stored costs and kernels, and none at all.

use supernet::Result;
use supernet::graph::Shape;
use supernet::ops::transport::{
    Certificate, CostExtent, PairCost, Rule, SCHEDULE, STATUS, Sinkhorn, SinkhornTensors, Source, Table,
};

use super::setup::{Case, Draw, Setup, draw};

/// What a solver keeps in memory.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    Costs,
    Kernel,
    Nothing,
}

/// A solver of some problems `(n, m, symmetric)` with random points, labels and weights; `schedule` is the row of each
/// problem. Everything that it computes is compared, the costs included.
fn transport(
    s: &mut Setup,
    problems: &[(usize, usize, bool)],
    rule: Rule,
    (iterations, held): (usize, Held),
    schedule: [f64; SCHEDULE],
) -> Result<()> {
    const D: usize = 5;
    let free = held == Held::Nothing;
    let (mut table, mut rows) = (if free { Table::matrix_free() } else { Table::default() }, 0);
    let mut weights: Vec<f64> = Vec::new();
    for (number, &(n, m, symmetric)) in problems.iter().enumerate() {
        let y = if symmetric { rows } else { rows + n };
        table.push((n, rows), (m, y), symmetric)?;
        rows = y + m;
        for (side, len) in [n, m].into_iter().take(if symmetric { 1 } else { 2 }).enumerate() {
            let drawn = draw(number as u64, side as u64, len, Draw::Positive);
            let sum: f64 = drawn.iter().sum();
            weights.extend(drawn.iter().map(|w| f64::from((w / sum) as f32)));
            weights.resize(weights.len().next_multiple_of(16), 0.0);
        }
    }
    let table = std::sync::Arc::new(table);
    let points = s.constant(Shape::matrix(rows, D), Draw::Normal(0.5));
    let labels = s.constant(Shape::vector(rows), Draw::Below(3));
    let w = s.constant(Shape::matrix(3, 3), Draw::Positive);
    let cost = if free { None } else { Some(s.state(Shape::vector(table.costs), Draw::Constant(0.0))) };
    let weight = s.state(Shape::vector(table.potentials), Draw::Constant(0.0));
    s.set(&weights);
    let plan = s.state(Shape::matrix(problems.len(), SCHEDULE), Draw::Constant(0.0));
    s.set(&schedule.repeat(problems.len()));
    let potentials = s.state(Shape::vector(table.potentials), Draw::Constant(0.0));
    let status = s.state(Shape::matrix(problems.len(), STATUS), Draw::Constant(0.0));
    for state in cost.into_iter().chain([potentials, status]) {
        s.watch(state);
    }
    let [weights, schedule, potentials, status] = [weight, plan, potentials, status].map(|x| s.graph.state(x));
    let (point_scale, label_scale) = (0.5, 0.25);
    let (cost, source, free_labels) = match cost {
        Some(cost) => {
            let cost = s.graph.state(cost);
            let op = PairCost { table: table.clone(), point_scale, label_scale };
            PairCost::record(&mut s.graph, op, points, Some((labels, w)), cost)?;
            (cost, Source::Stored, None)
        }
        // Labels are left out in one of the cases.
        None => (points, Source::Points { point_scale, label_scale }, (iterations != 3).then_some((labels, w))),
    };
    let tensors = SinkhornTensors { cost, labels: free_labels, weights, schedule, potentials, status };
    let op = Sinkhorn { table: table.clone(), iterations, rule, kernel: held == Held::Kernel, source };
    Sinkhorn::record(&mut s.graph, op, tensors)?;
    let rows = Certificate::record(&mut s.graph, Certificate { table: table.clone(), source }, tensors)?;
    s.seen(rows);
    let rows = CostExtent::record(&mut s.graph, CostExtent { table, source }, cost, free_labels)?;
    s.seen(rows);
    Ok(())
}

/// Sizes around whole vectors and blocks of rows.
const RAGGED: &[(usize, usize, bool)] =
    &[(1, 1, false), (5, 33, false), (64, 16, false), (70, 129, false), (20, 20, true), (200, 3, false)];
const MATRIX_FREE: &[&str] = &["sinkhorn", "transport_certificate", "cost_extent"];
const TRANSPORT: &[&str] = &["pair_cost", "sinkhorn", "transport_certificate", "cost_extent"];

/// Their part of the table, in its order.
pub(super) const CASES: &[Case] = &[
    Case::new("transport: falling eps", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (9, Held::Costs), [4.0, 0.1, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: stored kernels, one stopping early", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (40, Held::Kernel), [1.0, 0.2, 0.5, -1.0, 30.0, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: sums beyond the range of the present potentials", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (3, Held::Kernel), [0.004, 0.004, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: missed marginals", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (8, Held::Kernel), [2.0, 0.3, 0.5, -1.0, 1e6, 0.7, 0.0, 0.0])
    }),
    Case::new("transport: the schedule of GeomLoss", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Annealed, (20, Held::Costs), [9.0, 0.05, 0.25, -1.0, 1e6, 0.0, 5.0, 0.0])
    }),
    Case::new("transport: blocks of rows spread over threads", TRANSPORT, |s| {
        let sizes = [(531, 520, false), (7, 9, false)];
        transport(s, &sizes, Rule::Alternating, (8, Held::Kernel), [2.0, 0.3, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Alternating, (9, Held::Nothing), [4.0, 0.1, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix, sums beyond the range of the present potentials", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Alternating, (3, Held::Nothing), [0.004, 0.004, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix, missed marginals", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Alternating, (8, Held::Nothing), [2.0, 0.3, 0.5, -1.0, 1e6, 0.7, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix, the schedule of GeomLoss", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Annealed, (20, Held::Nothing), [9.0, 0.05, 0.25, -1.0, 1e6, 0.0, 5.0, 0.0])
    }),
    Case::new("transport: without a matrix, more rows and columns than a tile", MATRIX_FREE, |s| {
        let sizes = [(40, 4200, false), (7, 9, false), (531, 130, false), (140, 140, true)];
        transport(s, &sizes, Rule::Alternating, (4, Held::Nothing), [2.0, 0.3, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
];
