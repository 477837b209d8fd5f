//! How large the costs of a problem are, for costs in memory and for those that are not kept there.

use rayon::prelude::*;

use super::super::micro::{Level, Micro};
use super::block;
use super::cost::{COLUMNS, Costs, PointCosts, Points, tile_rows};
use crate::device::view::View;
use crate::graph::Shape;
use crate::ops::transport::Problem;

/// Extent of the costs of one problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    /// Largest cost, at least 0.
    pub largest: f32,
    /// Their sum.
    pub sum: f64,
}

impl Extent {
    /// Of rows that are added in order, whoever had them.
    pub fn of_rows(rows: &[Self]) -> Self {
        let largest = rows.iter().map(|r| r.largest).fold(0.0f32, f32::max);
        Self { largest, sum: rows.iter().map(|r| r.sum).sum() }
    }

    /// Of one row, in lanes that a vector unit can take side by side.
    pub fn of_row(row: &[f32]) -> Self {
        const LANES: usize = 16;
        let (mut top, mut sum) = ([0.0f32; LANES], [0.0f64; LANES]);
        let chunks = row.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for ((top, sum), &c) in top.iter_mut().zip(&mut sum).zip(chunk) {
                *top = if c > *top { c } else { *top };
                *sum += f64::from(c);
            }
        }
        let largest = top.iter().chain(rest).copied().fold(0.0f32, f32::max);
        Self { largest, sum: sum.iter().sum::<f64>() + rest.iter().map(|&c| f64::from(c)).sum::<f64>() }
    }
}

/// The points of a batch whose costs are not stored.
#[derive(Clone, Copy, Debug)]
pub struct PointExtent<'a> {
    /// Coordinates, `[all points, dim]`.
    pub points: &'a [f32],
    /// Dimensions.
    pub dim: usize,
    /// Labels of the points and `[labels, labels]` distances.
    pub labels: Option<(&'a [f32], &'a [f32])>,
    /// Factor of the squared distance of points.
    pub point_scale: f64,
    /// Factor of the distance of labels.
    pub label_scale: f64,
}

