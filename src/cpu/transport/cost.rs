//! Costs of points: whole matrices of them, and rows as they are needed.

use super::super::kernel::{Context, Kernel, Launch};
use super::super::micro::{CostTile, Micro};
use super::part;
use crate::cpu::common::contiguous;
use crate::device::view::View;
use crate::ops::transport::{PairCost, Problem, Source};

/// Columns of costs that are computed from one transposed block of points, and rows that use it.
pub const COLUMNS: usize = 64;
const ROWS: usize = 64;
/// Costs that are computed at a time where they are not stored: half of a usual second-level cache.
const AT_ONCE: usize = 1 << 17;

/// Rows of costs that are computed at a time where they are not stored. Fewer would read the points of the columns too
/// often; whole groups of rows keep the order of sums whatever the number.
pub fn tile_rows(stride: usize) -> usize {
    (AT_ONCE / stride / 16 * 16).clamp(16, ROWS)
}

/// The points of a batch and what makes costs of them.
#[derive(Clone, Copy)]
pub struct Points {
    /// Coordinates, without gaps.
    pub points: View<f32>,
    /// Labels, and their distances, where they add to the costs.
    pub labels: Option<(View<f32>, View<f32>)>,
    /// Factor of the squared distance of points.
    pub point_scale: f32,
    /// Factor of the distance of labels.
    pub label_scale: f32,
}

impl Points {
    /// Whether costs can be computed of them: nothing has gaps.
    pub fn serve(&self) -> bool {
        contiguous(&self.points) && self.labels.is_none_or(|(labels, _)| contiguous(&labels))
    }

    /// Those of an op whose labels stand behind `others` inputs, if it computes costs.
    pub fn of(source: Source, inputs: &[View<f32>], others: usize) -> Option<Self> {
        let Source::Points { point_scale, label_scale } = source else { return None };
        let labels = inputs.get(1 + others).copied().zip(inputs.get(2 + others).copied());
        let (point_scale, label_scale) = (point_scale as f32, label_scale as f32);
        Some(Self { points: inputs[0], labels, point_scale, label_scale })
    }

    /// Transposes `columns` of the `m` points from row `y` on: coordinate `k` of point `column + j` goes to
    /// `to[k * columns + j]`. Padding gets some point.
    ///
    /// # Safety
    /// `to` has room for `columns` points; the rows exist.
    unsafe fn transpose(&self, (y, m): (usize, usize), (column, columns): (usize, usize), to: *mut f32) {
        let d = self.points.shape.c;
        for j in 0..columns {
            let row = self.points.row((y + column + j).min(y + m - 1));
            for k in 0..d {
                // SAFETY: a row has `d` coordinates; the rest is the caller's word.
                unsafe { *to.add(k * columns + j) = *row.add(k) };
            }
        }
    }

    /// Transposes a block of [`COLUMNS`] of the `m` points from row `y` on to its place behind earlier ones.
    ///
    /// # Safety
    /// `to` has room for `stride` points; the rows exist.
    pub unsafe fn transpose_block(&self, (y, m): (usize, usize), stride: usize, block: usize, to: *mut f32) {
        let column = block * COLUMNS;
        let columns = COLUMNS.min(stride - column);
        // SAFETY: the caller's word.
        unsafe { self.transpose((y, m), (column, columns), to.add(column * self.points.shape.c)) };
    }
}

/// Rows of the costs of one problem, or of their transpose.
#[derive(Clone, Copy)]
pub struct PointCosts {
    /// The points.
    pub from: Points,
    /// First point of the rows.
    pub x: usize,
    /// First point of the columns.
    pub y: usize,
    /// Columns.
    pub m: usize,
    /// Columns with padding.
    pub stride: usize,
    /// The points of the columns, transposed.
    pub columns: *const f32,
    /// Whether the rows are the right points.
    pub turned: bool,
}

impl PointCosts {
    /// Costs of a block of columns.
    ///
    /// # Safety
    /// The rows exist; `y` holds the columns' points; `to`, the first cost of the block, begins rows of `stride` costs.
    unsafe fn block(&self, micro: &Micro, (first, rows): (usize, usize), columns: usize, y: *const f32, to: *mut f32) {
        let Points { points, point_scale, .. } = self.from;
        let x = points.row(self.x + first);
        let (ldx, d) = (points.row_stride, points.shape.c);
        let args = CostTile { x, ldx, rows, d, y, columns, scale: point_scale, cost: to, ldc: self.stride };
        // SAFETY: the caller's word.
        unsafe { (micro.cost_tile)(&args) };
    }

