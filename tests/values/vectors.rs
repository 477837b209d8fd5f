//! Vectors: softmax, losses and their sums, optimisers as PyTorch documents them, running statistics, the terms of
//! second order.

use supernet::graph::{Output, Shape, State};
use supernet::ops::elementary::Relu;
use supernet::ops::elementwise::{Fill, Linear};
use supernet::ops::loss::{Accumulate, CrossEntropy};
use supernet::ops::optimiser::{Adam, GlobalNorm, NORM_BLOCK, Sgd};
use supernet::ops::running::{RunningUpdate, Segment};
use supernet::ops::second_order::{HessianTerm, Perturb, Unroll};

use super::super::cases::{Draw, draw, softmax};
use super::{Bench, Running, close, numbers};

#[test]
fn softmax_of_rows() {
    let x = [0.0, 2.0f64.ln(), 5.0f64.ln(), 1000.0, 1000.0, -1000.0];
    let mut b = Bench::new();
    let alphas = b.vector(&x);
    let p = softmax(&mut b.setup.graph, alphas, 2, 3).unwrap();
    close(&b.value(p), &[0.125, 0.25, 0.625, 0.5, 0.5, 0.0]);
}

#[test]
fn cross_entropy_counts_hits_and_skips_padding() {
    // Seven classes. Row 0: a plain hit. Row 1: tied with a lower class, so second. Row 2: padding. Row 3: five classes
    // are ahead. Row 4: four are, so a top-5 hit. Row 5: tied with a higher class, so first.
    let rows: [([f64; 7], f64); 6] = [
        ([0.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0], 1.0),
        ([2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0], 2.0),
        ([9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], -1.0),
        ([0.0, 5.0, 4.0, 3.0, 2.0, 1.0, -1.0], 0.0),
        ([1.5, 5.0, 4.0, 3.0, 2.0, 1.0, -1.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 4.0], 5.0),
    ];
    let smoothing = 0.1;
    let mut expected = 0.0;
    for (logits, label) in rows.iter().filter(|r| r.1 >= 0.0) {
        let z = logits.iter().map(|v| v.exp()).sum::<f64>();
        for (j, v) in logits.iter().enumerate() {
            let target = smoothing / 7.0 + if j == *label as usize { 1.0 - smoothing } else { 0.0 };
            expected -= target * (v.exp() / z).ln() / 5.0;
        }
    }
    let mut b = Bench::new();
    let logits = b.input(Shape::map(6, 1, 1, 7), &rows.iter().flat_map(|r| r.0).collect::<Vec<_>>());
    let labels = b.vector(&rows.map(|r| r.1));
    let (loss, counts) = CrossEntropy::record(&mut b.setup.graph, CrossEntropy { smoothing }, logits, labels).unwrap();
    b.results.extend([loss, counts]);
    let mut running = b.start();
    running.run();
    close(&running.read(loss), &[expected]);
    assert_eq!(running.read(counts), [2.0, 4.0, 5.0]);
}

#[test]
fn a_logit_that_is_no_number_is_no_hit() {
    let mut b = Bench::new();
    let (logits, labels) = (b.input(Shape::map(1, 1, 1, 3), &[f64::NAN; 3]), b.vector(&[0.0]));
    let (_, counts) =
        CrossEntropy::record(&mut b.setup.graph, CrossEntropy { smoothing: 0.0 }, logits, labels).unwrap();
    assert_eq!(b.value(counts), [0.0, 0.0, 1.0]);
}

#[test]
fn accumulate_sums_over_replays() {
    let mut b = Bench::new();
    let (loss, counts) = (b.vector(&[1.5]), b.vector(&[2.0, 3.0, 4.0]));
    let sums = b.state(Shape::vector(4), &[10.0, 20.0, 30.0, 40.0]);
    let out = b.in_place(&[sums]);
    b.setup.graph.push(Accumulate, vec![loss, counts], out);
    let mut running = b.start();
    running.run();
    assert_eq!(running.state(sums), [16.0, 22.0, 33.0, 44.0]);
    running.run();
    assert_eq!(running.state(sums), [22.0, 24.0, 36.0, 48.0]);
}

#[test]
fn an_output_adds_to_what_is_there_when_asked_to() {
    let mut b = Bench::new();
    let x = b.vector(&[-2.0, 3.0]);
    let out = b.setup.graph.tensor(Shape::vector(2), "out");
    let adding = Output { tensor: out, accumulate: true };
    b.setup.graph.push(Fill { value: 0.5 }, vec![], vec![out.into()]);
    b.setup.graph.push(Relu, vec![x], vec![adding]);
    b.setup.graph.push(Linear { coefs: vec![2.0, 1.0] }, vec![x, x], vec![adding]);
    assert_eq!(b.value(out), [-5.5, 12.5]);
}

