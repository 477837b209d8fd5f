//! What surrounds a convolution: normalisation, ReLU and padding before it, and the gradient through that ReLU.
//!
//! These kernels move data; each image row is finished for all channel blocks before the next, in memory order.

use super::super::simd::{Vector, coef, ld, relu, st};
use super::{MaskAccumulate, MaskSums, PadPrologue};

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn pad_prologue<V: Vector>(a: &PadPrologue) {
    let (side, width) = (a.pad * a.c, a.w * a.c);
    let line = width + 2 * side;
    let plain = a.scale.is_null() && a.shift.is_null();
    // SAFETY: the caller's contract: the padded image has `h + 2 * pad` lines.
    unsafe {
        a.out.write_bytes(0, a.pad * line);
        for i in 0..a.h {
            let out = a.out.add((a.pad + i) * line);
            out.write_bytes(0, side);
            out.add(side + width).write_bytes(0, side);
            let (x, out) = (a.x.add(i * a.w * a.ldx), out.add(side));
            match (plain, a.relu) {
                // Without gaps and coefficients a row is one pixel of `w * c` channels.
                (true, true) if a.ldx == a.c => blocks!(V, width, prologue_row[false, true](a, x, out, 1)),
                (true, false) if a.ldx == a.c => out.copy_from_nonoverlapping(x, width),
                (true, true) => blocks!(V, a.c, prologue_row[false, true](a, x, out, a.w)),
                (true, false) => blocks!(V, a.c, prologue_row[false, false](a, x, out, a.w)),
                (false, true) => blocks!(V, a.c, prologue_row[true, true](a, x, out, a.w)),
                (false, false) => blocks!(V, a.c, prologue_row[true, false](a, x, out, a.w)),
            }
        }
        a.out.add((a.pad + a.h) * line).write_bytes(0, a.pad * line);
    }
}

