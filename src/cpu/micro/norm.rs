//! Statistics of channels and the channel-wise combinations that batch normalisation needs in both directions.

use super::super::simd::{Vector, coef, ld, st};
use super::prologue::add_into;
use super::{Affine, Moments, Sums};

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn moments<V: Vector>(a: &Moments) {
    // SAFETY: the caller's contract.
    unsafe { blocks!(V, a.c, moments_block[](a)) }
}

/// Two passes, because a single one loses the digits that mean and deviation do not share. Eight partial sums hide the
/// latency of the additions and keep each chain short.
#[inline(always)]
unsafe fn moments_block<V: Vector, const FULL: bool>(a: &Moments, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mean = pass::<V, FULL, false>(a, lo, n, V::zero()).mul(V::splat(1.0 / a.rows as f32));
        st::<V, FULL>(a.mean.add(lo), n, mean);
        st::<V, FULL>(a.m2.add(lo), n, pass::<V, FULL, true>(a, lo, n, mean));
    }
}

#[inline(always)]
unsafe fn pass<V: Vector, const FULL: bool, const SQUARE: bool>(a: &Moments, lo: usize, n: usize, mean: V) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let mut s = [V::zero(); 8];
        let mut y = a.y.add(lo);
        for _ in 0..a.rows / 8 {
            for (t, s) in s.iter_mut().enumerate() {
                *s = step::<V, SQUARE>(ld::<V, FULL>(y.add(t * a.ldy), n), mean, *s);
            }
            y = y.add(8 * a.ldy);
        }
        for t in 0..a.rows % 8 {
            s[0] = step::<V, SQUARE>(ld::<V, FULL>(y.add(t * a.ldy), n), mean, s[0]);
        }
        s[0].add(s[1]).add(s[2].add(s[3])).add(s[4].add(s[5]).add(s[6].add(s[7])))
    }
}

#[inline(always)]
fn step<V: Vector, const SQUARE: bool>(y: V, mean: V, sum: V) -> V {
    if SQUARE {
        let d = y.sub(mean);
        d.mul_add(d, sum)
    } else {
        sum.add(y)
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn affine<V: Vector>(a: &Affine) {
    // SAFETY: the caller's contract.
    unsafe {
        match (!a.y.is_null() && !a.b.is_null(), a.accumulate) {
            (false, false) => blocks!(V, a.c, affine_block[false, false](a)),
            (false, true) => blocks!(V, a.c, affine_block[false, true](a)),
            (true, false) => blocks!(V, a.c, affine_block[true, false](a)),
            (true, true) => blocks!(V, a.c, affine_block[true, true](a)),
        }
    }
}

#[inline(always)]
unsafe fn affine_block<V: Vector, const FULL: bool, const Y: bool, const ACCUMULATE: bool>(
    a: &Affine,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let factor = coef::<V, FULL>(a.a, lo, n, 1.0).mul(V::splat(a.s));
        let second = if Y { ld::<V, FULL>(a.b.add(lo), n) } else { V::zero() };
        let shift = coef::<V, FULL>(a.d, lo, n, 0.0);
        for r in 0..a.rows {
            let mut v = shift;
            if Y {
                v = ld::<V, FULL>(a.y.add(r * a.ldy + lo), n).mul_add(second, v);
            }
            v = ld::<V, FULL>(a.g.add(r * a.ldg + lo), n).mul_add(factor, v);
            let out = a.out.add(r * a.ldo + lo);
            if ACCUMULATE {
                v = ld::<V, FULL>(out, n).add(v);
            }
            st::<V, FULL>(out, n, v);
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn sums<V: Vector>(a: &Sums) {
    // SAFETY: the caller's contract.
    unsafe {
        if a.y.is_null() {
            blocks!(V, a.c, sums_block[false](a));
        } else {
            blocks!(V, a.c, sums_block[true](a));
        }
    }
}

#[inline(always)]
unsafe fn sums_block<V: Vector, const FULL: bool, const Y: bool>(a: &Sums, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mean = if Y { coef::<V, FULL>(a.mean, lo, n, 0.0) } else { V::zero() };
        let (mut s1, mut s2) = ([V::zero(); 4], [V::zero(); 4]);
        let mut r = 0;
        while r < a.rows {
            let some = (a.rows - r).min(4);
            for t in 0..4 {
                if t < some {
                    let g = ld::<V, FULL>(a.g.add((r + t) * a.ldg + lo), n);
                    s1[t] = s1[t].add(g);
                    if Y {
                        let y = ld::<V, FULL>(a.y.add((r + t) * a.ldy + lo), n);
                        s2[t] = g.mul_add(y.sub(mean), s2[t]);
                    }
                }
            }
            r += some;
        }
        add_into::<V, FULL>(a.s1.add(lo), n, s1);
        if Y {
            add_into::<V, FULL>(a.s2.add(lo), n, s2);
        }
    }
}