#[test]
fn global_norm_is_euclidean_across_blocks() {
    let len = 2 * NORM_BLOCK + 3;
    let x: Vec<f64> = (0..len).map(|i| (i % 5) as f64).collect();
    let expected = x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mut b = Bench::new();
    let x = b.vector(&x);
    let norm = GlobalNorm::record(&mut b.setup.graph, x, "norm");
    close(&b.value(norm), &[expected]);
}

/// An optimiser over one vector, its gradient and learning rate in states.
struct Optimiser {
    running: Running,
    gradient: State,
    rate: State,
    states: Vec<State>,
}

const LEN: usize = 6;

impl Optimiser {
    /// `states`: vectors and, where false, scalars; all start as given.
    fn new(op: impl Into<supernet::ops::Op>, states: &[Vec<f64>]) -> Self {
        let mut b = Bench::new();
        let (gradient, rate) = (b.state(Shape::vector(LEN), &[0.0; LEN]), b.state(Shape::vector(1), &[0.0]));
        let states: Vec<State> = states.iter().map(|v| b.state(Shape::vector(v.len()), v)).collect();
        let outputs = b.in_place(&states);
        let (g, lr) = (b.setup.graph.state(gradient), b.setup.graph.state(rate));
        let norm = GlobalNorm::record(&mut b.setup.graph, g, "norm");
        b.setup.graph.push(op, vec![g, norm, lr], outputs);
        Self { running: b.start(), gradient, rate, states }
    }

    fn step(&mut self, gradient: &[f64], rate: f64) -> Vec<Vec<f64>> {
        self.running.device.state_mut(self.gradient).copy_from_slice(gradient);
        self.running.device.state_mut(self.rate)[0] = rate;
        self.running.run();
        self.states.iter().map(|&s| self.running.state(s)).collect()
    }
}

#[test]
fn sgd_follows_pytorch() {
    let op = Sgd { momentum: 0.9, decay: 0.03, clip: 2.0 };
    let mut w = numbers(1, LEN);
    // PyTorch's buffer starts as a copy of the first gradient, which is what momentum times zero plus it gives.
    let mut buffer: Option<Vec<f64>> = None;
    let mut optimiser = Optimiser::new(op, &[w.clone(), vec![0.0; LEN], vec![0.0]]);
    for (step, (size, lr)) in [(5.0, 0.1), (0.01, 0.05), (1.0, 0.2), (30.0, 0.025)].into_iter().enumerate() {
        let gradient: Vec<f64> = numbers(10 + step as u64, LEN).iter().map(|g| g * size).collect();
        let found = optimiser.step(&gradient, lr);
        // torch.nn.utils.clip_grad_norm_, then torch.optim.SGD.
        let total = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let factor = (2.0 / (total + 1e-6)).min(1.0);
        let d: Vec<f64> = gradient.iter().zip(&w).map(|(g, w)| g * factor + 0.03 * w).collect();
        let next = match &buffer {
            None => d,
            Some(old) => old.iter().zip(&d).map(|(b, d)| 0.9 * b + d).collect(),
        };
        w.iter_mut().zip(&next).for_each(|(w, b)| *w -= lr * b);
        close(&found[0], &w);
        close(&found[1], &next);
        assert_eq!(found[2], [0.0]);
        buffer = Some(next);
    }
}

