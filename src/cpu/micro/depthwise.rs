//! Depthwise convolution and its two gradients.
//!
//! All three keep a tile of neighbouring output pixels of one channel block in registers and walk along one row of the
//! window at a time. A pixel of the padded image is loaded (for the scatter: loaded and stored) once for a tile and
//! row and meets all taps that it belongs to, so loads are a fraction of the multiplications and misaligned channels
//! cost little. Which tap of which pixel lands on which output is settled at compile time for each kernel size,
//! dilation and stride of the search spaces; other geometries run a plain loop.

use super::super::simd::{Vector, ld, st};
use super::{Depthwise, DepthwiseScatter, DepthwiseWeight};

/// The output of a tile of `t` on which tap `b` of image pixel `p` lands; `t` if none.
const fn lands(p: usize, b: usize, s: usize, d: usize, t: usize) -> usize {
    if p >= b * d && (p - b * d).is_multiple_of(s) && (p - b * d) / s < t { (p - b * d) / s } else { t }
}

/// Whether image pixel `p` contributes to a tile of `t` at all.
const fn used(p: usize, k: usize, s: usize, d: usize, t: usize) -> bool {
    let mut b = 0;
    while b < k {
        if lands(p, b, s, d, t) < t {
            return true;
        }
        b += 1;
    }
    false
}

/// Weights `[k * k][c]` with the taps in reverse order: with them `depthwise` on the padded gradient of the output of
/// a stride 1 convolution gives the gradient of its input.
///
/// # Safety
/// `w` is valid for reading and `out` for writing `k * k * c` floats, and they do not overlap.
pub unsafe fn flip_taps(w: *const f32, k: usize, c: usize, out: *mut f32) {
    for tap in 0..k * k {
        // SAFETY: both offsets are below `k * k * c`.
        unsafe { out.add((k * k - 1 - tap) * c).copy_from_nonoverlapping(w.add(tap * c), c) };
    }
}

/// Instantiates `$f` for the geometries of the search spaces; `$plain` runs the others.
macro_rules! geometries {
    ($v:ident, $a:expr, $f:ident, $plain:ident) => {
        match ($a.k, $a.stride, $a.dilation) {
            (3, 1, 1) => $f::<$v, 3, 1, 1>($a),
            (3, 1, 2) => $f::<$v, 3, 1, 2>($a),
            (3, 2, 1) => $f::<$v, 3, 2, 1>($a),
            (3, 2, 2) => $f::<$v, 3, 2, 2>($a),
            (5, 1, 1) => $f::<$v, 5, 1, 1>($a),
            (5, 1, 2) => $f::<$v, 5, 1, 2>($a),
            (5, 2, 1) => $f::<$v, 5, 2, 1>($a),
            (5, 2, 2) => $f::<$v, 5, 2, 2>($a),
            _ => blocks!($v, $a.c, $plain[]($a)),
        }
    };
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn depthwise<V: Vector>(a: &Depthwise) {
    // SAFETY: the caller's contract.
    unsafe { geometries!(V, a, forward, forward_plain) }
}

#[inline(always)]
unsafe fn forward<V: Vector, const K: usize, const S: usize, const D: usize>(a: &Depthwise) {
    for i in 0..a.oh {
        // SAFETY: the caller's contract.
        unsafe { blocks!(V, a.c, forward_row[K, S, D](a, i)) }
    }
}

/// Row `i` of the output. The last tile is moved back to end with the row: its overlap is computed twice.
#[inline(always)]
unsafe fn forward_row<V: Vector, const FULL: bool, const K: usize, const S: usize, const D: usize>(
    a: &Depthwise,
    i: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract; tiles end with the row.
    unsafe {
        let inp = a.inp.add(i * S * a.width * a.c + lo);
        let out = a.out.add(i * a.ow * a.ldo + lo);
        if a.ow >= 8 {
            let mut j = 0;
            while j < a.ow {
                j = j.min(a.ow - 8);
                forward_tile::<V, FULL, K, S, D, 8>(a, lo, n, inp.add(j * S * a.c), out.add(j * a.ldo));
                j += 8;
            }
        } else if a.ow >= 4 {
            let mut j = 0;
            while j < a.ow {
                j = j.min(a.ow - 4);
                forward_tile::<V, FULL, K, S, D, 4>(a, lo, n, inp.add(j * S * a.c), out.add(j * a.ldo));
                j += 4;
            }
        } else {
            for j in 0..a.ow {
                forward_tile::<V, FULL, K, S, D, 1>(a, lo, n, inp.add(j * S * a.c), out.add(j * a.ldo));
            }
        }
    }
}

#[inline(always)]
unsafe fn forward_tile<V: Vector, const FULL: bool, const K: usize, const S: usize, const D: usize, const T: usize>(
    a: &Depthwise,
    lo: usize,
    n: usize,
    mut x: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller's contract; image pixels that no output of the tile uses are not loaded.
    unsafe {
        let mut acc = [V::zero(); T];
        let mut w = a.weights.add(lo);
        for _ in 0..K {
            let taps = load_taps::<V, FULL, K>(w, a.c, n);
            each!(P in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22] {
                if const { used(P, K, S, D, T) } {
                    let v = ld::<V, FULL>(x.add(P * a.c), n);
                    each!(B in [0 1 2 3 4] {
                        if const { B < K && lands(P, B, S, D, T) < T } {
                            let t = const { lands(P, B, S, D, T) };
                            acc[t] = v.mul_add(taps[B], acc[t]);
                        }
                    });
                }
            });
            x = x.add(D * a.width * a.c);
            w = w.add(K * a.c);
        }
        for (t, &v) in acc.iter().enumerate() {
            st::<V, FULL>(out.add(t * a.ldo), n, v);
        }
    }
}

