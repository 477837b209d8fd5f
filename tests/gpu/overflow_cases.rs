//! Maps with a few NaN, as a search that diverges has them: they pass through ReLU wherever it stands, so that no result
//! looks sound which is not.

use supernet::graph::{Shape, Tensor};
use supernet::ops::dense::Dense;
use supernet::ops::elementary::Relu;
use supernet::ops::separable::{Branch, Separable};

use super::cases::Builder;
use super::harness::Case;

/// An op that reads such a map.
type Reads = fn(&mut Builder, Tensor, Shape);

const OPS: [(&str, Reads); 3] = [("ReLU", relu), ("dense", dense), ("separable", separable)];

fn relu(b: &mut Builder, map: Tensor, x: Shape) {
    let y = b.output("y", x, None, false);
    b.case.graph.push(Relu, vec![map], vec![y]);
}

fn dense(b: &mut Builder, map: Tensor, x: Shape) {
    let dense = Dense { kernel: 1, stride: 1, pad: 0, relu: true, bias: false, statistics: false };
    let weights = b.map("w", Shape::matrix(x.c, 8), None, |v| v);
    let y = b.output("y", dense.output(x, 8), None, false);
    b.case.graph.push(dense, vec![map, weights], vec![y]);
}

fn separable(b: &mut Builder, map: Tensor, x: Shape) {
    let branch = Branch { kernel: 3, dilation: 1, stride: if x.h < 20 { 2 } else { 1 }, norm: None, statistics: false };
    let [depthwise, pointwise] = [("depthwise", 9, x.c), ("pointwise", x.c, 8)]
        .map(|(name, rows, columns)| b.map(name, Shape::matrix(rows, columns), None, |v| v));
    let y = b.output("y", branch.output(x, 8), None, false);
    b.case.graph.push(Separable { branches: vec![branch] }, vec![map, depthwise, pointwise], vec![y]);
}

/// All cases.
pub fn all() -> Vec<Case> {
    // Regions in shared memory, gathers, and channels that are no whole quads.
    let maps =
        [(Shape::map(2, 24, 24, 4), None), (Shape::map(2, 17, 16, 8), Some((20, 8))), (Shape::map(1, 9, 11, 5), None)];
    let mut cases = Vec::new();
    for (x, slice) in maps {
        for (name, record) in OPS {
            let mut b = Builder::new(format!("{name} of NaN in {x}, slice {slice:?}"));
            let map = b.map("x", x, slice, |v| if v > 2.4 { f64::NAN } else { v });
            record(&mut b, map, x);
            cases.push(b.case);
        }
    }
    cases
}
