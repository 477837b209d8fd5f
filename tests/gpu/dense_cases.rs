//! Cases of dense convolutions: kernels of 1, 2 and 3, strides, padding, few and many channels, and every kind of gradient.

use supernet::graph::{Shape, Tensor, TermKind};
use supernet::ops::dense::{Dense, DenseBackward};

use super::cases::{Builder, Slice};
use super::harness::Case;

/// The tensors of a gradient term at a map `y` of this shape, as inputs behind `inputs`.
pub(super) fn term(b: &mut Builder, name: &str, kind: TermKind, shape: Shape, slice: Slice, inputs: &mut Vec<Tensor>) {
    inputs.push(b.map(&format!("g {name}"), shape, slice, |x| x + 0.2));
    if kind.coef {
        let coef = b.map(&format!("coef {name}"), Shape::matrix(3, shape.c), slice, |x| 0.5 + 0.3 * x);
        inputs.push(coef);
    }
    if let Some(row) = kind.mask {
        let mask = Shape::matrix(row + 2, shape.n);
        inputs.push(b.state(&format!("mask {name}"), mask, |x| if x < -0.5 { 0.0 } else { 1.25 }));
    }
}

/// Forward and backward, in one program.
fn dense(op: Dense, x: Shape, c: usize, slice: bool, kind: TermKind, accumulate: bool, wants: [bool; 3]) -> Case {
    let flags = if accumulate { ", accumulating" } else { "" };
    let mut b = Builder::new(format!("{op:?} from {x} to {c}, slices {slice}, {kind:?}, wants {wants:?}{flags}"));
    let within = |c: usize| if slice { Some((2 * c + 4, c.next_multiple_of(4))) } else { None };
    let map = b.map("x", x, within(x.c), |x| x + 0.1);
    let depth = op.kernel * op.kernel * x.c;
    let w = b.map("w", Shape::matrix(depth, c), within(c), |x| x / (depth as f64).sqrt());
    let vector = Shape::vector(c);
    let ys = op.output(x, c);
    let y = b.output("y", ys, within(c), accumulate);
    let mut inputs = vec![map, w];
    if op.bias {
        inputs.push(b.state("bias", vector, |x| x));
    }
    let mut outputs = vec![y];
    if op.statistics {
        outputs.extend(["mean", "variance"].map(|name| b.output(name, vector, None, false)));
    }
    b.case.graph.push(op, inputs, outputs);

    let [input, weight, bias] = wants;
    let mut inputs = vec![map, w];
    if kind.coef {
        inputs.push(y.tensor);
    }
    term(&mut b, "y", kind, ys, within(c), &mut inputs);
    let mut outputs = Vec::new();
    if input {
        outputs.push(b.output("dx", x, within(x.c), accumulate));
    }
    if weight {
        outputs.push(b.output("dw", Shape::matrix(depth, c), within(c), accumulate));
    }
    if bias {
        outputs.push(b.output("dbias", vector, None, accumulate));
    }
    if !outputs.is_empty() {
        b.case.graph.push(DenseBackward { dense: op, term: kind, input, weight, bias }, inputs, outputs);
    }
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let plain = TermKind::default();
    let coef = TermKind { coef: true, mask: None };
    let full = TermKind { coef: true, mask: Some(1) };
    let masked = TermKind { coef: false, mask: Some(0) };
    let point = Dense::RELU_POINTWISE;
    let stem = Dense { kernel: 3, pad: 1, relu: false, ..point };
    let linear = Dense { bias: true, relu: false, statistics: false, ..point };
    let every = [true; 3];
    let no_bias = [true, true, false];
    vec![
        dense(stem, Shape::map(2, 9, 7, 3), 20, false, coef, false, no_bias),
        dense(stem, Shape::map(1, 6, 5, 8), 16, true, full, true, no_bias),
        dense(Dense { stride: 2, ..stem }, Shape::map(3, 7, 8, 6), 6, false, plain, false, no_bias),
        dense(Dense { stride: 2, ..stem }, Shape::map(2, 9, 5, 16), 36, true, masked, false, [true, false, false]),
        dense(point, Shape::map(2, 13, 11, 64), 16, false, full, false, no_bias),
        dense(point, Shape::map(3, 5, 7, 72), 72, false, coef, true, no_bias),
        dense(point, Shape::map(1, 5, 3, 20), 3, true, plain, false, no_bias),
        dense(point, Shape::map(2, 4, 4, 16), 150, false, masked, false, [false, true, false]),
        dense(Dense { stride: 2, ..point }, Shape::map(2, 7, 9, 16), 8, false, coef, false, no_bias),
        dense(linear, Shape::map(5, 1, 1, 144), 10, false, plain, false, every),
        dense(linear, Shape::map(70, 1, 1, 36), 100, false, plain, true, every),
        dense(linear, Shape::map(9, 1, 1, 16), 4, false, plain, false, [false, false, true]),
        dense(Dense { kernel: 2, statistics: true, ..linear }, Shape::map(3, 2, 2, 24), 68, false, plain, false, every),
        // More tiles than chunks of moments, and chunks of weights of several steps.
        dense(point, Shape::map(3, 160, 140, 4), 4, false, plain, false, no_bias),
        dense(Dense { relu: false, ..point }, Shape::map(1, 1, 1, 5), 7, false, coef, true, no_bias),
    ]
}
