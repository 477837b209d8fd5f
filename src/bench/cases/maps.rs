//! The families of a network's maps, fused as networks record them, and the ops before the first cell and behind the
//! last.

use super::super::recorder::{Draw, Recorder};
use super::{At, CONVOLUTIONS, List, OTHERS, SEARCH, TRAINING, at};
use crate::error::Result;
use crate::graph::{Output, Shape, Tensor, TermKind};
use crate::ops::augment::{Augment, DropMask};
use crate::ops::dense::Dense;
use crate::ops::elementwise::{Affine, Fill, Linear};
use crate::ops::loss::CrossEntropy;
use crate::ops::mixture::{Mixture, SourceInput};
use crate::ops::norm::{Normalised, Statistics};
use crate::ops::pool::{GlobalPool, Pool};
use crate::ops::reduce::{Reduce, ReduceInput};
use crate::ops::separable::{BranchInput, Separable};
use crate::ops::softmax::Softmax;

/// Weights of a branch that reads `x`.
pub(super) fn branch(r: &mut Recorder, x: Normalised, c: usize, geometry: (usize, usize, usize)) -> BranchInput {
    let c_in = r.graph.shape(x.y).c;
    let (depthwise, pointwise) = (r.weight(geometry.0 * geometry.0, c_in), r.weight(c_in, c));
    BranchInput { x, depthwise, pointwise, geometry, statistics: Some(r.statistics(c)) }
}

/// Records branches as one op and, behind each, the normalisation through which a cell reads it.
pub(super) fn branches(r: &mut Recorder, inputs: &[BranchInput]) -> Result<()> {
    let maps = Separable::record(&mut r.graph, inputs)?;
    for (y, input) in maps.into_iter().zip(inputs) {
        read_normalised(r, y, input.statistics.expect("every branch has them"))?;
    }
    Ok(())
}

/// An output that is read through its batch norm, so that the gradient at the map is a term.
pub(super) fn read_normalised(r: &mut Recorder, y: Tensor, statistics: (Tensor, Tensor)) -> Result<()> {
    let map = r.normalised(y, statistics);
    let z = Mixture::normalise(&mut r.graph, map, "normalised")?;
    r.output(z);
    Ok(())
}

const SEPARABLE: [&str; 2] = ["separable", "separable_backward"];

pub(super) fn separable(list: &mut List) {
    let one = |kernel: usize, dilation: usize, stride: usize, at: At| {
        move |r: &mut Recorder, batch: usize| {
            let x = Normalised::plain(r.map(at.shape(batch)));
            let input = branch(r, x, at.c, (kernel, dilation, stride));
            branches(r, &[input])
        }
    };
    for at in SEARCH.into_iter().chain(TRAINING) {
        for (name, kernel, dilation) in CONVOLUTIONS {
            list.push(&SEPARABLE, at, name, one(kernel, dilation, 1, at));
        }
        // The second half of a sep_conv reads the first half's map through its normalisation.
        list.push(&SEPARABLE, at, "sep_conv_5x5_second", move |r, batch| {
            let y = r.map(at.shape(batch));
            let x = r.drawn_normalised(y)?;
            let input = branch(r, x, at.c, (5, 1, 1));
            branches(r, &[input])
        });
    }
    for at in OTHERS {
        list.push(&SEPARABLE, at, "sep_conv_3x3", one(3, 1, 1, at));
        list.push(&SEPARABLE, at, "dil_conv_5x5", one(5, 2, 1, at));
    }
    for at in [at(32, 32, 64), at(64, 16, 64)] {
        list.push(&SEPARABLE, at, "sep_conv_5x5_stride_2", one(5, 1, 2, at));
        list.push(&SEPARABLE, at, "dil_conv_3x3_stride_2", one(3, 2, 2, at));
    }
    for at in SEARCH {
        // All convolutions of the four edges that leave a cell's input.
        list.push(&SEPARABLE, at, "4_edges", move |r, batch| {
            let x = Normalised::plain(r.map(at.shape(batch)));
            let mut inputs = Vec::new();
            for _ in 0..4 {
                for (_, kernel, dilation) in CONVOLUTIONS {
                    inputs.push(branch(r, x, at.c, (kernel, dilation, 1)));
                }
            }
            branches(r, &inputs)
        });
    }
}

