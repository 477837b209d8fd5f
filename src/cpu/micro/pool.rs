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

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use super::super::testing::{CHANNELS, IMAGES, Map, Random, out_len, tables};
    use super::*;

    /// The pixels of window `o` that lie inside the map, in row-major order.
    fn pixels(o: usize, ow: usize, k: usize, stride: usize, pad: usize, h: usize, w: usize) -> Vec<usize> {
        let all = (0..k * k).map(|t| (o / ow * stride + t / k, o % ow * stride + t % k));
        all.filter(|&(y, x)| y >= pad && x >= pad && y - pad < h && x - pad < w)
            .map(|(y, x)| (y - pad) * w + x - pad)
            .collect()
    }

    #[test]
    fn pooling_and_its_gradient_match_the_definition() {
        let mut random = Random(8);
        for (k, stride, pad) in [(3, 1, 1), (3, 2, 1), (2, 2, 0), (5, 1, 2)] {
            for (h, w) in IMAGES {
                for c in CHANNELS {
                    let (oh, ow) = (out_len(h, pad, k, 1, stride), out_len(w, pad, k, 1, stride));
                    let mut x = Map::random(h * w, c, 1, &mut random);
                    // Few distinct values: most windows have ties.
                    for r in 0..h * w {
                        for i in 0..c {
                            *x.at_mut(r, i) = (x.at(r, i) * 3.0).round() as f32;
                        }
                    }
                    let d = [(); 2].map(|()| Map::random(oh * ow, c, 2, &mut random));
                    let inside = |o| pixels(o, ow, k, stride, pad, h, w);
                    let best = |o, i| inside(o).into_iter().map(|p| x.at(p, i)).fold(f64::NEG_INFINITY, f64::max);
                    for (table, wanted) in tables().into_iter().flat_map(|t| [(t, 1), (t, 2), (t, 3)]) {
                        let what = format!("{:?} k {k} stride {stride} c {c} wanted {wanted}", table.level);
                        let (with_max, with_avg) = (wanted & 1 != 0, wanted & 2 != 0);
                        let (mut max, mut avg) = (Map::poisoned(oh * ow, c, 3), Map::poisoned(oh * ow, c, 4));
                        let args = PoolForward {
                            x: x.ptr(),
                            ldx: x.ld,
                            h,
                            w,
                            c,
                            k,
                            stride,
                            pad,
                            oh,
                            ow,
                            max: if with_max { max.ptr_mut() } else { null_mut() },
                            ldmax: c + 3,
                            avg: if with_avg { avg.ptr_mut() } else { null_mut() },
                            ldavg: c + 4,
                        };
                        // SAFETY: the maps have the sizes that the arguments name.
                        unsafe { (table.pool_forward)(&args) };
                        if with_max {
                            max.check(&what, best);
                        }
                        if with_avg {
                            avg.check(&what, |o, i| {
                                let inside = inside(o);
                                inside.iter().map(|&p| x.at(p, i)).sum::<f64>() / inside.len() as f64
                            });
                        }

                        let before = Map::random(h * w, c, 5, &mut random);
                        let mut dx = before.clone();
                        let args = PoolBackward {
                            x: x.ptr(),
                            ldx: x.ld,
                            h,
                            w,
                            c,
                            k,
                            stride,
                            pad,
                            oh,
                            ow,
                            dmax: if with_max { d[0].ptr() } else { null() },
                            ldmax: d[0].ld,
                            davg: if with_avg { d[1].ptr() } else { null() },
                            ldavg: d[1].ld,
                            dx: dx.ptr_mut(),
                            lddx: before.ld,
                        };
                        // SAFETY: as above.
                        unsafe { (table.pool_backward)(&args) };
                        let mut expected = before.values();
                        for o in 0..oh * ow {
                            let inside = inside(o);
                            for i in 0..c {
                                if with_max {
                                    let best = best(o, i);
                                    let first = inside.iter().find(|&&p| x.at(p, i) == best);
                                    expected[first.expect("a window is not empty") * c + i] += d[0].at(o, i);
                                }
                                for p in inside.iter().filter(|_| with_avg) {
                                    expected[p * c + i] += d[1].at(o, i) / inside.len() as f64;
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
    fn sub_grids_match_the_definition() {
        let mut random = Random(10);
        for (h, w) in IMAGES {
            for (c, offset) in CHANNELS.into_iter().flat_map(|c| [(c, 0), (c, 1)]) {
                let (stride, oh, ow) = (2, h.div_ceil(2), w.div_ceil(2));
                let x = Map::random(h * w, c, 1, &mut random);
                let d = Map::random(oh * ow, c, 2, &mut random);
                let place = |o: usize| (o / ow * stride + offset, o % ow * stride + offset);
                for (table, relu) in tables().into_iter().flat_map(|t| [(t, false), (t, true)]) {
                    let what = format!("{:?} c {c} offset {offset} relu {relu}", table.level);
                    let mut out = Map::poisoned(oh * ow, c, 3);
                    let ldo = out.ld;
                    let (xp, ldx) = (x.ptr(), x.ld);
                    let args = Gather { x: xp, ldx, h, w, c, stride, offset, oh, ow, relu, out: out.ptr_mut(), ldo };
                    // SAFETY: the maps have the sizes that the arguments name.
                    unsafe { (table.gather)(&args) };
                    out.check(&what, |o, i| {
                        let (y, xx) = place(o);
                        if y >= h || xx >= w { 0.0 } else { x.at(y * w + xx, i).max(if relu { 0.0 } else { -9.0 }) }
                    });
                    let before = Map::random(h * w, c, 4, &mut random);
                    let mut dx = before.clone();
                    let args = ScatterMasked {
                        d: d.ptr(),
                        ldd: d.ld,
                        oh,
                        ow,
                        c,
                        stride,
                        offset,
                        x: xp,
                        ldx,
                        h,
                        w,
                        relu,
                        dx: dx.ptr_mut(),
                        lddx: before.ld,
                    };
                    // SAFETY: as above.
                    unsafe { (table.scatter_masked)(&args) };
                    let mut expected = before.values();
                    for o in 0..oh * ow {
                        let (y, xx) = place(o);
                        for i in 0..c {
                            if y < h && xx < w && (!relu || x.at(y * w + xx, i) > 0.0) {
                                expected[(y * w + xx) * c + i] += d.at(o, i);
                            }
                        }
                    }
                    dx.check(&what, |p, i| expected[p * c + i]);
                }
            }
        }
    }
}
