//! Augmentation of a batch: a task is one image.

use super::kernel::{Context, Kernel, Launch};
use crate::device::view::View;
use crate::ops::augment::Augment;

/// See [`Augment`].
pub struct AugmentKernel {
    op: Augment,
    inputs: [View<f32>; 3],
    out: View<f32>,
    accumulate: bool,
}

impl AugmentKernel {
    /// The kernel.
    pub fn new(op: &Augment, launch: &Launch<'_>) -> Option<Self> {
        let [pixels, index, epoch] = launch.inputs[..] else { return None };
        let (out, accumulate) = (launch.outputs[0], launch.accumulate[0]);
        Some(Self { op: op.clone(), inputs: [pixels, index, epoch], out, accumulate })
    }
}

impl Kernel for AugmentKernel {
    fn run(&self, context: &Context<'_>) {
        let [pixels, index, epoch] = &self.inputs;
        let (shape, epoch, op) = (pixels.shape, epoch.at(0) as u32, &self.op);
        context.parallel(shape.n, |n, _| {
            let draw = op.draw(shape, index.at(n) as u32, epoch);
            for (y, x) in (0..shape.h).flat_map(|y| (0..shape.w).map(move |x| (y, x))) {
                let source = op.source(shape, &draw, y, x).map(|(sy, sx)| pixels.pixel(n, sy, sx));
                let hole = op.in_hole(&draw, y, x);
                for c in 0..shape.c {
                    let scaled = source.map_or(0.0, |row| pixels.get(row, c)) / 255.0;
                    let value = if hole { 0.0 } else { (scaled - op.mean[c]) / op.std[c] };
                    self.out.put(pixels.pixel(n, y, x), c, value, self.accumulate);
                }
            }
        });
    }
}
