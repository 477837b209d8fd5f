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
