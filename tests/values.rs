//! Values against formulas written down a second time: convolutions and pools on padded images, optimisers as PyTorch
//! documents them, counts and sums by hand. What the reference implementations share among themselves (windows, tap
//! order, statistics) is checked here; gradients are checked in `gradients`.

use supernet::device::reference::Reference;
use supernet::graph::{Output, Program, Shape, State, Tensor};
use supernet::ops::augment::{Augment, DropMask};
use supernet::ops::dense::Dense;
use supernet::ops::elementary::{Depthwise, Relu};
use supernet::ops::elementwise::{Fill, Linear};
use supernet::ops::folded::{Activation, Folded, Padding};
use supernet::ops::loss::{Accumulate, CrossEntropy};
use supernet::ops::mixture::Mixture;
use supernet::ops::norm::{NormTensors, Normalised};
use supernet::ops::optimiser::{Adam, GlobalNorm, NORM_BLOCK, Sgd};
use supernet::ops::pool::{GlobalPool, Pool};
use supernet::ops::reduce::{Reduce, ReduceInput};
use supernet::ops::running::{RunningUpdate, Segment};
use supernet::ops::second_order::{HessianTerm, Perturb, Unroll};
use supernet::ops::separable::{BranchInput, Separable};

use super::cases::{Draw, Setup, draw, softmax};

/// A graph being recorded with its states, then a device on which it runs any number of times.
struct Bench {
    setup: Setup,
    results: Vec<Tensor>,
}

struct Running {
    device: Reference<f64>,
    program: Program,
}

impl Bench {
    fn new() -> Self {
        Self { setup: Setup::new(7, false), results: Vec::new() }
    }

    /// A state with given values.
    fn state(&mut self, shape: Shape, values: &[f64]) -> State {
        let state = self.setup.state(shape, Draw::Constant(0.0));
        self.setup.set(values);
        state
    }

    fn input(&mut self, shape: Shape, values: &[f64]) -> Tensor {
        let state = self.state(shape, values);
        self.setup.graph.state(state)
    }

    fn vector(&mut self, values: &[f64]) -> Tensor {
        self.input(Shape::vector(values.len()), values)
    }

    fn in_place(&mut self, states: &[State]) -> Vec<Output> {
        states.iter().map(|&s| self.setup.graph.state(s).into()).collect()
    }

    fn start(self) -> Running {
        let mut setup = self.setup;
        for &t in &self.results {
            setup.seen(t);
        }
        let built = setup.finish().expect("nothing to differentiate");
        Running { device: built.reference(), program: built.program() }
    }

    /// Runs once and reads a tensor.
    fn value(mut self, tensor: Tensor) -> Vec<f64> {
        self.results.push(tensor);
        let mut running = self.start();
        running.run();
        running.read(tensor)
    }
}

impl Running {
    fn run(&mut self) {
        self.device.run(&self.program);
    }

    fn read(&mut self, tensor: Tensor) -> Vec<f64> {
        self.device.read(&self.program, tensor)
    }

    fn state(&self, state: State) -> Vec<f64> {
        self.device.state(state).to_vec()
    }
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "element {i}: {a}, not {b}");
    }
}

fn numbers(number: u64, len: usize) -> Vec<f64> {
    draw(3, number, len, Draw::Normal(1.0))
}

/// A map as nested lists `[n][c][y][x]` with `pad` cells of `border` around each image.
fn padded(x: &[f64], s: Shape, pad: [usize; 2], border: f64) -> Vec<Vec<Vec<Vec<f64>>>> {
    let [before, after] = pad;
    let mut all = vec![vec![vec![vec![border; s.w + before + after]; s.h + before + after]; s.c]; s.n];
    for (i, &value) in x.iter().enumerate() {
        let (c, pixel) = (i % s.c, i / s.c);
        let (n, y, col) = (pixel / (s.h * s.w), pixel / s.w % s.h, pixel % s.w);
        all[n][c][before + y][before + col] = value;
    }
    all
}

fn rectified(x: &[f64]) -> Vec<f64> {
    x.iter().map(|v| v.max(0.0)).collect()
}

