//! Matrix products with pixels as rows: the pointwise convolution and its gradients.
//!
//! Both products are the same register tile, rows of `out` times one or two vectors of columns: in each step one
//! element of `a` is broadcast for each row and meets the vectors of a row of `b`. They differ in the direction in
//! which `a` is walked. A panel of `b` (two vectors wide) stays in the first-level cache for all rows.

use super::super::simd::{Vector, ld, st};
use super::Matmul;

/// `out[m][n] (+)= a * b[k][n]` with element `(r, kk)` of `a` at `r * row + kk * step`.
struct Product {
    a: *const f32,
    row: usize,
    step: usize,
    b: *const f32,
    ldb: usize,
    out: *mut f32,
    ldo: usize,
    m: usize,
    k: usize,
    n: usize,
    accumulate: bool,
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn matmul<V: Vector>(a: &Matmul) {
    let Matmul { a, lda, b, ldb, out, ldo, rows, k, n, accumulate } = *a;
    let product = Product { a, row: lda, step: 1, b, ldb, out, ldo, m: rows, k, n, accumulate };
    // SAFETY: the caller's contract.
    unsafe { run::<V>(&product) }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn outer<V: Vector>(a: &Matmul) {
    let Matmul { a, lda, b, ldb, out, ldo, rows, k, n, .. } = *a;
    let product = Product { a, row: 1, step: lda, b, ldb, out, ldo, m: k, k: rows, n, accumulate: true };
    // SAFETY: the caller's contract.
    unsafe { run::<V>(&product) }
}

#[inline(always)]
unsafe fn run<V: Vector>(p: &Product) {
    // SAFETY: the caller's contract; the panels and the rest make up the columns.
    unsafe {
        let mut lo = 0;
        while lo + 2 * V::LANES <= p.n {
            if V::REGISTERS >= 32 {
                panel::<V, true, 2, 8>(p, lo, V::LANES);
            } else {
                panel::<V, true, 2, 6>(p, lo, V::LANES);
            }
            lo += 2 * V::LANES;
        }
        if lo + V::LANES <= p.n {
            panel::<V, true, 1, 8>(p, lo, V::LANES);
            lo += V::LANES;
        }
        let c = p.n;
        blocks!(@tail V, c, lo, panel[1, 8](p));
    }
}

/// All rows of the columns `lo..`: `NV` whole vectors, or one vector of `n` lanes.
#[inline(always)]
unsafe fn panel<V: Vector, const FULL: bool, const NV: usize, const T: usize>(p: &Product, lo: usize, n: usize) {
    // SAFETY: the caller's contract; the tiles end with the rows.
    unsafe {
        let mut r = 0;
        while r + T <= p.m {
            tile::<V, FULL, NV, T>(p, r, lo, n);
            r += T;
        }
        if r + 4 <= p.m {
            tile::<V, FULL, NV, 4>(p, r, lo, n);
            r += 4;
        }
        while r < p.m {
            tile::<V, FULL, NV, 1>(p, r, lo, n);
            r += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const FULL: bool, const NV: usize, const T: usize>(
    p: &Product,
    r: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [[V::zero(); NV]; T];
        let mut a = p.a.add(r * p.row);
        let mut b = p.b.add(lo);
        for _ in 0..p.k {
            let mut bs = [V::zero(); NV];
            for (v, b_v) in bs.iter_mut().enumerate() {
                *b_v = ld::<V, FULL>(b.add(v * V::LANES), n);
            }
            for (t, row) in acc.iter_mut().enumerate() {
                let x = V::splat(*a.add(t * p.row));
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = x.mul_add(bs[v], *sum);
                }
            }
            a = a.add(p.step);
            b = b.add(p.ldb);
        }
        let out = p.out.add(r * p.ldo + lo);
        for (t, row) in acc.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                let o = out.add(t * p.ldo + v * V::LANES);
                st::<V, FULL>(o, n, if p.accumulate { ld::<V, FULL>(o, n).add(sum) } else { sum });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CHANNELS, Map, Random, tables};
    use super::*;

    #[test]
    fn products_match_the_definition() {
        let mut random = Random(3);
        for n in CHANNELS {
            for k in [1, 5, 8, 16, 35] {
                for rows in [1, 3, 6, 13, 64] {
                    let a = Map::random(rows, k, 2, &mut random);
                    let b = Map::random(k, n, 3, &mut random);
                    let g = Map::random(rows, n, 1, &mut random);
                    for table in tables() {
                        for accumulate in [false, true] {
                            let what = format!("{:?} matmul {rows} {k} {n} {accumulate}", table.level);
                            let before = Map::random(rows, n, 4, &mut random);
                            let mut out = if accumulate { before.clone() } else { Map::poisoned(rows, n, 4) };
                            let args = Matmul {
                                a: a.ptr(),
                                lda: a.ld,
                                b: b.ptr(),
                                ldb: b.ld,
                                out: out.ptr_mut(),
                                ldo: before.ld,
                                rows,
                                k,
                                n,
                                accumulate,
                            };
                            // SAFETY: the maps have the sizes that the arguments name.
                            unsafe { (table.matmul)(&args) };
                            out.check(&what, |r, i| {
                                let sum: f64 = (0..k).map(|kk| a.at(r, kk) * b.at(kk, i)).sum();
                                sum + if accumulate { before.at(r, i) } else { 0.0 }
                            });
                        }
                        let before = Map::random(k, n, 4, &mut random);
                        let mut out = before.clone();
                        let args = Matmul {
                            a: a.ptr(),
                            lda: a.ld,
                            b: g.ptr(),
                            ldb: g.ld,
                            out: out.ptr_mut(),
                            ldo: before.ld,
                            rows,
                            k,
                            n,
                            accumulate: false,
                        };
                        // SAFETY: as above.
                        unsafe { (table.outer)(&args) };
                        out.check(&format!("{:?} outer {rows} {k} {n}", table.level), |kk, i| {
                            before.at(kk, i) + (0..rows).map(|r| a.at(r, kk) * g.at(r, i)).sum::<f64>()
                        });
                    }
                }
            }
        }
    }
}
