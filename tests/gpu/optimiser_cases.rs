//! Cases of flat vectors: optimisers, running statistics, second-order updates. Vectors of one element, of odd
//! sizes, of several blocks, at odd offsets; norms that clip, are zero or not finite; first and late steps of Adam.

use supernet::graph::{Output, Shape, Tensor};
use supernet::ops::optimiser::{Adam, GlobalNorm, Sgd};
use supernet::ops::running::{RunningUpdate, Segment};
use supernet::ops::second_order::{HessianTerm, Perturb, Unroll};

use super::cases::Builder;
use super::harness::Case;

/// Lengths, and offsets within a longer vector.
const VECTORS: [(usize, usize); 7] = [(1, 0), (7, 0), (1024, 0), (4096, 4), (4100, 0), (10_001, 0), (9000, 3)];

/// A vector, `offset` elements into a longer one.
fn vector(b: &mut Builder, name: &str, (len, offset): (usize, usize), value: impl Fn(f64) -> f64) -> Tensor {
    let whole = b.state(name, Shape::vector(len + 2 * offset), value);
    b.case.graph.slice(whole, offset, Shape::vector(len)).expect("it fits")
}

fn scalar(b: &mut Builder, name: &str, value: f64) -> Tensor {
    b.state(name, Shape::vector(1), |_| value)
}

fn norm(of: (usize, usize), accumulate: bool, worst: Option<f64>) -> Case {
    let mut b = Builder::new(format!("norm of {of:?}, accumulating {accumulate}, with {worst:?}"));
    // Large draws stand for the odd one that is not finite.
    let x = vector(&mut b, "x", of, |x| worst.filter(|_| x > 3.0).unwrap_or(x));
    let norm = b.output("norm", Shape::vector(1), None, accumulate);
    b.case.graph.push(GlobalNorm, vec![x], vec![norm]);
    b.case
}

/// Norm, then SGD with it; `norm`: that one instead.
fn sgd(of: (usize, usize), clip: f64, given: Option<f64>) -> Case {
    let mut b = Builder::new(format!("sgd of {of:?}, clip {clip}, norm {given:?}"));
    let g = vector(&mut b, "g", of, |x| 0.1 * x + 0.02);
    let norm = scalar(&mut b, "norm", given.unwrap_or(f64::NAN));
    if given.is_none() {
        b.case.graph.push(GlobalNorm, vec![g], vec![norm.into()]);
    }
    let lr = scalar(&mut b, "lr", 0.1);
    let (w, v) = (vector(&mut b, "w", of, |x| x), vector(&mut b, "v", of, |x| 0.3 * x));
    let flag = scalar(&mut b, "flag", 0.25);
    let op = Sgd { momentum: 0.9, decay: 3e-4, clip };
    b.case.graph.push(op, vec![g, norm, lr], [w, v, flag].map(Output::from).to_vec());
    b.case
}

fn adam(of: (usize, usize), [beta1, beta2]: [f64; 2], steps: f64, norm: f64) -> Case {
    let mut b = Builder::new(format!("adam of {of:?}, betas {beta1} {beta2}, {steps} steps before, norm {norm}"));
    let g = vector(&mut b, "g", of, |x| 0.1 * x);
    let (norm, lr) = (scalar(&mut b, "norm", norm), scalar(&mut b, "lr", 0.3));
    // The first step divides what is nearly nothing by what is nearly nothing: only the step itself is to show.
    let first = steps == 0.0;
    let old = move |x: f64| if first { 0.0 } else { x };
    let p = vector(&mut b, "p", of, old);
    let (m, v) = (vector(&mut b, "m", of, move |x| old(0.01 * x)), vector(&mut b, "v", of, move |x| old(0.01 * x * x)));
    let (steps, flag) = (scalar(&mut b, "steps", steps), scalar(&mut b, "flag", 0.0));
    let op = Adam { beta1, beta2, eps: 1e-8, decay: 1e-3 };
    b.case.graph.push(op, vec![g, norm, lr], [p, m, v, steps, flag].map(Output::from).to_vec());
    b.case
}

/// `layers` pairs of mean and variance, some wider than a block, with gaps between them.
fn running(layers: usize, widest: usize, guard: f64) -> Case {
    let mut b = Builder::new(format!("running statistics of {layers} layers, up to {widest} wide, guard {guard}"));
    let mut segments = Vec::new();
    let mut offset = 1;
    for layer in 0..layers {
        let len = 1 + layer * 7 % widest;
        for factor in [1.0, 1.0 + 1.0 / (layer + 1) as f64] {
            segments.push(Segment { offset, len, factor });
            offset += len;
        }
        offset += layer % 2;
    }
    let shape = Shape::vector(offset + 3);
    let batch = b.state("batch", shape, |x| x + 0.5);
    let (guard, running) = (scalar(&mut b, "guard", guard), b.state("running", shape, |x| 0.5 - x));
    RunningUpdate::record(&mut b.case.graph, RunningUpdate { momentum: 0.1, segments }, batch, guard, running);
    b.case
}

/// The three updates of the unrolled step, on vectors of one kind.
fn second_order(of: (usize, usize), accumulate: bool, norm: f64) -> Case {
    let mut b = Builder::new(format!("second order of {of:?}, accumulating {accumulate}, norm {norm}"));
    let inputs = ["w", "v", "g", "direct"].map(|name| vector(&mut b, name, of, |x| 0.4 + x));
    let [w, v, g, direct] = inputs;
    let (norm, lr) = (scalar(&mut b, "norm", norm), scalar(&mut b, "lr", 0.05));
    let mut out = |name: &str| {
        let tensor = vector(&mut b, name, of, |x| if accumulate { x } else { f64::NAN });
        Output { tensor, accumulate }
    };
    let [moved, plus, hessian] = ["moved", "plus", "hessian"].map(&mut out);
    let total = Output { accumulate: false, ..out("total") };
    b.case.graph.push(Unroll { momentum: 0.9, decay: 3e-4 }, vec![w, v, g, lr], vec![moved]);
    b.case.graph.push(Perturb { radius: -0.01 }, vec![w, g, norm], vec![plus]);
    b.case.graph.push(HessianTerm { radius: 0.01 }, vec![direct, v, g, norm, lr], vec![hessian, total]);
    b.case
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, of) in VECTORS.into_iter().enumerate() {
        cases.push(norm(of, i % 2 == 1, None));
        cases.push(sgd(of, if i % 2 == 0 { 5.0 } else { 0.5 }, None));
        cases.push(adam(of, [0.5, 0.999], 10.0 * i as f64, 1.0));
        cases.push(second_order(of, i % 2 == 0, 2.5));
    }
    let of = (2500, 0);
    // More partial sums than a block has threads.
    cases.push(norm((1_060_000, 0), false, None));
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        cases.push(norm(of, false, Some(odd)));
        cases.push(sgd(of, 5.0, Some(odd)));
        cases.push(adam(of, [0.9, 0.999], 3.0, odd));
        cases.push(running(5, 40, odd));
    }
    // 1 - beta^t from the smallest to the largest; none of the naive ways survives the first.
    for (betas, steps) in [([0.9999, 0.99999], 0.0), ([0.9, 0.999], 0.0), ([0.0, 0.5], 0.0), ([0.9, 0.999], 1e5)] {
        cases.push(adam(of, betas, steps, 1.0));
    }
    cases.push(second_order(of, false, 0.0));
    cases.push(running(1, 64, 1.0));
    cases.push(running(20, 700, 1.0));
    // More stretches than a table takes.
    cases.push(running(800, 12, 1.0));
    cases
}
