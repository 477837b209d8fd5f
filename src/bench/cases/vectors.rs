//! What a step does with flat vectors: softmax, norms, optimisers, running statistics, sums, the terms of second order.

use super::super::recorder::{Draw, Recorder};
use super::List;
use crate::graph::{Output, Shape};
use crate::ops::loss::Accumulate;
use crate::ops::optimiser::{Adam, GlobalNorm, Sgd};
use crate::ops::running::{RunningUpdate, Segment};
use crate::ops::second_order::{HessianTerm, Perturb, Unroll};
use crate::ops::softmax::Softmax;

/// Ops on the flat vectors of weights, alphas and statistics, at the lengths of a search with C=16 and L=8.
pub(super) fn vectors(list: &mut List) {
    const WEIGHTS: usize = 1_930_618;
    const ALPHAS: usize = 14 * 8;
    const STATISTICS: usize = 2 * 37_296;
    let vector = |r: &mut Recorder, len: usize, factor: f32| r.constant(Shape::vector(len), Draw::Normal(factor));
    let constant = |r: &mut Recorder, value: f32| r.constant(Shape::vector(1), Draw::Constant(value));
    list.flat("softmax", ALPHAS, move |r| {
        let alphas = r.variable(Shape::vector(ALPHAS), Draw::Normal(1.0));
        let p = Softmax::record(&mut r.graph, alphas, &[8; 14])?;
        r.output(p);
        Ok(())
    });
    list.flat("softmax_backward", ALPHAS, move |r| {
        let alphas = r.variable(Shape::vector(ALPHAS), Draw::Normal(1.0));
        let p = Softmax::record(&mut r.graph, alphas, &[8; 14])?;
        r.output(p);
        Ok(())
    });
    list.flat("global_norm", WEIGHTS, move |r| {
        let x = vector(r, WEIGHTS, 1e-2);
        let norm = GlobalNorm::record(&mut r.graph, x, "norm");
        r.output(norm);
        Ok(())
    });
    list.flat("sgd", WEIGHTS, move |r| {
        let (g, norm, rate) = (vector(r, WEIGHTS, 1e-2), constant(r, 12.0), constant(r, 0.025));
        let states = [vector(r, WEIGHTS, 1.0), vector(r, WEIGHTS, 0.1), constant(r, 0.0)];
        r.graph.push(
            Sgd { momentum: 0.9, decay: 3e-4, clip: 5.0 },
            vec![g, norm, rate],
            states.map(Output::from).into(),
        );
        Ok(())
    });
    list.flat("adam", 2 * ALPHAS, move |r| {
        let (g, norm, rate) = (vector(r, 2 * ALPHAS, 1e-2), constant(r, 0.2), constant(r, 3e-4));
        let second = r.constant(Shape::vector(2 * ALPHAS), Draw::Positive);
        let states =
            [vector(r, 2 * ALPHAS, 1.0), vector(r, 2 * ALPHAS, 0.1), second, constant(r, 2.0), constant(r, 0.0)];
        let op = Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 };
        r.graph.push(op, vec![g, norm, rate], states.map(Output::from).into());
        Ok(())
    });
    list.flat("running_update", STATISTICS, move |r| {
        let (batch, guard, running) = (vector(r, STATISTICS, 1.0), constant(r, 1.0), vector(r, STATISTICS, 1.0));
        let segment = |i: usize| Segment { offset: 16 * i, len: 16, factor: 1.0 };
        let segments = (0..STATISTICS / 16).map(segment).collect();
        RunningUpdate::record(&mut r.graph, RunningUpdate { momentum: 0.1, segments }, batch, guard, running);
        Ok(())
    });
    list.flat("accumulate", 4, move |r| {
        let (loss, counts, sums) = (constant(r, 2.0), vector(r, 3, 1.0), vector(r, 4, 1.0));
        r.graph.push(Accumulate, vec![loss, counts], vec![Output::from(sums)]);
        Ok(())
    });
    list.flat("unroll", WEIGHTS, move |r| {
        let inputs = [vector(r, WEIGHTS, 1.0), vector(r, WEIGHTS, 0.1), vector(r, WEIGHTS, 0.1), constant(r, 0.025)];
        let out = Unroll::record(&mut r.graph, Unroll { momentum: 0.9, decay: 3e-4 }, inputs);
        r.output(out);
        Ok(())
    });
    list.flat("perturb", WEIGHTS, move |r| {
        let inputs = [vector(r, WEIGHTS, 1.0), vector(r, WEIGHTS, 0.1), constant(r, 139.0)];
        let out = Perturb::record(&mut r.graph, Perturb { radius: 0.01 }, inputs);
        r.output(out);
        Ok(())
    });
    list.flat("hessian_term", 2 * ALPHAS, move |r| {
        let maps = [1e-2; 3].map(|factor| vector(r, 2 * ALPHAS, factor));
        let all = [maps[0], maps[1], maps[2], constant(r, 1.0), constant(r, 0.025)];
        let (term, _) = HessianTerm::record(&mut r.graph, HessianTerm { radius: 0.01 }, all);
        r.output(term);
        Ok(())
    });
}
