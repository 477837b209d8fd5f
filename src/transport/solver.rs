//! Solves a batch of entropic transport problems of different sizes on the engine, and certifies what it found.
//!
//! The problems of a batch run side by side; each stops by itself. Large batches are cut into pieces that fit into a
//! memory budget, which changes no result: a problem gives the same bits alone and in any batch.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use super::points::Points;
use super::weights::Weighty;
use crate::device::{Device, DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::graph::{Graph, Program, Shape, State, StoreLayout};
use crate::ops::transport::{
    CERTIFICATE, Certificate, PairCost, Rule, SCHEDULE, STATUS, Sinkhorn, SinkhornTensors, Source, Table,
};

/// Unit roundoff of f32.
const ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;
/// Iterations between two looks at the status. A kernel that was stored lives as long; the same for all problems, so that
/// a problem gives the same bits in any batch.
const REPLAY: usize = 100;
/// A problem of more elements keeps no kernel matrix unless asked to.
const KERNEL_ELEMENTS: usize = 1 << 27;
/// Costs that a GPU gets at a time, where a problem is no larger: half of what WebGPU lets every device bind.
const GPU_BUDGET: usize = 1 << 24;

/// The regularisation of a problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epsilon {
    /// In the units of the cost.
    Absolute(f64),
    /// As a share of the mean cost.
    Mean(f64),
    /// As a share of the median cost.
    Median(f64),
}

impl Epsilon {
    fn value(self) -> f64 {
        match self {
            Self::Absolute(v) | Self::Mean(v) | Self::Median(v) => v,
        }
    }
}

/// Where iterations are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// With a stored kernel where it fits into memory, else as `Log`.
    Auto,
    /// One exponential an element and iteration.
    Log,
    /// With a stored kernel at the last eps; potentials absorb what leaves its range.
    Kernel,
}

/// How potentials follow one another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Until the marginals fit; eps falls from the largest cost by `factor` an iteration (1: no annealing).
    Converge {
        /// Factor from one eps to the next.
        factor: f64,
    },
    /// GeomLoss: from the squared diameter by `factor` a step to the last eps, one step each, whatever the marginals.
    GeomLoss {
        /// Factor from one eps to the next.
        factor: f64,
    },
}

/// Settings of a solve.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How eps falls.
    pub schedule: Schedule,
    /// Iterations at most.
    pub iterations: usize,
    /// Marginal error, `sum_i |(P 1)_i - a_i|`, at which a problem is done; negative for never.
    pub tolerance: f64,
    /// Price of missed marginals in the units of the cost (Chizat et al. 2018); 0 where they must be met.
    pub rho: f64,
    /// Where iterations are done.
    pub domain: Domain,
    /// What computes.
    pub device: DeviceSpec,
    /// Threads.
    pub threads: usize,
    /// Elements of costs that are in memory at a time; a larger problem comes alone.
    pub budget: usize,
    /// Whether potentials are wanted.
    pub potentials: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedule: Schedule::Converge { factor: 0.5 },
            iterations: 2000,
            tolerance: 1e-4,
            rho: 0.0,
            domain: Domain::Auto,
            device: DeviceSpec::Cpu,
            threads: 1,
            budget: 1 << 26,
            potentials: false,
        }
    }
}

/// One problem of a batch.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Rows of the left points; of a given matrix its rows.
    pub left: Range<usize>,
    /// Rows of the right points; of a given matrix its columns.
    pub right: Range<usize>,
    /// Regularisation.
    pub epsilon: Epsilon,
    /// Weights of the left and of the right points, at least 0 and of sum 1; None: uniform. Points of weight 0 are left
    /// out.
    pub weights: Option<(Vec<f64>, Vec<f64>)>,
    /// First eps of [`Schedule::GeomLoss`]: the squared diameter of the points.
    pub diameter: f64,
}

impl Problem {
    /// With uniform weights.
    pub fn uniform(left: Range<usize>, right: Range<usize>, epsilon: Epsilon) -> Self {
        Self { left, right, epsilon, weights: None, diameter: 0.0 }
    }
}

