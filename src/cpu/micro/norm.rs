//! Statistics of channels and the channel-wise combinations that batch normalisation needs in both directions.

use std::ops::Range;

use super::super::simd::{Vector, coef, ld, st};
use super::prologue::add_into;
use super::{Affine, Bound, Moments, Sums};

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn moments<V: Vector>(a: &Moments) {
    let stretch = (STRETCH_FLOATS / a.c).clamp(STRETCH, 8 * STRETCH);
    let mut row = 0;
    while row < a.rows {
        let rows = (a.rows - row).min(stretch);
        // SAFETY: the caller's contract; the stretches end with the rows.
        unsafe { blocks!(V, a.c, moments_block[](a, row, rows)) }
        row += rows;
    }
}

/// Rows that all blocks of channels take before the next rows, so that a cache line is fetched once for all of them.
const STRETCH: usize = 64;
/// Floats of a stretch that is passed over twice, less than a first-level cache has.
const STRETCH_FLOATS: usize = 4096;

/// Two passes over a stretch, because a single one loses the digits that mean and deviation do not share; then the stretch
/// is merged with the rows before it. Eight partial sums hide the latency of the additions and keep each chain short.
#[inline(always)]
unsafe fn moments_block<V: Vector, const FULL: bool>(a: &Moments, row: usize, rows: usize, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let y = a.y.add(row * a.ldy + lo);
        let own = pass::<V, FULL, false>(y, a.ldy, rows, n, V::zero()).mul(V::splat(1.0 / rows as f32));
        let m2 = pass::<V, FULL, true>(y, a.ldy, rows, n, own);
        if row == 0 {
            st::<V, FULL>(a.mean.add(lo), n, own);
            st::<V, FULL>(a.m2.add(lo), n, m2);
            return;
        }
        let share = rows as f32 / (row + rows) as f32;
        let mean = ld::<V, FULL>(a.mean.add(lo), n);
        let apart = own.sub(mean);
        st::<V, FULL>(a.mean.add(lo), n, apart.mul_add(V::splat(share), mean));
        let merged = apart.mul(apart).mul_add(V::splat(row as f32 * share), ld::<V, FULL>(a.m2.add(lo), n).add(m2));
        st::<V, FULL>(a.m2.add(lo), n, merged);
    }
}

#[inline(always)]
unsafe fn pass<V: Vector, const FULL: bool, const SQUARE: bool>(
    mut y: *const f32,
    ld_y: usize,
    rows: usize,
    n: usize,
    mean: V,
) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let mut s = [V::zero(); 8];
        for _ in 0..rows / 8 {
            for (t, s) in s.iter_mut().enumerate() {
                *s = step::<V, SQUARE>(ld::<V, FULL>(y.add(t * ld_y), n), mean, *s);
            }
            y = y.add(8 * ld_y);
        }
        for t in 0..rows % 8 {
            s[0] = step::<V, SQUARE>(ld::<V, FULL>(y.add(t * ld_y), n), mean, s[0]);
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
    let mut row = 0;
    while row < a.rows {
        let rows = row..a.rows.min(row + STRETCH);
        // SAFETY: the caller's contract; the stretches end with the rows.
        unsafe {
            match (!a.y.is_null() && !a.b.is_null(), a.accumulate) {
                (false, false) => blocks!(V, a.c, affine_block[false, false](a, &rows)),
                (false, true) => blocks!(V, a.c, affine_block[false, true](a, &rows)),
                (true, false) => blocks!(V, a.c, affine_block[true, false](a, &rows)),
                (true, true) => blocks!(V, a.c, affine_block[true, true](a, &rows)),
            }
        }
        row = rows.end;
    }
}

