//! The mixed operation of a supernet's edge: a channel-wise linear combination of many maps, and its reductions.
//!
//! Both are bound by memory. The combination keeps a tile of the output in registers across all sources, so the output
//! is touched once; the reductions walk a stretch of rows of the gradient, which stays in the first-level cache, for
//! one source after the other.

use super::super::simd::{Vector, coef, ld, st};
use super::prologue::add_into;
use super::{WeightedSum, WeightedSums};

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn weighted_sum<V: Vector>(a: &WeightedSum<'_>) {
    // SAFETY: the caller's contract; the tiles end with the rows.
    unsafe {
        let mut r = 0;
        while r + 8 <= a.rows {
            blocks!(V, a.c, sum_tile[8](a, r));
            r += 8;
        }
        while r < a.rows {
            blocks!(V, a.c, sum_tile[1](a, r));
            r += 1;
        }
    }
}

/// Rows by which maps are asked for ahead of their use. A sum of dozens of maps walks through more streams than the processor
/// foresees by itself.
const AHEAD: usize = 24;

#[inline(always)]
unsafe fn sum_tile<V: Vector, const FULL: bool, const T: usize>(a: &WeightedSum<'_>, r: usize, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [coef::<V, FULL>(a.bias, lo, n, 0.0); T];
        for source in a.sources {
            let scale = ld::<V, FULL>(source.scale.add(lo), n);
            let y = source.y.add(r * source.ld + lo);
            for (t, sum) in acc.iter_mut().enumerate() {
                let row = y.add(t * source.ld);
                if a.far {
                    V::prefetch(row.wrapping_add(AHEAD * source.ld));
                }
                *sum = ld::<V, FULL>(row, n).mul_add(scale, *sum);
            }
        }
        let out = a.out.add(r * a.ldo + lo);
        for (t, &sum) in acc.iter().enumerate() {
            let o = out.add(t * a.ldo);
            st::<V, FULL>(o, n, if a.accumulate { ld::<V, FULL>(o, n).add(sum) } else { sum });
        }
    }
}

/// Rows of the gradient that are reduced against all sources before the next.
const STRETCH: usize = 32;

/// See [`super::Micro`].
#[inline(always)]
pub(super) unsafe fn weighted_sums<V: Vector>(a: &WeightedSums<'_>) {
    let mut r = 0;
    while r < a.rows {
        let rows = (a.rows - r).min(STRETCH);
        // SAFETY: the caller's contract; the stretches end with the rows.
        unsafe {
            if !a.s1.is_null() {
                blocks!(V, a.c, sum_stretch[](a, r, rows));
            }
            for s in 0..a.sources.len() {
                blocks!(V, a.c, product_stretch[](a, s, r, rows));
            }
        }
        r += rows;
    }
}

#[inline(always)]
unsafe fn sum_stretch<V: Vector, const FULL: bool>(a: &WeightedSums<'_>, r: usize, rows: usize, lo: usize, n: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sum = [V::zero(); 4];
        let mut g = a.g.add(r * a.ldg + lo);
        for _ in 0..rows / 4 {
            for (t, sum) in sum.iter_mut().enumerate() {
                *sum = sum.add(ld::<V, FULL>(g.add(t * a.ldg), n));
            }
            g = g.add(4 * a.ldg);
        }
        for t in 0..rows % 4 {
            sum[0] = sum[0].add(ld::<V, FULL>(g.add(t * a.ldg), n));
        }
        add_into::<V, FULL>(a.s1.add(lo), n, sum);
    }
}

