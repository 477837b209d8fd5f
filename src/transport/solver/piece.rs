//! Problems that are solved side by side: their states on a device, iterations until all are done, certificates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::{Costs, Domain, Epsilon, Held, Options, Problem, Schedule, Solution};
use crate::cpu::transport::{Extent as Sums, PointExtent};
use crate::device::{Device, DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::graph::{Graph, Program, Shape, State, StoreLayout};
use crate::ops::launch::certificate::depths;
use crate::ops::transport::{
    CERTIFICATE, Certificate, CostExtent, EXTENT, PairCost, Problem as Place, Rule, SCHEDULE, STATUS, Sinkhorn,
    SinkhornTensors, Source, Table,
};

/// Unit roundoff of f32.
const ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;
/// Iterations between two looks at the status. A kernel that was stored lives as long; the same for all problems, so that
/// a problem gives the same bits in any batch.
const REPLAY: usize = 100;
/// The same where costs are recomputed: problems are so large that a replay of more would take long to stop.
const REPLAY_RECOMPUTED: usize = 10;
/// A problem of more elements keeps no kernel matrix unless asked to.
const KERNEL_ELEMENTS: usize = 1 << 27;

/// Problems that are solved side by side.
pub(super) struct Piece<'a> {
    costs: Costs<'a>,
    problems: &'a [Problem],
    /// Number of the first in the whole batch.
    first: usize,
    options: &'a Options,
    table: Arc<Table>,
    device: Device,
    held: Held,
    /// The costs, or the points where they are not stored.
    cost: State,
    /// Labels of the points and their distances, where costs are not stored.
    labels: Option<(State, State)>,
    source: Source,
    weights: State,
    schedule: State,
    potentials: State,
    status: State,
    /// What the costs of each problem are multiplied by on the device, and what is taken off before.
    units: Vec<(f64, f64)>,
    /// Largest of the costs of each given matrix as they are on the device, whatever their sign.
    largest: Vec<f32>,
}

/// Extent of the costs of one problem, in the units of the device.
#[derive(Clone, Copy, Debug)]
struct Extent {
    largest: f64,
    epsilon: f64,
}

impl Extent {
    fn new(
        asked: Epsilon,
        (unit, shift): (f64, f64),
        p: &Place,
        sums: Sums,
        median: impl FnOnce() -> f32,
    ) -> Result<Self> {
        let share = asked.value();
        if !(share.is_finite() && share > 0.0) {
            return Err(Error::usage(format!("epsilon is {share}; it must be a finite number above 0")));
        }
        let epsilon = match asked {
            Epsilon::Absolute(eps) => eps * unit,
            // A given matrix was shifted; its own mean is what a user means.
            Epsilon::Mean(r) => r * (sums.sum / (f64::from(p.n) * f64::from(p.m)) + (shift * unit).abs()),
            Epsilon::Median(r) => r * (f64::from(median()) + (shift * unit).abs()),
        };
        // Costs of zero have no scale: any eps gives the same plan.
        let epsilon = if epsilon > 0.0 { epsilon } else { 1.0 };
        Ok(Self { largest: sums.largest.into(), epsilon: epsilon.clamp(f64::from(f32::MIN_POSITIVE) * 1e3, 1e30) })
    }
}

