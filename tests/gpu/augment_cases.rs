//! Cases of augmentation and drop-path masks. Draws must have the CPU's bits: a wrong one moves a pixel or a zero, which
//! no tolerance hides.

use supernet::graph::Shape;
use supernet::ops::augment::{Augment, DropMask};

use super::cases::{Builder, Slice};
use super::harness::Case;

/// Uses all bits of both words.
const SEED: u64 = 0xFEDC_BA98_8765_4321;

fn augment(shape: Shape, slice: Slice, accumulate: bool, change: impl Fn(&mut Augment)) -> Case {
    let mut op = Augment {
        pad: 2,
        flip: true,
        cutout: 4,
        mean: (0..shape.c).map(|c| 0.3 + 0.01 * c as f32).collect(),
        std: (0..shape.c).map(|c| 0.2 + 0.01 * c as f32).collect(),
        seed: SEED,
    };
    change(&mut op);
    let flags = if accumulate { ", accumulating" } else { "" };
    let what = format!("pad {}, flip {}, cutout {}", op.pad, op.flip, op.cutout);
    let mut b = Builder::new(format!("augmentation of {shape}, {what}, slice {slice:?}{flags}"));
    let pixels = b.map("pixels", shape, slice, |x| (128.0 + 60.0 * x).clamp(0.0, 255.0).round());
    let index = b.state("index", Shape::vector(shape.n), |x| (1e5 * x.abs()).floor());
    let epoch = b.state("epoch", Shape::vector(1), |_| 37.0);
    let out = b.output("images", shape, slice, accumulate);
    b.case.graph.push(op, vec![pixels, index, epoch], vec![out]);
    b.case
}

fn drop_mask(paths: usize, n: usize, p: f64, step: f64, seed: u64, slice: Slice, accumulate: bool) -> Case {
    let mut b = Builder::new(format!("{paths} drop-path masks for {n} images, p {p}, step {step}, slice {slice:?}"));
    let p = b.state("p", Shape::vector(1), |_| p);
    let step = b.state("step", Shape::vector(1), |_| step);
    let out = b.output("mask", Shape::matrix(paths, n), slice, accumulate);
    b.case.graph.push(DropMask { seed }, vec![p, step], vec![out]);
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = vec![
        augment(Shape::map(3, 7, 9, 1), None, false, |_| ()),
        augment(Shape::map(9, 8, 6, 3), None, true, |_| ()),
        augment(Shape::map(2, 40, 33, 3), Some((8, 2)), false, |_| ()),
        augment(Shape::map(3, 5, 6, 8), Some((20, 8)), true, |op| op.cutout = 3),
        augment(Shape::map(1, 6, 5, 150), None, false, |op| op.pad = 0),
        augment(Shape::map(4, 6, 6, 4), None, false, |op| op.cutout = 0),
        augment(Shape::map(4, 6, 6, 5), None, false, |op| op.flip = false),
        // A hole and a shift larger than the image.
        augment(Shape::map(5, 3, 3, 2), None, false, |op| (op.cutout, op.pad) = (9, 5)),
    ];
    // Thousands of draws, among them products with every kind of carry between the halves of their words.
    cases.push(drop_mask(64, 257, 0.5, 123.0, SEED, None, false));
    cases.push(drop_mask(9, 100, 0.3, 16_777_215.0, u64::MAX, Some((111, 5)), true));
    cases.push(drop_mask(2, 64, 0.1, 0.0, 0, None, false));
    cases.push(drop_mask(1, 3, 0.0, 5.0, SEED, None, true));
    cases
}
