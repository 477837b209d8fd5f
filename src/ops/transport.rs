//! Entropic optimal transport: a batch of problems of different sizes, solved side by side.
//!
//! A problem moves weights `a [n]` to weights `b [m]` at a cost `C [n, m]`. With potentials `f [n]`, `g [m]` and the
//! regularisation `eps`, its plan is `P = a b exp((f + g - C) / eps)` (Cuturi 2013; in this form Feydy et al. 2019).
//! The sizes of all problems stand in a [`Table`]; what differs between replays (eps, tolerances) stands in tensors.
//!
//! The ops are iterative solvers: [`Sinkhorn`] does a number of iterations a replay, problems that have converged
//! return at once, and the host reads one state between replays. No gradient flows through them.

use std::sync::Arc;

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
    /// First element of the cost matrix.
    pub cost: u32,
    /// Elements from one row of the cost matrix to the next: `m` rounded up to [`LANES`].
    pub stride: u32,
    /// 1 for a problem between a measure and itself, which has one potential.
    pub symmetric: u32,
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
}

impl Table {
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
        let end = self.costs + n * stride;
        if end > u32::MAX as usize || x.max(y) > u32::MAX as usize {
            let message = format!("{end} elements of transport costs exceed 32 bits: solve fewer problems at once");
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
        let rows = graph.shape(points).rows();
        let end = op.table.problems.iter().map(|p| (p.x + p.n).max(p.y + p.m) as usize).max().unwrap_or(0);
        if end > rows {
            let message = format!("a problem needs points up to {end} of {}", graph.shape(points));
            return Err(Error::Shape { op: Self::NAME, message });
        }
        expect(Self::NAME, graph, cost, op.table.costs, "costs")?;
        let mut inputs = vec![points];
        if let Some((labels, w)) = labels {
            expect(Self::NAME, graph, labels, rows, "labels")?;
            inputs.extend([labels, w]);
        }
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
        let points = &io.inputs[0];
        for p in &self.table.problems {
            for i in 0..p.n as usize {
                for j in 0..p.stride as usize {
                    let at = p.cost as usize + i * p.stride as usize + j;
                    if j >= p.m as usize {
                        io.outputs[0].set(0, at, T::of(0.0));
                        continue;
                    }
                    let (x, y) = (p.x as usize + i, p.y as usize + j);
                    let mut sum = T::of(0.0);
                    for c in 0..points.shape.c {
                        let d = points.get(x, c) - points.get(y, c);
                        sum += d * d;
                    }
                    let mut value = T::of(self.point_scale) * sum;
                    if let [_, labels, w] = io.inputs {
                        let label = |row: usize| labels.at(row).wide() as usize;
                        value += T::of(self.label_scale) * w.get(label(x), label(y));
                    }
                    io.outputs[0].set(0, at, value);
                }
            }
        }
    }
}

/// How potentials follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// First the left potentials, then the right ones from the new left ones (symmetric problems: half a step of their
    /// one potential). Eps falls by a factor each iteration down to its last value, where the iteration stays until
    /// the marginals fit.
    Alternating,
    /// The schedule of GeomLoss: one whole step from zero, then one half step of both sides at once for each eps
    /// (the first value twice), then one whole step. Ends there, whatever the marginals.
    Annealed,
}

/// Iterations of Sinkhorn's algorithm for every problem that is not done.
///
/// Inputs: costs; weights (each side's sum to 1, none is 0; padding arbitrary); the schedule, a row a problem: first
/// eps, last eps, factor from one eps to the next, tolerance, most iterations, rho, steps, unused. Outputs, both in
/// place: potentials, and the status, a row a problem: iterations done, eps (0: not begun), marginal error before the
/// last iteration, and 0 running, 1 converged, 2 stopped. With `rho > 0` the marginals may be missed at the price
/// `rho KL` (Chizat et al. 2018); the error is then the mean change of the left potentials in units of eps. The
/// marginal error is `sum_i |(P 1)_i - a_i|`; the right marginals are exact after an alternating iteration.
#[derive(Clone, Debug)]
pub struct Sinkhorn {
    /// The problems.
    pub table: Arc<Table>,
    /// Iterations of one replay.
    pub iterations: usize,
    /// The order of updates.
    pub rule: Rule,
    /// Whether stretches at the last eps may run on a stored kernel `exp((f + g - C) / eps)`.
    pub kernel: bool,
}

