//! Tests of problems that fill pages of a GPU, without one: where their costs are, and that 32 bits count whatever their
//! launches count.

use std::sync::Arc;

use super::*;
use crate::device::needs::CUDA_PAGE;
use crate::device::paged::room;
use crate::device::pages::{Placed, Store};
use crate::graph::{Graph, Program, Shape, Tensor};
use crate::ops::launch::certificate::{CertificateParams, CertificateProblem};
use crate::ops::launch::transport::{SIDE, TILE, TransportParams, TransportProblem};
use crate::ops::launch::{GRID, Launch};
use crate::ops::transport::{
    Certificate, CostExtent, PairCost, Rule, SCHEDULE, STATUS, Sinkhorn, SinkhornTensors, Source, Table,
};
use crate::transport::{Cloud, Values};

/// Points of either side of the problem that has to fit.
const POINTS: usize = 50_000;

#[test]
fn a_large_matrix_is_stored_where_two_thirds_of_the_free_memory_hold_it() {
    let points = Points::new(&[cloud()]).unwrap();
    let costs = Costs::Points { points: &points, point_scale: 0.5, labels: None };
    let held =
        |n: usize, memory, alone| held(costs, &Problem::uniform(0..n, n..2 * n, Epsilon::Mean(0.05)), memory, alone);
    let cuda = |free: f64| room(free as usize, CUDA_PAGE);
    for free in [141e9, 80e9, 24e9] {
        assert_eq!(held(POINTS, Memory::Auto, cuda(free)), Held::Stored, "{free} bytes");
    }
    assert_eq!(held(POINTS, Memory::Auto, cuda(12e9)), Held::Recomputed);
    assert_eq!(held(POINTS, Memory::Stored, cuda(12e9)), Held::Stored, "who asks gets it, or an error");
    assert_eq!(held(POINTS, Memory::Recomputed, cuda(141e9)), Held::Recomputed);
    assert_eq!(held(60_000, Memory::Auto, cuda(141e9)), Held::Recomputed, "a page holds no more");
}

fn cloud() -> Cloud<'static> {
    Cloud { name: "two points", values: Values::Single(&[0.0, 1.0]), dim: 1 }
}

/// The largest side of a square matrix in a page.
fn largest() -> usize {
    let side = (CUDA_PAGE as f64).sqrt() as usize / 16 * 16;
    assert!(side * side <= CUDA_PAGE && side >= POINTS);
    side
}

/// All launches of a solve with stored costs, and the elements of the pages.
fn launches(n: usize) -> (Vec<Launch>, Vec<usize>, Arc<Table>) {
    let mut table = Table::default();
    table.push((n, 0), (n, n), false).unwrap();
    let table = Arc::new(table);
    let mut layout = StoreLayout::new();
    let cost = layout.add("costs", Shape::vector(table.costs));
    let weights = layout.add("weights", Shape::vector(table.potentials));
    let schedule = layout.add("schedule", Shape::matrix(1, SCHEDULE));
    let potentials = layout.add("potentials", Shape::vector(table.potentials));
    let status = layout.add("status", Shape::matrix(1, STATUS));
    let points = layout.add("points", Shape::matrix(2 * n, 64));
    let store = Store::new(&layout, CUDA_PAGE).unwrap();
    let (mut all, mut arena) = (Vec::new(), 0);
    let mut add = |what: &str, record: &dyn Fn(&mut Graph, SinkhornTensors) -> Vec<Tensor>| {
        let mut graph = Graph::new();
        let tensors = SinkhornTensors {
            cost: graph.state(cost),
            labels: None,
            weights: graph.state(weights),
            schedule: graph.state(schedule),
            potentials: graph.state(potentials),
            status: graph.state(status),
        };
        let results = record(&mut graph, tensors);
        let program = Program::new(what, graph, &results);
        let placed = Placed::new(&program, &store).unwrap();
        arena = placed.arena().max(arena);
        all.extend(placed.launches(&program, &store));
    };
    let source = Source::Stored;
    add("costs", &|graph, tensors| {
        let op = PairCost { table: table.clone(), point_scale: 0.5, label_scale: 0.0 };
        let points = graph.state(points);
        PairCost::record(graph, op, points, None, tensors.cost).unwrap();
        Vec::new()
    });
    add("extents", &|graph, tensors| {
        let op = CostExtent { table: table.clone(), source };
        vec![CostExtent::record(graph, op, tensors.cost, None).unwrap()]
    });
    add("sinkhorn", &|graph, tensors| {
        let op = Sinkhorn { table: table.clone(), iterations: 1, rule: Rule::Alternating, kernel: false, source };
        Sinkhorn::record(graph, op, tensors).unwrap();
        Vec::new()
    });
    add("certificate", &|graph, tensors| {
        vec![Certificate::record(graph, Certificate { table: table.clone(), source }, tensors).unwrap()]
    });
    let pages = store.pages.iter().copied().chain(store.arena_pages(arena)).collect();
    (all, pages, table)
}