impl<'a> Piece<'a> {
    pub(super) fn new(
        (costs, held): (Costs<'a>, Held),
        problems: &'a [Problem],
        first: usize,
        options: &'a Options,
    ) -> Result<Self> {
        let mut table = if held == Held::Stored { Table::default() } else { Table::matrix_free() };
        for p in problems {
            let balanced = p.weights.as_ref().is_none_or(|(a, b)| a == b);
            let same = p.left == p.right && balanced && matches!(costs, Costs::Points { .. });
            table.push((p.left.len(), p.left.start), (p.right.len(), p.right.start), same)?;
        }
        let table = Arc::new(table);
        let mut layout = StoreLayout::new();
        let count = problems.len();
        let matrix = (held == Held::Stored).then(|| layout.add("costs", Shape::vector(table.costs)));
        let weights = layout.add("weights", Shape::vector(table.potentials));
        let schedule = layout.add("schedule", Shape::matrix(count, SCHEDULE));
        let potentials = layout.add("potentials", Shape::vector(table.potentials));
        let status = layout.add("status", Shape::matrix(count, STATUS));
        let inputs = match costs {
            Costs::Points { points, labels, .. } => {
                let rows = points.rows.len() / points.dim;
                let x = layout.add("points", Shape::matrix(rows, points.dim));
                let l = labels.map(|labels| {
                    let of_rows = layout.add("labels", Shape::vector(rows));
                    (of_rows, layout.add("label distances", Shape::matrix(labels.count, labels.count)))
                });
                Some((x, l))
            }
            Costs::Matrices(_) => None,
        };
        let (cost, labels, source) = match (matrix, inputs, costs) {
            (None, Some((points, label_states)), Costs::Points { point_scale, labels, .. }) => {
                let label_scale = labels.map_or(0.0, |labels| labels.scale);
                (points, label_states, Source::Points { point_scale, label_scale })
            }
            (Some(matrix), ..) => (matrix, None, Source::Stored),
            (None, ..) => unreachable!("matrices that are given are stored"),
        };
        let device = Device::open(&options.device, &layout, options.threads, Precision::F32)?;
        let mut piece = Self {
            costs,
            problems,
            first,
            options,
            table,
            device,
            held,
            cost,
            labels,
            source,
            weights,
            schedule,
            potentials,
            status,
            units: vec![(1.0, 0.0); count],
            largest: vec![0.0; count],
        };
        match inputs {
            Some((x, labels)) => piece.put_points(x, labels)?,
            None => piece.given_costs()?,
        }
        if let (Held::Stored, Some((x, labels))) = (held, inputs) {
            piece.pair_costs(x, labels)?;
        }
        piece.put_weights()?;
        Ok(piece)
    }

    /// Labels of points, and distances of labels in the units of the device.
    fn label_values(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let Costs::Points { points, labels: Some(labels), .. } = self.costs else { return None };
        let numbers = labels.of_rows.iter().map(|&l| l as f32).collect();
        Some((numbers, labels.distances.iter().map(|&w| (w * points.unit()) as f32).collect()))
    }

    /// Writes points and labels.
    fn put_points(&mut self, x: State, labels: Option<(State, State)>) -> Result<()> {
        let Costs::Points { points, .. } = self.costs else { unreachable!("points are given") };
        self.units.fill((points.unit(), 0.0));
        self.device.write(x, &points.rows)?;
        if let Some(((of_rows, distances), (numbers, scaled))) = labels.zip(self.label_values()) {
            self.device.write(of_rows, &numbers)?;
            self.device.write(distances, &scaled)?;
        }
        Ok(())
    }

    /// Computes the costs of points.
    fn pair_costs(&mut self, x: State, labels: Option<(State, State)>) -> Result<()> {
        let Costs::Points { point_scale, labels: given, .. } = self.costs else { unreachable!("points are given") };
        let mut graph = Graph::new();
        let tensor = graph.state(x);
        let labels = labels.map(|(of_rows, distances)| (graph.state(of_rows), graph.state(distances)));
        let cost = graph.state(self.cost);
        let label_scale = given.map_or(0.0, |labels| labels.scale);
        let op = PairCost { table: self.table.clone(), point_scale, label_scale };
        PairCost::record(&mut graph, op, tensor, labels, cost)?;
        let exe = self.device.prepare(Program::new("transport costs", graph, &[]))?;
        self.device.run(&exe)
    }

    /// Writes given costs: shifted so that the least is zero, and scaled by a power of two.
    fn given_costs(&mut self) -> Result<()> {
        let Costs::Matrices(matrices) = self.costs else { unreachable!("matrices are given") };
        self.device.write_with(self.cost, |to| {
            for (i, p) in self.table.problems.iter().enumerate() {
                let (n, m, stride) = (p.n as usize, p.m as usize, p.stride as usize);
                let number = self.first + i;
                let matrix = &matrices[number];
                if matrix.len() != n * m {
                    let message = format!("cost matrix {number} has {} elements instead of {n} x {m}", matrix.len());
                    return Err(Error::usage(message));
                }
                if let Some(at) = matrix.iter().position(|c| !c.is_finite()) {
                    let (row, column, value) = (at / m, at % m, matrix[at]);
                    return Err(Error::usage(format!(
                        "cost matrix {number} has the value {value} in row {row}, column {column}: costs must be finite"
                    )));
                }
                let least = matrix.iter().copied().fold(f64::INFINITY, f64::min);
                let span = matrix.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
                let unit = if span > 0.0 { (-(span.log2().floor() + 1.0)).clamp(-1000.0, 1000.0).exp2() } else { 1.0 };
                let shift = if self.options.rho > 0.0 { 0.0 } else { least };
                let mut largest = 0.0f32;
                for row in 0..n {
                    let at = p.cost as usize + row * stride;
                    to[at..at + stride].fill(0.0);
                    let (to, from) = (&mut to[at..at + m], &matrix[row * m..(row + 1) * m]);
                    to.iter_mut().zip(from).for_each(|(to, &c)| *to = ((c - shift) * unit) as f32);
                    largest = to.iter().map(|c| c.abs()).fold(largest, f32::max);
                }
                self.units[i] = (unit, shift);
                self.largest[i] = largest;
            }
            Ok(())
        })
    }

    fn put_weights(&mut self) -> Result<()> {
        self.device.write_with(self.weights, |all| {
            for (i, (p, problem)) in self.table.problems.iter().zip(self.problems).enumerate() {
                for (left, start, len) in [(true, p.f as usize, p.n as usize), (false, p.g as usize, p.m as usize)] {
                    let to = &mut all[start..start + len];
                    let Some((a, b)) = &problem.weights else {
                        to.fill((1.0 / len as f64) as f32);
                        continue;
                    };
                    let given = if left { a } else { b };
                    let (sum, number) = (given.iter().sum::<f64>(), self.first + i);
                    let bad = given.iter().position(|w| !(w.is_finite() && *w > 0.0));
                    if let Some(at) = bad {
                        let value = given[at];
                        return Err(Error::usage(format!(
                            "weight {at} of problem {number} is {value}: weights are finite and at least 0"
                        )));
                    }
                    if given.len() != len || (sum - 1.0).abs() > 1e-6 {
                        return Err(Error::usage(format!(
                            "problem {number} has {} weights of sum {sum} for {len} points: one each, of sum 1",
                            given.len()
                        )));
                    }
                    to.iter_mut().zip(given).for_each(|(to, &w)| *to = (w / sum) as f32);
                }
            }
            Ok(())
        })
    }

    /// Largest cost and eps of each problem, in the units of the device. A GPU finds them itself, but for medians.
    fn extents(&mut self) -> Result<Vec<Extent>> {
        let median = self.problems.iter().any(|p| matches!(p.epsilon, Epsilon::Median(_)));
        if !median && !matches!(self.device, Device::Cpu(_)) {
            let mut graph = Graph::new();
            let SinkhornTensors { cost, labels, .. } = self.tensors(&mut graph);
            let op = CostExtent { table: self.table.clone(), source: self.source };
            let rows = CostExtent::record(&mut graph, op, cost, labels)?;
            let exe = self.device.prepare(Program::new("cost extents", graph, &[rows]))?;
            self.device.run(&exe)?;
            let rows = self.device.read_tensor(&exe, rows)?;
            let extent = |(i, (p, row)): (usize, (&Place, &[f32]))| {
                let sums = Sums { largest: row[1], sum: row[0].into() };
                Extent::new(self.problems[i].epsilon, self.units[i], p, sums, || unreachable!("no median is asked for"))
            };
            return self.table.problems.iter().zip(rows.chunks_exact(EXTENT)).enumerate().map(extent).collect();
        }
        let problems = &self.table.problems;
        if let (Source::Points { point_scale, label_scale }, Costs::Points { points, .. }) = (self.source, self.costs) {
            let labels = self.label_values();
            let labels = labels.as_ref().map(|(numbers, scaled)| (&numbers[..], &scaled[..]));
            let from = PointExtent { points: &points.rows, dim: points.dim, labels, point_scale, label_scale };
            let extent = |(i, p): (usize, &Place)| {
                Extent::new(self.problems[i].epsilon, self.units[i], p, from.extent(p), || from.median(p))
            };
            return problems.iter().enumerate().map(extent).collect();
        }
        let costs = &*self.device.read(self.cost)?;
        let extent = |(i, p): (usize, &Place)| {
            let row = |r: usize| {
                let at = p.cost as usize + r * p.stride as usize;
                &costs[at..at + p.m as usize]
            };
            let rows: Vec<Sums> = (0..p.n as usize).into_par_iter().map(|r| Sums::of_row(row(r))).collect();
            Extent::new(self.problems[i].epsilon, self.units[i], p, Sums::of_rows(&rows), || {
                let mut all: Vec<f32> = (0..p.n as usize).flat_map(row).copied().collect();
                let middle = all.len() / 2;
                *all.select_nth_unstable_by(middle, f32::total_cmp).1
            })
        };
        problems.par_iter().enumerate().map(extent).collect()
    }

    pub(super) fn solve(mut self, stop: &AtomicBool) -> Result<Vec<Solution>> {
        let extents = self.extents()?;
        let rule = match self.options.schedule {
            Schedule::Converge { .. } => Rule::Alternating,
            Schedule::GeomLoss { .. } => Rule::Annealed,
        };
        let mut most = self.options.iterations;
        let mut schedule = Vec::with_capacity(extents.len() * SCHEDULE);
        for (i, extent) in extents.iter().enumerate() {
            let (unit, _) = self.units[i];
            let last = extent.epsilon;
            let (first, factor, steps) = match self.options.schedule {
                Schedule::Converge { factor } if factor < 1.0 => (extent.largest.max(last), factor, 0),
                Schedule::Converge { .. } => (last, 1.0, 0),
                Schedule::GeomLoss { factor } => {
                    let first = (self.problems[i].diameter * unit).max(last);
                    // The first value, all values from it down to above the last, the last.
                    let between = ((last / first).ln() / factor.ln()).ceil().max(0.0) as usize;
                    (first, factor, between + 2)
                }
            };
            if steps > 0 {
                most = most.max(steps + 2);
            }
            let row: [f64; SCHEDULE] =
                [first, last, factor, self.options.tolerance, most as f64, self.options.rho * unit, steps as f64, 0.0];
            schedule.extend(row.map(|v| v as f32));
        }
        self.device.write(self.schedule, &schedule)?;
        let largest = self.table.problems.iter().map(Place::pairs).max().unwrap_or(0);
        let kernel = match self.options.domain {
            Domain::Auto => largest <= KERNEL_ELEMENTS,
            Domain::Log => false,
            Domain::Kernel => true,
        };
        let mut sinkhorn = Graph::new();
        let tensors = self.tensors(&mut sinkhorn);
        let iterations = if self.held == Held::Stored { REPLAY } else { REPLAY_RECOMPUTED };
        let op = Sinkhorn { table: self.table.clone(), iterations, rule, kernel, source: self.source };
        Sinkhorn::record(&mut sinkhorn, op, tensors)?;
        let sinkhorn = self.device.prepare(Program::new("sinkhorn", sinkhorn, &[]))?;
        while self.device.read(self.status)?.chunks_exact(STATUS).any(|s| s[3] == 0.0) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::usage("stopped as asked; transport keeps no checkpoint, so start it again"));
            }
            self.device.run(&sinkhorn)?;
        }
        let values = self.certificates()?;
        let status = self.device.read(self.status)?.into_owned();
        let potentials = self.device.read(self.potentials)?.into_owned();
        let found = values.chunks_exact(CERTIFICATE).zip(status.chunks_exact(STATUS)).enumerate();
        found.map(|(i, found)| self.solution(i, found, &potentials, extents[i].largest)).collect()
    }

    /// Certificates of all problems: on the processor with sums in f64, on a GPU in f32, see [`Self::widening`].
    fn certificates(&mut self) -> Result<Vec<f32>> {
        let mut graph = Graph::new();
        let tensors = self.tensors(&mut graph);
        let op = Certificate { table: self.table.clone(), source: self.source };
        let rows = Certificate::record(&mut graph, op, tensors)?;
        let exe = self.device.prepare(Program::new("transport certificate", graph, &[rows]))?;
        self.device.run(&exe)?;
        self.device.read_tensor(&exe, rows)
    }

    fn tensors(&self, graph: &mut Graph) -> SinkhornTensors {
        SinkhornTensors {
            cost: graph.state(self.cost),
            labels: self.labels.map(|(of_rows, distances)| (graph.state(of_rows), graph.state(distances))),
            weights: graph.state(self.weights),
            schedule: graph.state(self.schedule),
            potentials: graph.state(self.potentials),
            status: graph.state(self.status),
        }
    }

    fn solution(
        &self,
        i: usize,
        (certificate, status): (&[f32], &[f32]),
        potentials: &[f32],
        largest: f64,
    ) -> Result<Solution> {
        let value = |v: usize| f64::from(certificate[2 * v]) + f64::from(certificate[2 * v + 1]);
        let [cost, upper, lower, dual, rows, columns, mass] = std::array::from_fn(value);
        let (unit, shift) = self.units[i];
        if ![cost, upper, lower, dual].iter().all(|v| v.is_finite()) {
            let epsilon = f64::from(status[1]) / unit;
            return Err(Error::NonFinite(format!(
                "transport problem {} left the range of single precision at eps {epsilon:e}; use a larger epsilon",
                self.first + i
            )));
        }
        let slack = self.slack(i, upper);
        let [above, below] = self.widening(i, upper, potentials, largest).map(|widening| slack + widening);
        let shifted = |v: f64| v / unit + shift;
        let p = &self.table.problems[i];
        let side = |all: &[f32], start: u32, len: u32, shift: f64| -> Vec<f64> {
            all[start as usize..(start + len) as usize].iter().map(|&f| f64::from(f) / unit + shift).collect()
        };
        Ok(Solution {
            cost: cost / unit + shift * mass,
            upper: shifted(upper + above),
            lower: shifted(lower - below).max(if shift == 0.0 { 0.0 } else { f64::NEG_INFINITY }),
            dual: shifted(dual),
            marginal_error: rows + columns,
            mass,
            iterations: status[0] as usize,
            converged: status[3] == 1.0,
            epsilon: f64::from(status[1]) / unit,
            costs: self.held,
            potentials: self
                .options
                .potentials
                .then(|| (side(potentials, p.f, p.n, shift), side(potentials, p.g, p.m, 0.0))),
        })
    }

    /// What sums in f32, as GPUs have them, can move the upper and the lower bound by; zero of the processor, whose sums are
    /// in f64.
    ///
    /// All terms of a mass are positive, so a sum that is `k` additions and roundings deep is off by a share `k u`. Let `k`
    /// be that depth of the marginals and `t` that of the totals. The rounded plan then exceeds its marginals by shares
    /// `k u` at most; scaled down by as much it fits, and costs less. What it lacks differs from what was found by a mass
    /// `k u` on either side, and by what the scaling took: at most `6 k u` of mass in all, moved at the largest cost `C`.
    /// Sums of the cost are off by `(k + t) u` of it. So the upper bound moves by `(k + t) u upper + 6 k u C`.
    ///
    /// C-transforms are least differences, each off by `u` of its size. With potentials up to `M` in size those of columns
    /// are at most `C + M`, those of rows `2 C + M`: the lower bound moves by `(t + 4) u (3 C + 2 M)`.
    fn widening(&self, i: usize, upper: f64, potentials: &[f32], largest: f64) -> [f64; 2] {
        if matches!(self.device, Device::Cpu(_)) {
            return [0.0; 2];
        }
        let p = &self.table.problems[i];
        let side = |start: u32, len: u32| &potentials[start as usize..(start + len) as usize];
        let reach = side(p.f, p.n).iter().chain(side(p.g, p.m)).fold(0.0f32, |m, f| m.max(f.abs()));
        let largest = largest.max(f64::from(self.largest[i]));
        // Two shares are quotients, each off by 2.5 units of the last place where Vulkan goes to its limit, not by half a one.
        let quotients = if matches!(self.options.device, DeviceSpec::Wgpu(_)) { 8 } else { 0 };
        let [marginals, totals] = depths(p);
        let [marginals, totals] = [marginals + quotients, totals].map(|depth| depth as f64 * ROUNDOFF);
        let above = (marginals + totals) * upper.abs() + 6.0 * marginals * largest;
        [above, (totals + 4.0 * ROUNDOFF) * (3.0 * largest + 2.0 * f64::from(reach))]
    }

    /// How far the optimum of the costs and weights as given can lie from that of their roundings to f32, in the units of
    /// the device.
    ///
    /// A rounded point is off by `u |x|`, so a distance by `2 u R` and a cost `s |x - y|^2` by `4 s u R |x - y|` and less;
    /// its mean under a plan is bounded by the root of the mean cost. Sums of `d` squares in eight lanes and more add a
    /// relative `(d / 8 + 24) u`. A marginal that is off by a share `u` moves that share at most over the largest cost.
    fn slack(&self, i: usize, upper: f64) -> f64 {
        let u = ROUNDOFF;
        match self.costs {
            Costs::Points { points, point_scale: s, labels } => {
                let r = points.radius;
                let label =
                    labels.map_or(0.0, |l| l.scale * points.unit() * l.distances.iter().copied().fold(0.0, f64::max));
                let sums = (points.dim as f64 / 8.0 + 24.0) * u * upper;
                let rounding = 4.0 * u * r * (s * upper.max(0.0)).sqrt() + 4.0 * s * (u * r).powi(2);
                sums + rounding + 4.0 * u * (4.0 * s * r * r + label)
            }
            // After shift and scale all costs lie in 0..1; unshifted ones (unbalanced) below their largest.
            Costs::Matrices(_) => 8.0 * u * f64::from(self.largest[i]),
        }
    }
}