/// Tensors of [`Sinkhorn`] and [`Certificate`].
#[derive(Clone, Copy, Debug)]
pub struct SinkhornTensors {
    /// All cost matrices.
    pub cost: Tensor,
    /// All weights.
    pub weights: Tensor,
    /// A row of [`SCHEDULE`] a problem.
    pub schedule: Tensor,
    /// All potentials.
    pub potentials: Tensor,
    /// A row of [`STATUS`] a problem.
    pub status: Tensor,
}

impl Sinkhorn {
    /// Records the op.
    ///
    /// # Errors
    /// [`Error::Shape`] if a tensor does not fit the table.
    pub fn record(graph: &mut Graph, op: Self, tensors: SinkhornTensors) -> Result<()> {
        let SinkhornTensors { cost, weights, schedule, potentials, status } = tensors;
        let problems = op.table.problems.len();
        expect(Self::NAME, graph, cost, op.table.costs, "costs")?;
        expect(Self::NAME, graph, weights, op.table.potentials, "weights")?;
        expect(Self::NAME, graph, schedule, problems * SCHEDULE, "a schedule")?;
        expect(Self::NAME, graph, potentials, op.table.potentials, "potentials")?;
        expect(Self::NAME, graph, status, problems * STATUS, "a status")?;
        graph.push(op, vec![cost, weights, schedule], vec![potentials.into(), status.into()]);
        Ok(())
    }
}

/// The part of the schedule and the status of one problem that an iteration needs.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// First and last eps, and the factor between neighbours.
    pub first: f32,
    /// See `first`.
    pub last: f32,
    /// See `first`.
    pub factor: f32,
    /// Marginal error at which a problem is done.
    pub tolerance: f32,
    /// Iterations after which it stops.
    pub most: u32,
    /// Price of missed marginals; 0 where they must be met.
    pub rho: f32,
    /// Eps values of [`Rule::Annealed`].
    pub steps: u32,
    /// Iterations done.
    pub done: u32,
    /// Eps of the next iteration.
    pub eps: f32,
    /// Error before the last iteration.
    pub error: f32,
    /// 0 running, 1 converged, 2 stopped.
    pub state: u32,
    rule: Rule,
}

impl Progress {
    /// From the rows of problem `p`.
    pub fn read<T: Real>(rule: Rule, schedule: &View<T>, status: &View<T>, p: usize) -> Self {
        let given = |c: usize| schedule.at(p * SCHEDULE + c).wide();
        let now = |c: usize| status.at(p * STATUS + c).wide();
        let (first, last) = (given(0) as f32, given(1) as f32);
        Self {
            first,
            last,
            factor: given(2) as f32,
            tolerance: given(3) as f32,
            most: given(4) as u32,
            rho: given(5) as f32,
            steps: given(6) as u32,
            done: now(0) as u32,
            eps: if now(1) > 0.0 { now(1) as f32 } else { first },
            error: now(2) as f32,
            state: now(3) as u32,
            rule,
        }
    }

    /// Writes the row of problem `p`.
    pub fn write<T: Real>(&self, status: &View<T>, p: usize) {
        let row = [f64::from(self.done), f64::from(self.eps), f64::from(self.error), f64::from(self.state)];
        for (c, value) in row.into_iter().enumerate() {
            let at = p * STATUS + c;
            status.set(at / status.shape.c, at % status.shape.c, T::of(value));
        }
    }

    /// Whether eps has its last value.
    pub fn settled(&self) -> bool {
        self.eps <= self.last
    }

