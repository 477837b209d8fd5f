//! Cases of pooling: ties, windows beyond the border, strides, pixels under no window, and lists of terms.

use supernet::graph::{Shape, TermKind};
use supernet::ops::pool::{Pool, PoolBackward};

use super::cases::Builder;
use super::dense_cases::term;
use super::harness::Case;

/// Forward and backward with these terms at maximum, average and the map itself, in one program.
fn pool(op: Pool, x: Shape, slice: bool, terms: [&[TermKind]; 3], accumulate: bool) -> Case {
    let flags = if accumulate { ", accumulating" } else { "" };
    let mut b = Builder::new(format!("{op:?} of {x}, slices {slice}, {terms:?}{flags}"));
    let within = |c: usize| if slice { Some((2 * c + 4, c.next_multiple_of(4))) } else { None };
    let vector = Shape::vector(x.c);
    // Few different values: many windows have two maxima.
    let map = b.map("x", x, within(x.c), |x| (2.0 * x).round() / 2.0);
    let ys = op.output(x);
    let (mut outputs, mut maps) = (Vec::new(), Vec::new());
    for (name, wanted) in [("max", op.max), ("average", op.average)] {
        if wanted {
            let y = b.output(name, ys, within(x.c), accumulate);
            outputs.push(y);
            maps.push(y.tensor);
            if op.statistics {
                outputs.extend(["mean", "variance"].map(|n| b.output(&format!("{n} {name}"), vector, None, false)));
            }
        }
    }
    b.case.graph.push(op, vec![map], outputs);
    maps.push(map);
    if !op.max {
        maps.insert(0, map);
    }
    if !op.average {
        maps.insert(1, map);
    }

    let mut inputs = vec![map];
    for (group, kinds) in terms.iter().enumerate() {
        if kinds.iter().any(|kind| kind.coef) {
            inputs.push(maps[group]);
        }
        for (i, &kind) in kinds.iter().enumerate() {
            let shape = if group == 2 { x } else { ys };
            term(&mut b, &format!("{group} {i}"), kind, shape, within(x.c), &mut inputs);
        }
    }
    let dx = b.output("dx", x, within(x.c), accumulate);
    let [max, average, direct] = terms.map(<[TermKind]>::to_vec);
    b.case.graph.push(PoolBackward { pool: op, max, average, direct }, inputs, vec![dx]);
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let plain = TermKind::default();
    let coef = TermKind { coef: true, mask: None };
    let full = TermKind { coef: true, mask: Some(1) };
    let masked = TermKind { coef: false, mask: Some(0) };
    let every = [plain, coef, full, masked];
    let op = Pool { kernel: 3, stride: 1, pad: 1, max: true, average: true, statistics: true };
    let reduction = Pool { stride: 2, ..op };
    vec![
        pool(op, Shape::map(2, 8, 6, 16), false, [&[coef], &[coef], &[coef]], false),
        pool(op, Shape::map(3, 5, 7, 3), false, [&every, &every, &every], true),
        pool(op, Shape::map(1, 9, 5, 72), true, [&[plain, coef], &[masked], &[]], false),
        pool(reduction, Shape::map(2, 8, 8, 20), false, [&[coef, coef], &[coef, full], &[plain]], false),
        pool(reduction, Shape::map(2, 7, 9, 6), true, [&[full], &[], &[masked, coef]], true),
        pool(Pool { max: false, ..reduction }, Shape::map(3, 5, 6, 8), false, [&[], &[masked], &[]], false),
        pool(
            Pool { average: false, statistics: false, ..op },
            Shape::map(1, 4, 4, 10),
            false,
            [&[plain], &[], &[]],
            true,
        ),
        // Windows that leave gaps, and windows that overlap widely.
        pool(
            Pool { kernel: 2, stride: 3, pad: 0, ..op },
            Shape::map(2, 7, 8, 4),
            false,
            [&[coef], &[plain], &[]],
            false,
        ),
        pool(
            Pool { kernel: 5, stride: 1, pad: 2, ..op },
            Shape::map(1, 6, 7, 16),
            false,
            [&[full], &[coef], &[]],
            false,
        ),
        // Nothing flows back, and more rows than a chunk covers at once.
        pool(op, Shape::map(2, 150, 128, 36), false, [&[], &[], &[]], false),
        pool(op, Shape::map(2, 1, 1, 8), false, [&[plain], &[plain], &[]], false),
    ]
}
