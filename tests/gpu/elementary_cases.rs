//! Cases of elementary ops, each with its gradient.

use supernet::graph::Shape;
use supernet::ops::elementary::{
    BatchNorm, BatchNormBackward, Depthwise, DepthwiseBackward, Relu, ReluBackward, Scale, ScaleBackward,
};

use super::cases::{Builder, Slice};
use super::harness::Case;

/// What all cases vary.
#[derive(Clone, Copy, Debug)]
struct Setting {
    shape: Shape,
    slice: Slice,
    accumulate: bool,
}

impl Setting {
    fn builder(self, name: &str) -> Builder {
        let flags = if self.accumulate { ", accumulating" } else { "" };
        Builder::new(format!("{name} of {}, slice {:?}{flags}", self.shape, self.slice))
    }
}

fn relu(setting: Setting) -> Case {
    let Setting { shape, slice, accumulate } = setting;
    let mut b = setting.builder("ReLU");
    let [x, g] = ["x", "g"].map(|name| b.map(name, shape, slice, |v| v));
    let [y, dx] = ["y", "dx"].map(|name| b.output(name, shape, slice, accumulate));
    b.case.graph.push(Relu, vec![x], vec![y]);
    b.case.graph.push(ReluBackward, vec![x, g], vec![dx]);
    b.case
}

fn scale(setting: Setting) -> Case {
    let Setting { shape, slice, accumulate } = setting;
    let mut b = setting.builder("scaling");
    let (index, weights) = (9, Shape::matrix(2, 8));
    let [x, g] = ["x", "g"].map(|name| b.map(name, shape, slice, |v| v + 0.5));
    let w = b.state("w", weights, |v| v);
    let [y, dx] = ["y", "dx"].map(|name| b.output(name, shape, slice, accumulate));
    let dw = b.output("dw", weights, None, accumulate);
    b.case.graph.push(Scale { index }, vec![x, w], vec![y]);
    b.case.graph.push(ScaleBackward { index }, vec![x, w, g], vec![dx, dw]);
    b.case
}

fn batch_norm(setting: Setting, affine: bool) -> Case {
    let Setting { shape, slice, accumulate } = setting;
    let mut b = setting.builder(if affine { "affine batch norm" } else { "batch norm" });
    let vector = Shape::vector(shape.c);
    let norm = BatchNorm { affine, eps: 1e-5 };
    let [x, g] = ["x", "g"].map(|name| b.map(name, shape, slice, |v| 1.5 * v + 0.5));
    let [y, dx] = ["y", "dx"].map(|name| b.output(name, shape, slice, accumulate));
    let [mean, var] = ["mean", "var"].map(|name| b.output(name, vector, None, false));
    let mut inputs = vec![x];
    let mut gradients = vec![dx];
    if affine {
        inputs.extend(["gamma", "beta"].map(|name| b.state(name, vector, |v| 1.0 + 0.2 * v)));
        gradients.extend(["dgamma", "dbeta"].map(|name| b.output(name, vector, None, accumulate)));
    }
    b.case.graph.push(norm, inputs.clone(), vec![y, mean, var]);
    inputs.extend([mean.tensor, var.tensor, g]);
    b.case.graph.push(BatchNormBackward { norm }, inputs, gradients);
    b.case
}

fn depthwise(setting: Setting, depthwise: Depthwise) -> Case {
    let Setting { shape, slice, accumulate } = setting;
    let mut b = setting.builder(&format!("{depthwise:?}"));
    let side = |size: usize| size.div_ceil(depthwise.stride);
    let out = Shape::map(shape.n, side(shape.h), side(shape.w), shape.c);
    let weights = Shape::matrix(depthwise.kernel * depthwise.kernel, shape.c);
    let x = b.map("x", shape, slice, |v| v + 0.3);
    let w = b.map("w", weights, slice, |v| v);
    let g = b.map("g", out, slice, |v| v + 0.3);
    let y = b.output("y", out, slice, accumulate);
    let dx = b.output("dx", shape, slice, accumulate);
    let dw = b.output("dw", weights, slice, accumulate);
    b.case.graph.push(depthwise, vec![x, w], vec![y]);
    b.case.graph.push(DepthwiseBackward { depthwise }, vec![x, w, g], vec![dx, dw]);
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let settings = [
        Setting { shape: Shape::map(2, 9, 7, 8), slice: None, accumulate: false },
        Setting { shape: Shape::map(3, 6, 5, 5), slice: None, accumulate: true },
        Setting { shape: Shape::map(1, 8, 8, 36), slice: Some((44, 4)), accumulate: true },
        Setting { shape: Shape::map(2, 5, 6, 6), slice: Some((11, 3)), accumulate: false },
        Setting { shape: Shape::map(1, 5, 3, 150), slice: None, accumulate: false },
    ];
    let geometries = [(3, 1, 1), (5, 1, 2), (3, 2, 1), (5, 2, 2), (3, 1, 2)];
    for (setting, (kernel, dilation, stride)) in settings.into_iter().zip(geometries) {
        cases.extend([relu(setting), scale(setting), batch_norm(setting, false), batch_norm(setting, true)]);
        cases.push(depthwise(setting, Depthwise { kernel, dilation, stride }));
    }
    // Several chunks of rows.
    let large = Setting { shape: Shape::map(3, 24, 24, 4), slice: None, accumulate: false };
    cases.push(depthwise(large, Depthwise { kernel: 3, dilation: 1, stride: 1 }));
    cases
}