    /// The share of a whole step that the next iteration takes.
    pub fn step(&self, symmetric: bool) -> f32 {
        let half = match self.rule {
            Rule::Alternating => symmetric,
            Rule::Annealed => self.done > 0 && self.done <= self.steps,
        };
        if half { 0.5 } else { 1.0 }
    }

    /// `rho / (rho + eps)`, or 1 where the marginals must be met.
    pub fn damping(&self) -> f32 {
        if self.rho > 0.0 { self.rho / (self.rho + self.eps) } else { 1.0 }
    }

    /// Books an iteration that found `error`.
    pub fn advance(&mut self, error: f32) {
        let settled = self.settled();
        self.done += 1;
        self.error = error;
        match self.rule {
            Rule::Alternating => {
                if settled && error <= self.tolerance {
                    self.state = 1;
                } else if self.done >= self.most {
                    self.state = 2;
                }
                // Whoever stops early is judged at the eps of the last iteration.
                if self.state == 0 {
                    self.eps = (self.eps * self.factor).max(self.last);
                }
            }
            Rule::Annealed => {
                if self.done > self.steps + 1 {
                    self.state = 2;
                }
                // The first value serves the step from zero and two half steps.
                if self.done >= self.steps {
                    self.eps = self.last;
                } else if self.done > 2 {
                    self.eps = (self.eps * self.factor).max(self.last);
                }
            }
        }
    }
}

/// One problem while the reference works on it.
struct Solve<'a, T> {
    p: &'a Problem,
    cost: &'a View<T>,
    weights: &'a View<T>,
    potentials: &'a View<T>,
}

impl<T: Real> Solve<'_, T> {
    fn cost(&self, i: usize, j: usize) -> T {
        self.cost.at(self.p.cost as usize + i * self.p.stride as usize + j)
    }

    fn side(&self, left: bool) -> (usize, usize) {
        let (n, m) = (self.p.n as usize, self.p.m as usize);
        if left { (self.p.f as usize, n) } else { (self.p.g as usize, m) }
    }

    fn read(&self, from: &View<T>, left: bool) -> Vec<T> {
        let (start, len) = self.side(left);
        (start..start + len).map(|i| from.at(i)).collect()
    }

    /// `-eps log sum exp((potential - C) / eps) weight` over the other side: the soft c-transform.
    fn transform(&self, left: bool, other: &[T], eps: T) -> Vec<T> {
        let weights = self.read(self.weights, !left);
        let soft = |i: usize| {
            let exponent = |j: usize| {
                let cost = if left { self.cost(i, j) } else { self.cost(j, i) };
                (other[j] - cost) / eps + weights[j].ln()
            };
            let top = (0..other.len()).map(exponent).fold(exponent(0), |a, b| if b > a { b } else { a });
            let mut sum = T::of(0.0);
            for j in 0..other.len() {
                sum += (exponent(j) - top).exp();
            }
            -(eps * (top + sum.ln()))
        };
        (0..self.side(left).1).map(soft).collect()
    }

    fn iterate(&self, progress: &Progress, rule: Rule) -> f64 {
        let eps = T::of(f64::from(progress.eps));
        let (step, damping) =
            (T::of(f64::from(progress.step(self.p.symmetric != 0))), T::of(f64::from(progress.damping())));
        let (f, g) = (self.read(self.potentials, true), self.read(self.potentials, false));
        let weights = self.read(self.weights, true);
        let towards = |old: &[T], new: Vec<T>| -> Vec<T> {
            old.iter().zip(new).map(|(&old, new)| old + step * (damping * new - old)).collect()
        };
        let soft = self.transform(true, &g, eps);
        let mut error = 0.0;
        for (i, (&f, &soft)) in f.iter().zip(&soft).enumerate() {
            let gap = ((f - soft) / eps).wide();
            // The plan of an unfinished schedule may have any mass.
            let off = if progress.rho > 0.0 { (damping * soft - f).wide() / eps.wide() } else { gap.exp() - 1.0 };
            error += weights[i].wide() * off.abs().min(1e30);
        }
        let new = towards(&f, soft);
        let write = |left: bool, values: &[T]| {
            let start = self.side(left).0;
            values.iter().enumerate().for_each(|(i, &v)| self.potentials.set(0, start + i, v));
        };
        if self.p.symmetric == 0 {
            let from = if rule == Rule::Alternating { &new } else { &f };
            write(false, &towards(&g, self.transform(false, from, eps)));
        }
        write(true, &new);
        error
    }
}