/// PyTorch's cross-correlation: `weight(c_out, c_in, ky, kx)`, `pad` before and after, in channels-last order.
fn convolve(
    x: &[f64],
    s: Shape,
    c_out: usize,
    (kernel, dilation, stride): (usize, usize, usize),
    pad: [usize; 2],
    weight: impl Fn(usize, usize, usize, usize) -> f64,
) -> (Shape, Vec<f64>) {
    let image = padded(x, s, pad, 0.0);
    let side = |size: usize| (size + pad[0] + pad[1] - dilation * (kernel - 1) - 1) / stride + 1;
    let shape = Shape::map(s.n, side(s.h), side(s.w), c_out);
    let mut out = Vec::with_capacity(shape.len());
    for image in &image {
        for (y, x) in (0..shape.h).flat_map(|y| (0..shape.w).map(move |x| (y, x))) {
            for o in 0..c_out {
                let mut sum = 0.0;
                for (i, plane) in image.iter().enumerate() {
                    for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                        sum += weight(o, i, ky, kx) * plane[y * stride + ky * dilation][x * stride + kx * dilation];
                    }
                }
                out.push(sum);
            }
        }
    }
    (shape, out)
}

const SIZES: [(usize, usize); 4] = [(4, 6), (5, 7), (1, 3), (7, 4)];

#[test]
fn dense_is_a_convolution() {
    for (h, w) in SIZES {
        for (kernel, stride, pad, relu) in [(1, 1, 0, true), (3, 1, 1, false), (3, 2, 1, true), (1, 2, 0, false)] {
            let (s, c) = (Shape::map(2, h, w, 3), 4);
            let (x, weights, bias) = (numbers(1, s.len()), numbers(2, kernel * kernel * 3 * c), numbers(3, c));
            let mut b = Bench::new();
            let inputs = [b.input(s, &x), b.input(Shape::matrix(kernel * kernel * 3, c), &weights), b.vector(&bias)];
            let op = Dense { kernel, stride, pad, relu, bias: true, statistics: false };
            let y = Dense::record(&mut b.setup.graph, op, inputs[0], inputs[1], Some(inputs[2]), None).unwrap();
            let active = if relu { rectified(&x) } else { x };
            let (shape, mut expected) = convolve(&active, s, c, (kernel, 1, stride), [pad; 2], |o, i, ky, kx| {
                weights[((ky * kernel + kx) * 3 + i) * c + o]
            });
            expected.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % c]);
            assert_eq!(b.setup.graph.shape(y), shape);
            close(&b.value(y), &expected);
        }
    }
}

#[test]
fn folded_convolutions_pad_as_tensorflow_and_pytorch_do() {
    let (same, centred) = (Padding::Same, Padding::Centred);
    for (kernel, stride, side, pad, padding) in [
        (3, 2, 4, [0, 1], same),
        (3, 2, 5, [1, 1], same),
        (5, 2, 6, [1, 2], same),
        (5, 1, 5, [2, 2], same),
        (3, 1, 4, [1, 1], same),
        (1, 2, 5, [0, 0], same),
        (3, 2, 4, [1, 0], centred),
        (3, 2, 5, [1, 1], centred),
        (7, 2, 6, [3, 2], centred),
        (3, 1, 4, [1, 1], centred),
        (1, 2, 4, [0, 0], centred),
    ] {
        for (depthwise, residual) in [(false, false), (false, true), (true, false)] {
            let (s, c, taps) = (Shape::map(2, side, side, 3), if depthwise { 3 } else { 4 }, kernel * kernel);
            let rows = if depthwise { taps } else { taps * 3 };
            let (x, w, bias) = (numbers(1, s.len()), numbers(2, rows * c), numbers(3, c));
            let (shape, mut expected) = convolve(&x, s, c, (kernel, 1, stride), pad, |o, i, ky, kx| {
                let tap = ky * kernel + kx;
                match depthwise {
                    true if o == i => w[tap * 3 + o],
                    true => 0.0,
                    false => w[(tap * 3 + i) * c + o],
                }
            });
            let more = numbers(4, shape.len());
            for (i, v) in expected.iter_mut().enumerate() {
                let sum = *v + bias[i % c];
                *v = if residual { sum + more[i] } else { sum.clamp(0.0, 6.0) };
            }
            let mut b = Bench::new();
            let inputs = [b.input(s, &x), b.input(Shape::matrix(rows, c), &w), b.vector(&bias)];
            let added = residual.then(|| b.input(shape, &more));
            let activation = if residual { Activation::Identity } else { Activation::Relu6 };
            let op = Folded { depthwise, kernel, stride, padding, activation, residual };
            let y = Folded::record(&mut b.setup.graph, op, inputs, added).unwrap();
            assert_eq!(b.setup.graph.shape(y), shape);
            close(&b.value(y), &expected);
        }
    }
}

