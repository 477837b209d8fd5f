//! Sinkhorn divergences: `OT(a, b) - (OT(a, a) + OT(b, b)) / 2` (Genevay, Peyre and Cuturi 2018), which is zero between
//! equal measures where the entropic cost is not.

use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::points::Points;
use super::solver::{Costs, Epsilon, Labels, Options, Problem, Solution, solve};
use crate::error::{Error, Result};

/// A debiased problem and its three parts, all at the eps of the first.
#[derive(Clone, Debug, Serialize)]
pub struct Divergence {
    /// The divergence, of the regularised values.
    pub value: f64,
    /// The problem itself.
    pub across: Solution,
    /// The left points with themselves.
    pub left: Solution,
    /// The right points with themselves.
    pub right: Solution,
}

/// Divergences of a batch; needs points, for a matrix of costs says nothing of the points of one side.
///
/// # Errors
/// [`Error::Usage`] for unbalanced problems, whose divergence has further terms; else as [`solve`].
pub fn divergences(
    (points, point_scale, labels): (&Points, f64, Option<&Labels>),
    problems: &[Problem],
    options: &Options,
    stop: &AtomicBool,
) -> Result<Vec<Divergence>> {
    if options.rho > 0.0 {
        return Err(Error::usage("a debiased problem must be balanced: leave rho at 0"));
    }
    let costs = Costs::Points { points, point_scale, labels };
    let across = solve(costs, problems, options, stop, &mut |_| ())?;
    let own = |(p, found): (&Problem, &Solution)| {
        let epsilon = Epsilon::Absolute(found.epsilon);
        let (a, b) = p.weights.clone().unzip();
        let side = |rows: &std::ops::Range<usize>, weights: Option<Vec<f64>>| Problem {
            left: rows.clone(),
            right: rows.clone(),
            epsilon,
            weights: weights.map(|w| (w.clone(), w)),
            diameter: p.diameter,
        };
        [side(&p.left, a), side(&p.right, b)]
    };
    let symmetric: Vec<Problem> = problems.iter().zip(&across).flat_map(own).collect();
    let mut symmetric = solve(costs, &symmetric, options, stop, &mut |_| ())?.into_iter();
    let join = |across: Solution| {
        let (left, right) = (symmetric.next()?, symmetric.next()?);
        let value = across.dual - (left.dual + right.dual) / 2.0;
        Some(Divergence { value, across, left, right })
    };
    Ok(across.into_iter().filter_map(join).collect())
}
