//! Points without weight: they take no part, and the kernels want none, so they are left out before a batch is solved.

use std::borrow::Cow;

use super::points::Points;
use super::solver::{Costs, Labels, Problem};

/// A batch whose problems have weights above zero only.
pub(super) struct Weighty<'a> {
    pub(super) problems: Vec<Problem>,
    points: Option<(Points, f64, Option<Labels>)>,
    matrices: Cow<'a, [Vec<f64>]>,
}

/// Places of the weights that are not zero.
fn places(weights: &[f64]) -> Vec<usize> {
    (0..weights.len()).filter(|&i| weights[i] != 0.0).collect()
}

fn at(weights: &[f64], places: &[usize]) -> Vec<f64> {
    places.iter().map(|&i| weights[i]).collect()
}

impl<'a> Weighty<'a> {
    /// The batch without points of no weight; None if there are none. Weights of a wrong number stay, for the solver
    /// refuses them.
    pub(super) fn of(costs: Costs<'a>, problems: &[Problem]) -> Option<Self> {
        let fits = |p: &Problem, (a, b): &(Vec<f64>, Vec<f64>)| a.len() == p.left.len() && b.len() == p.right.len();
        let weightless = |p: &Problem| {
            p.weights.as_ref().is_some_and(|w| fits(p, w) && w.0.iter().chain(&w.1).any(|&weight| weight == 0.0))
        };
        if !problems.iter().any(weightless) {
            return None;
        }
        let (points, matrices) = match costs {
            Costs::Points { points, point_scale, labels } => {
                (Some((points.clone(), point_scale, labels.cloned())), Cow::default())
            }
            Costs::Matrices(matrices) => (None, Cow::Borrowed(matrices)),
        };
        let mut kept = Self { problems: problems.to_vec(), points, matrices };
        for (number, p) in problems.iter().enumerate().filter(|(_, p)| weightless(p)) {
            if let Some((a, b)) = &p.weights {
                kept.shrink(number, p, (a, b));
            }
        }
        Some(kept)
    }

    fn shrink(&mut self, number: usize, p: &Problem, (a, b): (&[f64], &[f64])) {
        let (left, right) = (places(a), places(b));
        let problem = &mut self.problems[number];
        problem.weights = Some((at(a, &left), at(b, &right)));
        let Some((points, _, labels)) = &mut self.points else {
            if let Some(matrix) = self.matrices.to_mut().get_mut(number).filter(|m| m.len() == a.len() * b.len()) {
                let row = |&i: &usize| right.iter().map(move |j| i * b.len() + j);
                *matrix = left.iter().flat_map(row).map(|at| matrix[at]).collect();
            }
            (problem.left, problem.right) = (0..left.len(), 0..right.len());
            return;
        };
        let mut copy = |start: usize, places: &[usize]| {
            let rows: Vec<usize> = places.iter().map(|i| start + i).collect();
            if let Some(labels) = labels {
                let own: Vec<u32> = rows.iter().map(|&row| labels.of_rows[row]).collect();
                labels.of_rows.extend(own);
            }
            points.repeat(&rows)
        };
        problem.left = copy(p.left.start, &left);
        // A measure against itself stays one.
        problem.right = if p.left == p.right && a == b { problem.left.clone() } else { copy(p.right.start, &right) };
    }

    /// The costs of these problems.
    pub(super) fn costs(&self) -> Costs<'_> {
        match &self.points {
            Some((points, point_scale, labels)) => {
                Costs::Points { points, point_scale: *point_scale, labels: labels.as_ref() }
            }
            None => Costs::Matrices(&self.matrices),
        }
    }
}
