//! Cases of what joins, pools and halves maps: mixtures, whole edges, pools and factorized reduce.

use supernet::Result;
use supernet::graph::{Shape, Tensor};
use supernet::ops::augment::DropMask;
use supernet::ops::dense::Dense;
use supernet::ops::elementwise::Linear;
use supernet::ops::mixture::{Mixture, SourceInput};
use supernet::ops::norm::Normalised;
use supernet::ops::pool::{GlobalPool, Pool};
use supernet::ops::reduce::{Reduce, ReduceInput};
use supernet::ops::separable::Separable;

use super::record::{branch, convolution, map, measured, mixing, normalised, vector, window};
use super::setup::{Case, Draw, Setup};

/// All primitives of one edge on one state, mixed; `reduction` halves the map.
fn edge(s: &mut Setup, x: Shape, reduction: bool) -> Result<()> {
    let (c, stride) = (x.c, if reduction { 2 } else { 1 });
    let x = s.var(x, Draw::Away);
    let weights = mixing(s, 1, 8)?;
    let plain = Normalised::plain(x);
    let places = [s.statistics(c), s.statistics(c)];
    let pools = Pool::record(&mut s.graph, window(3, stride, 1, true, true, true), x, &places)?;
    let mut maps: Vec<Normalised> = pools.iter().zip(places).map(|(p, at)| normalised(p.y, at, None)).collect();
    if reduction {
        let at = s.statistics(c);
        let edge = ReduceInput { even: s.weight(c, c / 2), odd: s.weight(c, c - c / 2), statistics: Some(at) };
        maps.push(normalised(Reduce::record(&mut s.graph, x, &[edge])?[0], at, None));
    } else {
        maps.push(plain);
    }
    let mut first = Vec::new();
    for geometry in [(3, 1, stride), (5, 1, stride), (3, 2, stride), (5, 2, stride)] {
        first.push(branch(s, plain, c, geometry, true)?);
    }
    let written = Separable::record(&mut s.graph, &first)?;
    let read = |i: usize| normalised(written[i], first[i].statistics.expect("asked for"), None);
    let second = [branch(s, read(0), c, (3, 1, 1), true)?, branch(s, read(1), c, (5, 1, 1), true)?];
    let halves = Separable::record(&mut s.graph, &second)?;
    for (y, input) in halves.into_iter().zip(second) {
        maps.push(normalised(y, input.statistics.expect("asked for"), None));
    }
    maps.extend([read(2), read(3)]);
    let sources: Vec<SourceInput> =
        maps.iter().enumerate().map(|(i, &map)| SourceInput { map, weight: Some(i + 1), mask: None }).collect();
    let node = s.graph.tensor(s.graph.shape(maps[0].y), "node");
    Mixture::record(&mut s.graph, &sources, Some(weights), None, node)?;
    s.out(node);
    Ok(())
}

fn pool(s: &mut Setup, x: Shape, op: Pool, how: Draw) -> Result<()> {
    let c = x.c;
    let x = s.var(x, how);
    let kinds = usize::from(op.max) + usize::from(op.average);
    let places: Vec<_> = (0..if op.statistics { kinds } else { 0 }).map(|_| s.statistics(c)).collect();
    for pooled in Pool::record(&mut s.graph, op, x, &places)? {
        s.out(pooled.y);
        for t in pooled.statistics.into_iter().flat_map(|(m, v)| [m, v]) {
            s.seen(t);
        }
    }
    Ok(())
}

fn reduce(s: &mut Setup, x: Shape, halves: &[(usize, usize)], statistics: bool) -> Result<Vec<(Tensor, ReduceInput)>> {
    let c_in = x.c;
    let x = s.var(x, Draw::Away);
    let edge = |&(even, odd): &(usize, usize)| ReduceInput {
        even: s.weight(c_in, even),
        odd: s.weight(c_in, odd),
        statistics: statistics.then(|| s.statistics(even + odd)),
    };
    let edges: Vec<ReduceInput> = halves.iter().map(edge).collect();
    let maps = Reduce::record(&mut s.graph, x, &edges)?;
    Ok(maps.into_iter().zip(edges).collect())
}

fn reduce_alone(s: &mut Setup, x: Shape, halves: &[(usize, usize)], statistics: bool) -> Result<()> {
    for (y, edge) in reduce(s, x, halves, statistics)? {
        s.out(y);
        for t in edge.statistics.into_iter().flat_map(|(m, v)| [m, v]) {
            s.seen(t);
        }
    }
    Ok(())
}

