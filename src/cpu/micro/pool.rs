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

/// Row `i` of the outputs. The usual window of 3 pixels reuses the columns that it shares with the one before it.
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
        let outside = Column { best: V::splat(f32::NEG_INFINITY), sum: V::zero() };
        let mut recent = [outside; 3];
        let mut next = 0;
        for j in 0..a.ow {
            let columns = window(j, a.stride, a.pad, a.k, a.w);
            let mut whole = outside;
            if a.k == 3 {
                while next < j * a.stride + 3 {
                    let x = next.wrapping_sub(a.pad);
                    let column = if x < a.w { column::<V, FULL, MAX, AVG>(a, rows, x, lo, n) } else { outside };
                    recent = [recent[1], recent[2], column];
                    next += 1;
                }
                for column in recent {
                    whole = whole.join(column);
                }
            } else {
                for x in columns.0..columns.1 {
                    whole = whole.join(column::<V, FULL, MAX, AVG>(a, rows, x, lo, n));
                }
            }
            let o = i * a.ow + j;
            if MAX {
                st::<V, FULL>(a.max.add(o * a.ldmax + lo), n, whole.best);
            }
            if AVG {
                let mean = whole.sum.mul(V::splat(inverse_count(rows, columns)));
                st::<V, FULL>(a.avg.add(o * a.ldavg + lo), n, mean);
            }
        }
    }
}

/// Maximum and sum of some pixels.
#[derive(Clone, Copy)]
struct Column<V> {
    best: V,
    sum: V,
}

impl<V: Vector> Column<V> {
    #[inline(always)]
    fn join(self, other: Self) -> Self {
        Self { best: self.best.max(other.best), sum: self.sum.add(other.sum) }
    }
}

/// The pixels of column `x` in the rows of a window.
#[inline(always)]
unsafe fn column<V: Vector, const FULL: bool, const MAX: bool, const AVG: bool>(
    a: &PoolForward,
    rows: (usize, usize),
    x: usize,
    lo: usize,
    n: usize,
) -> Column<V> {
    // SAFETY: the caller's contract.
    unsafe {
        let mut all = Column { best: V::splat(f32::NEG_INFINITY), sum: V::zero() };
        let mut p = a.x.add((rows.0 * a.w + x) * a.ldx + lo);
        for _ in rows.0..rows.1 {
            let v = ld::<V, FULL>(p, n);
            if MAX {
                all.best = all.best.max(v);
            }
            if AVG {
                all.sum = all.sum.add(v);
            }
            p = p.wrapping_add(a.w * a.ldx);
        }
        all
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
        if a.k == 3 && a.stride == 1 && a.pad == 1 && a.ow == a.w && rows.1 - rows.0 == 3 {
            return unpool_row_of_3::<V, FULL, MAX, AVG>(a, i, lo, n);
        }
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

/// Windows of 3 x 3 pixels around each pixel of a row whose neighbours above and below exist: the three columns of the
/// map and of its gradient stay in registers while the window moves over them.
#[inline(always)]
unsafe fn unpool_row_of_3<V: Vector, const FULL: bool, const MAX: bool, const AVG: bool>(
    a: &PoolBackward,
    i: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract; columns outside the map are neither read nor written.
    unsafe {
        let outside = [V::splat(f32::NEG_INFINITY); 3];
        let (x_row, dx_row) = (a.w * a.ldx, a.w * a.lddx);
        let mut x = a.x.wrapping_add((i - 1) * x_row + lo);
        let mut dx = a.dx.wrapping_add((i - 1) * dx_row + lo);
        let (edge, inner) = (V::splat(1.0 / (3 * a.w.min(2)) as f32), V::splat(1.0 / 9.0));
        let mut xs = [outside, outside, if MAX { load_column::<V, FULL>(x, x_row, n) } else { outside }];
        let mut ds = [[V::zero(); 3]; 3];
        for j in 0..a.w {
            xs = [xs[1], xs[2], outside];
            ds = [ds[1], ds[2], [V::zero(); 3]];
            if MAX && j + 1 < a.w {
                x = x.wrapping_add(a.ldx);
                xs[2] = load_column::<V, FULL>(x, x_row, n);
            }
            let o = i * a.ow + j;
            let mut share = V::zero();
            if AVG {
                share = ld::<V, FULL>(a.davg.add(o * a.ldavg + lo), n);
                share = share.mul(if j == 0 || j + 1 == a.w { edge } else { inner });
            }
            if MAX {
                let mut rest = ld::<V, FULL>(a.dmax.add(o * a.ldmax + lo), n);
                let best = highest(xs[0]).max(highest(xs[1])).max(highest(xs[2]));
                each!(R in [0 1 2] {
                    each!(C in [0 1 2] {
                        let here = xs[C][R].equal(best);
                        ds[C][R] = ds[C][R].add(share).add(rest.keep(here));
                        rest = rest.drop_where(here);
                    });
                });
            } else {
                each!(C in [0 1 2] {
                    ds[C] = [ds[C][0].add(share), ds[C][1].add(share), ds[C][2].add(share)];
                });
            }
            if j > 0 {
                add_column::<V, FULL>(dx, dx_row, n, ds[0]);
                dx = dx.wrapping_add(a.lddx);
            }
        }
        add_column::<V, FULL>(dx, dx_row, n, ds[1]);
    }
}

#[inline(always)]
fn highest<V: Vector>(column: [V; 3]) -> V {
    column[0].max(column[1]).max(column[2])
}

/// Three vectors that are `row` floats apart.
#[inline(always)]
unsafe fn load_column<V: Vector, const FULL: bool>(p: *const f32, row: usize, n: usize) -> [V; 3] {
    // SAFETY: the caller's contract.
    unsafe { [ld::<V, FULL>(p, n), ld::<V, FULL>(p.wrapping_add(row), n), ld::<V, FULL>(p.wrapping_add(2 * row), n)] }
}

/// Adds three vectors to floats that are `row` apart.
#[inline(always)]
unsafe fn add_column<V: Vector, const FULL: bool>(mut p: *mut f32, row: usize, n: usize, column: [V; 3]) {
    for v in column {
        // SAFETY: the caller's contract.
        unsafe { st::<V, FULL>(p, n, ld::<V, FULL>(p, n).add(v)) };
        p = p.wrapping_add(row);
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