#[test]
fn adam_follows_pytorch() {
    let (beta1, beta2, eps, decay): (f64, f64, f64, f64) = (0.5, 0.999, 1e-8, 1e-3);
    let mut p = numbers(1, LEN);
    let (mut m, mut v) = ([0.0; LEN], [0.0; LEN]);
    let start = [p.clone(), vec![0.0; LEN], vec![0.0; LEN], vec![0.0], vec![0.0]];
    let mut optimiser = Optimiser::new(Adam { beta1, beta2, eps, decay }, &start);
    for t in 1..=4 {
        let (gradient, lr) = (numbers(20 + t as u64, LEN), 0.01 * f64::from(t));
        let found = optimiser.step(&gradient, lr);
        for i in 0..LEN {
            let g = gradient[i] + decay * p[i];
            m[i] += (g - m[i]) * (1.0 - beta1);
            v[i] = v[i] * beta2 + g * g * (1.0 - beta2);
            let size = lr / (1.0 - beta1.powi(t));
            let denominator = v[i].sqrt() / (1.0 - beta2.powi(t)).sqrt() + eps;
            p[i] -= size * m[i] / denominator;
        }
        close(&found[0], &p);
        close(&found[1], &m);
        close(&found[2], &v);
        assert_eq!(found[3..], [vec![f64::from(t)], vec![0.0]]);
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_raises_the_flag() {
    let sgd = Sgd { momentum: 0.9, decay: 0.03, clip: 2.0 };
    let adam = Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 };
    let (a, b, c) = (numbers(1, LEN), numbers(2, LEN), draw(3, 3, LEN, Draw::Positive));
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let starts =
            [vec![a.clone(), b.clone(), vec![0.0]], vec![a.clone(), b.clone(), c.clone(), vec![7.0], vec![0.0]]];
        let optimisers = [Optimiser::new(sgd, &starts[0]), Optimiser::new(adam, &starts[1])];
        for (mut optimiser, start) in optimisers.into_iter().zip(starts) {
            let mut gradient = numbers(4, LEN);
            gradient[3] = bad;
            let found = optimiser.step(&gradient, 0.1);
            let flag = start.len() - 1;
            assert_eq!(found[..flag], start[..flag]);
            assert_eq!(found[flag], [1.0]);
            // The flag stays up, and the next sound gradient is used.
            let found = optimiser.step(&numbers(4, LEN), 0.1);
            assert_eq!(found[flag], [1.0]);
            assert_ne!(found[0], start[0]);
        }
    }
}

#[test]
fn running_statistics_move_by_their_share_unless_the_guard_is_not_finite() {
    let segments = vec![Segment { offset: 0, len: 2, factor: 1.0 }, Segment { offset: 2, len: 2, factor: 8.0 / 7.0 }];
    for (guard, moves) in [(3.0, true), (0.0, true), (f64::NAN, false), (f64::INFINITY, false)] {
        let mut b = Bench::new();
        let (batch, guard) = (b.vector(&[10.0, 20.0, 7.0, 14.0, 99.0]), b.vector(&[guard]));
        let start = [1.0, 2.0, 3.0, 4.0, 5.0];
        let running = b.state(Shape::vector(5), &start);
        let out = b.in_place(&[running])[0].tensor;
        let op = RunningUpdate { momentum: 0.1, segments: segments.clone() };
        RunningUpdate::record(&mut b.setup.graph, op, batch, guard, out);
        let mut run = b.start();
        run.run();
        let expected = if moves { [1.9, 3.8, 3.5, 5.2, 5.0] } else { start };
        close(&run.state(running), &expected);
    }
}

#[test]
fn second_order_vectors() {
    let mut b = Bench::new();
    let (w, v, g, lr) = (b.vector(&[1.0, -2.0]), b.vector(&[0.5, 4.0]), b.vector(&[3.0, 0.25]), b.vector(&[0.1]));
    let out = Unroll::record(&mut b.setup.graph, Unroll { momentum: 0.5, decay: 0.2 }, [w, v, g, lr]);
    close(&b.value(out), &[1.0 - 0.1 * (0.25 + 3.0 + 0.2), -2.0 - 0.1 * (2.0 + 0.25 - 0.4)]);

    let mut b = Bench::new();
    let (w, d) = (b.vector(&[1.0, -2.0]), b.vector(&[3.0, 4.0]));
    let norm = GlobalNorm::record(&mut b.setup.graph, d, "norm");
    let out = Perturb::record(&mut b.setup.graph, Perturb { radius: -0.01 }, [w, d, norm]);
    close(&b.value(out), &[1.0 - 0.006, -2.0 - 0.008]);

    let mut b = Bench::new();
    let vectors = [&[1.0, 2.0], &[5.0, -1.0], &[4.0, 1.0]].map(|x| b.vector(x));
    let (norm, lr) = (b.vector(&[5.0]), b.vector(&[0.1]));
    let inputs = [vectors[0], vectors[1], vectors[2], norm, lr];
    // 2 R = 2 * 0.01 / 5 = 0.004.
    let (hessian, total) = HessianTerm::record(&mut b.setup.graph, HessianTerm { radius: 0.01 }, inputs);
    b.results.extend([hessian, total]);
    let mut running = b.start();
    running.run();
    close(&running.read(hessian), &[250.0, -500.0]);
    close(&running.read(total), &[1.0 - 25.0, 2.0 + 50.0]);
}