#[inline(always)]
unsafe fn product_stretch<V: Vector, const FULL: bool>(
    a: &WeightedSums<'_>,
    s: usize,
    r: usize,
    rows: usize,
    lo: usize,
    n: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let source = &a.sources[s];
        let mean = coef::<V, FULL>(source.mean, lo, n, 0.0);
        let mut sum = [V::zero(); 4];
        let mut g = a.g.add(r * a.ldg + lo);
        let mut y = source.y.add(r * source.ld + lo);
        for _ in 0..rows / 4 {
            for (t, sum) in sum.iter_mut().enumerate() {
                let row = y.add(t * source.ld);
                // The source's next stretch comes after those of all other sources.
                if a.far {
                    V::prefetch(row.wrapping_add(STRETCH * source.ld));
                }
                let d = ld::<V, FULL>(row, n).sub(mean);
                *sum = ld::<V, FULL>(g.add(t * a.ldg), n).mul_add(d, *sum);
            }
            g = g.add(4 * a.ldg);
            y = y.add(4 * source.ld);
        }
        for t in 0..rows % 4 {
            let d = ld::<V, FULL>(y.add(t * source.ld), n).sub(mean);
            sum[0] = ld::<V, FULL>(g.add(t * a.ldg), n).mul_add(d, sum[0]);
        }
        add_into::<V, FULL>(source.s2.add(lo), n, sum);
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::super::testing::{CHANNELS, Map, Random, tables};
    use super::super::{Source, SourceSum};
    use super::*;

    #[test]
    fn combination_and_its_reductions_match_the_definition() {
        let mut random = Random(6);
        for c in CHANNELS {
            for (rows, count) in [(1, 1), (13, 3), (67, 7), (16, 0)] {
                let maps: Vec<Map> = (0..count).map(|s| Map::random(rows, c, s, &mut random)).collect();
                let scales: Vec<Map> = (0..count).map(|_| Map::vector(c, &mut random)).collect();
                let bias = Map::vector(c, &mut random);
                let g = Map::random(rows, c, 1, &mut random);
                for table in tables() {
                    for accumulate in [false, true] {
                        let what = format!("{:?} c {c} rows {rows} accumulate {accumulate}", table.level);
                        let sources: Vec<Source> = (maps.iter().zip(&scales))
                            .map(|(y, scale)| Source { y: y.ptr(), ld: y.ld, scale: scale.ptr() })
                            .collect();
                        let before = Map::random(rows, c, 2, &mut random);
                        let mut out = if accumulate { before.clone() } else { Map::poisoned(rows, c, 2) };
                        let args = WeightedSum {
                            sources: &sources,
                            bias: if accumulate { null() } else { bias.ptr() },
                            rows,
                            c,
                            out: out.ptr_mut(),
                            ldo: before.ld,
                            accumulate,
                            far: accumulate,
                        };
                        // SAFETY: the maps have the sizes that the arguments name.
                        unsafe { (table.weighted_sum)(&args) };
                        out.check(&what, |r, i| {
                            let sum: f64 = maps.iter().zip(&scales).map(|(y, s)| y.at(r, i) * s.at(0, i)).sum();
                            sum + if accumulate { before.at(r, i) } else { bias.at(0, i) }
                        });

                        // The scales serve as means here.
                        let mut s2 = vec![Map::vector(c, &mut Random(9)); count];
                        let mut s1 = Map::vector(c, &mut Random(9));
                        let start = s1.clone();
                        let sources: Vec<SourceSum> = (maps.iter().zip(&scales).zip(&mut s2))
                            .map(|((y, mean), s2)| SourceSum {
                                y: y.ptr(),
                                ld: y.ld,
                                mean: if accumulate { mean.ptr() } else { null() },
                                s2: s2.ptr_mut(),
                            })
                            .collect();
                        let args = WeightedSums {
                            sources: &sources,
                            g: g.ptr(),
                            ldg: g.ld,
                            rows,
                            c,
                            s1: s1.ptr_mut(),
                            far: accumulate,
                        };
                        // SAFETY: as above.
                        unsafe { (table.weighted_sums)(&args) };
                        s1.check(&what, |_, i| start.at(0, i) + (0..rows).map(|r| g.at(r, i)).sum::<f64>());
                        for ((s2, y), mean) in s2.iter().zip(&maps).zip(&scales) {
                            s2.check(&what, |_, i| {
                                let mean = if accumulate { mean.at(0, i) } else { 0.0 };
                                start.at(0, i) + (0..rows).map(|r| g.at(r, i) * (y.at(r, i) - mean)).sum::<f64>()
                            });
                        }
                    }
                }
            }
        }
    }
}