pub(super) fn dense(list: &mut List) {
    const OPS: [&str; 2] = ["dense", "dense_backward"];
    let convolution = |op: Dense, c_out: usize, at: At| {
        move |r: &mut Recorder, batch: usize| {
            let x = r.map(at.shape(batch));
            let (w, statistics) = (r.weight(op.kernel * op.kernel * at.c, c_out), r.statistics(c_out));
            let y = Dense::record(&mut r.graph, op, x, w, None, Some(statistics))?;
            read_normalised(r, y, statistics)
        }
    };
    let stem = Dense { kernel: 3, stride: 1, pad: 1, relu: false, bias: false, statistics: true };
    list.push(&OPS, at(3, 32, 64), "stem_48", convolution(stem, 48, at(3, 32, 64)));
    list.push(&OPS, at(3, 32, 96), "stem_108", convolution(stem, 108, at(3, 32, 96)));
    for (c_out, at) in [
        (16, at(64, 32, 64)),
        (32, at(128, 16, 64)),
        (64, at(256, 8, 64)),
        (36, at(144, 32, 96)),
        (72, at(288, 16, 96)),
        (144, at(576, 8, 96)),
    ] {
        list.push(&OPS, at, &format!("pointwise_{c_out}"), convolution(Dense::RELU_POINTWISE, c_out, at));
    }
    let head = at(256, 1, 64);
    list.push(&OPS, head, "classifier_10", move |r, batch| {
        let x = r.map(head.shape(batch));
        let (w, bias) = (r.weight(head.c, 10), r.variable(Shape::vector(10), Draw::Normal(0.1)));
        let op = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: true, statistics: false };
        let y = Dense::record(&mut r.graph, op, x, w, Some(bias), None)?;
        r.output(y);
        Ok(())
    });
}

/// Both pools of a state with their statistics, read through their normalisations.
pub(super) fn pool(r: &mut Recorder, x: Tensor, stride: usize, average: bool) -> Result<()> {
    let c = r.graph.shape(x).c;
    let op = Pool { kernel: 3, stride, pad: 1, max: true, average, statistics: true };
    let places: Vec<_> = (0..1 + usize::from(average)).map(|_| r.statistics(c)).collect();
    let pooled = Pool::record(&mut r.graph, op, x, &places)?;
    for (map, place) in pooled.into_iter().zip(places) {
        read_normalised(r, map.y, place)?;
    }
    Ok(())
}

pub(super) fn pools(list: &mut List) {
    const OPS: [&str; 2] = ["pool", "pool_backward"];
    for at in SEARCH.into_iter().chain(TRAINING).chain(OTHERS) {
        list.push(&OPS, at, "max_avg_3x3", move |r, batch| {
            let x = r.map(at.shape(batch));
            pool(r, x, 1, true)
        });
    }
    for at in [at(32, 32, 64), at(64, 16, 64)] {
        list.push(&OPS, at, "max_avg_3x3_stride_2", move |r, batch| {
            let x = r.map(at.shape(batch));
            pool(r, x, 2, true)
        });
    }
    for at in [at(256, 8, 64), at(576, 8, 96)] {
        list.push(&["global_pool", "global_pool_backward"], at, "mean", move |r, batch| {
            let x = r.map(at.shape(batch));
            let y = GlobalPool::record(&mut r.graph, x);
            r.output(y);
            Ok(())
        });
    }
}

pub(super) fn reduce(list: &mut List) {
    const OPS: [&str; 2] = ["reduce", "reduce_backward"];
    for (edges, c_out, at) in [
        (4, 32, at(32, 32, 64)),
        (4, 64, at(64, 16, 64)),
        (1, 32, at(64, 32, 64)),
        (1, 72, at(144, 32, 96)),
        (1, 144, at(288, 16, 96)),
    ] {
        list.push(&OPS, at, &format!("{edges}_edges_{c_out}"), move |r, batch| {
            let x = r.map(at.shape(batch));
            let mut inputs = Vec::new();
            for _ in 0..edges {
                let (even, odd) = (r.weight(at.c, c_out / 2), r.weight(at.c, c_out / 2));
                inputs.push(ReduceInput { even, odd, statistics: Some(r.statistics(c_out)) });
            }
            let maps = Reduce::record(&mut r.graph, x, &inputs)?;
            for (y, input) in maps.into_iter().zip(inputs) {
                read_normalised(r, y, input.statistics.expect("every edge has them"))?;
            }
            Ok(())
        });
    }
}