#[inline(always)]
unsafe fn prologue_row<V: Vector, const FULL: bool, const AFFINE: bool, const RELU: bool>(
    a: &PadPrologue,
    x: *const f32,
    out: *mut f32,
    pixels: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let zero = V::zero();
        let (scale, shift) = if AFFINE {
            (coef::<V, FULL>(a.scale, lo, n, 1.0), coef::<V, FULL>(a.shift, lo, n, 0.0))
        } else {
            (zero, zero)
        };
        for j in 0..pixels {
            let mut v = ld::<V, FULL>(x.add(j * a.ldx + lo), n);
            if AFFINE {
                v = v.mul_add(scale, shift);
            }
            if RELU {
                v = relu(v, zero);
            }
            st::<V, FULL>(out.add(j * a.c + lo), n, v);
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn mask_accumulate<V: Vector>(a: &MaskAccumulate) {
    for i in 0..a.h {
        // SAFETY: the caller's contract.
        unsafe {
            match (a.relu, a.accumulate) {
                (true, true) => blocks!(V, a.c, mask_row[true, true](a, i)),
                (true, false) => blocks!(V, a.c, mask_row[true, false](a, i)),
                (false, true) => blocks!(V, a.c, mask_row[false, true](a, i)),
                (false, false) => blocks!(V, a.c, mask_row[false, false](a, i)),
            }
        }
    }
}

#[inline(always)]
unsafe fn mask_row<V: Vector, const FULL: bool, const RELU: bool, const ACCUMULATE: bool>(
    a: &MaskAccumulate,
    i: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let (scale, shift) = (coef::<V, FULL>(a.scale, lo, n, 1.0), coef::<V, FULL>(a.shift, lo, n, 0.0));
        for j in 0..a.w {
            let pixel = i * a.w + j;
            let mut g = ld::<V, FULL>(a.d.add(i * a.d_row_stride + j * a.c + lo), n);
            if RELU {
                let x = ld::<V, FULL>(a.x.add(pixel * a.ldx + lo), n);
                g = g.keep(x.mul_add(scale, shift).positive());
            }
            let out = a.out.add(pixel * a.ldo + lo);
            if ACCUMULATE {
                g = ld::<V, FULL>(out, n).add(g);
            }
            st::<V, FULL>(out, n, g);
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn mask_sums<V: Vector>(a: &MaskSums) {
    // SAFETY: the caller's contract.
    unsafe {
        if a.mask.relu {
            blocks!(V, a.mask.c, mask_sums_block[true](a));
        } else {
            blocks!(V, a.mask.c, mask_sums_block[false](a));
        }
    }
}

/// Four pairs of partial sums hide the latency of the additions.
#[inline(always)]
unsafe fn mask_sums_block<V: Vector, const FULL: bool, const RELU: bool>(a: &MaskSums, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let m = &a.mask;
        let (scale, shift) = (coef::<V, FULL>(m.scale, lo, n, 1.0), coef::<V, FULL>(m.shift, lo, n, 0.0));
        let mean = coef::<V, FULL>(a.mean, lo, n, 0.0);
        let (mut s1, mut s2) = ([V::zero(); 4], [V::zero(); 4]);
        for i in 0..m.h {
            let d = m.d.add(i * m.d_row_stride + lo);
            let x = m.x.add(i * m.w * m.ldx + lo);
            let out = m.out.add(i * m.w * m.ldo + lo);
            let mut j = 0;
            while j < m.w {
                let some = (m.w - j).min(4);
                for t in 0..4 {
                    if t < some {
                        let x = ld::<V, FULL>(x.add((j + t) * m.ldx), n);
                        let mut g = ld::<V, FULL>(d.add((j + t) * m.c), n);
                        if RELU {
                            g = g.keep(x.mul_add(scale, shift).positive());
                        }
                        st::<V, FULL>(out.add((j + t) * m.ldo), n, g);
                        s1[t] = s1[t].add(g);
                        s2[t] = g.mul_add(x.sub(mean), s2[t]);
                    }
                }
                j += some;
            }
        }
        add_into::<V, FULL>(a.s1.add(lo), n, s1);
        add_into::<V, FULL>(a.s2.add(lo), n, s2);
    }
}

/// Adds four partial sums to the floats at `p`.
///
/// # Safety
/// `p` is valid for reading and writing the lanes.
#[inline(always)]
pub(super) unsafe fn add_into<V: Vector, const FULL: bool>(p: *mut f32, n: usize, s: [V; 4]) {
    // SAFETY: the caller's contract.
    unsafe { st::<V, FULL>(p, n, ld::<V, FULL>(p, n).add(s[0].add(s[1]).add(s[2].add(s[3])))) }
}

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::super::testing::{CHANNELS, IMAGES, Map, Random, tables};
    use super::*;

    #[test]
    fn prologue_and_mask_match_the_definition() {
        let mut random = Random(4);
        for (c, gap) in CHANNELS.into_iter().flat_map(|c| [(c, 0), (c, 3)]) {
            for ((h, w), pad) in IMAGES.into_iter().zip([1, 0, 2, 4]) {
                let x = Map::random(h * w, c, gap, &mut random);
                let (scale, shift) = (Map::vector(c, &mut random), Map::vector(c, &mut random));
                let mean = Map::vector(c, &mut random);
                let d = Map::random((h + 2 * pad) * (w + 2 * pad), c, 0, &mut random);
                for table in tables() {
                    for mode in 0..8 {
                        let (relu, normal, accumulate) = (mode & 1 != 0, mode & 2 != 0, mode & 4 != 0);
                        let what = format!("{:?} c {c} gap {gap} mode {mode}", table.level);
                        let (scale_ptr, shift_ptr) = if normal { (scale.ptr(), shift.ptr()) } else { (null(), null()) };
                        let f = |r: usize, i: usize| {
                            let y = x.at(r, i);
                            if normal {
                                (scale.at(0, i) as f32).mul_add(y as f32, shift.at(0, i) as f32) as f64
                            } else {
                                y
                            }
                        };
                        let width = w + 2 * pad;
                        let mut out = Map::poisoned((h + 2 * pad) * width, c, 0);
                        let args = PadPrologue {
                            x: x.ptr(),
                            ldx: x.ld,
                            h,
                            w,
                            c,
                            pad,
                            scale: scale_ptr,
                            shift: shift_ptr,
                            relu,
                            out: out.ptr_mut(),
                        };
                        // SAFETY: the maps have the sizes that the arguments name.
                        unsafe { (table.pad_prologue)(&args) };
                        out.check(&what, |p, i| {
                            let (y, x) = ((p / width).wrapping_sub(pad), (p % width).wrapping_sub(pad));
                            let inside = y < h && x < w;
                            if !inside {
                                0.0
                            } else if relu {
                                f(y * w + x, i).max(0.0)
                            } else {
                                f(y * w + x, i)
                            }
                        });

                        let before = Map::random(h * w, c, 2, &mut random);
                        let mut out = if accumulate { before.clone() } else { Map::poisoned(h * w, c, 2) };
                        let mask = MaskAccumulate {
                            // SAFETY: the first interior pixel lies in the padded image.
                            d: unsafe { d.ptr().add((pad * width + pad) * c) },
                            d_row_stride: width * c,
                            x: x.ptr(),
                            ldx: x.ld,
                            h,
                            w,
                            c,
                            scale: scale_ptr,
                            shift: shift_ptr,
                            relu,
                            out: out.ptr_mut(),
                            ldo: before.ld,
                            accumulate,
                        };
                        // SAFETY: the maps have the sizes that the arguments name.
                        unsafe { (table.mask_accumulate)(&mask) };
                        let masked = |r: usize, i: usize| {
                            let passes = !relu || f(r, i) > 0.0;
                            if passes { d.at((r / w + pad) * width + r % w + pad, i) } else { 0.0 }
                        };
                        out.check(&what, |r, i| masked(r, i) + if accumulate { before.at(r, i) } else { 0.0 });

                        let (b1, b2) = (Map::vector(c, &mut random), Map::vector(c, &mut random));
                        let (mut s1, mut s2) = (b1.clone(), b2.clone());
                        let mut out = Map::poisoned(h * w, c, 2);
                        let args = MaskSums {
                            mask: MaskAccumulate { out: out.ptr_mut(), ..mask },
                            mean: mean.ptr(),
                            s1: s1.ptr_mut(),
                            s2: s2.ptr_mut(),
                        };
                        // SAFETY: as above.
                        unsafe { (table.mask_sums)(&args) };
                        out.check(&what, masked);
                        s1.check(&what, |_, i| b1.at(0, i) + (0..h * w).map(|r| masked(r, i)).sum::<f64>());
                        s2.check(&what, |_, i| {
                            let sum: f64 = (0..h * w).map(|r| masked(r, i) * (x.at(r, i) - mean.at(0, i))).sum();
                            b2.at(0, i) + sum
                        });
                    }
                }
            }
        }
    }
}
