//! Cases of softmax and cross-entropy: few and many classes, rows that do not count, ties, logits far from zero or
//! not finite, slices, one block and several.

use supernet::graph::{Output, Shape};
use supernet::ops::loss::{Accumulate, CrossEntropy, CrossEntropyBackward};
use supernet::ops::softmax::{Softmax, SoftmaxBackward};

use super::cases::{Builder, Slice};
use super::harness::Case;

/// Forward and backward, in one program.
fn softmax(rows: usize, c: usize, slice: Slice, accumulate: bool) -> Case {
    let mut b = Builder::new(format!("softmax of {rows} rows of {c}, slice {slice:?}, accumulating {accumulate}"));
    let shape = Shape::matrix(rows, c);
    let x = b.map("x", shape, slice, |x| 3.0 * x + 100.0);
    let dp = b.map("dp", shape, slice, |x| x);
    let p = b.map("p", shape, slice, |x| (0.1 * x).exp() / c as f64);
    let (y, dx) = (b.output("y", shape, slice, accumulate), b.output("dx", shape, slice, !accumulate));
    b.case.graph.push(Softmax, vec![x], vec![y]);
    b.case.graph.push(SoftmaxBackward, vec![p, dp], vec![dx]);
    b.case
}

#[derive(Clone, Copy)]
struct Loss {
    rows: usize,
    classes: usize,
    slice: Slice,
    smoothing: f64,
    accumulate: bool,
    /// What a standard normal becomes.
    logit: fn(f64) -> f64,
    /// Share of rows that do not count, as a quantile of the standard normal.
    padding: f64,
}

/// Loss, its gradient, and the sums of an epoch.
fn loss(what: &str, of: Loss) -> Case {
    let Loss { rows, classes, slice, smoothing, accumulate, logit, padding } = of;
    let mut b = Builder::new(format!("loss: {what}, {rows} rows of {classes}, slice {slice:?}, smoothing {smoothing}"));
    let shape = Shape::map(rows, 1, 1, classes);
    let logits = b.map("logits", shape, slice, logit);
    let draw = move |x: f64| if x < padding { -1.0 } else { ((x - padding) * 1000.0 % classes as f64).floor() };
    let labels = b.state("labels", Shape::vector(rows), draw);
    let loss = b.output("loss", Shape::vector(1), None, accumulate);
    let counts = b.output("counts", Shape::vector(3), None, accumulate);
    let g = b.state("g", Shape::vector(1), |_| 0.75);
    let dlogits = b.output("dlogits", shape, slice, accumulate);
    let sums = Output::from(b.state("sums", Shape::vector(4), |x| 10.0 + x));
    b.case.graph.push(CrossEntropy { smoothing }, vec![logits, labels], vec![loss, counts]);
    b.case.graph.push(CrossEntropyBackward { smoothing }, vec![logits, labels, g], vec![dlogits]);
    b.case.graph.push(Accumulate, vec![loss.tensor, counts.tensor], vec![sums]);
    b.case
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, c) in [(1, 1), (14, 8), (3, 5), (300, 7), (5, 100)] {
        for (slice, accumulate) in [(None, false), (Some((c + 5, 3)), true)] {
            cases.push(softmax(rows, c, slice, accumulate));
        }
    }
    let base = Loss {
        rows: 96,
        classes: 10,
        slice: None,
        smoothing: 0.1,
        accumulate: false,
        logit: |x| 2.0 * x,
        padding: -1.0,
    };
    for (rows, classes) in [(1, 2), (7, 3), (96, 10), (1000, 10), (33, 100), (70, 1000)] {
        cases.push(loss("plain", Loss { rows, classes, smoothing: 0.0, padding: -9.0, ..base }));
        let slice = Some((classes + 6, 5));
        cases.push(loss("smoothed and accumulating", Loss { rows, classes, slice, accumulate: true, ..base }));
    }
    cases.push(loss("logits far from zero", Loss { logit: |x| 40.0 * x - 5000.0, ..base }));
    cases.push(loss("ties", Loss { logit: |x| x.round(), rows: 500, ..base }));
    cases.push(loss("no valid row", Loss { padding: 9.0, ..base }));
    cases.push(loss("a NaN", Loss { logit: |x| if x > 2.0 { f64::NAN } else { x }, ..base }));
    cases.push(loss("an infinity", Loss { logit: |x| if x > 2.0 { f64::INFINITY } else { x }, ..base }));
    cases
}