impl PointExtent<'_> {
    /// Largest cost and sum of a problem.
    pub fn extent(&self, p: &Problem) -> Extent {
        let rows = self.rows(p, Vec::new, |extents, row| extents.push(Extent::of_row(row)));
        Extent::of_rows(&rows.concat())
    }

    /// The cost that half of a problem's costs lie below: found by its upper and then by its lower bits, for there is no
    /// place to sort them.
    pub fn median(&self, p: &Problem) -> f32 {
        let middle = (p.n as u64 * u64::from(p.m)) / 2;
        let (upper, before) = self.digit(p, middle, |key| Some(key >> 16));
        let (lower, _) = self.digit(p, middle - before, |key| (key >> 16 == upper).then_some(key & 0xffff));
        value_of(upper << 16 | lower)
    }

    /// The 16 bits of the key at a rank among the keys that have such bits, and how many have smaller ones.
    fn digit(&self, p: &Problem, rank: u64, bits: impl Fn(u32) -> Option<u32> + Sync) -> (u32, u64) {
        let count = |counts: &mut Vec<u64>, row: &[f32]| {
            row.iter().filter_map(|&c| bits(key_of(c))).for_each(|digit| counts[digit as usize] += 1);
        };
        let counts = self.rows(p, || vec![0u64; 1 << 16], count);
        let mut before = 0;
        for digit in 0..1 << 16 {
            let count: u64 = counts.iter().map(|c| c[digit as usize]).sum();
            if before + count > rank {
                return (digit, before);
            }
            before += count;
        }
        unreachable!("a rank lies below the number of costs")
    }

    /// Lets `each` see all rows of costs: those of a block one after the other, with what `init` made for the block.
    fn rows<T: Send>(&self, p: &Problem, init: impl Fn() -> T + Sync, each: impl Fn(&mut T, &[f32]) + Sync) -> Vec<T> {
        let view = |values: &[f32], shape: Shape| {
            assert_eq!(values.len(), shape.len());
            // SAFETY: the values outlive this call, and views of points are only read.
            unsafe { View::new(values.as_ptr().cast_mut(), shape, shape.c) }
        };
        let count = self.points.len() / self.dim;
        let labels = self.labels.map(|(labels, w)| {
            let side = w.len().isqrt();
            (view(labels, Shape::vector(count)), view(w, Shape::matrix(side, side)))
        });
        let from = Points {
            points: view(self.points, Shape::matrix(count, self.dim)),
            labels,
            point_scale: self.point_scale as f32,
            label_scale: self.label_scale as f32,
        };
        let (n, m, stride) = (p.n as usize, p.m as usize, p.stride as usize);
        assert!((p.x as usize + n).max(p.y as usize + m) <= count, "the problem's points exist");
        let micro = [Level::detect(), Level::Portable].into_iter().find_map(Micro::new);
        let micro = micro.unwrap_or_else(|| unreachable!("every machine has the portable level"));
        let mut columns = vec![0.0; stride * self.dim];
        for number in 0..stride.div_ceil(COLUMNS) {
            // SAFETY: as many floats as the side needs.
            unsafe { from.transpose_block((p.y as usize, m), stride, number, columns.as_mut_ptr()) };
        }
        let columns = &columns;
        let task = |number: usize| {
            let (x, y, columns) = (p.x as usize, p.y as usize, columns.as_ptr());
            let costs = Costs::Points(PointCosts { from, x, y, m, stride, columns, turned: false });
            let mut tile = vec![0.0; tile_rows(stride) * stride];
            let (first, mut state) = (number * block(n), init());
            let rows = (first, block(n).min(n - first));
            // SAFETY: rows of the problem; the tile has its size.
            unsafe {
                costs.each(&micro, rows, tile.as_mut_ptr(), |_, rows, costs| {
                    let costs = std::slice::from_raw_parts(costs, rows * stride);
                    costs.chunks_exact(stride).for_each(|row| each(&mut state, &row[..m]));
                });
            }
            state
        };
        (0..n.div_ceil(block(n))).into_par_iter().map(task).collect()
    }
}

/// Bits that are ordered as the numbers are.
fn key_of(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn value_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_their_numbers() {
        let numbers = [f32::NEG_INFINITY, -3.5, -1.0, -f32::MIN_POSITIVE, -0.0, 0.0, 1e-40, 0.5, 2.0, f32::INFINITY];
        assert!(numbers.windows(2).all(|pair| key_of(pair[0]) < key_of(pair[1])));
        assert!(numbers.iter().all(|&x| value_of(key_of(x)).to_bits() == x.to_bits()));
    }

    #[test]
    fn the_median_and_the_extent_are_those_of_a_sorted_matrix() {
        let points: Vec<f32> = (0..90).map(|i| ((i * i) % 31) as f32 / 8.0 - 1.0).collect();
        let labels: Vec<f32> = (0..30).map(|i| (i % 2) as f32).collect();
        let problem = Problem { n: 17, m: 13, x: 0, y: 17, stride: 16, ..Problem::default() };
        // Costs below zero have a place in the order too.
        let w = [0.0, -9.0, 2.0, 0.5];
        let from =
            PointExtent { points: &points, dim: 3, labels: Some((&labels, &w)), point_scale: 0.5, label_scale: 1.0 };
        let cost = |i: usize, j: usize| {
            let square: f32 = (0..3).map(|k| (points[3 * i + k] - points[3 * j + k]).powi(2)).sum();
            0.5 * square + w[2 * labels[i] as usize + labels[j] as usize]
        };
        let mut all: Vec<f32> = (0..17).flat_map(|i| (17..30).map(move |j| (i, j))).map(|(i, j)| cost(i, j)).collect();
        all.sort_unstable_by(f32::total_cmp);
        assert!((from.median(&problem) - all[all.len() / 2]).abs() < 1e-5);
        let Extent { largest, sum } = from.extent(&problem);
        assert!((largest - all[all.len() - 1]).abs() < 1e-5);
        assert!((sum - all.iter().copied().map(f64::from).sum::<f64>()).abs() < 1e-3);
    }
}
