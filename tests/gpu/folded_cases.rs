//! Cases of convolutions of pretrained networks: each kernel with sizes that fill no tile, odd and even maps under
//! stride 2 (TensorFlow's padding differs), residuals, views, values beyond both bounds of the activation.

use supernet::graph::Shape;
use supernet::ops::folded::{Activation, Folded, Padding};

use super::cases::{Builder, Slice};
use super::harness::Case;

const POINTWISE: Folded = Folded {
    depthwise: false,
    kernel: 1,
    stride: 1,
    padding: Padding::Same,
    activation: Activation::Identity,
    residual: false,
};
const DENSE: Folded = Folded { kernel: 3, stride: 2, activation: Activation::Relu6, ..POINTWISE };
const DEPTHWISE: Folded = Folded { depthwise: true, kernel: 3, activation: Activation::Relu6, ..POINTWISE };

fn folded(op: Folded, x: Shape, c: usize, slice: Slice, accumulate: bool) -> Case {
    let flags = if accumulate { ", accumulating" } else { "" };
    let mut b = Builder::new(format!("{op:?} of {x} to {c} channels, slice {slice:?}{flags}"));
    let rows = op.kernel * op.kernel * if op.depthwise { 1 } else { x.c };
    let scale = 3.0 / (rows as f64).sqrt();
    // Slices are of the output's channels; the map's slice starts at the same channel.
    let wider = |channels: usize| slice.map(|(total, start)| (total + channels - c, start));
    let map = b.map("x", x, wider(x.c), |v| v);
    let w = b.map("w", Shape::matrix(rows, c), slice, |v| scale * v);
    let bias = b.state("bias", Shape::vector(c), |v| 1.0 + 2.0 * v);
    let y = op.output(x, c);
    let mut inputs = vec![map, w, bias];
    if op.residual {
        inputs.push(b.map("residual", y, slice, |v| 2.0 * v));
    }
    let out = b.output("y", y, slice, accumulate);
    b.case.graph.push(op, inputs, vec![out]);
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let with_residual = |op: Folded| Folded { residual: true, ..op };
    let bounded = |op: Folded| Folded { activation: Activation::Relu6, ..op };
    let centred = |op: Folded| Folded { padding: Padding::Centred, activation: Activation::Relu, ..op };
    let strided = |op: Folded, kernel, stride| Folded { kernel, stride, ..op };
    vec![
        folded(POINTWISE, Shape::map(2, 7, 7, 16), 64, None, false),
        folded(with_residual(POINTWISE), Shape::map(1, 9, 15, 40), 24, None, false),
        folded(bounded(POINTWISE), Shape::map(3, 5, 5, 24), 100, None, true),
        folded(bounded(with_residual(POINTWISE)), Shape::map(1, 5, 13, 10), 7, None, true),
        folded(with_residual(POINTWISE), Shape::map(2, 6, 6, 20), 72, Some((80, 4)), false),
        folded(POINTWISE, Shape::map(2, 6, 6, 3), 67, Some((75, 3)), false),
        folded(POINTWISE, Shape::map(1, 1, 1, 1), 1, None, false),
        folded(DEPTHWISE, Shape::map(2, 9, 7, 8), 8, None, false),
        folded(with_residual(DEPTHWISE), Shape::map(1, 5, 10, 36), 36, Some((44, 4)), true),
        folded(strided(DEPTHWISE, 3, 2), Shape::map(2, 8, 7, 12), 12, None, false),
        folded(strided(DEPTHWISE, 5, 2), Shape::map(2, 7, 8, 6), 6, Some((11, 3)), false),
        folded(strided(DEPTHWISE, 5, 1), Shape::map(1, 3, 2, 150), 150, None, false),
        folded(DENSE, Shape::map(2, 10, 11, 3), 32, None, false),
        folded(DENSE, Shape::map(1, 11, 10, 3), 10, Some((17, 5)), true),
        folded(with_residual(strided(DENSE, 3, 1)), Shape::map(2, 4, 5, 6), 8, Some((16, 4)), false),
        folded(centred(with_residual(strided(DENSE, 3, 1))), Shape::map(2, 6, 5, 12), 16, None, false),
        folded(centred(strided(DENSE, 7, 2)), Shape::map(1, 12, 10, 3), 8, None, false),
        folded(centred(strided(POINTWISE, 1, 2)), Shape::map(2, 6, 4, 8), 12, None, false),
        // A stride without a window, and a window wider than the map.
        folded(strided(DENSE, 1, 2), Shape::map(2, 5, 6, 8), 12, None, false),
        folded(strided(DENSE, 5, 3), Shape::map(1, 2, 3, 2), 4, None, false),
    ]
}
