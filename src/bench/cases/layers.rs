//! What other frameworks have too: ops that do one thing, and whole primitives forward and backward.

use super::super::recorder::Draw;
use super::maps::{branch, branches, pool, read_normalised};
use super::{CONVOLUTIONS, List, SEARCH, TRAINING, at};
use crate::graph::Shape;
use crate::ops::dense::Dense;
use crate::ops::elementary::{BatchNorm, Depthwise, Relu, Scale};
use crate::ops::norm::{Normalised, Statistics};

/// The unfused ops, from which the fused ones are checked. No network records them; one size each shows their cost.
pub(super) fn elementary(list: &mut List) {
    let at = at(16, 16, 16);
    list.push(&["relu", "relu_backward"], at, "reference", move |r, batch| {
        let x = r.map(at.shape(batch));
        let y = Relu::record(&mut r.graph, x);
        r.output(y);
        Ok(())
    });
    list.push(&["depthwise", "depthwise_backward"], at, "reference_3x3", move |r, batch| {
        let (x, w) = (r.map(at.shape(batch)), r.weight(9, at.c));
        let y = Depthwise::record(&mut r.graph, Depthwise { kernel: 3, dilation: 1, stride: 1 }, x, w);
        r.output(y);
        Ok(())
    });
    list.push(&["batch_norm", "batch_norm_backward"], at, "reference", move |r, batch| {
        let x = r.map(at.shape(batch));
        let [y, _, _] = BatchNorm::record(&mut r.graph, x, None, 1e-5);
        r.output(y);
        Ok(())
    });
    list.push(&["scale", "scale_backward"], at, "reference", move |r, batch| {
        let (x, w) = (r.map(at.shape(batch)), r.variable(Shape::vector(8), Draw::Positive));
        let y = Scale::record(&mut r.graph, x, w, 3);
        r.output(y);
        Ok(())
    });
}

/// Primitives as other frameworks have them, forward and backward with respect to input and weights: what the peers in
/// `benches/peers` measure too.
pub(super) fn layers(list: &mut List) {
    for at in [SEARCH[0], SEARCH[2], TRAINING[0]] {
        for (name, kernel, dilation) in [CONVOLUTIONS[2], CONVOLUTIONS[3]] {
            list.push(&["layer"], at, name, move |r, batch| {
                let x = Normalised::plain(r.map(at.shape(batch)));
                let input = branch(r, x, at.c, (kernel, dilation, 1));
                branches(r, &[input])
            });
        }
        list.push(&["layer"], at, "relu_pointwise_batch_norm", move |r, batch| {
            let x = r.map(at.shape(batch));
            let (w, statistics) = (r.weight(at.c, at.c), r.statistics(at.c));
            let y = Dense::record(&mut r.graph, Dense::RELU_POINTWISE, x, w, None, Some(statistics))?;
            read_normalised(r, y, statistics)
        });
        list.push(&["layer"], at, "max_pool_3x3", move |r, batch| {
            let x = r.map(at.shape(batch));
            pool(r, x, 1, false)
        });
        list.push(&["layer"], at, "batch_norm", move |r, batch| {
            let x = r.map(at.shape(batch));
            let statistics = Statistics::record(&mut r.graph, x);
            read_normalised(r, x, statistics)
        });
    }
}