/// Labels of points and the distances of labels, which add to the cost.
#[derive(Clone, Debug)]
pub struct Labels {
    /// Label of every row of the points.
    pub of_rows: Vec<u32>,
    /// Distances of labels, `[labels, labels]`, in the units of the cost.
    pub distances: Vec<f64>,
    /// Number of labels.
    pub count: usize,
    /// Factor of the distances.
    pub scale: f64,
}

/// What transport costs.
#[derive(Clone, Copy, Debug)]
pub enum Costs<'a> {
    /// `point_scale |x - y|^2`, plus the distance of labels.
    Points {
        /// The points.
        points: &'a Points,
        /// Factor of the squared distance.
        point_scale: f64,
        /// The second term.
        labels: Option<&'a Labels>,
    },
    /// A matrix `[n, m]` for each problem, row after row.
    Matrices(&'a [Vec<f64>]),
}

/// What was found of one problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Solution {
    /// `<P, C>` at the final eps.
    pub cost: f64,
    /// No plan of exact marginals costs less.
    pub lower: f64,
    /// There is a plan of exact marginals that costs no more.
    pub upper: f64,
    /// Value of the regularised problem by its potentials, `<a, f> + <b, g>`.
    pub dual: f64,
    /// `sum |P 1 - a| + sum |P' 1 - b|`.
    pub marginal_error: f64,
    /// Mass of the plan: 1 where it is balanced and converged.
    pub mass: f64,
    /// Iterations done.
    pub iterations: usize,
    /// Whether the marginals fit to the tolerance.
    pub converged: bool,
    /// The final eps.
    pub epsilon: f64,
    /// Left and right potentials, if they were asked for: of the points that have a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub potentials: Option<(Vec<f64>, Vec<f64>)>,
}

/// Solves all problems. `look` is told how many are done.
///
/// # Errors
/// [`Error::Usage`] for settings, weights or costs that make no problem, [`Error::Memory`] if a problem does not fit,
/// [`Error::NonFinite`] if a potential left the range of f32, or if `stop` was raised [`Error::Usage`].
pub fn solve(
    costs: Costs<'_>,
    problems: &[Problem],
    options: &Options,
    stop: &AtomicBool,
    look: &mut dyn FnMut(usize),
) -> Result<Vec<Solution>> {
    check(options)?;
    if let Some(weighty) = Weighty::of(costs, problems) {
        return solve(weighty.costs(), &weighty.problems, options, stop, look);
    }
    let elements = |p: &Problem| p.left.len() * p.right.len().next_multiple_of(crate::ops::transport::LANES);
    let budget = if options.device.is_cpu() { options.budget } else { options.budget.min(GPU_BUDGET) };
    let (mut solutions, mut first) = (Vec::with_capacity(problems.len()), 0);
    while first < problems.len() {
        let (mut end, mut sum) = (first + 1, elements(&problems[first]));
        while end < problems.len() && sum + elements(&problems[end]) <= budget {
            sum += elements(&problems[end]);
            end += 1;
        }
        let piece = Piece::new(costs, &problems[first..end], first, options)?;
        solutions.extend(piece.solve(stop)?);
        look(solutions.len());
        first = end;
    }
    Ok(solutions)
}

fn check(options: &Options) -> Result<()> {
    let Options { schedule, iterations, tolerance, rho, .. } = *options;
    let (Schedule::Converge { factor } | Schedule::GeomLoss { factor }) = schedule;
    if !(factor > 0.0 && factor <= 1.0) {
        return Err(Error::usage(format!("the factor of eps is {factor}; it must be above 0 and at most 1")));
    }
    if iterations == 0 || tolerance.is_nan() || !(rho.is_finite() && rho >= 0.0) {
        return Err(Error::usage(format!(
            "iterations {iterations}, tolerance {tolerance}, rho {rho}: at least one iteration, a number, and at least 0"
        )));
    }
    Ok(())
}

/// Problems that are solved side by side.
struct Piece<'a> {
    costs: Costs<'a>,
    problems: &'a [Problem],
    /// Number of the first in the whole batch.
    first: usize,
    options: &'a Options,
    table: Arc<Table>,
    layout: StoreLayout,
    device: Device,
    cost: State,
    weights: State,
    schedule: State,
    potentials: State,
    status: State,
    /// What the costs of each problem are multiplied by on the device, and what is taken off before.
    units: Vec<(f64, f64)>,
    /// Largest of the costs of each given matrix as they are on the device, whatever their sign.
    largest: Vec<f32>,
}