/// Their part of the table, in its order.
pub(super) const CASES: &[Case] = &[
    // Mixtures.
    Case::new("mixture: weights, one of them unused", &["mixture", "mixture_backward", "softmax_backward"], |s| {
        let weights = mixing(s, 2, 4)?;
        let shape = map(2, 3, 5, 5);
        let maps = [s.var(shape, Draw::Away), s.var(shape, Draw::Away), s.var(shape, Draw::Away)];
        let sources = [
            SourceInput { map: measured(s, maps[0], false), weight: Some(1), mask: None },
            SourceInput { map: measured(s, maps[1], true), weight: Some(2), mask: None },
            SourceInput { map: Normalised::plain(maps[2]), weight: Some(3), mask: None },
            SourceInput { map: Normalised::plain(maps[0]), weight: Some(5), mask: None },
            SourceInput { map: measured(s, maps[1], false), weight: Some(6), mask: None },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, Some(weights), None, node)?;
        s.out(node);
        Ok(())
    }),
    Case::new("mixture: drop path", &["mixture", "mixture_backward", "drop_mask"], |s| {
        let shape = map(5, 2, 3, 3);
        let inputs = [vector(s, 1, Draw::Constant(0.5)), vector(s, 1, Draw::Constant(7.0))];
        let mask = DropMask::record(&mut s.graph, DropMask { seed: 5 }, 2, 5, inputs);
        let maps = [s.var(shape, Draw::Away), s.var(shape, Draw::Away), s.var(shape, Draw::Away)];
        let sources = [
            SourceInput { map: measured(s, maps[0], true), weight: None, mask: Some(1) },
            SourceInput { map: Normalised::plain(maps[1]), weight: None, mask: Some(0) },
            SourceInput { map: Normalised::plain(maps[2]), weight: None, mask: None },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, None, Some(mask), node)?;
        s.out(node);
        s.seen(mask);
        Ok(())
    }),
    Case::new("mixture: mask and weight together", &["mixture", "mixture_backward"], |s| {
        let (shape, weights) = (map(3, 2, 2, 4), mixing(s, 1, 3)?);
        let mask = s.constant(Shape::matrix(1, 3), Draw::Constant(0.0));
        s.set(&[2.0, 0.0, 2.0]);
        let maps = [s.var(shape, Draw::Away), s.var(shape, Draw::Away)];
        let sources = [
            SourceInput { map: measured(s, maps[0], true), weight: Some(2), mask: Some(0) },
            SourceInput { map: Normalised::plain(maps[1]), weight: Some(0), mask: Some(0) },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, Some(weights), Some(mask), node)?;
        s.out(node);
        Ok(())
    }),
    Case::new("mixture: nodes written side by side, read by each other", &["mixture", "mixture_backward"], |s| {
        let (shape, weights) = (map(2, 3, 3, 3), mixing(s, 3, 2)?);
        let x = s.var(shape, Draw::Away);
        let concat = s.graph.tensor(shape.with_channels(9), "output");
        let mut states = vec![x];
        for node in 0..3 {
            let own = s.graph.slice(weights, 2 * node, Shape::vector(2))?;
            let out = s.graph.channels(concat, 3 * node, 3)?;
            let last = states[node];
            let sources = [
                SourceInput { map: measured(s, last, false), weight: Some(1), mask: None },
                SourceInput { map: Normalised::plain(last), weight: Some(0), mask: None },
                SourceInput { map: Normalised::plain(x), weight: None, mask: None },
            ];
            Mixture::record(&mut s.graph, &sources, Some(own), None, out)?;
            states.push(out);
        }
        let w = s.weight(9, 4);
        let y = Dense::record(&mut s.graph, convolution(1, 1, 0), concat, w, None, None)?;
        s.out(y);
        Ok(())
    }),
    Case::new("mixture: sources are slices of one map", &["mixture", "mixture_backward"], |s| {
        let wide = s.var(map(2, 3, 2, 9), Draw::Away);
        let shape = map(2, 3, 2, 3);
        let mut sources = Vec::new();
        for start in [0, 4, 5, 4] {
            let y = s.graph.channels(wide, start, 3)?;
            let map = if start == 4 { measured(s, y, true) } else { Normalised::plain(y) };
            sources.push(SourceInput { map, weight: None, mask: None });
        }
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, None, None, node)?;
        s.out(node);
        Ok(())
    }),
    Case::new("mixture: reads a concatenation whose slices are also read", &["mixture", "mixture_backward"], |s| {
        let shape = map(2, 2, 3, 3);
        let (a, b) = (s.var(shape, Draw::Away), s.var(shape, Draw::Away));
        let concat = s.graph.tensor(shape.with_channels(6), "output");
        let (left, right) = (s.graph.channels(concat, 0, 3)?, s.graph.channels(concat, 3, 3)?);
        Linear::record_into(&mut s.graph, &[(0.5, a), (1.5, b)], left)?;
        Linear::record_into(&mut s.graph, &[(1.0, b)], right)?;
        let whole = measured(s, concat, false);
        let z = Mixture::normalise(&mut s.graph, whole, "normalised")?;
        s.out(z);
        let again = s.graph.channels(concat, 3, 3)?;
        let half = measured(s, again, true);
        let z = Mixture::normalise(&mut s.graph, half, "normalised")?;
        s.out(z);
        s.out(right);
        Ok(())
    }),
    Case::new("mixture: batch norm with running statistics", &["mixture"], |s| {
        // Evaluation reads lasting statistics: a forward only, since the gradient of that form is never taken.
        let y = s.constant(map(2, 3, 3, 10), Draw::Normal(1.0));
        let (mean, var) = (vector(s, 10, Draw::Normal(1.0)), vector(s, 10, Draw::Positive));
        let affine = (vector(s, 10, Draw::Positive), vector(s, 10, Draw::Normal(1.0)));
        let z = Mixture::normalise(&mut s.graph, normalised(y, (mean, var), Some(affine)), "normalised")?;
        s.seen(z);
        Ok(())
    }),
    Case::new("edge: all primitives", &["mixture", "separable", "pool", "pool_backward", "softmax"], |s| {
        edge(s, map(2, 5, 4, 4), false)
    }),
    Case::new("edge: all primitives, reduction at odd sizes", &["mixture", "reduce", "pool", "softmax"], |s| {
        edge(s, map(2, 7, 5, 4), true)
    }),
    // Pools.
    Case::new("pool: maximum and average", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 5, 7, 5), window(3, 1, 1, true, true, true), Draw::Normal(1.0))
    }),
    Case::new("pool: stride 2 at odd sizes", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 7, 5, 10), window(3, 2, 1, true, true, true), Draw::Normal(1.0))
    }),
    Case::new("pool: stride 2 at even sizes, maximum alone", &["pool", "pool_backward"], |s| {
        pool(s, map(1, 6, 4, 3), window(3, 2, 1, true, false, true), Draw::Normal(1.0))
    }),
    Case::new("pool: average 5x5 of stride 3 without padding", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 8, 9, 3), window(5, 3, 0, false, true, false), Draw::Normal(1.0))
    }),
    Case::new("pool: window wider than the map", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 1, 2, 36), window(3, 1, 1, true, true, false), Draw::Normal(1.0))
    }),
    Case::new("pool: ties", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 6, 5, 8), window(3, 1, 1, true, true, true), Draw::Ties)
    }),
    Case::new("pool: ties at stride 2", &["pool", "pool_backward"], |s| {
        pool(s, map(1, 5, 6, 16), window(3, 2, 1, true, false, false), Draw::Ties)
    }),
    Case::new("pool: everything tied", &["pool", "pool_backward"], |s| {
        let x = s.var(map(1, 4, 4, 3), Draw::Ties);
        s.variables.last_mut().expect("just declared").smooth = false;
        let zero = Linear::record(&mut s.graph, &[(1.0, x), (-1.0, x)], "zero")?;
        let y = Pool::record(&mut s.graph, window(3, 1, 1, true, false, false), zero, &[])?[0].y;
        s.out(y);
        Ok(())
    }),
    Case::new("pool: slice of channels, masked paths, skip beside it", &["pool", "pool_backward"], |s| {
        let shape = map(3, 4, 3, 5);
        let x = s.wide(shape, Draw::Normal(1.0));
        let mask = s.constant(Shape::matrix(3, 3), Draw::Positive);
        let pools = Pool::record(&mut s.graph, window(3, 1, 1, true, true, false), x, &[])?;
        let average = measured(s, pools[1].y, false);
        let sources = [
            SourceInput { map: Normalised::plain(pools[0].y), weight: None, mask: Some(2) },
            SourceInput { map: Normalised::plain(x), weight: None, mask: Some(0) },
            SourceInput { map: average, weight: None, mask: Some(1) },
            SourceInput { map: Normalised::plain(pools[1].y), weight: None, mask: None },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, None, Some(mask), node)?;
        s.out(node);
        s.out(pools[0].y);
        Ok(())
    }),
    Case::new("global pool", &["global_pool", "global_pool_backward"], |s| {
        let x = s.wide(map(3, 3, 5, 10), Draw::Normal(1.0));
        let y = GlobalPool::record(&mut s.graph, x);
        s.out(y);
        Ok(())
    }),
    // Factorized reduce.
    Case::new("reduce: one edge at even sizes", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(2, 4, 6, 8), &[(5, 5)], true)
    }),
    Case::new("reduce: three edges at odd sizes", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(2, 5, 7, 5), &[(4, 4), (4, 4), (4, 4)], true)
    }),
    Case::new("reduce: halves of two and three channels", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(1, 3, 4, 3), &[(2, 3)], false)
    }),
    Case::new("reduce: one pixel", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(2, 1, 1, 10), &[(1, 1)], false)
    }),
    Case::new("reduce: normalised, two of three edges used", &["reduce", "reduce_backward", "mixture"], |s| {
        let edges = reduce(s, map(2, 5, 6, 6), &[(3, 3), (3, 3), (3, 3)], true)?;
        for (y, edge) in &edges[1..] {
            let affine = s.affine(6);
            let at = edge.statistics.expect("asked for");
            let z = Mixture::normalise(&mut s.graph, normalised(*y, at, Some(affine)), "normalised")?;
            s.out(z);
        }
        Ok(())
    }),
    Case::new("reduce: slice of channels, flat weights", &["reduce", "reduce_backward"], |s| {
        let x = s.wide(map(2, 4, 3, 4), Draw::Away);
        let [even, odd] = s.flat(&[Shape::matrix(4, 2), Shape::matrix(4, 2)])[..] else { unreachable!() };
        let y = Reduce::record(&mut s.graph, x, &[ReduceInput { even, odd, statistics: None }])?[0];
        s.out(y);
        Ok(())
    }),
];
