//! Cases of the ops that do one thing, from which the fused families are checked, of sums into views, and of softmax.

use supernet::Result;
use supernet::graph::Shape;
use supernet::ops::dense::Dense;
use supernet::ops::elementary::{BatchNorm, Depthwise, Relu, Scale};
use supernet::ops::elementwise::Linear;
use supernet::ops::mixture::Mixture;
use supernet::ops::norm::Statistics;

use super::record::{EPS, map, mixing, normalised, softmax};
use super::setup::{Case, Draw, Setup};

fn depthwise(s: &mut Setup, x: Shape, kernel: usize, dilation: usize, stride: usize) -> Result<()> {
    let c = x.c;
    let x = s.var(x, Draw::Away);
    let w = s.weight(kernel * kernel, c);
    let y = Depthwise::record(&mut s.graph, Depthwise { kernel, dilation, stride }, x, w);
    s.out(y);
    Ok(())
}

fn batch_norm(s: &mut Setup, x: Shape, affine: bool) -> Result<()> {
    let c = x.c;
    let x = s.var(x, Draw::Away);
    let affine = affine.then(|| s.affine(c));
    let [y, mean, var] = BatchNorm::record(&mut s.graph, x, affine, EPS);
    s.out(y);
    s.seen(mean);
    s.seen(var);
    Ok(())
}

/// Their part of the table, in its order.
pub(super) const CASES: &[Case] = &[
    // Elementary ops.
    Case::new("relu", &["relu", "relu_backward"], |s| {
        let x = s.wide(map(2, 3, 3, 5), Draw::Away);
        let y = Relu::record(&mut s.graph, x);
        s.out(y);
        Ok(())
    }),
    Case::new("depthwise: stride 2 at odd sizes", &["depthwise", "depthwise_backward"], |s| {
        depthwise(s, map(2, 5, 7, 5), 3, 1, 2)
    }),
    Case::new("depthwise: dilated 5x5 of stride 2", &["depthwise", "depthwise_backward"], |s| {
        depthwise(s, map(1, 6, 5, 8), 5, 2, 2)
    }),
    Case::new("batch norm", &["batch_norm", "batch_norm_backward", "statistics"], |s| {
        let x = s.var(map(2, 3, 3, 3), Draw::Away);
        let (mean, var) = Statistics::record(&mut s.graph, x);
        s.seen(mean);
        s.seen(var);
        let [y, ..] = BatchNorm::record(&mut s.graph, x, None, EPS);
        s.out(y);
        Ok(())
    }),
    Case::new("batch norm: affine", &["batch_norm", "batch_norm_backward"], |s| batch_norm(s, map(1, 5, 5, 10), true)),
    Case::new("batch norm: large mean", &["batch_norm", "batch_norm_backward"], |s| {
        // E[x^2] - E[x]^2 would lose every digit of this variance in f32.
        let x = s.var(map(2, 4, 4, 3), Draw::Away);
        let shift = s.constant(map(2, 4, 4, 3), Draw::Constant(64.0));
        let x = Linear::record(&mut s.graph, &[(0.5, x), (1.0, shift)], "shifted")?;
        let [y, _, var] = BatchNorm::record(&mut s.graph, x, None, EPS);
        s.out(y);
        s.seen(var);
        let at = s.statistics(3);
        let w = s.constant(Shape::matrix(3, 3), Draw::Constant(0.0));
        s.set(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let y = Dense::record(&mut s.graph, Dense::RELU_POINTWISE, x, w, None, Some(at))?;
        let z = Mixture::normalise(&mut s.graph, normalised(y, at, None), "normalised")?;
        s.out(z);
        s.seen(at.1);
        Ok(())
    })
    .within(2e-4),
    Case::new("scale", &["scale", "scale_backward"], |s| {
        let x = s.var(map(2, 3, 3, 5), Draw::Normal(1.0));
        let w = s.var(Shape::vector(4), Draw::Normal(1.0));
        let (y, z) = (Scale::record(&mut s.graph, x, w, 3), Scale::record(&mut s.graph, x, w, 0));
        s.out(y);
        s.out(z);
        Ok(())
    }),
    Case::new("linear: one tensor twice, into slices", &["linear"], |s| {
        let shape = map(2, 3, 2, 5);
        let (x, y) = (s.var(shape, Draw::Normal(1.0)), s.wide(shape, Draw::Normal(1.0)));
        let concat = s.graph.tensor(shape.with_channels(10), "output");
        let (left, right) = (s.graph.channels(concat, 0, 5)?, s.graph.channels(concat, 5, 5)?);
        Linear::record_into(&mut s.graph, &[(0.5, x), (-2.0, y), (0.25, x)], right)?;
        Linear::record_into(&mut s.graph, &[(1.5, y)], left)?;
        s.out(concat);
        Ok(())
    }),
    Case::new("linear: a strict part of a map is used", &["linear", "fill"], |s| {
        let (x, y) = (s.var(map(2, 2, 2, 7), Draw::Normal(1.0)), s.var(map(2, 2, 2, 7), Draw::Normal(1.0)));
        let sum = Linear::record(&mut s.graph, &[(1.0, x), (0.5, y)], "sum")?;
        let part = s.graph.channels(sum, 2, 3)?;
        s.out(part);
        let overlapping = s.graph.channels(sum, 1, 3)?;
        s.out(overlapping);
        Ok(())
    }),
    Case::new("linear: rows of a matrix", &["linear"], |s| {
        let matrix = s.var(Shape::matrix(6, 4), Draw::Normal(1.0));
        let rows = s.graph.slice(matrix, 8, Shape::matrix(2, 4))?;
        s.out(rows);
        let more = s.graph.slice(matrix, 12, Shape::matrix(2, 4))?;
        s.out(more);
        Ok(())
    }),
    Case::new("linear: columns of a matrix in a flat vector", &["linear"], |s| {
        let matrix = s.flat(&[Shape::matrix(5, 4)])[0];
        for (start, c) in [(0, 2), (1, 3)] {
            let columns = s.graph.channels(matrix, start, c)?;
            s.out(columns);
        }
        Ok(())
    }),
    Case::new("softmax", &["softmax", "softmax_backward"], |s| {
        let p = mixing(s, 14, 8)?;
        s.out(p);
        Ok(())
    }),
    Case::new("softmax: of large numbers", &["softmax", "softmax_backward"], |s| {
        let alphas = s.var(Shape::matrix(2, 5), Draw::Normal(100.0));
        let p = softmax(&mut s.graph, alphas, 2, 5)?;
        let half = s.graph.slice(p, 5, Shape::vector(5))?;
        s.out(half);
        Ok(())
    }),
];
