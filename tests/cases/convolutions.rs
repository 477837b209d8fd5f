//! Cases of dense and separable convolutions.

use supernet::Result;
use supernet::graph::Shape;
use supernet::ops::dense::Dense;
use supernet::ops::mixture::{Mixture, SourceInput};
use supernet::ops::norm::Normalised;
use supernet::ops::separable::{BranchInput, Separable};

use super::record::{branch, convolution, map, measured, normalised};
use super::setup::{Case, Draw, Setup};

/// Dense convolution with everything optional.
fn dense(s: &mut Setup, x: Shape, c: usize, op: Dense) -> Result<()> {
    let x = s.var(x, Draw::Away);
    let w = s.weight(op.kernel * op.kernel * s.graph.shape(x).c, c);
    let bias = op.bias.then(|| s.var(Shape::vector(c), Draw::Normal(1.0)));
    let statistics = op.statistics.then(|| s.statistics(c));
    let y = Dense::record(&mut s.graph, op, x, w, bias, statistics)?;
    s.out(y);
    for t in statistics.into_iter().flat_map(|(m, v)| [m, v]) {
        s.seen(t);
    }
    Ok(())
}

fn separable(s: &mut Setup, x: Shape, c: usize, geometry: (usize, usize, usize), statistics: bool) -> Result<()> {
    let x = s.var(x, Draw::Away);
    let branch = branch(s, Normalised::plain(x), c, geometry, statistics)?;
    let y = Separable::record(&mut s.graph, &[branch])?[0];
    s.out(y);
    for t in branch.statistics.into_iter().flat_map(|(m, v)| [m, v]) {
        s.seen(t);
    }
    Ok(())
}

/// Both halves of a separable convolution; the second reads the first's map through its normalisation.
fn two_halves(s: &mut Setup, x: Shape, kernel: usize, stride: usize, affine: bool) -> Result<()> {
    let c = x.c;
    let x = s.var(x, Draw::Away);
    let first = branch(s, Normalised::plain(x), c, (kernel, 1, stride), true)?;
    let y = Separable::record(&mut s.graph, &[first])?[0];
    let affine = affine.then(|| s.affine(c));
    let h = normalised(y, first.statistics.expect("asked for"), affine);
    let second = branch(s, h, c, (kernel, 1, 1), true)?;
    let z = Separable::record(&mut s.graph, &[second])?[0];
    let out = normalised(z, second.statistics.expect("asked for"), None);
    let out = Mixture::normalise(&mut s.graph, out, "normalised")?;
    s.out(out);
    Ok(())
}

