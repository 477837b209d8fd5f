//! Cases of fill, sums, pending gradient terms and global pooling: maps whose channels fill no quad, slices, flat
//! vectors, more summands than a table takes.

use supernet::graph::{Shape, TermKind};
use supernet::ops::elementwise::{Affine, Fill, Linear};
use supernet::ops::pool::{GlobalPool, GlobalPoolBackward};

use super::cases::{Builder, Slice};
use super::harness::Case;

/// A fill and a sum.
fn linear(shape: Shape, slices: [Slice; 2], summands: usize, accumulate: bool) -> Case {
    let name = format!("sum of {summands} of {shape}, slices {slices:?}, accumulating {accumulate}");
    let mut b = Builder::new(name);
    let filled = b.output("filled", shape, slices[1], accumulate);
    b.case.graph.push(Fill { value: 0.3 }, vec![], vec![filled]);
    let inputs = (0..summands).map(|i| b.map(&format!("x {i}"), shape, slices[i % 2], |x| x)).collect();
    let coefs = (0..summands).map(|i| 1.0 - 0.37 * i as f64).collect();
    let out = b.output("out", shape, slices[1], accumulate);
    b.case.graph.push(Linear { coefs }, inputs, vec![out]);
    b.case
}

fn affine(shape: Shape, slice: Slice, terms: &[(bool, Option<usize>)], accumulate: bool) -> Case {
    let name = format!("{} terms of {shape}, slice {slice:?}, accumulating {accumulate}", terms.len());
    let mut b = Builder::new(name);
    let terms: Vec<_> = terms.iter().map(|&(coef, mask)| TermKind { coef, mask }).collect();
    let mut inputs = Vec::new();
    if terms.iter().any(|t| t.coef) {
        inputs.push(b.map("y", shape, slice, |x| x + 0.2));
    }
    for (i, term) in terms.iter().enumerate() {
        inputs.push(b.map(&format!("g {i}"), shape, slice, |x| x));
        if term.coef {
            inputs.push(b.map(&format!("coefficients {i}"), Shape::matrix(3, shape.c), slice, |x| 0.5 + x));
        }
        if let Some(row) = term.mask {
            let factors = Shape::matrix(row + 2, shape.n);
            inputs.push(b.state(&format!("mask {i}"), factors, |x| if x < 0.0 { 0.0 } else { 1.25 }));
        }
    }
    let out = b.output("out", shape, slice, accumulate);
    b.case.graph.push(Affine { terms }, inputs, vec![out]);
    b.case
}

fn global_pool(shape: Shape, slice: Slice, accumulate: bool) -> Case {
    let mut b = Builder::new(format!("global pool of {shape}, slice {slice:?}, accumulating {accumulate}"));
    let means = Shape::map(shape.n, 1, 1, shape.c);
    let (x, g) = (b.map("x", shape, slice, |x| x + 0.7), b.map("g", means, slice, |x| x));
    let (y, dx) = (b.output("y", means, slice, accumulate), b.output("dx", shape, slice, !accumulate));
    b.case.graph.push(GlobalPool, vec![x], vec![y]);
    b.case.graph.push(GlobalPoolBackward, vec![g], vec![dx]);
    b.case
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        Shape::map(1, 1, 1, 1),
        Shape::map(3, 5, 7, 3),
        Shape::map(2, 9, 9, 8),
        Shape::map(1, 13, 6, 10),
        Shape::map(5, 16, 15, 16),
        Shape::map(2, 5, 5, 150),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        let c = shape.c;
        for slice in [None, Some((2 * c + 4, c.next_multiple_of(4))), Some((c + 5, 3))] {
            let accumulate = i % 2 == 1;
            cases.push(linear(shape, [slice, slice], 3, accumulate));
            cases.push(affine(
                shape,
                slice,
                &[(true, None), (false, Some(1)), (true, Some(0)), (false, None)],
                accumulate,
            ));
            cases.push(global_pool(shape, slice, accumulate));
        }
        cases.push(linear(shape, [None, Some((c + 4, 4))], 2, false));
    }
    let shape = Shape::map(2, 6, 6, 16);
    for accumulate in [false, true] {
        cases.push(linear(shape, [None; 2], 0, accumulate));
        cases.push(linear(Shape::vector(10_001), [None; 2], 2, accumulate));
        cases.push(linear(Shape::vector(9000), [None; 2], 1, accumulate));
        cases.push(linear(shape, [None, Some((20, 4))], 70, accumulate));
        cases.push(affine(shape, None, &[(false, None); 2], accumulate));
        let many: Vec<_> = (0..70).map(|i| (i % 3 == 0, (i % 2 == 0).then_some(i % 5))).collect();
        cases.push(affine(shape, None, &many, accumulate));
    }
    cases.push(global_pool(Shape::map(3, 33, 31, 64), None, false));
    cases
}
