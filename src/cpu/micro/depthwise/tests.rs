//! The depthwise kernels against their definitions.

use super::super::testing::{CHANNELS, IMAGES, Map, Random, out_len, tables};
use super::*;

/// All geometries: (k, stride, dilation).
fn geometries() -> Vec<(usize, usize, usize)> {
    let hot = [3, 5].into_iter().flat_map(|k| [(k, 1, 1), (k, 1, 2), (k, 2, 1), (k, 2, 2)]);
    hot.chain([(1, 1, 1), (7, 2, 1), (3, 3, 1)]).collect()
}

#[test]
fn depthwise_and_its_gradients_match_the_definition() {
    let mut random = Random(1);
    for (k, stride, dilation) in geometries() {
        for (h, w) in IMAGES {
            for c in CHANNELS {
                let pad = dilation * (k - 1) / 2;
                let (width, height) = (w + 2 * pad, h + 2 * pad);
                let (oh, ow) = (out_len(h, pad, k, dilation, stride), out_len(w, pad, k, dilation, stride));
                let inp = Map::random(height * width, c, 0, &mut random);
                let weights = Map::random(k * k, c, 0, &mut random);
                let dd = Map::random(oh * ow, c, 3, &mut random);
                let pixel = |o: usize, tap: usize| {
                    (o / ow * stride + tap / k * dilation) * width + o % ow * stride + tap % k * dilation
                };
                for table in tables() {
                    let what = format!("{:?} k {k} stride {stride} dilation {dilation} c {c}", table.level);
                    let mut out = Map::poisoned(oh * ow, c, 5);
                    let ldo = out.ld;
                    let args = Depthwise {
                        inp: inp.ptr(),
                        width,
                        oh,
                        ow,
                        c,
                        k,
                        dilation,
                        stride,
                        weights: weights.ptr(),
                        out: out.ptr_mut(),
                        ldo,
                    };
                    // SAFETY: the maps have the sizes that the arguments name.
                    unsafe { (table.depthwise)(&args) };
                    out.check(&what, |o, i| (0..k * k).map(|tap| inp.at(pixel(o, tap), i) * weights.at(tap, i)).sum());

                    let before = Map::random(k * k, c, 0, &mut random);
                    let mut dw = before.clone();
                    let args = DepthwiseWeight {
                        inp: inp.ptr(),
                        width,
                        oh,
                        ow,
                        c,
                        k,
                        dilation,
                        stride,
                        dd: dd.ptr(),
                        ldd: dd.ld,
                        dw: dw.ptr_mut(),
                    };
                    // SAFETY: as above.
                    unsafe { (table.depthwise_weight)(&args) };
                    dw.check(&what, |tap, i| {
                        let sum: f64 = (0..oh * ow).map(|o| inp.at(pixel(o, tap), i) * dd.at(o, i)).sum();
                        before.at(tap, i) + sum
                    });

                    let before = Map::random(height * width, c, 0, &mut random);
                    let mut dx = before.clone();
                    let args = DepthwiseScatter {
                        dd: dd.ptr(),
                        ldd: dd.ld,
                        oh,
                        ow,
                        c,
                        k,
                        dilation,
                        stride,
                        weights: weights.ptr(),
                        dx: dx.ptr_mut(),
                        width,
                    };
                    // SAFETY: as above.
                    unsafe { (table.depthwise_scatter)(&args) };
                    let mut expected: Vec<f64> = before.values();
                    for o in 0..oh * ow {
                        for tap in 0..k * k {
                            for i in 0..c {
                                expected[pixel(o, tap) * c + i] += dd.at(o, i) * weights.at(tap, i);
                            }
                        }
                    }
                    dx.check(&what, |p, i| expected[p * c + i]);
                }
            }
        }
    }
}

#[test]
fn flipped_taps_turn_the_convolution_into_its_adjoint() {
    let (k, c, w) = (3, 5, 4);
    let mut random = Random(2);
    let weights = Map::random(k * k, c, 0, &mut random);
    let mut flipped = Map::poisoned(k * k, c, 0);
    // SAFETY: both hold `k * k * c` floats.
    unsafe { flip_taps(weights.ptr(), k, c, flipped.ptr_mut()) };
    flipped.check("flipped", |tap, i| weights.at(k * k - 1 - tap, i));
    let (x, d) = (Map::random(w * w, c, 0, &mut random), Map::random(w * w, c, 0, &mut random));
    for table in tables() {
        let conv = |x: &Map, weights: &Map| {
            let mut padded = Map::poisoned((w + 2) * (w + 2), c, 0);
            let mut out = Map::poisoned(w * w, c, 0);
            let prologue = super::super::PadPrologue {
                x: x.ptr(),
                ldx: c,
                h: w,
                w,
                c,
                pad: 1,
                scale: std::ptr::null(),
                shift: std::ptr::null(),
                relu: false,
                out: padded.ptr_mut(),
            };
            let args = Depthwise {
                inp: padded.ptr(),
                width: w + 2,
                oh: w,
                ow: w,
                c,
                k,
                dilation: 1,
                stride: 1,
                weights: weights.ptr(),
                out: out.ptr_mut(),
                ldo: c,
            };
            // SAFETY: the maps have the sizes that the arguments name.
            unsafe {
                (table.pad_prologue)(&prologue);
                (table.depthwise)(&args);
            }
            out.values()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let forward = dot(&conv(&x, &weights), &d.values());
        let backward = dot(&x.values(), &conv(&d, &flipped));
        assert!((forward - backward).abs() < 1e-4, "{forward} {backward}");
    }
}
