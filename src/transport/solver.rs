//! Solves a batch of entropic transport problems of different sizes on the engine, and certifies what it found.
//!
//! The problems of a batch run side by side; each stops by itself. Large batches are cut into pieces that fit into a
//! memory budget, which changes no result: a problem gives the same bits alone and in any batch.

#[cfg(test)]
mod large;
mod piece;

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use self::piece::Piece;
use super::points::Points;
use super::weights::Weighty;
use crate::device::{Device, DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::graph::StoreLayout;
use crate::ops::transport::LANES;

/// Costs that a GPU gets at a time, where a problem is no larger: half of what WebGPU lets every device bind.
const GPU_BUDGET: usize = 1 << 24;
/// What a problem needs for each point where its costs are not stored: most of it are partial sums.
const POINT_ELEMENTS: usize = 96;

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
    /// With a stored kernel at the last eps; potentials absorb what leaves its range. As `Log` where costs are recomputed.
    Kernel,
}

/// Where the costs of points are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Stored where they fit, see [`Options::budget`], else recomputed.
    Auto,
    /// In a matrix.
    Stored,
    /// Nowhere: computed while they are used, every time.
    Recomputed,
}

/// Where the costs of a problem were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// In a matrix.
    Stored,
    /// Nowhere: they were computed while they were used.
    Recomputed,
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
    /// Elements of costs that are in memory at a time; those of a larger problem are computed from its points while they
    /// are used, and a larger matrix that was given comes alone. On CUDA a problem alone may have more: what one page holds
    /// (12 GiB) and what two thirds of the free memory hold.
    pub budget: usize,
    /// Whether costs are stored.
    pub memory: Memory,
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
            memory: Memory::Auto,
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
    /// Where its costs were.
    pub costs: Held,
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
    if options.memory == Memory::Recomputed && matches!(costs, Costs::Matrices(_)) {
        return Err(Error::usage("costs that are given as a matrix cannot be recomputed: give points, or store them"));
    }
    // Pieces open the device one after the other, which is cheap while it is open.
    let open = match options.device.is_cpu() {
        true => None,
        false => Some(Device::open(&options.device, &StoreLayout::new(), options.threads, Precision::F32)?),
    };
    let budget = if options.device.is_cpu() { options.budget } else { options.budget.min(GPU_BUDGET) };
    let alone = match options.device {
        DeviceSpec::Wgpu(_) => options.budget.min(2 * GPU_BUDGET),
        _ => open.as_ref().and_then(Device::room).unwrap_or(options.budget),
    };
    let held = |p: &Problem| held(costs, p, options.memory, alone);
    let elements = |p: &Problem| match held(p) {
        Held::Stored => elements(p),
        Held::Recomputed => POINT_ELEMENTS * (p.left.len() + p.right.len()),
    };
    let (mut solutions, mut first) = (Vec::with_capacity(problems.len()), 0);
    while first < problems.len() {
        let way = held(&problems[first]);
        let (mut end, mut sum) = (first + 1, elements(&problems[first]));
        while end < problems.len() && held(&problems[end]) == way && sum + elements(&problems[end]) <= budget {
            sum += elements(&problems[end]);
            end += 1;
        }
        let piece = Piece::new((costs, way), &problems[first..end], first, options)?;
        solutions.extend(piece.solve(stop)?);
        look(solutions.len());
        first = end;
    }
    Ok(solutions)
}

/// Costs of a problem with the padding of rows.
fn elements(p: &Problem) -> usize {
    p.left.len().saturating_mul(p.right.len().next_multiple_of(LANES))
}

/// Where the costs of a problem are to be. A problem alone may have more of a GPU than many together: of any WebGPU device
/// as much as each binds, and of CUDA a page as long as a third of the free memory is left; where less is free, or a page
/// is too small, costs are recomputed.
fn held(costs: Costs<'_>, p: &Problem, memory: Memory, alone: usize) -> Held {
    match (costs, memory) {
        (Costs::Matrices(_), _) | (_, Memory::Stored) => Held::Stored,
        (_, Memory::Recomputed) => Held::Recomputed,
        (_, Memory::Auto) if elements(p) > alone.min(u32::MAX as usize) => Held::Recomputed,
        (_, Memory::Auto) => Held::Stored,
    }
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