#[test]
fn separable_is_relu_depthwise_pointwise() {
    for (h, w) in SIZES {
        for geometry in [(3, 1, 1), (5, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2), (5, 1, 2), (3, 2, 2), (5, 2, 2)] {
            let ((kernel, dilation, stride), s) = (geometry, Shape::map(2, h, w, 3));
            let taps = kernel * kernel;
            let (x, dw, pw) = (numbers(1, s.len()), numbers(2, taps * 3), numbers(3, 3 * 5));
            let pad = [dilation * (kernel - 1) / 2; 2];
            let depthwise = |x: &[f64]| {
                let own = |o: usize, i: usize, ky: usize, kx: usize| {
                    if o == i { dw[(ky * kernel + kx) * 3 + i] } else { 0.0 }
                };
                convolve(x, s, 3, geometry, pad, own)
            };
            let (middle, d) = depthwise(&rectified(&x));
            let (shape, expected) = convolve(&d, middle, 5, (1, 1, 1), [0; 2], |o, i, _, _| pw[i * 5 + o]);
            let mut b = Bench::new();
            let tensors = [b.input(s, &x), b.input(Shape::matrix(taps, 3), &dw), b.input(Shape::matrix(3, 5), &pw)];
            let places = [5, 5].map(|c| b.setup.graph.tensor(Shape::vector(c), "statistics"));
            let branch = BranchInput {
                x: Normalised::plain(tensors[0]),
                depthwise: tensors[1],
                pointwise: tensors[2],
                geometry,
                statistics: Some((places[0], places[1])),
            };
            let y = Separable::record(&mut b.setup.graph, &[branch]).unwrap()[0];
            let plain =
                Depthwise::record(&mut b.setup.graph, Depthwise { kernel, dilation, stride }, tensors[0], tensors[1]);
            assert_eq!(b.setup.graph.shape(y), shape);
            b.results.extend([y, plain, places[0], places[1]]);
            let mut running = b.start();
            running.run();
            close(&running.read(y), &expected);
            close(&running.read(plain), &depthwise(&x).1);
            let (mean, var) = moments(&expected, 5);
            close(&running.read(places[0]), &mean);
            close(&running.read(places[1]), &var);
        }
    }
}

/// Mean and biased variance of each channel.
fn moments(x: &[f64], c: usize) -> (Vec<f64>, Vec<f64>) {
    let channel = |k: usize| x.iter().skip(k).step_by(c).copied().collect::<Vec<_>>();
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let means: Vec<f64> = (0..c).map(|k| mean(&channel(k))).collect();
    let spread = |k: usize| mean(&channel(k).iter().map(|v| (v - means[k]).powi(2)).collect::<Vec<_>>());
    let variances = (0..c).map(spread).collect();
    (means, variances)
}

#[test]
fn a_normalised_map_has_mean_beta_and_deviation_gamma() {
    let (s, gamma, beta) = (Shape::map(3, 4, 5, 2), [0.5, 2.0], [3.0, -1.0]);
    let x: Vec<f64> = numbers(1, s.len()).iter().map(|v| 100.0 + 7.0 * v).collect();
    let (mean, var) = moments(&x, 2);
    let mut b = Bench::new();
    let y = b.input(s, &x);
    let [mean, var, gamma_t, beta_t] = [&mean[..], &var, &gamma, &beta].map(|v| b.vector(v));
    let norm = Some(NormTensors { mean, var, affine: Some((gamma_t, beta_t)), eps: 0.0 });
    let z = Mixture::normalise(&mut b.setup.graph, Normalised { y, norm }, "z").unwrap();
    let (found_mean, found_var) = moments(&b.value(z), 2);
    close(&found_mean, &beta);
    close(&found_var, &[0.25, 4.0]);
}

#[test]
fn pools_ignore_what_lies_outside_the_image() {
    for (h, w) in SIZES {
        for (kernel, stride, pad) in [(3, 1, 1), (3, 2, 1)] {
            let s = Shape::map(2, h, w, 3);
            let x = numbers(1, s.len());
            let mut b = Bench::new();
            let input = b.input(s, &x);
            let op = Pool { kernel, stride, pad, max: true, average: true, statistics: false };
            let pools = Pool::record(&mut b.setup.graph, op, input, &[]).unwrap();
            b.results.extend(pools.iter().map(|p| p.y));
            let shape = b.setup.graph.shape(pools[0].y);
            assert_eq!((shape.h, shape.w), (h.div_ceil(stride), w.div_ceil(stride)));
            let image = padded(&x, s, [pad, pad], f64::NAN);
            let (mut max, mut average) = (Vec::new(), Vec::new());
            for n in &image {
                for (y, x) in (0..shape.h).flat_map(|y| (0..shape.w).map(move |x| (y, x))) {
                    for plane in n {
                        let rows = &plane[y * stride..y * stride + kernel];
                        let window = rows.iter().flat_map(|r| &r[x * stride..x * stride + kernel]).copied();
                        let inside: Vec<f64> = window.filter(|v| !v.is_nan()).collect();
                        max.push(inside.iter().copied().fold(f64::NEG_INFINITY, f64::max));
                        average.push(inside.iter().sum::<f64>() / inside.len() as f64);
                    }
                }
            }
            let mut running = b.start();
            running.run();
            close(&running.read(pools[0].y), &max);
            close(&running.read(pools[1].y), &average);
        }
    }
}

