//! Cases of losses and of what a step does with flat vectors: sums, norms, optimisers, running statistics, the terms of
//! second order.

use supernet::Result;
use supernet::graph::Shape;
use supernet::ops::loss::{Accumulate, CrossEntropy};
use supernet::ops::optimiser::{Adam, GlobalNorm, Sgd};
use supernet::ops::running::{RunningUpdate, Segment};
use supernet::ops::second_order::{HessianTerm, Perturb, Unroll};

use super::record::{map, vector};
use super::setup::{Case, Draw, Setup};

fn cross_entropy(s: &mut Setup, n: usize, classes: usize, smoothing: f64, padding: &[usize]) -> Result<()> {
    let logits = s.var(map(n, 1, 1, classes), Draw::Normal(2.0));
    let labels = s.constant(Shape::vector(n), Draw::Below(classes));
    let last = s.values.last_mut().expect("just declared");
    for &row in padding {
        last.1[row] = -1.0;
    }
    let (loss, counts) = CrossEntropy::record(&mut s.graph, CrossEntropy { smoothing }, logits, labels)?;
    s.out(loss);
    s.seen(counts);
    Ok(())
}

fn sgd(s: &mut Setup, len: usize, clip: f64, gradient: Draw) -> Result<()> {
    let g = vector(s, len, gradient);
    let lr = vector(s, 1, Draw::Constant(0.025));
    let states = [(len, Draw::Normal(1.0)), (len, Draw::Normal(0.5)), (1, Draw::Constant(0.0))];
    let norm = GlobalNorm::record(&mut s.graph, g, "norm");
    let outputs = states
        .map(|(len, how)| {
            let state = s.state(Shape::vector(len), how);
            s.watch(state)
        })
        .to_vec();
    s.graph.push(Sgd { momentum: 0.9, decay: 3e-4, clip }, vec![g, norm, lr], outputs);
    Ok(())
}

fn adam(s: &mut Setup, len: usize, gradient: Draw) -> Result<()> {
    let g = vector(s, len, gradient);
    let lr = vector(s, 1, Draw::Constant(3e-4));
    let norm = GlobalNorm::record(&mut s.graph, g, "norm");
    let outputs = [
        (len, Draw::Normal(1.0)),
        (len, Draw::Normal(0.1)),
        (len, Draw::Positive),
        (1, Draw::Constant(2.0)),
        (1, Draw::Constant(0.0)),
    ]
    .map(|(len, how)| {
        let state = s.state(Shape::vector(len), how);
        s.watch(state)
    })
    .to_vec();
    s.graph.push(Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 }, vec![g, norm, lr], outputs);
    Ok(())
}

/// Their part of the table, in its order.
pub(super) const CASES: &[Case] = &[
    // Losses.
    Case::new("cross entropy", &["cross_entropy", "cross_entropy_backward"], |s| cross_entropy(s, 5, 10, 0.0, &[])),
    Case::new("cross entropy: smoothing, padding rows", &["cross_entropy", "cross_entropy_backward"], |s| {
        cross_entropy(s, 6, 7, 0.1, &[0, 5])
    }),
    Case::new("cross entropy: one image, one class", &["cross_entropy", "cross_entropy_backward"], |s| {
        cross_entropy(s, 1, 1, 0.1, &[])
    }),
    Case::new("cross entropy: padding alone", &["cross_entropy", "cross_entropy_backward"], |s| {
        cross_entropy(s, 2, 3, 0.0, &[0, 1])
    }),
    // Ops without gradient: their values are checked in `values`.
    Case::new("accumulate", &["accumulate"], |s| {
        let (loss, counts) = (vector(s, 1, Draw::Normal(1.0)), vector(s, 3, Draw::Below(9)));
        let sums = s.state(Shape::vector(4), Draw::Normal(10.0));
        let out = s.watch(sums);
        s.graph.push(Accumulate, vec![loss, counts], vec![out]);
        Ok(())
    }),
    Case::new("global norm over several blocks", &["global_norm"], |s| {
        let x = vector(s, 10_001, Draw::Normal(1.0));
        let norm = GlobalNorm::record(&mut s.graph, x, "norm");
        s.seen(norm);
        Ok(())
    }),
    Case::new("sgd: clipped", &["sgd", "global_norm"], |s| sgd(s, 101, 5.0, Draw::Normal(1.0))),
    Case::new("sgd: not clipped", &["sgd"], |s| sgd(s, 5000, 1e9, Draw::Normal(1.0))),
    Case::new("sgd: gradient not finite", &["sgd"], |s| sgd(s, 13, 5.0, Draw::Constant(f64::INFINITY))),
    Case::new("adam", &["adam"], |s| adam(s, 112, Draw::Normal(0.1))),
    Case::new("adam: gradient not finite", &["adam"], |s| adam(s, 9, Draw::Constant(f64::NAN))),
    Case::new("running update", &["running_update"], |s| {
        let (batch, guard) = (vector(s, 16, Draw::Normal(1.0)), vector(s, 1, Draw::Constant(2.0)));
        let running = s.state(Shape::vector(16), Draw::Positive);
        let out = s.watch(running).tensor;
        let segment = |offset, len, factor| Segment { offset, len, factor };
        let segments = vec![segment(0, 5, 1.0), segment(5, 5, 18.0 / 17.0), segment(11, 5, 1.0)];
        RunningUpdate::record(&mut s.graph, RunningUpdate { momentum: 0.1, segments }, batch, guard, out);
        Ok(())
    }),
    Case::new("running update: guard not finite", &["running_update"], |s| {
        let (batch, guard) = (vector(s, 4, Draw::Normal(1.0)), vector(s, 1, Draw::Constant(f64::NAN)));
        let running = s.state(Shape::vector(4), Draw::Positive);
        let out = s.watch(running).tensor;
        let segments = vec![Segment { offset: 0, len: 4, factor: 1.0 }];
        RunningUpdate::record(&mut s.graph, RunningUpdate { momentum: 0.1, segments }, batch, guard, out);
        Ok(())
    }),
    Case::new("second order: unrolled step", &["unroll"], |s| {
        let inputs = [67, 67, 67, 1].map(|len| vector(s, len, Draw::Normal(0.5)));
        let out = Unroll::record(&mut s.graph, Unroll { momentum: 0.9, decay: 3e-4 }, inputs);
        s.seen(out);
        Ok(())
    }),
    Case::new("second order: perturbed weights", &["perturb"], |s| {
        let (w, d) = (vector(s, 67, Draw::Normal(0.5)), vector(s, 67, Draw::Normal(0.5)));
        let norm = GlobalNorm::record(&mut s.graph, d, "norm");
        for radius in [0.01, -0.01] {
            let out = Perturb::record(&mut s.graph, Perturb { radius }, [w, d, norm]);
            s.seen(out);
        }
        Ok(())
    }),
    Case::new("second order: Hessian term", &["hessian_term"], |s| {
        let inputs = [35, 35, 35].map(|len| vector(s, len, Draw::Normal(0.5)));
        let scalars = [vector(s, 1, Draw::Positive), vector(s, 1, Draw::Constant(0.025))];
        let all = [inputs[0], inputs[1], inputs[2], scalars[0], scalars[1]];
        let (hessian, total) = HessianTerm::record(&mut s.graph, HessianTerm { radius: 0.01 }, all);
        s.seen(hessian);
        s.seen(total);
        Ok(())
    }),
];