pub(super) fn mixture(list: &mut List) {
    const OPS: [&str; 2] = ["mixture", "mixture_backward"];
    // A node of a search cell: every primitive but none on each edge, softmax weights, into a slice of the cell's output.
    for (edges, at) in SEARCH.into_iter().flat_map(|at| [(2, at), (5, at)]).chain(OTHERS.map(|at| (3, at))) {
        list.push(&OPS, at, &format!("search_{edges}_edges"), move |r, batch| {
            let alphas = r.variable(Shape::vector(8 * edges), Draw::Normal(0.5));
            let weights = Softmax::record(&mut r.graph, alphas, &vec![8; edges])?;
            let mut sources = Vec::new();
            for i in 0..7 * edges {
                let y = r.map(at.shape(batch));
                // The skip connection of an edge is the state itself.
                let map = if i % 7 == 2 { Normalised::plain(y) } else { r.drawn_normalised(y)? };
                sources.push(SourceInput { map, weight: Some(8 * (i / 7) + 1 + i % 7), mask: None });
            }
            let concat = r.graph.tensor(at.shape(batch).with_channels(4 * at.c), "output");
            let node = r.graph.channels(concat, at.c, at.c)?;
            Mixture::record(&mut r.graph, &sources, Some(weights), None, node)?;
            r.output(node);
            Ok(())
        });
    }
    // A node of a trained cell: two maps, drop path.
    for at in TRAINING {
        list.push(&OPS, at, "training_2_paths", move |r, batch| {
            let mask = r.constant(Shape::matrix(2, batch), Draw::Positive);
            let mut sources = Vec::new();
            for path in 0..2 {
                let y = r.map(at.shape(batch));
                let mut map = r.drawn_normalised(y)?;
                let affine = [Draw::Positive, Draw::Normal(0.1)].map(|d| r.variable(Shape::vector(at.c), d));
                map.norm = map.norm.map(|n| crate::ops::norm::NormTensors { affine: Some(affine.into()), ..n });
                sources.push(SourceInput { map, weight: None, mask: Some(path) });
            }
            let node = r.graph.tensor(at.shape(batch), "node");
            Mixture::record(&mut r.graph, &sources, None, Some(mask), node)?;
            r.output(node);
            Ok(())
        });
    }
}

pub(super) fn elementwise(list: &mut List) {
    for at in [SEARCH[0], SEARCH[2], TRAINING[0]] {
        list.push(&["statistics"], at, "batch", move |r, batch| {
            let x = r.map(at.shape(batch));
            let x = r.before_normalisation(x)?;
            let (mean, _) = Statistics::record(&mut r.graph, x);
            r.output(mean);
            Ok(())
        });
        list.push(&["linear"], at, "sum_of_2", move |r, batch| {
            let (x, y) = (r.map(at.shape(batch)), r.map(at.shape(batch)));
            let sum = Linear::record(&mut r.graph, &[(1.0, x), (0.4, y)], "sum")?;
            r.output(sum);
            Ok(())
        });
        list.push(&["affine"], at, "2_terms", move |r, batch| {
            let (y, g, h) = (r.map(at.shape(batch)), r.map(at.shape(batch)), r.map(at.shape(batch)));
            let coefficients = r.constant(Shape::matrix(3, at.c), Draw::Normal(0.5));
            let out = r.graph.tensor(at.shape(batch), "gradient");
            let terms = vec![TermKind { coef: true, mask: None }, TermKind::default()];
            r.graph.push(Affine { terms }, vec![y, g, coefficients, h], vec![Output::from(out)]);
            r.output(out);
            Ok(())
        });
        list.push(&["fill"], at, "zeros", move |r, batch| {
            let out = r.graph.tensor(at.shape(batch), "zeros");
            r.graph.push(Fill { value: 0.0 }, vec![], vec![Output::from(out)]);
            r.output(out);
            Ok(())
        });
    }
}

/// What stands before the first cell and behind the last.
pub(super) fn ends(list: &mut List) {
    for at in [at(3, 32, 64), at(3, 32, 256), at(1, 28, 32)] {
        list.push(&["augment"], at, "crop_flip_cutout", move |r, batch| {
            let pixels = r.constant(at.shape(batch), Draw::Below(256));
            let index = r.constant(Shape::vector(batch), Draw::Below(50_000));
            let epoch = r.constant(Shape::vector(1), Draw::Constant(3.0));
            let (mean, std) = (vec![0.5; at.c], vec![0.25; at.c]);
            let op = Augment { pad: 4, flip: true, cutout: 16, mean, std, seed: 11 };
            let out = Augment::record(&mut r.graph, op, [pixels, index, epoch]);
            r.output(out);
            Ok(())
        });
    }
    let logits = at(10, 1, 64);
    list.push(&["cross_entropy", "cross_entropy_backward"], logits, "10_classes", move |r, batch| {
        let x = r.map(logits.shape(batch));
        let labels = r.constant(Shape::vector(batch), Draw::Below(10));
        let (loss, _) = CrossEntropy::record(&mut r.graph, CrossEntropy { smoothing: 0.0 }, x, labels)?;
        r.output(loss);
        Ok(())
    });
    let masks = at(40, 1, 96);
    list.push(&["drop_mask"], masks, "40_paths", move |r, batch| {
        let p = r.constant(Shape::vector(1), Draw::Constant(0.2));
        let step = r.constant(Shape::vector(1), Draw::Constant(9.0));
        let mask = DropMask::record(&mut r.graph, DropMask { seed: 3 }, masks.c, batch, [p, step]);
        r.output(mask);
        Ok(())
    });
}
