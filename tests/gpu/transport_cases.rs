//! Cases of transport: problems of mixed sizes in one table, on either side of what one block solves, with and without
//! labels, weights, prices of missed marginals, both rules, problems that are done before or within a replay.

use std::sync::Arc;

use supernet::graph::{Graph, Shape, StoreLayout, Tensor};
use supernet::ops::transport::{
    CERTIFICATE, Certificate, CostExtent, EXTENT, PairCost, Rule, SCHEDULE, STATUS, Sinkhorn, Source, Table,
};
use supernet::random::philox4x32_10;

use super::harness::Case;

fn empty(name: String) -> Case {
    Case { name, graph: Graph::new(), layout: StoreLayout::new(), values: Vec::new() }
}

fn state(case: &mut Case, name: &str, shape: Shape, values: Vec<f32>) -> Tensor {
    assert_eq!(values.len(), shape.len());
    case.values.push(values);
    case.graph.state(case.layout.add(name, shape))
}

/// Numbers between 0 and 1.
fn uniform(seed: u32, count: usize) -> Vec<f32> {
    let draw = |i: usize| philox4x32_10([i as u32, seed, 0, 0], [11, 0])[0] as f32 / u32::MAX as f32;
    (0..count).map(draw).collect()
}

/// Left points, right points, and whether both are the same.
type Size = (usize, usize, bool);

/// Sizes from 1 x 1 on; the last ones are too large for one block.
const MIXED: [Size; 12] = [
    (1, 1, false),
    (1, 7, false),
    (7, 1, false),
    (16, 16, false),
    (33, 20, false),
    (300, 200, false),
    (64, 256, false),
    (257, 40, false),
    (40, 257, false),
    (12, 12, true),
    (2, 1030, false),
    (270, 270, true),
];

/// Problems side by side in one list of points, which are `points` in all.
fn table(sizes: &[Size]) -> (Table, usize) {
    let (mut table, mut row) = (Table::default(), 0);
    for &(n, m, symmetric) in sizes {
        let y = if symmetric { row } else { row + n };
        table.push((n, row), (m, y), symmetric).expect("a sound problem");
        row = y + m;
    }
    (table, row)
}

/// Points with `d` coordinates within wider rows; labels and their distances, if there are any.
fn point_states(case: &mut Case, rows: usize, d: usize, labels: usize) -> (Tensor, Vec<Tensor>) {
    let total = d + labels % 4;
    let points = state(case, "points", Shape::matrix(rows, total), uniform(0, rows * total));
    let points = case.graph.channels(points, total - d, d).expect("the coordinates lie within the rows");
    let mut others = Vec::new();
    if labels > 0 {
        let of_rows = uniform(1, rows).into_iter().map(|u| (u * labels as f32).floor().min(labels as f32 - 1.0));
        others.push(state(case, "labels", Shape::vector(rows), of_rows.collect()));
        let distances = Shape::matrix(labels, labels + 3);
        let distances = state(case, "distances", distances, uniform(2, distances.len()));
        others.push(case.graph.channels(distances, 2, labels).expect("a slice"));
    }
    (points, others)
}

/// Costs of points with `d` coordinates within wider rows; of `labels` labels if there are any.
fn costs(sizes: &[Size], d: usize, labels: usize) -> Case {
    let (table, rows) = table(sizes);
    let mut case = empty(format!("costs of {} problems, {d} coordinates, {labels} labels", sizes.len()));
    let (points, labels) = point_states(&mut case, rows, d, labels);
    let inputs = [points].into_iter().chain(labels).collect();
    let tensor = state(&mut case, "costs", Shape::vector(table.costs), vec![f32::NAN; table.costs]);
    let op = PairCost { table: Arc::new(table), point_scale: 0.5, label_scale: 0.75 };
    case.graph.push(op, inputs, vec![tensor.into()]);
    case
}

/// What differs between cases of iterations.
#[derive(Clone, Copy)]
struct Setting {
    iterations: usize,
    rule: Rule,
    kernel: bool,
    rho: f32,
    /// First eps, last eps, factor.
    eps: [f32; 3],
    /// Of the first problem; each further one has twice that.
    tolerance: f32,
    most: f32,
    steps: f32,
    /// Whether some problems are in the middle of their iterations, and some done.
    begun: bool,
    /// Whether what is there is certified and measured, instead of iterated on.
    certified: bool,
}