/// The taps of one row of the window.
#[inline(always)]
unsafe fn load_taps<V: Vector, const FULL: bool, const K: usize>(w: *const f32, c: usize, n: usize) -> [V; K] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut taps = [V::zero(); K];
        for (b, tap) in taps.iter_mut().enumerate() {
            *tap = ld::<V, FULL>(w.add(b * c), n);
        }
        taps
    }
}

#[inline(always)]
unsafe fn forward_plain<V: Vector, const FULL: bool>(a: &Depthwise, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for o in 0..a.oh * a.ow {
            let (i, j) = (o / a.ow, o % a.ow);
            let mut acc = V::zero();
            for tap in 0..a.k * a.k {
                let (y, x) = (i * a.stride + tap / a.k * a.dilation, j * a.stride + tap % a.k * a.dilation);
                let w = ld::<V, FULL>(a.weights.add(tap * a.c + lo), n);
                acc = ld::<V, FULL>(a.inp.add((y * a.width + x) * a.c + lo), n).mul_add(w, acc);
            }
            st::<V, FULL>(a.out.add(o * a.ldo + lo), n, acc);
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn depthwise_weight<V: Vector>(a: &DepthwiseWeight) {
    // SAFETY: the caller's contract.
    unsafe { geometries!(V, a, weight, weight_plain) }
}

/// With 32 registers the taps of all rows of the window are accumulated at once, with 16 as many rows as fit.
#[inline(always)]
unsafe fn weight<V: Vector, const K: usize, const S: usize, const D: usize>(a: &DepthwiseWeight) {
    // SAFETY: the caller's contract; the groups of rows make up the window.
    unsafe {
        if K == 3 {
            if V::REGISTERS >= 32 {
                blocks!(V, a.c, weight_rows[K, S, D, 3, 8](a, 0));
            } else {
                blocks!(V, a.c, weight_rows[K, S, D, 3, 4](a, 0));
            }
        } else if V::REGISTERS >= 32 {
            blocks!(V, a.c, weight_rows[K, S, D, 5, 4](a, 0));
        } else {
            blocks!(V, a.c, weight_rows[K, S, D, 2, 4](a, 0));
            blocks!(V, a.c, weight_rows[K, S, D, 2, 4](a, 2));
            blocks!(V, a.c, weight_rows[K, S, D, 1, 8](a, 4));
        }
    }
}

/// Rows `first..first + R` of the window, from tiles of `T` output pixels.
#[inline(always)]
unsafe fn weight_rows<
    V: Vector,
    const FULL: bool,
    const K: usize,
    const S: usize,
    const D: usize,
    const R: usize,
    const T: usize,
>(
    a: &DepthwiseWeight,
    first: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [[V::zero(); K]; R];
        for i in 0..a.oh {
            let mut x = a.inp.add((i * S + first * D) * a.width * a.c + lo);
            let mut dd = a.dd.add(i * a.ow * a.ldd + lo);
            for _ in 0..a.ow / T {
                weight_tile::<V, FULL, K, S, D, R, T>(a, n, x, dd, &mut acc);
                x = x.add(T * S * a.c);
                dd = dd.add(T * a.ldd);
            }
            for _ in 0..a.ow % T {
                weight_tile::<V, FULL, K, S, D, R, 1>(a, n, x, dd, &mut acc);
                x = x.add(S * a.c);
                dd = dd.add(a.ldd);
            }
        }
        for (r, row) in acc.iter().enumerate() {
            for (b, &v) in row.iter().enumerate() {
                let dw = a.dw.add(((first + r) * K + b) * a.c + lo);
                st::<V, FULL>(dw, n, ld::<V, FULL>(dw, n).add(v));
            }
        }
    }
}

#[inline(always)]
unsafe fn weight_tile<
    V: Vector,
    const FULL: bool,
    const K: usize,
    const S: usize,
    const D: usize,
    const R: usize,
    const T: usize,
>(
    a: &DepthwiseWeight,
    n: usize,
    x: *const f32,
    dd: *const f32,
    acc: &mut [[V; K]; R],
) {
    // SAFETY: the caller's contract; image pixels that no output of the tile uses are not loaded.
    unsafe {
        let d = load_taps::<V, FULL, T>(dd, a.ldd, n);
        each!(ROW in [0 1 2 3 4] {
            if const { ROW < R } {
                let x = x.add(ROW * D * a.width * a.c);
                each!(P in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22] {
                    if const { used(P, K, S, D, T) } {
                        let v = ld::<V, FULL>(x.add(P * a.c), n);
                        each!(B in [0 1 2 3 4] {
                            if const { B < K && lands(P, B, S, D, T) < T } {
                                acc[ROW][B] = v.mul_add(d[const { lands(P, B, S, D, T) }], acc[ROW][B]);
                            }
                        });
                    }
                });
            }
        });
    }
}

