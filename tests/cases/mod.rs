//! The table of cases: each records one op, or a few that work together, into the middle of a graph. Gradient checks,
//! device parity and the planner's tests all walk this table, so a new op needs one entry here, in the file of its
//! family, and nothing else.
//!
//! A case never sees a leaf: [`Setup::var`] hands it a scaled copy of a state, and what it gives to [`Setup::out`] is
//! multiplied by random numbers and added up. Every variable also enters the loss directly, recorded before or after
//! the case's own ops as [`Case::build`] is told, so that gradients are overwritten in one run and accumulated in the
//! other. A backward that ignores its upstream gradient, or the flag of its output, cannot pass.

mod convolutions;
mod elementary;
mod forward;
mod maps;
mod record;
mod setup;
mod transport;
mod vectors;

use std::collections::HashSet;
use std::sync::LazyLock;

use supernet::Error;
use supernet::graph::{Graph, Shape};
use supernet::ops::Op;
use supernet::ops::dense::Dense;
use supernet::ops::elementwise::Linear;
use supernet::ops::folded::{Activation, Folded, Padding};
use supernet::ops::loss::CrossEntropy;
use supernet::ops::mixture::{Mixture, SourceInput};
use supernet::ops::norm::Normalised;
use supernet::ops::pool::Pool;
use supernet::ops::reduce::{Reduce, ReduceInput};
use supernet::ops::separable::{BranchInput, Separable};
use supernet::ops::softmax::Softmax;

use record::{convolution, map, normalised, window};

pub use record::softmax;
pub use setup::{Built, Case, Draw, Setup, draw};

/// The families' parts of the table.
const FAMILIES: [&[Case]; 6] =
    [convolutions::CASES, maps::CASES, elementary::CASES, vectors::CASES, forward::CASES, transport::CASES];

/// The table.
pub static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| FAMILIES.concat());

/// Names of the ops that a case's program runs.
fn ops_of(case: &Case) -> HashSet<&'static str> {
    case.build(false).program().nodes().iter().map(|n| n.op.name()).collect()
}

#[test]
fn every_op_has_a_case() {
    let covered: HashSet<&str> = CASES.iter().flat_map(|c| c.covers).copied().collect();
    let run: HashSet<&str> = CASES.iter().flat_map(|c| ops_of(c).into_iter()).collect();
    for name in Op::NAMES {
        assert!(covered.contains(name), "op `{name}` is named by no case: add one to tests/cases/");
        assert!(run.contains(name), "op `{name}` is run by no case");
    }
}

#[test]
fn every_case_runs_the_ops_that_it_names() {
    let mut names = HashSet::new();
    for case in CASES.iter() {
        assert!(names.insert(case.name), "two cases are called `{}`", case.name);
        let run = ops_of(case);
        for op in case.covers {
            assert!(Op::NAMES.contains(op), "case `{}` names `{op}`, which is no op", case.name);
            assert!(run.contains(op), "case `{}` names `{op}` but does not run it", case.name);
        }
    }
}

#[test]
fn every_family_with_a_gradient_has_its_backward_checked() {
    for name in Op::NAMES.iter().filter(|n| n.ends_with("_backward")) {
        let checked = |c: &Case| ops_of(c).contains(name) && c.build(false).variables.iter().any(|v| v.smooth);
        assert!(CASES.iter().any(checked), "no case checks `{name}` against finite differences");
    }
}

