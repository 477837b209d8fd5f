//! Cases of the convolutions of pretrained networks: layers of EfficientNet-Lite0 at the batch of the embedder.

use super::cases::{Case, Timed};
use super::recorder::{Draw, Recorder};
use crate::error::Result;
use crate::graph::Shape;
use crate::ops::folded::{Activation, Folded, Padding};

/// Images of a batch.
const BATCH: usize = 8;

/// Name, side and channels of the map, channels of the result, and depthwise, kernel, stride.
type Layer = (&'static str, usize, usize, usize, (bool, usize, usize));

const LAYERS: [Layer; 6] = [
    ("stem", 224, 3, 32, (false, 3, 2)),
    ("expansion", 112, 16, 96, (false, 1, 1)),
    ("depthwise_3x3_stride_2", 112, 96, 96, (true, 3, 2)),
    ("depthwise_5x5", 14, 672, 672, (true, 5, 1)),
    ("projection", 14, 672, 112, (false, 1, 1)),
    ("head", 7, 320, 1280, (false, 1, 1)),
];

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    let case = |(what, side, c_in, c, (depthwise, kernel, stride)): Layer| {
        let record = move |r: &mut Recorder, batch: usize| -> Result<()> {
            let x = r.constant(Shape::map(batch, side, side, c_in), Draw::Normal(1.0));
            let rows = kernel * kernel * if depthwise { 1 } else { c_in };
            let scale = 1.0 / (rows as f32).sqrt();
            let w = r.constant(Shape::matrix(rows, c), Draw::Normal(scale));
            let bias = r.constant(Shape::vector(c), Draw::Normal(0.1));
            let op = Folded {
                depthwise,
                kernel,
                stride,
                padding: Padding::Same,
                activation: Activation::Relu6,
                residual: false,
            };
            let y = Folded::record(&mut r.graph, op, [x, w, bias], None)?;
            r.output(y);
            Ok(())
        };
        let name = format!("folded/c{c_in}/{side}x{side}/b{BATCH}/{what}");
        Case::of(name, Timed::Op("folded"), BATCH, record)
    };
    LAYERS.map(case).into()
}
