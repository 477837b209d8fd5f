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