impl Family for Sinkhorn {
    const NAME: &'static str = "sinkhorn";
    const DETACHED: bool = true;

    /// An exponential counts 12.
    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let mut cost = Cost::touching(16 * self.table.costs * self.iterations, inputs, outputs);
        cost.bytes += 4.0 * (self.table.costs * self.iterations.saturating_sub(1)) as f64;
        cost
    }

    fn scratch(&self, _inputs: &[Shape], _outputs: &[Shape]) -> usize {
        crate::cpu::transport::scratch(&self.table, self.kernel)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [cost, weights, schedule] = io.inputs else { unreachable!("three inputs are recorded") };
        let [potentials, status] = io.outputs else { unreachable!("two outputs are recorded") };
        for (number, p) in self.table.problems.iter().enumerate() {
            let mut progress = Progress::read(self.rule, schedule, status, number);
            let solve = Solve { p, cost, weights, potentials };
            for _ in 0..self.iterations {
                if progress.state != 0 {
                    break;
                }
                let error = solve.iterate(&progress, self.rule);
                progress.advance(error as f32);
            }
            progress.write(status, number);
        }
    }
}

/// What a solution is worth. Inputs: costs, weights, potentials, status (for eps); output a row of [`CERTIFICATE`] a
/// problem: `<P, C>`; `<P', C>` of the plan rounded to exact marginals (Altschuler, Weed and Rigollet 2017, algorithm
/// 2), which bounds the optimal cost from above; the unregularised dual value of the c-transformed potentials, which
/// bounds it from below; the dual value `<a, f> + <b, g>` of the regularised problem; the marginal errors of rows and
/// columns, `sum |P 1 - a|`; the mass of P. Sums are in f64.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The problems.
    pub table: Arc<Table>,
}

impl Certificate {
    /// Records the op; returns the rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if a tensor does not fit the table.
    pub fn record(graph: &mut Graph, op: Self, tensors: SinkhornTensors) -> Result<Tensor> {
        let SinkhornTensors { cost, weights, potentials, status, .. } = tensors;
        expect(Self::NAME, graph, cost, op.table.costs, "costs")?;
        expect(Self::NAME, graph, weights, op.table.potentials, "weights")?;
        expect(Self::NAME, graph, potentials, op.table.potentials, "potentials")?;
        expect(Self::NAME, graph, status, op.table.problems.len() * STATUS, "a status")?;
        let rows = graph.tensor(Shape::matrix(op.table.problems.len(), CERTIFICATE), "certificates");
        graph.push(op, vec![cost, weights, potentials, status], vec![rows.into()]);
        Ok(rows)
    }
}

impl Family for Certificate {
    const NAME: &'static str = "transport_certificate";
    const DETACHED: bool = true;

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(60 * self.table.costs, inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [cost, weights, potentials, status] = io.inputs else { unreachable!("four inputs are recorded") };
        for (number, p) in self.table.problems.iter().enumerate() {
            let eps = status.at(number * STATUS + 1).wide();
            let solve = Solve { p, cost, weights, potentials };
            let wide = |from: &View<T>, left| solve.read(from, left).into_iter().map(Real::wide).collect::<Vec<f64>>();
            let (a, b) = (wide(weights, true), wide(weights, false));
            let (f, g) = (wide(potentials, true), wide(potentials, false));
            let c = |i: usize, j: usize| solve.cost(i, j).wide();
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
