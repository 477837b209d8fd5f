//! Flat vectors: the optimisers' arithmetic and the norm of a gradient.

use super::super::simd::{Vector, ld, st};
use super::{Linear, Sgd};

/// Floats whose squares are summed in `f32` before the sum moves on to `f64`.
const BLOCK: usize = 1024;

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn sum_of_squares<V: Vector>(x: *const f32, n: usize) -> f32 {
    let mut total = 0.0f64;
    let mut start = 0;
    while start < n {
        let len = (n - start).min(BLOCK);
        // SAFETY: the caller's contract; the block ends with the vector.
        total += f64::from(unsafe { block_of_squares::<V>(x.add(start), len) }.reduce_sum());
        start += len;
    }
    total as f32
}

#[inline(always)]
unsafe fn block_of_squares<V: Vector>(x: *const f32, n: usize) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        let mut s = [V::zero(); 4];
        let mut i = 0;
        while i + 4 * V::LANES <= n {
            for (t, s) in s.iter_mut().enumerate() {
                let v = V::load(x.add(i + t * V::LANES));
                *s = v.mul_add(v, *s);
            }
            i += 4 * V::LANES;
        }
        while i < n {
            let some = (n - i).min(V::LANES);
            let v = V::load_part(x.add(i), some);
            s[0] = v.mul_add(v, s[0]);
            i += some;
        }
        s[0].add(s[1]).add(s[2].add(s[3]))
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn sgd<V: Vector>(a: &Sgd) {
    // SAFETY: the caller's contract.
    unsafe { blocks!(V, a.n, sgd_block[](a)) }
}

#[inline(always)]
unsafe fn sgd_block<V: Vector, const FULL: bool>(a: &Sgd, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let w = ld::<V, FULL>(a.w.add(lo), n);
        let mut v = ld::<V, FULL>(a.v.add(lo), n).mul(V::splat(a.momentum));
        v = ld::<V, FULL>(a.g.add(lo), n).mul_add(V::splat(a.clip_scale), v);
        v = w.mul_add(V::splat(a.decay), v);
        st::<V, FULL>(a.v.add(lo), n, v);
        st::<V, FULL>(a.w.add(lo), n, v.mul_add(V::splat(-a.lr), w));
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn linear<V: Vector>(a: &Linear) {
    let mut terms = [(std::ptr::null(), 0.0); 4];
    let mut count = 0;
    for &term in a.terms.iter().filter(|term| !term.0.is_null()) {
        terms[count] = term;
        count += 1;
    }
    let (terms, out) = (&terms, a.out);
    // SAFETY: the caller's contract.
    unsafe {
        match count {
            0 => blocks!(V, a.n, linear_block[0](terms, out)),
            1 => blocks!(V, a.n, linear_block[1](terms, out)),
            2 => blocks!(V, a.n, linear_block[2](terms, out)),
            3 => blocks!(V, a.n, linear_block[3](terms, out)),
            _ => blocks!(V, a.n, linear_block[4](terms, out)),
        }
    }
}

#[inline(always)]
unsafe fn linear_block<V: Vector, const FULL: bool, const M: usize>(
    terms: &[(*const f32, f32); 4],
    out: *mut f32,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sum = V::zero();
        for (m, &(x, factor)) in terms.iter().enumerate() {
            if m < M {
                let (v, factor) = (ld::<V, FULL>(x.add(lo), n), V::splat(factor));
                sum = if m == 0 { v.mul(factor) } else { v.mul_add(factor, sum) };
            }
        }
        st::<V, FULL>(out.add(lo), n, sum);
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::super::testing::{Map, Random, tables};
    use super::*;

    #[test]
    fn flat_kernels_match_the_definition() {
        let mut random = Random(7);
        for n in [0, 1, 7, 16, 31, 100, 1024, 2500] {
            let vectors = [(); 4].map(|()| Map::vector(n, &mut random));
            for table in tables() {
                let what = format!("{:?} n {n}", table.level);
                // SAFETY: the vector has `n` floats.
                let squares = unsafe { (table.sum_of_squares)(vectors[0].ptr(), n) };
                let expected: f64 = (0..n).map(|i| vectors[0].at(0, i).powi(2)).sum();
                assert!((f64::from(squares) - expected).abs() <= 1e-6 * expected, "{what}");

                let (mut w, mut v) = (vectors[0].clone(), vectors[1].clone());
                let g = &vectors[2];
                let (lr, momentum, decay, clip_scale) = (0.5, 0.75, 0.25, 0.125);
                let args = Sgd { w: w.ptr_mut(), g: g.ptr(), v: v.ptr_mut(), n, lr, momentum, decay, clip_scale };
                // SAFETY: the vectors have `n` floats.
                unsafe { (table.sgd)(&args) };
                let velocity = |i: usize| 0.75 * vectors[1].at(0, i) + 0.125 * g.at(0, i) + 0.25 * vectors[0].at(0, i);
                v.check(&what, |_, i| velocity(i));
                w.check(&what, |_, i| vectors[0].at(0, i) - 0.5 * velocity(i));

                for present in 0..16 {
                    let has = |m: usize| present >> m & 1 != 0;
                    let factors = [0.5, -2.0, 3.0, 0.25];
                    let terms = [0, 1, 2, 3].map(|m| (if has(m) { vectors[m].ptr() } else { null() }, factors[m]));
                    let mut out = Map::poisoned(1, n, 0);
                    // SAFETY: the vectors have `n` floats.
                    unsafe { (table.linear)(&Linear { n, terms, out: out.ptr_mut() }) };
                    out.check(&what, |_, i| {
                        (0..4).filter(|&m| has(m)).map(|m| f64::from(factors[m]) * vectors[m].at(0, i)).sum()
                    });
                }
            }
        }
    }
}