/// Largest of some costs (at least 0) and their sum, in lanes that a vector unit can take side by side.
fn largest_and_sum(row: &[f32]) -> (f32, f64) {
    const LANES: usize = 16;
    let (mut top, mut sum) = ([0.0f32; LANES], [0.0f64; LANES]);
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for ((top, sum), &c) in top.iter_mut().zip(&mut sum).zip(chunk) {
            *top = if c > *top { c } else { *top };
            *sum += f64::from(c);
        }
    }
    let largest = top.iter().chain(rest).copied().fold(0.0f32, f32::max);
    (largest, sum.iter().sum::<f64>() + rest.iter().map(|&c| f64::from(c)).sum::<f64>())
}

/// Extent of the costs of one problem, in the units of the device.
#[derive(Clone, Copy, Debug)]
struct Extent {
    largest: f64,
    epsilon: f64,
}

impl<'a> Piece<'a> {
    fn new(costs: Costs<'a>, problems: &'a [Problem], first: usize, options: &'a Options) -> Result<Self> {
        let mut table = Table::default();
        for p in problems {
            let balanced = p.weights.as_ref().is_none_or(|(a, b)| a == b);
            let same = p.left == p.right && balanced && matches!(costs, Costs::Points { .. });
            table.push((p.left.len(), p.left.start), (p.right.len(), p.right.start), same)?;
        }
        let table = Arc::new(table);
        let mut layout = StoreLayout::new();
        let count = problems.len();
        let cost = layout.add("costs", Shape::vector(table.costs));
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
        let device = Device::open(&options.device, &layout, options.threads, Precision::F32)?;
        let mut piece = Self {
            costs,
            problems,
            first,
            options,
            table,
            layout,
            device,
            cost,
            weights,
            schedule,
            potentials,
            status,
            units: vec![(1.0, 0.0); count],
            largest: vec![0.0; count],
        };
        match inputs {
            Some((x, labels)) => piece.pair_costs(x, labels)?,
            None => piece.given_costs()?,
        }
        piece.put_weights()?;
        Ok(piece)
    }

