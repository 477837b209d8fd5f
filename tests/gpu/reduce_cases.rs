//! Cases of factorized reduces: several edges, odd sides and halves, views, and every kind of gradient.

use supernet::graph::{Shape, TermKind};
use supernet::ops::reduce::{Reduce, ReduceBackward};

use super::cases::Builder;
use super::dense_cases::term;
use super::harness::Case;

/// Forward and backward of edges with these kinds of gradient, in one program.
fn reduce(
    x: Shape,
    halves: [usize; 2],
    slice: bool,
    edges: &[(TermKind, bool)],
    input: bool,
    accumulate: bool,
) -> Case {
    let flags = if accumulate { ", accumulating" } else { "" };
    let name = format!("reduce of {x} to {halves:?}, slices {slice}, {edges:?}, dx {input}{flags}");
    let mut b = Builder::new(name);
    let within = |c: usize| if slice { Some((2 * c + 4, c.next_multiple_of(4))) } else { None };
    let map = b.map("x", x, within(x.c), |x| x + 0.1);
    let c = halves[0] + halves[1];
    let ys = Reduce::output(x, c);
    let (mut inputs, mut outputs, mut pairs, mut maps) = (vec![map], Vec::new(), Vec::new(), Vec::new());
    for edge in 0..edges.len() {
        let pair = [0, 1].map(|h| b.state(&format!("w {edge} {h}"), Shape::matrix(x.c, halves[h]), |x| 0.3 * x));
        let y = b.output(&format!("y {edge}"), ys, within(c), accumulate);
        inputs.extend(pair);
        outputs.push(y);
        outputs.extend(["mean", "variance"].map(|n| b.output(&format!("{n} {edge}"), Shape::vector(c), None, false)));
        pairs.push(pair);
        maps.push(y.tensor);
    }
    b.case.graph.push(Reduce { edges: edges.len(), statistics: true }, inputs, outputs);

    let (mut inputs, mut outputs) = (vec![map], Vec::new());
    if input {
        outputs.push(b.output("dx", x, within(x.c), accumulate));
    }
    for (edge, &(kind, weight)) in edges.iter().enumerate() {
        inputs.extend(pairs[edge]);
        if kind.coef {
            inputs.push(maps[edge]);
        }
        term(&mut b, &edge.to_string(), kind, ys, within(c), &mut inputs);
        if weight {
            let dw = |h: usize| b.output(&format!("dw {edge} {h}"), Shape::matrix(x.c, halves[h]), None, accumulate);
            outputs.extend([0, 1].map(dw));
        }
    }
    b.case.graph.push(ReduceBackward { edges: edges.to_vec(), input }, inputs, outputs);
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let plain = TermKind::default();
    let coef = TermKind { coef: true, mask: None };
    let full = TermKind { coef: true, mask: Some(1) };
    let masked = TermKind { coef: false, mask: Some(0) };
    vec![
        reduce(Shape::map(2, 8, 6, 16), [8, 8], false, &[(coef, true)], true, false),
        reduce(Shape::map(3, 7, 9, 20), [10, 10], true, &[(full, true), (masked, false), (plain, true)], true, true),
        reduce(Shape::map(1, 5, 5, 3), [3, 4], false, &[(plain, true), (coef, true)], true, false),
        reduce(Shape::map(2, 16, 16, 72), [36, 36], true, &[(full, true)], false, false),
        reduce(Shape::map(2, 6, 4, 8), [4, 4], false, &[(full, false); 5], true, false),
        reduce(Shape::map(2, 1, 1, 8), [4, 4], false, &[(plain, true)], true, false),
    ]
}