#[inline(always)]
unsafe fn affine_block<V: Vector, const FULL: bool, const Y: bool, const ACCUMULATE: bool>(
    a: &Affine,
    rows: &Range<usize>,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let factor = coef::<V, FULL>(a.a, lo, n, 1.0).mul(V::splat(a.s));
        let second = if Y { ld::<V, FULL>(a.b.add(lo), n) } else { V::zero() };
        let shift = coef::<V, FULL>(a.d, lo, n, 0.0);
        for r in rows.clone() {
            let mut v = shift;
            let (y, g) = (a.y.wrapping_add(r * a.ldy + lo), a.g.add(r * a.ldg + lo));
            if a.far {
                V::prefetch(y.wrapping_add(STRETCH * a.ldy));
                V::prefetch(g.wrapping_add(STRETCH * a.ldg));
            }
            if Y {
                v = ld::<V, FULL>(y, n).mul_add(second, v);
            }
            v = ld::<V, FULL>(g, n).mul_add(factor, v);
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
pub(super) unsafe fn bound<V: Vector>(a: &Bound) {
    // SAFETY: the caller's contract.
    unsafe {
        if a.residual.is_null() {
            blocks!(V, a.c, bound_block[false](a));
        } else {
            blocks!(V, a.c, bound_block[true](a));
        }
    }
}

#[inline(always)]
unsafe fn bound_block<V: Vector, const FULL: bool, const RESIDUAL: bool>(a: &Bound, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let (low, high) = (V::splat(a.low), V::splat(a.high));
        let bias = ld::<V, FULL>(a.bias.add(lo), n);
        for r in 0..a.rows {
            let x = a.x.add(r * a.ldx + lo);
            let mut v = ld::<V, FULL>(x, n).add(bias);
            if RESIDUAL {
                v = v.add(ld::<V, FULL>(a.residual.add(r * a.ldr + lo), n));
            }
            // In this order a NaN comes through.
            st::<V, FULL>(x, n, high.min(low.max(v)));
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

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::super::testing::{CHANNELS, Map, Random, tables};
    use super::*;

    #[test]
    fn statistics_and_combinations_match_the_definition() {
        let mut random = Random(5);
        for c in CHANNELS {
            for rows in [1, 7, 49, 64] {
                let (g, y) = (Map::random(rows, c, 2, &mut random), Map::random(rows, c, 1, &mut random));
                let [a, b, d] = [(); 3].map(|()| Map::vector(c, &mut random));
                for table in tables() {
                    let what = format!("{:?} c {c} rows {rows}", table.level);
                    let (mut mean, mut m2) = (Map::poisoned(1, c, 0), Map::poisoned(1, c, 0));
                    let args = Moments { y: y.ptr(), ldy: y.ld, rows, c, mean: mean.ptr_mut(), m2: m2.ptr_mut() };
                    // SAFETY: the maps have the sizes that the arguments name.
                    unsafe { (table.moments)(&args) };
                    let average = |i: usize| (0..rows).map(|r| y.at(r, i)).sum::<f64>() / rows as f64;
                    mean.check(&what, |_, i| average(i));
                    m2.check(&what, |_, i| (0..rows).map(|r| (y.at(r, i) - average(i)).powi(2)).sum());

                    for with_y in [false, true] {
                        let (b1, b2) = (Map::vector(c, &mut random), Map::vector(c, &mut random));
                        let (mut s1, mut s2) = (b1.clone(), b2.clone());
                        let args = Sums {
                            g: g.ptr(),
                            ldg: g.ld,
                            y: if with_y { y.ptr() } else { null() },
                            ldy: y.ld,
                            rows,
                            c,
                            mean: mean.ptr(),
                            s1: s1.ptr_mut(),
                            s2: s2.ptr_mut(),
                        };
                        // SAFETY: as above.
                        unsafe { (table.sums)(&args) };
                        s1.check(&what, |_, i| b1.at(0, i) + (0..rows).map(|r| g.at(r, i)).sum::<f64>());
                        s2.check(&what, |_, i| {
                            let sum: f64 = (0..rows).map(|r| g.at(r, i) * (y.at(r, i) - mean.at(0, i))).sum();
                            b2.at(0, i) + if with_y { sum } else { 0.0 }
                        });
                    }

                    for with_y in [false, true] {
                        let mut x = g.clone();
                        let args = Bound {
                            x: x.ptr_mut(),
                            ldx: x.ld,
                            rows,
                            c,
                            bias: b.ptr(),
                            residual: if with_y { y.ptr() } else { null() },
                            ldr: y.ld,
                            low: -0.25,
                            high: 0.5,
                        };
                        // SAFETY: as above.
                        unsafe { (table.bound)(&args) };
                        x.check(&format!("{what} bound {with_y}"), |r, i| {
                            (g.at(r, i) + b.at(0, i) + if with_y { y.at(r, i) } else { 0.0 }).clamp(-0.25, 0.5)
                        });
                    }

                    for mode in 0..8 {
                        let (with_y, coefficients, accumulate) = (mode & 1 != 0, mode & 2 != 0, mode & 4 != 0);
                        let before = Map::random(rows, c, 3, &mut random);
                        let mut out = if accumulate { before.clone() } else { Map::poisoned(rows, c, 3) };
                        let args = Affine {
                            g: g.ptr(),
                            ldg: g.ld,
                            y: if with_y { y.ptr() } else { null() },
                            ldy: y.ld,
                            rows,
                            c,
                            a: if coefficients { a.ptr() } else { null() },
                            b: b.ptr(),
                            d: if coefficients { d.ptr() } else { null() },
                            s: 0.75,
                            out: out.ptr_mut(),
                            ldo: before.ld,
                            accumulate,
                            far: accumulate,
                        };
                        // SAFETY: as above.
                        unsafe { (table.affine)(&args) };
                        out.check(&format!("{what} affine {mode}"), |r, i| {
                            let (a, d) = if coefficients { (a.at(0, i), d.at(0, i)) } else { (1.0, 0.0) };
                            let second = if with_y { b.at(0, i) * y.at(r, i) } else { 0.0 };
                            let old = if accumulate { before.at(r, i) } else { 0.0 };
                            old + a * 0.75 * g.at(r, i) + second + d
                        });
                    }
                }
            }
        }
    }
}