#[test]
fn a_tie_hands_its_gradient_to_the_first_pixel_in_row_order() {
    let mut b = Setup::new(1, false);
    let state = b.state(Shape::map(1, 3, 3, 1), Draw::Constant(0.0));
    b.set(&[1.0, 5.0, 5.0, 5.0, 2.0, 5.0, 0.0, 5.0, 5.0]);
    let x = b.graph.state(state);
    let op = Pool { kernel: 3, stride: 2, pad: 1, max: true, average: false, statistics: false };
    let y = Pool::record(&mut b.graph, op, x, &[]).unwrap()[0].y;
    // Windows of the corners: {1 5; 5 2}, {5 5; 2 5}, {5 2; 0 5}, {2 5; 5 5}; weights 1, 10, 100, 1000.
    let w = b.constant(Shape::matrix(4, 1), Draw::Constant(0.0));
    b.set(&[1.0, 10.0, 100.0, 1000.0]);
    let flat = b.graph.tensor(Shape::vector(4), "flat");
    let place = b.graph.slice(flat, 0, b.graph.shape(y)).unwrap();
    Linear::record_into(&mut b.graph, &[(1.0, y)], place).unwrap();
    let dot = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
    let loss = Dense::record(&mut b.graph, dot, flat, w, None, None).unwrap();
    let gradient = b.graph.gradients(loss, &[x]).unwrap()[0];
    b.seen(gradient);
    let built = b.finish().unwrap();
    let (mut device, program) = (built.reference::<f64>(), built.program());
    device.run(&program);
    assert_eq!(device.read(&program, gradient), [0.0, 11.0, 0.0, 100.0, 0.0, 1000.0, 0.0, 0.0, 0.0]);
}

#[test]
fn reduce_sets_a_convolution_and_a_shifted_one_side_by_side() {
    for (h, w) in SIZES {
        let s = Shape::map(2, h, w, 3);
        let (x, even, odd) = (numbers(1, s.len()), numbers(2, 6), numbers(3, 9));
        let mut b = Bench::new();
        let input = b.input(s, &x);
        let edge = ReduceInput {
            even: b.input(Shape::matrix(3, 2), &even),
            odd: b.input(Shape::matrix(3, 3), &odd),
            statistics: None,
        };
        let y = Reduce::record(&mut b.setup.graph, input, &[edge]).unwrap()[0];
        // x[1:, 1:], with one more row and column of zeros where the side is odd.
        let active = rectified(&x);
        let image = padded(&active, s, [0, 1], 0.0);
        let extent = Shape::map(2, h.div_ceil(2) * 2 - 1, w.div_ceil(2) * 2 - 1, 3);
        let mut shifted = Vec::new();
        for n in &image {
            for (y, x) in (0..extent.h).flat_map(|y| (0..extent.w).map(move |x| (y, x))) {
                let inside =
                    |plane: &Vec<Vec<f64>>| plane.get(y + 1).and_then(|r| r.get(x + 1)).copied().unwrap_or(0.0);
                shifted.extend(n.iter().map(inside));
            }
        }
        let (shape, left) = convolve(&active, s, 2, (1, 1, 2), [0; 2], |o, i, _, _| even[i * 2 + o]);
        let (same, right) = convolve(&shifted, extent, 3, (1, 1, 2), [0; 2], |o, i, _, _| odd[i * 3 + o]);
        assert_eq!(shape.with_channels(3), same);
        assert_eq!(b.setup.graph.shape(y), shape.with_channels(5));
        let expected: Vec<f64> = left.chunks(2).zip(right.chunks(3)).flat_map(|(a, b)| [a, b].concat()).collect();
        close(&b.value(y), &expected);
    }
}

