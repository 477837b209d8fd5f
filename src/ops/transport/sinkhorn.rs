//! Iterations of Sinkhorn's algorithm.

use std::sync::Arc;

use super::super::{Cost, Family, Real};
use super::{Problem, SCHEDULE, STATUS, SinkhornTensors, Source, Table, costs_of, expect};
use crate::device::view::{Io, View};
use crate::error::Result;
use crate::graph::{Graph, Shape};

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
/// Inputs: costs, or points; weights (each side's sum to 1, none is 0; padding arbitrary); the schedule, a row a problem: first
/// eps, last eps, factor from one eps to the next, tolerance, most iterations, rho, steps, unused; for labelled points their labels and `W`. Outputs, both in
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
    /// Whether stretches at the last eps may run on a stored kernel `exp((f + g - C) / eps)`; not without a matrix.
    pub kernel: bool,
    /// Where costs come from.
    pub source: Source,
}

impl Sinkhorn {
    /// Records the op.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if a tensor does not fit the table.
    pub fn record(graph: &mut Graph, op: Self, tensors: SinkhornTensors) -> Result<()> {
        tensors.check(Self::NAME, graph, &op.table, op.source)?;
        let SinkhornTensors { cost, weights, schedule, potentials, status, .. } = tensors;
        expect(Self::NAME, graph, schedule, op.table.problems.len() * SCHEDULE, "a schedule")?;
        let inputs = [cost, weights, schedule].into_iter().chain(tensors.label_inputs(op.source)).collect();
        graph.push(op, inputs, vec![potentials.into(), status.into()]);
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
    costs: Vec<T>,
    weights: &'a View<T>,
    potentials: &'a View<T>,
}

impl<T: Real> Solve<'_, T> {
    fn cost(&self, i: usize, j: usize) -> T {
        self.costs[i * self.p.m as usize + j]
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
        let each = match self.source {
            Source::Stored => 16,
            Source::Points { .. } => 16 + 3 * inputs[0].c,
        };
        let mut cost = Cost::touching(each * self.table.pairs() * self.iterations, inputs, outputs);
        cost.bytes += 4.0 * (self.table.costs * self.iterations.saturating_sub(1)) as f64;
        cost
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        crate::cpu::transport::sinkhorn_scratch(self, inputs[0].c)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [_, weights, schedule, ..] = io.inputs else { unreachable!("three inputs and more are recorded") };
        let [potentials, status] = io.outputs else { unreachable!("two outputs are recorded") };
        for (number, p) in self.table.problems.iter().enumerate() {
            let mut progress = Progress::read(self.rule, schedule, status, number);
            let solve = Solve { p, costs: costs_of(self.source, p, io.inputs, 2), weights, potentials };
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
