//! Pooling, and the strided copies of the two halves of DARTS' factorised reduction, with their gradients.

use super::super::simd::{Vector, ld, relu, st};
use super::{Gather, PoolBackward, PoolForward, ScatterMasked};

/// The pixels of window `i` that lie inside a map of `len` pixels.
#[inline(always)]
fn window(i: usize, stride: usize, pad: usize, k: usize, len: usize) -> (usize, usize) {
    let start = (i * stride).saturating_sub(pad);
    let end = (i * stride + k).saturating_sub(pad).min(len);
    (start.min(end), end)
}

/// One over the number of pixels of a window, an empty one counting as one pixel.
#[inline(always)]
fn inverse_count(rows: (usize, usize), columns: (usize, usize)) -> f32 {
    1.0 / ((rows.1 - rows.0) * (columns.1 - columns.0)).max(1) as f32
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn pool_forward<V: Vector>(a: &PoolForward) {
    for i in 0..a.oh {
        // SAFETY: the caller's contract.
        unsafe {
            match (a.max.is_null(), a.avg.is_null()) {
                (false, false) => blocks!(V, a.c, pool_row[true, true](a, i)),
                (false, true) => blocks!(V, a.c, pool_row[true, false](a, i)),
                (true, false) => blocks!(V, a.c, pool_row[false, true](a, i)),
                (true, true) => {}
            }
        }
    }
}

#[inline(always)]
unsafe fn pool_row<V: Vector, const FULL: bool, const MAX: bool, const AVG: bool>(
    a: &PoolForward,
    i: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract; windows are cut to the map.
    unsafe {
        let rows = window(i, a.stride, a.pad, a.k, a.h);
        for j in 0..a.ow {
            let columns = window(j, a.stride, a.pad, a.k, a.w);
            let mut best = V::splat(f32::NEG_INFINITY);
            let mut sum = V::zero();
            for y in rows.0..rows.1 {
                let mut x = a.x.add((y * a.w + columns.0) * a.ldx + lo);
                for _ in columns.0..columns.1 {
                    let v = ld::<V, FULL>(x, n);
                    if MAX {
                        best = best.max(v);
                    }
                    if AVG {
                        sum = sum.add(v);
                    }
                    x = x.add(a.ldx);
                }
            }
            let o = i * a.ow + j;
            if MAX {
                st::<V, FULL>(a.max.add(o * a.ldmax + lo), n, best);
            }
            if AVG {
                st::<V, FULL>(a.avg.add(o * a.ldavg + lo), n, sum.mul(V::splat(inverse_count(rows, columns))));
            }
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn pool_backward<V: Vector>(a: &PoolBackward) {
    for i in 0..a.oh {
        // SAFETY: the caller's contract.
        unsafe {
            match (a.dmax.is_null(), a.davg.is_null()) {
                (false, false) => blocks!(V, a.c, unpool_row[true, true](a, i)),
                (false, true) => blocks!(V, a.c, unpool_row[true, false](a, i)),
                (true, false) => blocks!(V, a.c, unpool_row[false, true](a, i)),
                (true, true) => {}
            }
        }
    }
}

/// The gradient of the maximum that is still to be given away becomes zero with the first pixel that takes it.
#[inline(always)]
unsafe fn unpool_row<V: Vector, const FULL: bool, const MAX: bool, const AVG: bool>(
    a: &PoolBackward,
    i: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract; windows are cut to the map.
    unsafe {
        let rows = window(i, a.stride, a.pad, a.k, a.h);
        for j in 0..a.ow {
            let columns = window(j, a.stride, a.pad, a.k, a.w);
            let o = i * a.ow + j;
            let (mut best, mut rest, mut share) = (V::splat(f32::NEG_INFINITY), V::zero(), V::zero());
            if MAX {
                rest = ld::<V, FULL>(a.dmax.add(o * a.ldmax + lo), n);
                for y in rows.0..rows.1 {
                    for x in columns.0..columns.1 {
                        best = best.max(ld::<V, FULL>(a.x.add((y * a.w + x) * a.ldx + lo), n));
                    }
                }
            }
            if AVG {
                let davg = ld::<V, FULL>(a.davg.add(o * a.ldavg + lo), n);
                share = davg.mul(V::splat(inverse_count(rows, columns)));
            }
            for y in rows.0..rows.1 {
                for x in columns.0..columns.1 {
                    let mut given = share;
                    if MAX {
                        let here = ld::<V, FULL>(a.x.add((y * a.w + x) * a.ldx + lo), n).equal(best);
                        given = given.add(rest.keep(here));
                        rest = rest.drop_where(here);
                    }
                    let dx = a.dx.add((y * a.w + x) * a.lddx + lo);
                    st::<V, FULL>(dx, n, ld::<V, FULL>(dx, n).add(given));
                }
            }
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn gather<V: Vector>(a: &Gather) {
    for i in 0..a.oh {
        // SAFETY: the caller's contract.
        unsafe {
            if a.relu {
                blocks!(V, a.c, gather_row[true](a, i));
            } else {
                blocks!(V, a.c, gather_row[false](a, i));
            }
        }
    }
}

#[inline(always)]
unsafe fn gather_row<V: Vector, const FULL: bool, const RELU: bool>(a: &Gather, i: usize, lo: usize, n: usize) {
    // SAFETY: the caller's contract; pixels outside the map are not read.
    unsafe {
        let zero = V::zero();
        let y = i * a.stride + a.offset;
        for j in 0..a.ow {
            let x = j * a.stride + a.offset;
            let mut v = zero;
            if y < a.h && x < a.w {
                v = ld::<V, FULL>(a.x.add((y * a.w + x) * a.ldx + lo), n);
                if RELU {
                    v = relu(v, zero);
                }
            }
            st::<V, FULL>(a.out.add((i * a.ow + j) * a.ldo + lo), n, v);
        }
    }
}

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn scatter_masked<V: Vector>(a: &ScatterMasked) {
    for i in 0..a.oh {
        // SAFETY: the caller's contract.
        unsafe {
            if a.relu {
                blocks!(V, a.c, scatter_masked_row[true](a, i));
            } else {
                blocks!(V, a.c, scatter_masked_row[false](a, i));
            }
        }
    }
}

#[inline(always)]
unsafe fn scatter_masked_row<V: Vector, const FULL: bool, const RELU: bool>(
    a: &ScatterMasked,
    i: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract; pixels outside the map are not touched.
    unsafe {
        let y = i * a.stride + a.offset;
        for j in 0..a.ow {
            let x = j * a.stride + a.offset;
            if y < a.h && x < a.w {
                let mut d = ld::<V, FULL>(a.d.add((i * a.ow + j) * a.ldd + lo), n);
                if RELU {
                    d = d.keep(ld::<V, FULL>(a.x.add((y * a.w + x) * a.ldx + lo), n).positive());
                }
                let dx = a.dx.add((y * a.w + x) * a.lddx + lo);
                st::<V, FULL>(dx, n, ld::<V, FULL>(dx, n).add(d));
            }
        }
    }
}