#[test]
fn softmax_of_rows() {
    let x = [0.0, 2.0f64.ln(), 5.0f64.ln(), 1000.0, 1000.0, -1000.0];
    let mut b = Bench::new();
    let alphas = b.vector(&x);
    let p = softmax(&mut b.setup.graph, alphas, 2, 3).unwrap();
    close(&b.value(p), &[0.125, 0.25, 0.625, 0.5, 0.5, 0.0]);
}

#[test]
fn global_pool_is_the_mean_of_each_image() {
    let mut b = Bench::new();
    let x = b.input(Shape::map(2, 1, 3, 2), &[1.0, 10.0, 2.0, 20.0, 6.0, 60.0, -1.0, 0.0, 0.0, 0.0, 0.0, 3.0]);
    let y = GlobalPool::record(&mut b.setup.graph, x);
    close(&b.value(y), &[3.0, 30.0, -1.0 / 3.0, 1.0]);
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

#[test]
fn augmentation_is_crop_flip_normalise_cutout() {
    let (s, pad, cutout) = (Shape::map(40, 5, 6, 2), 2, 3);
    let (mean, std) = (vec![0.5f32, 0.25], vec![0.25f32, 0.5]);
    let op = Augment { pad, flip: true, cutout, mean: mean.clone(), std: std.clone(), seed: 77 };
    let pixels: Vec<f64> = (0..s.len()).map(|i| ((i * 37) % 256) as f64).collect();
    let index: Vec<f64> = (0..s.n).map(|i| (1000 + 3 * i) as f64).collect();
    let mut b = Bench::new();
    let inputs = [b.input(s, &pixels), b.vector(&index), b.vector(&[4.0])];
    let out = Augment::record(&mut b.setup.graph, op.clone(), inputs);
    let found = b.value(out);
    let big = padded(&pixels, s, [pad, pad], 0.0);
    let (mut shifts, mut flips, mut expected) = (std::collections::HashSet::new(), 0, Vec::new());
    for (n, image) in big.iter().enumerate() {
        let draw = op.draw(s, index[n] as u32, 4);
        shifts.insert((draw.dy, draw.dx));
        flips += usize::from(draw.flip);
        assert!(
            draw.dy.unsigned_abs() <= pad && draw.dx.unsigned_abs() <= pad && draw.hole_y < s.h && draw.hole_x < s.w
        );
        let mut crops: Vec<Vec<Vec<f64>>> = Vec::new();
        for plane in image {
            let top = (pad as isize + draw.dy) as usize;
            let left = (pad as isize + draw.dx) as usize;
            let mut crop: Vec<Vec<f64>> = plane[top..top + s.h].iter().map(|r| r[left..left + s.w].to_vec()).collect();
            if draw.flip {
                crop.iter_mut().for_each(|row| row.reverse());
            }
            crops.push(crop);
        }
        for (y, x) in (0..s.h).flat_map(|y| (0..s.w).map(move |x| (y, x))) {
            // The published cutout: from centre minus half on, clipped at the borders.
            let hole = |at: usize, centre: usize| at + cutout / 2 >= centre && at + cutout / 2 < centre + cutout;
            for c in 0..s.c {
                let value = (crops[c][y][x] / 255.0 - f64::from(mean[c])) / f64::from(std[c]);
                expected.push(if hole(y, draw.hole_y) && hole(x, draw.hole_x) { 0.0 } else { value });
            }
        }
    }
    close(&found, &expected);
    assert!(shifts.len() > 12 && (10..=30).contains(&flips), "{} shifts, {flips} flips", shifts.len());
}

#[test]
fn drop_masks_keep_the_expectation_and_depend_on_step_path_and_row_alone() {
    let masks = |p: f64, step: f64, paths: usize, n: usize| {
        let mut b = Bench::new();
        let inputs = [b.vector(&[p]), b.vector(&[step])];
        let mask = DropMask::record(&mut b.setup.graph, DropMask { seed: 5 }, paths, n, inputs);
        b.value(mask)
    };
    let mask = masks(0.25, 3.0, 50, 40);
    let kept = f64::from(1.0f32 / 0.75);
    assert!(mask.iter().all(|&m| m == 0.0 || m == kept));
    let mean = mask.iter().sum::<f64>() / mask.len() as f64;
    assert!((mean - 1.0).abs() < 0.06, "mean {mean}");
    assert!(masks(0.0, 3.0, 5, 4).iter().all(|&m| m == 1.0));
    assert_ne!(mask, masks(0.25, 4.0, 50, 40));
    // A smaller batch sees the same draws.
    let small = masks(0.25, 3.0, 2, 7);
    assert_eq!((small[..7].to_vec(), small[7..].to_vec()), (mask[..7].to_vec(), mask[40..47].to_vec()));
}