/// Their part of the table, in its order.
pub(super) const CASES: &[Case] = &[
    // Dense convolutions.
    Case::new("dense: pointwise with ReLU and statistics", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 5, 7, 8), 16, Dense::RELU_POINTWISE)
    }),
    Case::new("dense: stem of a batch of one", &["dense", "dense_backward"], |s| {
        dense(s, map(1, 5, 6, 3), 10, Dense { statistics: true, ..convolution(3, 1, 1) })
    }),
    Case::new("dense: stride 2 at odd sizes", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 7, 5, 3), 5, Dense { relu: true, ..convolution(3, 2, 1) })
    }),
    Case::new("dense: stride that does not divide the size", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 8, 6, 2), 3, convolution(3, 2, 0))
    }),
    Case::new("dense: 2x2 with bias", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 2, 3, 5), 7, Dense { relu: true, bias: true, ..convolution(2, 1, 0) })
    }),
    Case::new("dense: linear layer", &["dense", "dense_backward"], |s| {
        dense(s, map(5, 1, 1, 36), 10, Dense { bias: true, ..convolution(1, 1, 0) })
    }),
    Case::new("dense: one channel to one", &["dense", "dense_backward"], |s| {
        dense(s, map(1, 3, 3, 1), 1, Dense { statistics: true, ..convolution(3, 1, 1) })
    }),
    Case::new("dense: bias alone has a gradient", &["dense", "dense_backward"], |s| {
        let x = s.constant(map(3, 2, 1, 4), Draw::Normal(1.0));
        let w = s.constant(Shape::matrix(4, 5), Draw::Normal(1.0));
        let bias = s.var(Shape::vector(5), Draw::Normal(1.0));
        let y = Dense::record(&mut s.graph, convolution(1, 1, 0), x, w, Some(bias), None)?;
        s.out(y);
        Ok(())
    }),
    Case::new("dense: slice of channels, flat weights", &["dense", "dense_backward"], |s| {
        let x = s.wide(map(2, 3, 3, 5), Draw::Away);
        let [w, bias] = s.flat(&[Shape::matrix(5, 6), Shape::vector(6)])[..] else { unreachable!() };
        let op = Dense { relu: true, bias: true, ..convolution(1, 1, 0) };
        let y = Dense::record(&mut s.graph, op, x, w, Some(bias), None)?;
        let narrow = s.graph.channels(y, 1, 3)?;
        s.out(narrow);
        s.out(y);
        Ok(())
    }),
    Case::new("dense: behind it an affine normalisation", &["dense", "dense_backward", "mixture"], |s| {
        let x = s.var(map(2, 4, 5, 3), Draw::Away);
        let (w, at) = (s.weight(27, 5), s.statistics(5));
        let op = Dense { relu: true, ..convolution(3, 1, 1) };
        let y = Dense::record(&mut s.graph, op, x, w, None, Some(at))?;
        let affine = s.affine(5);
        let z = Mixture::normalise(&mut s.graph, normalised(y, at, Some(affine)), "normalised")?;
        s.out(z);
        Ok(())
    }),
    Case::new("dense: its map is read by two normalisations and as it is", &["dense", "affine", "mixture"], |s| {
        let x = s.var(map(2, 3, 4, 3), Draw::Away);
        let (w, at) = (s.weight(3, 4), s.statistics(4));
        let y = Dense::record(&mut s.graph, Dense::RELU_POINTWISE, x, w, None, Some(at))?;
        s.out(y);
        for _ in 0..2 {
            let affine = s.affine(4);
            let z = Mixture::normalise(&mut s.graph, normalised(y, at, Some(affine)), "normalised")?;
            s.out(z);
        }
        Ok(())
    }),
    // Separable convolutions.
    Case::new("separable: 3x3 at odd sizes", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 5, 7, 5), 5, (3, 1, 1), true)
    }),
    Case::new("separable: 5x5 of stride 2 at odd sizes", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 7, 5, 8), 8, (5, 1, 2), true)
    }),
    Case::new("separable: 3x3 of stride 2 at even sizes", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 6, 8, 3), 10, (3, 1, 2), true)
    }),
    Case::new("separable: dilated 3x3 of stride 2", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 7, 6, 3), 3, (3, 2, 2), true)
    }),
    Case::new("separable: dilated 5x5 wider than the map", &["separable", "separable_backward"], |s| {
        separable(s, map(1, 3, 4, 10), 10, (5, 2, 1), true)
    }),
    Case::new("separable: one channel, one image", &["separable", "separable_backward"], |s| {
        separable(s, map(1, 4, 3, 1), 1, (3, 1, 1), false)
    }),
    Case::new("separable: 36 channels to 16", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 3, 3, 36), 16, (3, 1, 1), true)
    }),
    Case::new("separable: 16 channels to 36", &["separable", "separable_backward"], |s| {
        separable(s, map(1, 4, 2, 16), 36, (3, 2, 1), false)
    }),
    Case::new("separable: one pixel", &["separable", "separable_backward"], |s| {
        separable(s, map(3, 1, 1, 5), 8, (5, 2, 2), true)
    }),
    Case::new("separable: slice of channels, flat weights", &["separable", "separable_backward"], |s| {
        let x = s.wide(map(2, 5, 4, 5), Draw::Away);
        let [depthwise, pointwise] = s.flat(&[Shape::matrix(9, 5), Shape::matrix(5, 6)])[..] else { unreachable!() };
        let x = Normalised::plain(x);
        let input = BranchInput { x, depthwise, pointwise, geometry: (3, 1, 1), statistics: None };
        let y = Separable::record(&mut s.graph, &[input])?[0];
        let narrow = s.graph.channels(y, 3, 2)?;
        s.out(narrow);
        Ok(())
    }),
    Case::new("separable: branches that share a map", &["separable", "separable_backward"], |s| {
        let x = Normalised::plain(s.var(map(2, 6, 5, 5), Draw::Away));
        let mut branches = Vec::new();
        for geometry in [(3, 1, 1), (5, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2)] {
            branches.push(branch(s, x, 5, geometry, geometry.0 == 3)?);
        }
        let maps = Separable::record(&mut s.graph, &branches)?;
        for y in maps {
            s.out(y);
        }
        Ok(())
    }),
    Case::new("separable: branches of maps of different sizes", &["separable", "separable_backward"], |s| {
        let (x, y) = (s.var(map(2, 4, 4, 3), Draw::Away), s.var(map(2, 3, 5, 8), Draw::Away));
        let first = branch(s, Normalised::plain(x), 5, (3, 1, 1), true)?;
        let second = branch(s, Normalised::plain(y), 2, (5, 1, 2), false)?;
        for y in Separable::record(&mut s.graph, &[first, second])? {
            s.out(y);
        }
        Ok(())
    }),
    Case::new("separable: two halves", &["separable", "separable_backward", "mixture_backward"], |s| {
        two_halves(s, map(2, 5, 5, 5), 3, 1, false)
    }),
    Case::new("separable: two halves, stride 2, affine", &["separable", "separable_backward"], |s| {
        two_halves(s, map(2, 7, 6, 4), 5, 2, true)
    }),
    Case::new("separable: two branches read one normalised map", &["separable", "separable_backward"], |s| {
        let y = s.var(map(2, 4, 5, 4), Draw::Away);
        let h = measured(s, y, true);
        let branches = [branch(s, h, 4, (3, 1, 1), false)?, branch(s, h, 3, (3, 2, 2), true)?];
        for z in Separable::record(&mut s.graph, &branches)? {
            s.out(z);
        }
        Ok(())
    }),
    Case::new("separable: map with one path into two masked nodes", &["separable", "separable_backward"], |s| {
        let x = Normalised::plain(s.var(map(3, 4, 4, 3), Draw::Away));
        let input = branch(s, x, 4, (3, 1, 1), true)?;
        let y = Separable::record(&mut s.graph, &[input])?[0];
        let mask = s.constant(Shape::matrix(2, 3), Draw::Constant(0.0));
        s.set(&[1.25, 0.0, 1.25, 0.0, 1.25, 1.25]);
        let affine = s.affine(4);
        let map = normalised(y, input.statistics.expect("asked for"), Some(affine));
        let node = s.graph.tensor(s.graph.shape(y), "node");
        let source = SourceInput { map, weight: None, mask: Some(1) };
        Mixture::record(&mut s.graph, &[source], None, Some(mask), node)?;
        s.out(node);
        Ok(())
    }),
];