    /// Adds what the labels cost, and clears the padding.
    ///
    /// # Safety
    /// `to` has room for the rows.
    unsafe fn finish(&self, (first, rows): (usize, usize), to: *mut f32) {
        for i in 0..rows {
            // SAFETY: the caller's word.
            let row = unsafe { std::slice::from_raw_parts_mut(to.add(i * self.stride), self.stride) };
            if let Some((labels, w)) = &self.from.labels {
                let own = labels.at(self.x + first + i) as usize;
                let others = &labels.slice()[self.y..self.y + self.m];
                for (value, &other) in row[..self.m].iter_mut().zip(others) {
                    let other = other as usize;
                    let distance = if self.turned { w.get(other, own) } else { w.get(own, other) };
                    *value += self.from.label_scale * distance;
                }
            }
            row[self.m..].fill(0.0);
        }
    }

    /// Rows of costs.
    ///
    /// # Safety
    /// The rows exist; `to` has room for them; the columns are transposed.
    pub unsafe fn rows(&self, micro: &Micro, (first, rows): (usize, usize), to: *mut f32) {
        for column in (0..self.stride).step_by(COLUMNS) {
            let columns = COLUMNS.min(self.stride - column);
            // SAFETY: the caller's word.
            unsafe {
                let y = self.columns.add(column * self.from.points.shape.c);
                self.block(micro, (first, rows), columns, y, to.add(column));
            }
        }
        // SAFETY: the caller's word.
        unsafe { self.finish((first, rows), to) };
    }
}

/// Where an iteration or a certificate finds rows of costs.
#[derive(Clone, Copy)]
pub enum Costs {
    /// In a matrix.
    Stored {
        /// First row.
        first: *const f32,
        /// Elements from one row to the next.
        stride: usize,
    },
    /// Nowhere.
    Points(PointCosts),
}

// SAFETY: costs and points are only read.
unsafe impl Sync for Costs {}

impl Costs {
    /// Calls `f(first row, rows, first cost)` for parts of a stretch of rows, in order; they may change costs that are
    /// computed, which are in `tile`.
    ///
    /// # Safety
    /// The rows exist, and costs of [`tile_rows`] fit into `tile` where they are not stored.
    pub unsafe fn each(
        &self,
        micro: &Micro,
        (first, rows): (usize, usize),
        tile: *mut f32,
        mut f: impl FnMut(usize, usize, *const f32),
    ) {
        match self {
            Self::Stored { first: costs, stride } => f(first, rows, costs.wrapping_add(first * stride)),
            Self::Points(costs) => {
                let step = tile_rows(costs.stride);
                for at in (first..first + rows).step_by(step) {
                    let count = step.min(first + rows - at);
                    // SAFETY: the caller's word.
                    unsafe { costs.rows(micro, (at, count), tile) };
                    f(at, count, tile);
                }
            }
        }
    }
}

/// See [`PairCost`].
pub struct PairCostKernel {
    op: PairCost,
    from: Points,
    cost: View<f32>,
    /// Problem and first row of each task.
    tasks: Vec<(usize, usize)>,
}

impl PairCostKernel {
    /// The kernel, unless the points have gaps.
    pub fn new(op: &PairCost, launch: &Launch<'_>) -> Option<Self> {
        let (points, cost) = (launch.inputs[0], launch.outputs[0]);
        let tasks = |(number, p): (usize, &Problem)| (0..p.n as usize).step_by(ROWS).map(move |row| (number, row));
        let tasks = op.table.problems.iter().enumerate().flat_map(tasks).collect();
        let (point_scale, label_scale) = (op.point_scale as f32, op.label_scale as f32);
        let labels = launch.inputs.get(1).copied().zip(launch.inputs.get(2).copied());
        let from = Points { points, labels, point_scale, label_scale };
        let serves = contiguous(&cost) && from.serve() && !launch.accumulate[0];
        serves.then(|| Self { op: op.clone(), from, cost, tasks })
    }
}

impl Kernel for PairCostKernel {
    fn run(&self, context: &Context<'_>) {
        context.parallel(self.tasks.len(), |task, tile| {
            let (number, first) = self.tasks[task];
            let p = &self.op.table.problems[number];
            let rows = ROWS.min(p.n as usize - first);
            let (m, stride) = (p.m as usize, p.stride as usize);
            let cost = part(&self.cost, p.cost, p.pairs()).wrapping_add(first * stride);
            let (x, y) = (p.x as usize, p.y as usize);
            let costs = PointCosts { from: self.from, x, y, m, stride, columns: tile.0, turned: false };
            for column in (0..stride).step_by(COLUMNS) {
                let columns = COLUMNS.min(stride - column);
                // SAFETY: the tile holds COLUMNS points and belongs to this task, as the rows of costs do.
                unsafe {
                    self.from.transpose((y, m), (column, columns), tile.0);
                    costs.block(context.micro, (first, rows), columns, tile.0, cost.wrapping_add(column));
                }
            }
            // SAFETY: as above.
            unsafe { costs.finish((first, rows), cost) };
        });
    }

    fn tile(&self) -> usize {
        COLUMNS * self.from.points.shape.c
    }
}
