//! Maps: convolutions and pools on padded images, means and deviations, factorized reduce.

use supernet::graph::Shape;
use supernet::ops::dense::Dense;
use supernet::ops::elementary::Depthwise;
use supernet::ops::elementwise::Linear;
use supernet::ops::folded::{Activation, Folded, Padding};
use supernet::ops::mixture::Mixture;
use supernet::ops::norm::{NormTensors, Normalised};
use supernet::ops::pool::{GlobalPool, Pool};
use supernet::ops::reduce::{Reduce, ReduceInput};
use supernet::ops::separable::{BranchInput, Separable};

use super::super::cases::{Draw, Setup};
use super::{Bench, close, numbers, padded};

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
fn global_pool_is_the_mean_of_each_image() {
    let mut b = Bench::new();
    let x = b.input(Shape::map(2, 1, 3, 2), &[1.0, 10.0, 2.0, 20.0, 6.0, 60.0, -1.0, 0.0, 0.0, 0.0, 0.0, 3.0]);
    let y = GlobalPool::record(&mut b.setup.graph, x);
    close(&b.value(y), &[3.0, 30.0, -1.0 / 3.0, 1.0]);
}