#[test]
fn shape_errors_name_op_and_shapes() {
    let mut g = Graph::new();
    let x = g.tensor(map(2, 4, 4, 6), "x");
    let w = g.tensor(Shape::matrix(5, 3), "w");
    let vector = g.tensor(Shape::vector(5), "v");
    let taps = g.tensor(Shape::matrix(9, 6), "taps");
    let wide = g.tensor(Shape::matrix(54, 3), "wide");
    let square = g.tensor(Shape::matrix(6, 6), "square");
    let other = g.tensor(map(3, 4, 4, 6), "other");
    let six = g.tensor(Shape::vector(6), "six");
    let activation = Activation::Identity;
    let depthwise =
        Folded { depthwise: true, kernel: 3, stride: 2, padding: Padding::Same, activation, residual: false };
    let separable = |y, pointwise| BranchInput {
        x: Normalised::plain(y),
        depthwise: taps,
        pointwise,
        geometry: (3, 1, 1),
        statistics: None,
    };
    let errors: Vec<(Error, &str, &[&str])> = vec![
        (Dense::record(&mut g, Dense::RELU_POINTWISE, x, w, None, None).unwrap_err(), "dense", &["1x1x5x3", "2x4x4x6"]),
        (
            Dense::record(&mut g, convolution(5, 1, 0), x, taps, None, None).unwrap_err(),
            "dense",
            &["1x1x9x6", "2x4x4x6"],
        ),
        (Separable::record(&mut g, &[separable(x, w)]).unwrap_err(), "separable", &["1x1x9x6", "1x1x5x3", "2x4x4x6"]),
        (
            Reduce::record(&mut g, x, &[ReduceInput { even: w, odd: w, statistics: None }]).unwrap_err(),
            "reduce",
            &["1x1x5x3", "2x4x4x6"],
        ),
        (Pool::record(&mut g, window(5, 1, 0, true, false, false), x, &[]).unwrap_err(), "pool", &["5", "2x4x4x6"]),
        (
            Pool::record(&mut g, window(3, 1, 1, true, true, false), x, &[(vector, vector)]).unwrap_err(),
            "pool",
            &["2x4x4x6"],
        ),
        (
            Dense::record(&mut g, convolution(3, 1, 0), x, wide, None, Some((vector, vector))).unwrap_err(),
            "dense",
            &["1x1x1x5", "3 channels"],
        ),
        (
            Separable::record(&mut g, &[separable(x, square), separable(other, square)]).unwrap_err(),
            "separable",
            &["2 and 3 images"],
        ),
        (
            Reduce::record(&mut g, x, &[ReduceInput { even: square, odd: square, statistics: Some((vector, vector)) }])
                .unwrap_err(),
            "reduce",
            &["1x1x1x5", "12 channels"],
        ),
        (
            Pool::record(&mut g, window(3, 1, 1, true, false, false), x, &[(vector, vector)]).unwrap_err(),
            "pool",
            &["1x1x1x5", "6 channels"],
        ),
        (Softmax::record(&mut g, vector, &[2, 2]).unwrap_err(), "softmax", &["[2, 2]", "5 alphas"]),
        (
            Mixture::normalise(&mut g, normalised(x, (vector, vector), None), "z").unwrap_err(),
            "mixture",
            &["1x1x1x5", "6"],
        ),
        (
            Mixture::record(&mut g, &[SourceInput::new(Normalised::plain(x))], None, None, w).unwrap_err(),
            "mixture",
            &["2x4x4x6", "1x1x5x3"],
        ),
        (
            Mixture::record(
                &mut g,
                &[SourceInput { map: Normalised::plain(x), weight: Some(5), mask: None }],
                Some(vector),
                None,
                x,
            )
            .unwrap_err(),
            "mixture",
            &["5"],
        ),
        (
            Mixture::record(
                &mut g,
                &[SourceInput { map: Normalised::plain(x), weight: None, mask: Some(0) }],
                None,
                Some(w),
                x,
            )
            .unwrap_err(),
            "mixture",
            &["2 images"],
        ),
        (
            CrossEntropy::record(&mut g, CrossEntropy { smoothing: 0.0 }, x, vector).unwrap_err(),
            "cross_entropy",
            &["5", "2x4x4x6"],
        ),
        (
            Folded::record(&mut g, depthwise, [x, wide, vector], None).unwrap_err(),
            "folded",
            &["1x1x54x3", "1x1x1x5", "2x4x4x6"],
        ),
        (
            Folded::record(&mut g, depthwise, [x, taps, six], Some(w)).unwrap_err(),
            "folded",
            &["residual 1x1x5x3", "2x2x2x6"],
        ),
        (Linear::record(&mut g, &[(1.0, x), (1.0, w)], "sum").unwrap_err(), "linear", &["1x1x5x3", "2x4x4x6"]),
        (g.channels(x, 4, 3).unwrap_err(), "channels", &["4..7", "2x4x4x6"]),
        (g.slice(vector, 3, Shape::matrix(1, 3)).unwrap_err(), "slice", &["3..6", "1x1x1x5"]),
        (g.gradients(x, &[w]).unwrap_err(), "gradients", &["2x4x4x6"]),
    ];
    for (error, name, parts) in errors {
        let Error::Shape { op, .. } = &error else { panic!("{name}: {error} is no shape error") };
        assert_eq!(*op, name);
        let message = error.to_string();
        for part in parts.iter().chain(&[name]) {
            assert!(message.contains(part), "{name}: `{message}` does not say `{part}`");
        }
    }
}
