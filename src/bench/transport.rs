//! Cases of the transport ops: the class pairs of a pair of datasets with twenty classes, all in one call.

use std::sync::Arc;

use super::cases::{Case, Timed};
use super::recorder::{Draw, Recorder};
use crate::error::Result;
use crate::graph::Shape;
use crate::ops::transport::{
    Certificate, CostExtent, PairCost, Rule, SCHEDULE, STATUS, Sinkhorn, SinkhornTensors, Source, Table,
};

/// Classes, of which every pair is a problem.
const CLASSES: usize = 20;
const PAIRS: usize = CLASSES * (CLASSES - 1) / 2;
/// Points of a class, and their dimensions.
const POINTS: usize = 256;
const DIMENSIONS: usize = 64;
/// Iterations of a replay.
const ITERATIONS: usize = 10;
/// First and last eps (a twentieth of the costs' mean, 64), factor, tolerance (never met), iterations at most.
const PLAN: [f32; SCHEDULE] = [3.2, 3.2, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0];

/// Records the costs, and what follows them up to the op that is timed.
fn record(r: &mut Recorder, problems: usize, what: Option<bool>, timed: &str) -> Result<()> {
    let mut table = Table::default();
    let pairs = (0..CLASSES).flat_map(|a| (a + 1..CLASSES).map(move |b| (a, b)));
    for (a, b) in pairs.take(problems) {
        table.push((POINTS, a * POINTS), (POINTS, b * POINTS), false)?;
    }
    let table = Arc::new(table);
    let points = r.constant(Shape::matrix(CLASSES * POINTS, DIMENSIONS), Draw::Normal(1.0));
    let cost = r.constant(Shape::vector(table.costs), Draw::Constant(0.0));
    let op = PairCost { table: table.clone(), point_scale: 0.5, label_scale: 0.0 };
    PairCost::record(&mut r.graph, op, points, None, cost)?;
    let tensors = SinkhornTensors {
        cost,
        labels: None,
        weights: r.constant(Shape::vector(table.potentials), Draw::Constant(1.0 / POINTS as f32)),
        schedule: r.constant(Shape::matrix(problems, SCHEDULE), Draw::Rows(&PLAN)),
        potentials: r.constant(Shape::vector(table.potentials), Draw::Constant(0.0)),
        status: r.constant(Shape::matrix(problems, STATUS), Draw::Constant(0.0)),
    };
    if let Some(kernel) = what {
        let op = Sinkhorn {
            table: table.clone(),
            iterations: ITERATIONS,
            rule: Rule::Alternating,
            kernel,
            source: Source::Stored,
        };
        Sinkhorn::record(&mut r.graph, op, tensors)?;
    }
    let source = Source::Stored;
    match timed {
        "transport_certificate" => {
            let rows = Certificate::record(&mut r.graph, Certificate { table, source }, tensors)?;
            r.output(rows);
        }
        "cost_extent" => {
            let rows = CostExtent::record(&mut r.graph, CostExtent { table, source }, cost, None)?;
            r.output(rows);
        }
        _ => {}
    }
    Ok(())
}

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    let case = |op: &'static str, what: &str, domain: Option<bool>| {
        let name = format!("{op}/{PAIRS}x{POINTS}x{POINTS}/{what}");
        Case::of(name, Timed::Op(op), PAIRS, move |r, n| record(r, n, domain, op))
    };
    vec![
        case("pair_cost", &format!("d{DIMENSIONS}"), None),
        case("sinkhorn", &format!("log, {ITERATIONS} iterations"), Some(false)),
        case("sinkhorn", &format!("kernel, {ITERATIONS} iterations"), Some(true)),
        case("transport_certificate", "all", Some(true)),
        case("cost_extent", "all", None),
    ]
}