#[test]
fn thirty_two_bits_count_all_of_a_large_problem() {
    const { assert!(CUDA_PAGE + (1 << 30) <= 1 << 32 && POINTS * POINTS <= CUDA_PAGE) };
    for n in [POINTS, largest()] {
        let (launches, pages, table) = launches(n);
        assert!(pages.iter().all(|&len| len <= CUDA_PAGE), "{pages:?}");
        assert!(table.costs > 1 << 31, "offsets of which i32 knows nothing");
        let mut met = std::collections::BTreeSet::new();
        for launch in &launches {
            met.insert(launch.kernel);
            // What CUDA starts at most, in each dimension; blocks are numbered by 32 bits.
            let [x, y, z] = launch.grid.map(u64::from);
            assert!(x <= i32::MAX as u64 && y <= u64::from(GRID) && z == 1 && x * y < 1 << 32, "{:?}", launch.grid);
            let (blocks, spots, first, rows, stride) = match launch.source {
                "transport" => {
                    let p: TransportParams = bytemuck::pod_read_unaligned(&launch.params);
                    let q: TransportProblem = bytemuck::pod_read_unaligned(&launch.table);
                    let spots = [p.points, p.cost, p.weights, p.schedule, p.potentials, p.status, p.shifts, p.soft];
                    (p.blocks, spots, u64::from(p.cost[1]) + u64::from(q.cost), q.n, q.stride)
                }
                "certificate" => {
                    let p: CertificateParams = bytemuck::pod_read_unaligned(&launch.params);
                    let q: CertificateProblem = bytemuck::pod_read_unaligned(&launch.table);
                    let spots = [p.points, p.cost, p.weights, p.potentials, p.status, p.vectors, p.partials, p.rows];
                    (p.blocks, spots, u64::from(p.cost[1]) + u64::from(q.cost), q.n, q.stride)
                }
                other => panic!("a launch of `{other}`"),
            };
            assert!(u64::from(blocks) <= x * y, "{}: all {blocks} blocks are started", launch.kernel);
            for [page, at] in spots {
                assert!((at as usize) < pages[launch.pages[page as usize] as usize], "{}", launch.kernel);
            }
            // Rows and columns are rounded up to whole tiles before it is asked whether they exist.
            let (rows, stride) = (u64::from(rows).next_multiple_of(TILE.max(SIDE) as u64), u64::from(stride));
            let end = first + (rows - 1) * stride + stride.next_multiple_of(TILE as u64);
            assert!(end < 1 << 32, "{}: element {end}", launch.kernel);
        }
        let kernels = ["pair_cost", "extent_totals", "sinkhorn_rows", "sinkhorn_columns", "certificate_columns"];
        assert!(kernels.iter().all(|kernel| met.contains(kernel)), "{met:?}");
    }
}