const CONVERGE: Setting = Setting {
    iterations: 4,
    rule: Rule::Alternating,
    kernel: false,
    rho: 0.0,
    eps: [0.25, 0.25, 1.0],
    tolerance: -1.0,
    most: 100.0,
    steps: 0.0,
    begun: false,
    certified: false,
};

/// Iterations on stored costs, or on those of points of some coordinates and labels.
fn recorded(what: &str, sizes: &[Size], points: Option<(usize, usize)>, setting: Setting) -> Case {
    let Setting { iterations, rule, kernel, rho, eps, tolerance, most, steps, begun, certified } = setting;
    let (mut table, rows) = table(sizes);
    let op = if certified { "certificate" } else { "sinkhorn" };
    let mut case = empty(format!("{op}, {what}: {} problems, the first {:?}", sizes.len(), sizes[0]));
    // Padding holds what nobody may read.
    let (mut cost, mut weights) = (vec![f32::NAN; table.costs], vec![f32::NAN; table.potentials]);
    let mut potentials = vec![f32::NAN; table.potentials];
    let (mut schedule, mut status) = (Vec::new(), Vec::new());
    for (number, p) in table.problems.iter().enumerate() {
        let (n, m, seed) = (p.n as usize, p.m as usize, 4 * number as u32);
        let draws = uniform(seed, n * m);
        for i in 0..n {
            for j in 0..m {
                let at = if p.symmetric != 0 { i.min(j) * m + i.max(j) } else { i * m + j };
                cost[p.cost as usize + i * p.stride as usize + j] = 2.0 * draws[at];
            }
        }
        for (start, len, seed) in [(p.f as usize, n, seed + 1), (p.g as usize, m, seed + 2)] {
            if p.symmetric != 0 && seed % 4 == 2 {
                continue;
            }
            let draws: Vec<_> = uniform(seed, len).into_iter().map(|u| u + 0.2).collect();
            let sum: f32 = draws.iter().sum();
            weights[start..start + len].iter_mut().zip(&draws).for_each(|(w, d)| *w = d / sum);
            let value = |d: f32| if begun { d - 0.7 } else { 0.0 };
            potentials[start..start + len].iter_mut().zip(&draws).for_each(|(u, &d)| *u = value(d));
        }
        let tolerance = tolerance * (1 << number.min(20)) as f32;
        schedule.extend([eps[0], eps[1], eps[2], tolerance, most, rho, steps, f32::NAN]);
        status.extend(match (begun, number % 4) {
            _ if certified => [5.0, eps[1], 0.1, 1.0],
            (true, 0) => [5.0, 0.5, 0.1, 0.0],
            (true, 1) => [7.0, 0.3, 1e-5, 1.0],
            (true, 2) => [9.0, 0.3, 0.2, 2.0],
            _ => [0.0; STATUS],
        });
    }
    let count = sizes.len();
    let (first, source, labels) = match points {
        None => (state(&mut case, "costs", Shape::vector(table.costs), cost), Source::Stored, Vec::new()),
        Some((d, labels)) => {
            table.matrix_free = true;
            let (first, labels) = point_states(&mut case, rows, d, labels);
            (first, Source::Points { point_scale: 6.0 / d as f64, label_scale: 0.75 }, labels)
        }
    };
    let weights = state(&mut case, "weights", Shape::vector(table.potentials), weights);
    let schedule = state(&mut case, "schedule", Shape::matrix(count, SCHEDULE), schedule);
    let potentials = state(&mut case, "potentials", Shape::vector(table.potentials), potentials);
    let status = state(&mut case, "status", Shape::matrix(count, STATUS), status);
    let table = Arc::new(table);
    if certified {
        let mut rows = |name, c| state(&mut case, name, Shape::matrix(count, c), vec![f32::NAN; count * c]);
        let (certificates, extents) = (rows("certificates", CERTIFICATE), rows("extents", EXTENT));
        let inputs = [first, weights, potentials, status].into_iter().chain(labels.iter().copied()).collect();
        case.graph.push(Certificate { table: table.clone(), source }, inputs, vec![certificates.into()]);
        let inputs = [first].into_iter().chain(labels).collect();
        case.graph.push(CostExtent { table, source }, inputs, vec![extents.into()]);
        return case;
    }
    let inputs = [first, weights, schedule].into_iter().chain(labels).collect();
    let outputs = vec![potentials.into(), status.into()];
    case.graph.push(Sinkhorn { table, iterations, rule, kernel, source }, inputs, outputs);
    case
}

