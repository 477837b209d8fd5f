//! Depthwise convolution and its two gradients.
//!
//! The hot geometries keep a tile of output pixels of one channel block in registers and walk along one row of the
//! window at a time. A pixel of the padded image is loaded (for the scatter: loaded and stored) once for a tile and
//! row and meets all taps that it belongs to, so loads are a fraction of the multiplications and misaligned channels
//! cost little. Which tap of which pixel lands on which output is settled at compile time.
//!
//! Two patterns cover all dilations: with pixels counted in steps of the dilation, the windows of neighbouring tile
//! pixels are one step apart (stride 1, where a tile takes every `dilation`-th pixel of the row, and stride equal to
//! the dilation) or two steps (stride twice the dilation). Other strides, other kernel sizes and channel blocks that
//! do not fill a register run plain loops.

use super::super::simd::{Vector, ld, st};
use super::{Depthwise, DepthwiseScatter, DepthwiseWeight};

/// The output of a tile of `t` on which tap `b` of pixel `p` lands if windows are `s` pixels apart; `t` if none.
const fn lands(p: usize, b: usize, s: usize, t: usize) -> usize {
    if p >= b && (p - b).is_multiple_of(s) && (p - b) / s < t { (p - b) / s } else { t }
}

/// Number of pixels that a tile of `t` outputs sees in a row.
const fn span(t: usize, k: usize, s: usize) -> usize {
    (t - 1) * s + k
}

/// How the pixels of an output row are dealt to tiles.
#[derive(Clone, Copy)]
struct Walk {
    /// Tiles take every `phases`-th pixel, beginning with each of the first `phases`.
    phases: usize,
    /// Floats from one pixel of the pattern to the next in the padded image.
    unit: usize,
    /// Floats from one row of the window to the next in the padded image.
    row: usize,
}

impl Walk {
    #[inline(always)]
    fn new(stride: usize, dilation: usize, width: usize, c: usize) -> Self {
        let phases = if stride == 1 { dilation } else { 1 };
        Self { phases, unit: dilation * c, row: dilation * width * c }
    }

    /// Number of pixels of phase `phase` in a row of `ow`.
    #[inline(always)]
    fn count(&self, ow: usize, phase: usize) -> usize {
        (ow.max(phase) - phase).div_ceil(self.phases)
    }
}

/// Runs the pattern of the geometry on whole registers and `$plain` on the rest; `$plain` alone for other geometries.
macro_rules! geometries {
    ($v:ident, $a:expr, $f:ident, $plain:ident) => {{
        let a = $a;
        let step = if a.stride == 1 || a.stride == a.dilation { 1 } else { a.stride };
        match (a.k, step) {
            (3, 1) => geometries!(@blocks $v, a, $f[3, 1], $plain),
            (5, 1) => geometries!(@blocks $v, a, $f[5, 1], $plain),
            (3, 2) if a.stride == 2 * a.dilation => geometries!(@blocks $v, a, $f[3, 2], $plain),
            (5, 2) if a.stride == 2 * a.dilation => geometries!(@blocks $v, a, $f[5, 2], $plain),
            _ => blocks!($v, a.c, $plain[](a)),
        }
    }};
    (@blocks $v:ident, $a:ident, $f:ident [$k:literal, $s:literal], $plain:ident) => {{
        let mut lo = 0;
        while lo + $v::LANES <= $a.c {
            $f::<$v, $k, $s>($a, lo);
            lo += $v::LANES;
        }
        let half = <$v::Half as Vector>::LANES;
        if half < $v::LANES && lo + half <= $a.c {
            $f::<$v::Half, $k, $s>($a, lo);
            lo += half;
        }
        if lo < $a.c {
            $plain::<$v::Half, false>($a, lo, $a.c - lo);
        }
    }};
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

/// `p + step`. For 3 x 3 windows the compiler may not fold it with other steps: it would compute the distances of all
/// pixels of a tile ahead and, having too few registers for them, load them between the multiplications. With 5 x 5
/// windows there are enough multiplications to hide that, and the freedom to schedule is worth more.
#[inline(always)]
fn advance<const K: usize>(p: *mut f32, step: usize) -> *mut f32 {
    #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(unused_mut))]
    let mut next = p.wrapping_add(step);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if K == 3 {
        #[expect(clippy::pointers_in_nomem_asm_block, reason = "no instruction, hence no access")]
        // SAFETY: there is no instruction.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) next, options(pure, nomem, nostack, preserves_flags));
        }
    }
    next
}

