//! Cases of what only runs forward and has its values checked in `values`: the input pipeline, convolutions at
//! inference, drop masks, fills, and outputs that add to what is there.

use supernet::Result;
use supernet::graph::{Output, Shape};
use supernet::ops::augment::{Augment, DropMask};
use supernet::ops::elementary::Relu;
use supernet::ops::elementwise::{Fill, Linear};
use supernet::ops::folded::{Activation, Folded, Padding};
use supernet::ops::pool::GlobalPool;

use super::record::{map, vector};
use super::setup::{Case, Draw, Setup};

fn augment(s: &mut Setup, shape: Shape, pad: usize, flip: bool, cutout: usize) -> Result<()> {
    let pixels = s.constant(shape, Draw::Below(256));
    let (index, epoch) = (vector(s, shape.n, Draw::Below(50_000)), vector(s, 1, Draw::Constant(3.0)));
    let (mean, std) = (vec![0.49, 0.48, 0.45, 0.5], vec![0.25, 0.24, 0.26, 0.3]);
    let op = Augment { pad, flip, cutout, mean, std, seed: 11 };
    let out = Augment::record(&mut s.graph, op, [pixels, index, epoch]);
    s.seen(out);
    Ok(())
}

/// A convolution at inference of `c` channels out of a constant map, with a residual if asked for.
fn folded(
    s: &mut Setup,
    x: Shape,
    c: usize,
    (depthwise, kernel, stride): (bool, usize, usize),
    rest: bool,
) -> Result<()> {
    let activation = if rest { Activation::Identity } else { Activation::Relu6 };
    let op = Folded { depthwise, kernel, stride, padding: Padding::Same, activation, residual: rest };
    folded_as(s, x, c, op)
}

fn folded_as(s: &mut Setup, x: Shape, c: usize, op: Folded) -> Result<()> {
    let Folded { depthwise, kernel, residual: rest, .. } = op;
    let each = if depthwise { 1 } else { x.c };
    let residual = rest.then(|| s.constant(op.output(x, c), Draw::Normal(1.0)));
    let x = s.constant(x, Draw::Normal(2.0));
    let w = s.constant(Shape::matrix(kernel * kernel * each, c), Draw::Normal(1.0));
    let bias = s.constant(Shape::vector(c), Draw::Normal(2.0));
    let y = Folded::record(&mut s.graph, op, [x, w, bias], residual)?;
    s.seen(y);
    Ok(())
}

/// Their part of the table, in its order.
pub(super) const CASES: &[Case] = &[
    Case::new("augment: crop, flip, cutout", &["augment"], |s| augment(s, map(9, 6, 8, 3), 2, true, 3)),
    Case::new("augment: normalisation alone", &["augment"], |s| augment(s, map(2, 5, 5, 1), 0, false, 0)),
    Case::new("augment: hole of even side", &["augment"], |s| augment(s, map(5, 4, 4, 4), 0, true, 4)),
    Case::new("folded: stem, odd channels", &["folded"], |s| folded(s, map(2, 9, 8, 3), 5, (false, 3, 2), false)),
    Case::new("folded: expansion", &["folded"], |s| folded(s, map(3, 5, 4, 7), 24, (false, 1, 1), false)),
    Case::new("folded: projection with residual", &["folded"], |s| folded(s, map(2, 6, 6, 18), 6, (false, 1, 1), true)),
    Case::new("folded: pointwise of stride 2", &["folded"], |s| folded(s, map(1, 5, 6, 4), 8, (false, 1, 2), true)),
    Case::new("folded: dense of stride 1 in bands", &["folded"], |s| {
        folded(s, map(1, 40, 48, 6), 33, (false, 3, 1), true)
    }),
    Case::new("folded: centred 7x7, even map, ReLU", &["folded"], |s| {
        let (padding, activation) = (Padding::Centred, Activation::Relu);
        let op = Folded { depthwise: false, kernel: 7, stride: 2, padding, activation, residual: true };
        folded_as(s, map(2, 14, 12, 3), 24, op)
    }),
    Case::new("folded: depthwise 3x3, even map", &["folded"], |s| {
        folded(s, map(2, 8, 10, 16), 16, (true, 3, 2), false)
    }),
    Case::new("folded: depthwise 5x5, odd map", &["folded"], |s| folded(s, map(2, 11, 7, 19), 19, (true, 5, 2), false)),
    Case::new("folded: depthwise in bands", &["folded"], |s| folded(s, map(1, 50, 31, 40), 40, (true, 5, 1), true)),
    Case::new("folded: slice of channels", &["folded"], |s| {
        let wide = s.constant(map(2, 4, 4, 9), Draw::Normal(1.0));
        let x = s.graph.channels(wide, 2, 6)?;
        let w = s.constant(Shape::matrix(9, 6), Draw::Normal(1.0));
        let bias = s.constant(Shape::vector(6), Draw::Normal(1.0));
        let (depthwise, activation) = (true, Activation::Relu6);
        let op = Folded { depthwise, kernel: 3, stride: 1, padding: Padding::Same, activation, residual: false };
        let y = Folded::record(&mut s.graph, op, [x, w, bias], None)?;
        s.seen(y);
        Ok(())
    }),
    Case::new("drop mask", &["drop_mask"], |s| {
        let inputs = [vector(s, 1, Draw::Constant(0.25)), vector(s, 1, Draw::Constant(9.0))];
        let mask = DropMask::record(&mut s.graph, DropMask { seed: 3 }, 5, 33, inputs);
        s.seen(mask);
        Ok(())
    }),
    Case::new("fill: slice of channels", &["fill", "linear"], |s| {
        let shape = map(2, 2, 3, 5);
        let out = s.graph.tensor(shape, "output");
        let (left, right) = (s.graph.channels(out, 0, 2)?, s.graph.channels(out, 2, 3)?);
        s.graph.push(Fill { value: 0.375 }, vec![], vec![left.into()]);
        let x = s.constant(shape.with_channels(3), Draw::Normal(1.0));
        Linear::record_into(&mut s.graph, &[(2.0, x)], right)?;
        s.seen(out);
        Ok(())
    }),
    Case::new("outputs that add to what is there", &["fill", "linear", "relu", "global_pool"], |s| {
        let shape = map(2, 3, 3, 5);
        let x = s.constant(shape, Draw::Away);
        let adding = |tensor| Output { tensor, accumulate: true };
        let out = s.graph.tensor(shape, "output");
        s.graph.push(Fill { value: 0.5 }, vec![], vec![out.into()]);
        s.graph.push(Linear { coefs: vec![2.0] }, vec![x], vec![adding(out)]);
        s.graph.push(Relu, vec![x], vec![adding(out)]);
        s.seen(out);
        let mean = GlobalPool::record(&mut s.graph, x);
        s.graph.push(GlobalPool, vec![out], vec![adding(mean)]);
        s.seen(mean);
        Ok(())
    }),
];