    /// Computes the costs of points.
    fn pair_costs(&mut self, x: State, label_states: Option<(State, State)>) -> Result<()> {
        let Costs::Points { points, point_scale, labels } = self.costs else { unreachable!("points are given") };
        self.units.fill((points.unit(), 0.0));
        self.device.write(x, &points.rows)?;
        let mut graph = Graph::new();
        let tensor = graph.state(x);
        let mut label_scale = 0.0;
        let label_tensors = match (labels, label_states) {
            (Some(labels), Some((of_rows, distances))) => {
                label_scale = labels.scale;
                let numbers: Vec<f32> = labels.of_rows.iter().map(|&l| l as f32).collect();
                self.device.write(of_rows, &numbers)?;
                let scaled: Vec<f32> = labels.distances.iter().map(|&w| (w * points.unit()) as f32).collect();
                self.device.write(distances, &scaled)?;
                Some((graph.state(of_rows), graph.state(distances)))
            }
            _ => None,
        };
        let cost = graph.state(self.cost);
        let op = PairCost { table: self.table.clone(), point_scale, label_scale };
        PairCost::record(&mut graph, op, tensor, label_tensors, cost)?;
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

    /// Largest cost and eps of each problem, in the units of the device.
    fn extents(&mut self) -> Result<Vec<Extent>> {
        let costs = &*self.device.read(self.cost)?;
        let extent = |(i, p): (usize, &crate::ops::transport::Problem)| {
            let row = |r: usize| {
                let at = p.cost as usize + r * p.stride as usize;
                &costs[at..at + p.m as usize]
            };
            // Sums of rows are added in order, whichever thread has them.
            let rows: Vec<(f32, f64)> = (0..p.n as usize).into_par_iter().map(|r| largest_and_sum(row(r))).collect();
            let largest = rows.iter().map(|r| r.0).fold(0.0f32, f32::max).into();
            let asked = self.problems[i].epsilon;
            let share = asked.value();
            if !(share.is_finite() && share > 0.0) {
                return Err(Error::usage(format!("epsilon is {share}; it must be a finite number above 0")));
            }
            let (unit, shift) = self.units[i];
            let epsilon = match asked {
                Epsilon::Absolute(eps) => eps * unit,
                // A given matrix was shifted; its own mean is what a user means.
                Epsilon::Mean(r) => {
                    let mean = rows.iter().map(|r| r.1).sum::<f64>() / (p.n as f64 * p.m as f64);
                    r * (mean + (shift * unit).abs())
                }
                Epsilon::Median(r) => {
                    let mut all: Vec<f32> = (0..p.n as usize).flat_map(row).copied().collect();
                    let middle = all.len() / 2;
                    let (_, median, _) = all.select_nth_unstable_by(middle, f32::total_cmp);
                    r * (f64::from(*median) + (shift * unit).abs())
                }
            };
            // Costs of zero have no scale: any eps gives the same plan.
            let epsilon = if epsilon > 0.0 { epsilon } else { 1.0 };
            let epsilon = epsilon.clamp(f64::from(f32::MIN_POSITIVE) * 1e3, 1e30);
            Ok(Extent { largest, epsilon })
        };
        self.table.problems.par_iter().enumerate().map(extent).collect()
    }

    fn solve(mut self, stop: &AtomicBool) -> Result<Vec<Solution>> {
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
        let largest = self.table.problems.iter().map(|p| (p.n * p.stride) as usize).max().unwrap_or(0);
        let kernel = match self.options.domain {
            Domain::Auto => largest <= KERNEL_ELEMENTS,
            Domain::Log => false,
            Domain::Kernel => true,
        };
        let mut sinkhorn = Graph::new();
        let tensors = self.tensors(&mut sinkhorn);
        let op = Sinkhorn { table: self.table.clone(), iterations: REPLAY, rule, kernel, source: Source::Stored };
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
        let potentials = match self.options.potentials {
            true => Some(self.device.read(self.potentials)?.into_owned()),
            false => None,
        };
        let found = values.chunks_exact(CERTIFICATE).zip(status.chunks_exact(STATUS)).enumerate();
        found.map(|(i, found)| self.solution(i, found, potentials.as_deref())).collect()
    }

    /// Certificates of all problems. They are sums in f64, which shaders do not have: a GPU's results are certified by the
    /// processor.
    fn certificates(&mut self) -> Result<Vec<f32>> {
        let mut graph = Graph::new();
        let tensors = self.tensors(&mut graph);
        let rows = Certificate::record(
            &mut graph,
            Certificate { table: self.table.clone(), source: Source::Stored },
            tensors,
        )?;
        let program = Program::new("transport certificate", graph, &[rows]);
        if matches!(self.device, Device::Cpu(_)) {
            let exe = self.device.prepare(program)?;
            self.device.run(&exe)?;
            return self.device.read_tensor(&exe, rows);
        }
        let mut processor = Device::open(&DeviceSpec::Cpu, &self.layout, self.options.threads, Precision::F32)?;
        for state in [self.cost, self.weights, self.schedule, self.potentials, self.status] {
            processor.write(state, &self.device.read(state)?)?;
        }
        let exe = processor.prepare(program)?;
        processor.run(&exe)?;
        processor.read_tensor(&exe, rows)
    }

    fn tensors(&self, graph: &mut Graph) -> SinkhornTensors {
        SinkhornTensors {
            cost: graph.state(self.cost),
            labels: None,
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
        potentials: Option<&[f32]>,
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
        let shifted = |v: f64| v / unit + shift;
        let p = &self.table.problems[i];
        let side = |all: &[f32], start: u32, len: u32, shift: f64| -> Vec<f64> {
            all[start as usize..(start + len) as usize].iter().map(|&f| f64::from(f) / unit + shift).collect()
        };
        Ok(Solution {
            cost: cost / unit + shift * mass,
            upper: shifted(upper + slack),
            lower: shifted(lower - slack).max(if shift == 0.0 { 0.0 } else { f64::NEG_INFINITY }),
            dual: shifted(dual),
            marginal_error: rows + columns,
            mass,
            iterations: status[0] as usize,
            converged: status[3] == 1.0,
            epsilon: f64::from(status[1]) / unit,
            potentials: potentials.map(|all| (side(all, p.f, p.n, shift), side(all, p.g, p.m, 0.0))),
        })
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