fn iterations(what: &str, sizes: &[Size], setting: Setting) -> Case {
    recorded(what, sizes, None, setting)
}

/// The same without a matrix: points of `d` coordinates, of `labels` labels if there are any.
fn free(what: &str, sizes: &[Size], (d, labels): (usize, usize), setting: Setting) -> Case {
    let what = format!("{what}, without a matrix, {d} coordinates, {labels} labels");
    recorded(&what, sizes, Some((d, labels)), setting)
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    // One at a time, since vectors are compared as a whole.
    for size in MIXED {
        cases.push(iterations("alone", &[size], CONVERGE));
        cases.push(costs(&[size], 19, 0));
    }
    cases.push(costs(&MIXED, 1, 0));
    cases.push(costs(&MIXED, 16, 5));
    cases.push(costs(&MIXED[..6], 133, 7));
    cases.push(costs(&[(2, 3, false); 345], 3, 2));

    cases.push(iterations("stored kernel", &MIXED[..6], Setting { kernel: true, ..CONVERGE }));
    let falling = Setting { eps: [2.0, 0.1, 0.5], iterations: 7, ..CONVERGE };
    cases.push(iterations("falling eps", &MIXED, falling));
    cases.push(iterations("small eps", &MIXED, Setting { eps: [2.0, 0.02, 0.3], iterations: 6, ..CONVERGE }));
    cases.push(iterations("unbalanced", &MIXED, Setting { rho: 0.8, ..falling }));
    cases.push(iterations("some done", &MIXED, Setting { begun: true, ..falling }));
    cases.push(iterations("each stops by itself", &MIXED, Setting { tolerance: 1e-6, iterations: 12, ..CONVERGE }));
    cases.push(iterations("stopped", &MIXED, Setting { most: 3.0, ..falling }));
    let annealed = Setting { rule: Rule::Annealed, steps: 4.0, eps: [2.0, 0.2, 0.5], iterations: 4, ..CONVERGE };
    cases.push(iterations("annealed", &MIXED, annealed));
    cases.push(iterations("annealed to the end", &MIXED, Setting { iterations: 8, ..annealed }));
    cases.push(iterations("annealed, unbalanced", &MIXED, Setting { rho: 1.5, ..annealed }));
    let one = Setting { iterations: 1, ..CONVERGE };
    cases.push(iterations("more than a table", &[(2, 3, false); 345], one));

    for size in MIXED {
        cases.push(free("alone", &[size], (3, 0), CONVERGE));
    }
    for size in [(65, 129, false), (130, 130, true), (1, 700, false)] {
        cases.push(free("alone", &[size], (37, 4), Setting { iterations: 2, ..CONVERGE }));
    }
    cases.push(free("falling eps", &MIXED, (5, 0), falling));
    cases.push(free("small eps", &MIXED, (2, 3), Setting { eps: [2.0, 0.02, 0.3], iterations: 6, ..CONVERGE }));
    cases.push(free("unbalanced", &MIXED, (17, 5), Setting { rho: 0.8, ..falling }));
    cases.push(free("some done", &MIXED, (5, 0), Setting { begun: true, ..falling }));
    cases.push(free("annealed", &MIXED, (16, 2), Setting { iterations: 8, ..annealed }));
    cases.push(free("annealed, unbalanced", &MIXED, (5, 0), Setting { rho: 1.5, ..annealed }));
    cases.push(free("more than a table", &[(2, 3, false); 345], (2, 0), one));

    let certified = Setting { certified: true, begun: true, eps: [0.3, 0.3, 1.0], ..CONVERGE };
    for size in MIXED {
        cases.push(iterations("alone", &[size], certified));
        cases.push(free("alone", &[size], (3, 0), certified));
    }
    cases.push(iterations("together", &MIXED, certified));
    cases.push(iterations("small eps", &MIXED, Setting { eps: [0.05, 0.05, 1.0], ..certified }));
    cases.push(iterations("several tiles a stretch", &[(70, 5000, false), (5000, 70, false)], certified));
    cases.push(iterations("more than a table", &[(2, 3, false); 345], certified));
    cases.push(free("together", &MIXED, (17, 5), certified));
    cases.push(free("a tile and more", &[(65, 129, false), (130, 130, true), (1, 700, false)], (37, 4), certified));
    cases.push(free("more than a table", &[(2, 3, false); 345], (2, 0), certified));
    cases
}