#[inline(always)]
unsafe fn weight_plain<V: Vector, const FULL: bool>(a: &DepthwiseWeight, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for tap in 0..a.k * a.k {
            let dw = a.dw.add(tap * a.c + lo);
            let mut acc = V::zero();
            for o in 0..a.oh * a.ow {
                let (i, j) = (o / a.ow, o % a.ow);
                let (y, x) = (i * a.stride + tap / a.k * a.dilation, j * a.stride + tap % a.k * a.dilation);
                let d = ld::<V, FULL>(a.dd.add(o * a.ldd + lo), n);
                acc = ld::<V, FULL>(a.inp.add((y * a.width + x) * a.c + lo), n).mul_add(d, acc);
            }
            st::<V, FULL>(dw, n, ld::<V, FULL>(dw, n).add(acc));
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn depthwise_scatter<V: Vector>(a: &DepthwiseScatter) {
    // SAFETY: the caller's contract.
    unsafe { geometries!(V, a, scatter, scatter_plain) }
}

#[inline(always)]
unsafe fn scatter<V: Vector, const K: usize, const S: usize, const D: usize>(a: &DepthwiseScatter) {
    for i in 0..a.oh {
        // SAFETY: the caller's contract.
        unsafe { blocks!(V, a.c, scatter_row[K, S, D](a, i)) }
    }
}

#[inline(always)]
unsafe fn scatter_row<V: Vector, const FULL: bool, const K: usize, const S: usize, const D: usize>(
    a: &DepthwiseScatter,
    i: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut dx = a.dx.add(i * S * a.width * a.c + lo);
        let mut dd = a.dd.add(i * a.ow * a.ldd + lo);
        for _ in 0..a.ow / 8 {
            scatter_tile::<V, FULL, K, S, D, 8>(a, lo, n, dd, dx);
            dx = dx.add(8 * S * a.c);
            dd = dd.add(8 * a.ldd);
        }
        if a.ow % 8 >= 4 {
            scatter_tile::<V, FULL, K, S, D, 4>(a, lo, n, dd, dx);
            dx = dx.add(4 * S * a.c);
            dd = dd.add(4 * a.ldd);
        }
        for _ in 0..a.ow % 4 {
            scatter_tile::<V, FULL, K, S, D, 1>(a, lo, n, dd, dx);
            dx = dx.add(S * a.c);
            dd = dd.add(a.ldd);
        }
    }
}

#[inline(always)]
unsafe fn scatter_tile<V: Vector, const FULL: bool, const K: usize, const S: usize, const D: usize, const T: usize>(
    a: &DepthwiseScatter,
    lo: usize,
    n: usize,
    dd: *const f32,
    mut dx: *mut f32,
) {
    // SAFETY: the caller's contract; image pixels that receive nothing from the tile are not touched.
    unsafe {
        let d = load_taps::<V, FULL, T>(dd, a.ldd, n);
        let mut w = a.weights.add(lo);
        for _ in 0..K {
            let taps = load_taps::<V, FULL, K>(w, a.c, n);
            each!(P in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22] {
                if const { used(P, K, S, D, T) } {
                    let p = dx.add(P * a.c);
                    let mut v = ld::<V, FULL>(p, n);
                    each!(B in [0 1 2 3 4] {
                        if const { B < K && lands(P, B, S, D, T) < T } {
                            v = d[const { lands(P, B, S, D, T) }].mul_add(taps[B], v);
                        }
                    });
                    st::<V, FULL>(p, n, v);
                }
            });
            dx = dx.add(D * a.width * a.c);
            w = w.add(K * a.c);
        }
    }
}

#[inline(always)]
unsafe fn scatter_plain<V: Vector, const FULL: bool>(a: &DepthwiseScatter, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for o in 0..a.oh * a.ow {
            let (i, j) = (o / a.ow, o % a.ow);
            let d = ld::<V, FULL>(a.dd.add(o * a.ldd + lo), n);
            for tap in 0..a.k * a.k {
                let (y, x) = (i * a.stride + tap / a.k * a.dilation, j * a.stride + tap % a.k * a.dilation);
                let w = ld::<V, FULL>(a.weights.add(tap * a.c + lo), n);
                let dx = a.dx.add((y * a.width + x) * a.c + lo);
                st::<V, FULL>(dx, n, d.mul_add(w, ld::<V, FULL>(dx, n)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
                        out.check(&what, |o, i| {
                            (0..k * k).map(|tap| inp.at(pixel(o, tap), i) * weights.at(tap, i)).sum()
                        });

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
}