/// `N` vectors that are `step` floats apart.
#[inline(always)]
unsafe fn load_row<V: Vector, const FULL: bool, const N: usize>(mut p: *const f32, step: usize, n: usize) -> [V; N] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut row = [V::zero(); N];
        for v in &mut row {
            *v = ld::<V, FULL>(p, n);
            p = p.wrapping_add(step);
        }
        row
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn depthwise<V: Vector>(a: &Depthwise) {
    // SAFETY: the caller's contract.
    unsafe { geometries!(V, a, forward, forward_plain) }
}

/// One channel block. The last tile of a row is moved back to end with it: its overlap is computed twice.
#[inline(always)]
unsafe fn forward<V: Vector, const K: usize, const S: usize>(a: &Depthwise, lo: usize) {
    let walk = Walk::new(a.stride, a.dilation, a.width, a.c);
    // SAFETY: the caller's contract; tiles end with the row.
    unsafe {
        for i in 0..a.oh {
            for phase in 0..walk.phases {
                let count = walk.count(a.ow, phase);
                let tile = if count >= 8 {
                    8
                } else if count >= 4 {
                    4
                } else {
                    1
                };
                let inp = a.inp.add((i * a.stride * a.width + phase) * a.c + lo);
                let out = a.out.add((i * a.ow + phase) * a.ldo + lo);
                let mut j = 0;
                while j < count {
                    j = j.min(count - tile);
                    let (inp, out) = (inp.add(j * S * walk.unit), out.add(j * walk.phases * a.ldo));
                    match tile {
                        8 => forward_tile::<V, K, S, 8>(a, lo, walk, inp, out),
                        4 => forward_tile::<V, K, S, 4>(a, lo, walk, inp, out),
                        _ => forward_any::<V, true, 1>(a, lo, V::LANES, inp, out),
                    }
                    j += tile;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn forward_tile<V: Vector, const K: usize, const S: usize, const T: usize>(
    a: &Depthwise,
    lo: usize,
    walk: Walk,
    mut row: *const f32,
    mut out: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [V::zero(); T];
        let mut w = a.weights.add(lo);
        for _ in 0..K {
            let taps = load_row::<V, true, K>(w, a.c, V::LANES);
            let mut x = row;
            each!(P in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18] {
                if const { P < span(T, K, S) } {
                    if P != 0 {
                        x = advance::<K>(x.cast_mut(), walk.unit);
                    }
                    let v = V::load(x);
                    each!(B in [0 1 2 3 4] {
                        if const { B < K && lands(P, B, S, T) < T } {
                            let t = const { lands(P, B, S, T) };
                            acc[t] = v.mul_add(taps[B], acc[t]);
                        }
                    });
                }
            });
            row = row.wrapping_add(walk.row);
            w = w.wrapping_add(K * a.c);
        }
        for v in acc {
            v.store(out);
            out = out.wrapping_add(walk.phases * a.ldo);
        }
    }
}

#[inline(always)]
unsafe fn forward_plain<V: Vector, const FULL: bool>(a: &Depthwise, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for i in 0..a.oh {
            let mut inp = a.inp.add(i * a.stride * a.width * a.c + lo);
            let mut out = a.out.add(i * a.ow * a.ldo + lo);
            for _ in 0..a.ow / 8 {
                forward_any::<V, FULL, 8>(a, lo, n, inp, out);
                inp = inp.wrapping_add(8 * a.stride * a.c);
                out = out.wrapping_add(8 * a.ldo);
            }
            for _ in 0..a.ow % 8 {
                forward_any::<V, FULL, 1>(a, lo, n, inp, out);
                inp = inp.wrapping_add(a.stride * a.c);
                out = out.wrapping_add(a.ldo);
            }
        }
    }
}

/// `T` neighbouring output pixels for any geometry.
#[inline(always)]
unsafe fn forward_any<V: Vector, const FULL: bool, const T: usize>(
    a: &Depthwise,
    lo: usize,
    n: usize,
    mut row: *const f32,
    mut out: *mut f32,
) {
    let step = a.stride * a.c;
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [V::zero(); T];
        let mut w = a.weights.add(lo);
        for _ in 0..a.k {
            let mut x = row;
            for _ in 0..a.k {
                let tap = ld::<V, FULL>(w, n);
                let mut p = x;
                for sum in &mut acc {
                    *sum = ld::<V, FULL>(p, n).mul_add(tap, *sum);
                    p = p.wrapping_add(step);
                }
                x = x.wrapping_add(a.dilation * a.c);
                w = w.wrapping_add(a.c);
            }
            row = row.wrapping_add(a.dilation * a.width * a.c);
        }
        for v in acc {
            st::<V, FULL>(out, n, v);
            out = out.wrapping_add(a.ldo);
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
unsafe fn weight<V: Vector, const K: usize, const S: usize>(a: &DepthwiseWeight, lo: usize) {
    // SAFETY: the caller's contract; the groups of rows make up the window.
    unsafe {
        if K == 3 {
            weight_rows::<V, K, S, 3>(a, 0, lo);
        } else if V::REGISTERS >= 32 {
            weight_rows::<V, K, S, 5>(a, 0, lo);
        } else {
            weight_rows::<V, K, S, 2>(a, 0, lo);
            weight_rows::<V, K, S, 2>(a, 2, lo);
            weight_rows::<V, K, S, 1>(a, 4, lo);
        }
    }
}

/// Rows `first..first + R` of the window, from tiles of 4 output pixels.
#[inline(always)]
unsafe fn weight_rows<V: Vector, const K: usize, const S: usize, const R: usize>(
    a: &DepthwiseWeight,
    first: usize,
    lo: usize,
) {
    let walk = Walk::new(a.stride, a.dilation, a.width, a.c);
    let next = walk.phases * a.ldd;
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [[V::zero(); K]; R];
        for i in 0..a.oh {
            for phase in 0..walk.phases {
                let count = walk.count(a.ow, phase);
                let mut x = a.inp.add((i * a.stride * a.width + phase) * a.c + first * walk.row + lo);
                let mut dd = a.dd.add((i * a.ow + phase) * a.ldd + lo);
                for _ in 0..count / 4 {
                    weight_tile::<V, K, S, R, 4>(walk, x, dd, next, &mut acc);
                    x = x.wrapping_add(4 * S * walk.unit);
                    dd = dd.wrapping_add(4 * next);
                }
                for _ in 0..count % 4 {
                    weight_tile::<V, K, S, R, 1>(walk, x, dd, next, &mut acc);
                    x = x.wrapping_add(S * walk.unit);
                    dd = dd.wrapping_add(next);
                }
            }
        }
        let mut dw = a.dw.add(first * K * a.c + lo);
        for row in &acc {
            for &v in row {
                V::load(dw).add(v).store(dw);
                dw = dw.wrapping_add(a.c);
            }
        }
    }
}

#[inline(always)]
unsafe fn weight_tile<V: Vector, const K: usize, const S: usize, const R: usize, const T: usize>(
    walk: Walk,
    mut row: *const f32,
    dd: *const f32,
    next: usize,
    acc: &mut [[V; K]; R],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let d = load_row::<V, true, T>(dd, next, V::LANES);
        each!(ROW in [0 1 2 3 4] {
            if const { ROW < R } {
                if ROW != 0 {
                    row = row.wrapping_add(walk.row);
                }
                let mut x = row;
                each!(P in [0 1 2 3 4 5 6 7 8 9 10] {
                    if const { P < span(T, K, S) } {
                        if P != 0 {
                            x = advance::<K>(x.cast_mut(), walk.unit);
                        }
                        let v = V::load(x);
                        each!(B in [0 1 2 3 4] {
                            if const { B < K && lands(P, B, S, T) < T } {
                                acc[ROW][B] = v.mul_add(d[const { lands(P, B, S, T) }], acc[ROW][B]);
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
        match a.k {
            3 => weight_any::<V, FULL, 3>(a, lo, n),
            5 => weight_any::<V, FULL, 5>(a, lo, n),
            _ => weight_any::<V, FULL, 1>(a, lo, n),
        }
    }
}

/// Groups of `N` taps of a row, of which there is a whole number, for any geometry.
#[inline(always)]
unsafe fn weight_any<V: Vector, const FULL: bool, const N: usize>(a: &DepthwiseWeight, lo: usize, n: usize) {
    let unit = a.dilation * a.c;
    // SAFETY: the caller's contract.
    unsafe {
        for tap in (0..a.k * a.k).step_by(N) {
            let mut acc = [V::zero(); N];
            let mut dd = a.dd.add(lo);
            for i in 0..a.oh {
                let y = i * a.stride + tap / a.k * a.dilation;
                let mut x = a.inp.add((y * a.width + tap % a.k * a.dilation) * a.c + lo);
                for _ in 0..a.ow {
                    let d = ld::<V, FULL>(dd, n);
                    let mut p = x;
                    for sum in &mut acc {
                        *sum = ld::<V, FULL>(p, n).mul_add(d, *sum);
                        p = p.wrapping_add(unit);
                    }
                    x = x.wrapping_add(a.stride * a.c);
                    dd = dd.wrapping_add(a.ldd);
                }
            }
            for (b, v) in acc.into_iter().enumerate() {
                let dw = a.dw.add((tap + b) * a.c + lo);
                st::<V, FULL>(dw, n, ld::<V, FULL>(dw, n).add(v));
            }
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
unsafe fn scatter<V: Vector, const K: usize, const S: usize>(a: &DepthwiseScatter, lo: usize) {
    let walk = Walk::new(a.stride, a.dilation, a.width, a.c);
    let next = walk.phases * a.ldd;
    // SAFETY: the caller's contract.
    unsafe {
        for i in 0..a.oh {
            for phase in 0..walk.phases {
                let count = walk.count(a.ow, phase);
                let mut dx = a.dx.add((i * a.stride * a.width + phase) * a.c + lo);
                let mut dd = a.dd.add((i * a.ow + phase) * a.ldd + lo);
                for _ in 0..count / 4 {
                    scatter_tile::<V, K, S, 4>(a, lo, walk, dd, next, dx);
                    dx = dx.wrapping_add(4 * S * walk.unit);
                    dd = dd.wrapping_add(4 * next);
                }
                for _ in 0..count % 4 {
                    scatter_any::<V, true>(a, lo, V::LANES, dd, dx);
                    dx = dx.wrapping_add(S * walk.unit);
                    dd = dd.wrapping_add(next);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn scatter_tile<V: Vector, const K: usize, const S: usize, const T: usize>(
    a: &DepthwiseScatter,
    lo: usize,
    walk: Walk,
    dd: *const f32,
    next: usize,
    mut row: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let d = load_row::<V, true, T>(dd, next, V::LANES);
        let mut w = a.weights.add(lo);
        for _ in 0..K {
            let taps = load_row::<V, true, K>(w, a.c, V::LANES);
            let mut dx = row;
            each!(P in [0 1 2 3 4 5 6 7 8 9 10] {
                if const { P < span(T, K, S) } {
                    if P != 0 {
                        dx = advance::<K>(dx, walk.unit);
                    }
                    let mut v = V::load(dx);
                    each!(B in [0 1 2 3 4] {
                        if const { B < K && lands(P, B, S, T) < T } {
                            v = d[const { lands(P, B, S, T) }].mul_add(taps[B], v);
                        }
                    });
                    v.store(dx);
                }
            });
            row = row.wrapping_add(walk.row);
            w = w.wrapping_add(K * a.c);
        }
    }
}

#[inline(always)]
unsafe fn scatter_plain<V: Vector, const FULL: bool>(a: &DepthwiseScatter, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut dd = a.dd.add(lo);
        for i in 0..a.oh {
            let mut dx = a.dx.add(i * a.stride * a.width * a.c + lo);
            for _ in 0..a.ow {
                scatter_any::<V, FULL>(a, lo, n, dd, dx);
                dx = dx.wrapping_add(a.stride * a.c);
                dd = dd.wrapping_add(a.ldd);
            }
        }
    }
}

/// One output pixel for any geometry.
#[inline(always)]
unsafe fn scatter_any<V: Vector, const FULL: bool>(
    a: &DepthwiseScatter,
    lo: usize,
    n: usize,
    dd: *const f32,
    mut row: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let d = ld::<V, FULL>(dd, n);
        let mut w = a.weights.add(lo);
        for _ in 0..a.k {
            let mut dx = row;
            for _ in 0..a.k {
                st::<V, FULL>(dx, n, d.mul_add(ld::<V, FULL>(w, n), ld::<V, FULL>(dx, n)));
                dx = dx.wrapping_add(a.dilation * a.c);
                w = w.wrapping_add(a.c);
            }
            row = row.wrapping_add(a.dilation * a.width * a.c);
        }
    }
}

#[cfg(test)]
mod tests;
