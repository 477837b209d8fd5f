//! What solutions are worth, in f64.
//!
//! Two passes over the costs suffice. The first one finds the sums of rows, with them the rows that are rounded to their
//! weights, the columns of both, and the c-transform of the columns; the second one rounds the columns too, and finds the
//! c-transform of the rows. Blocks of rows have column sums of their own, which are folded in order.

use std::ptr::{null, null_mut};

use super::super::common::{TileArea, TileAreas, contiguous};
use super::super::kernel::{Context, Kernel, Launch, Tile};
use super::super::micro::{LogRows, PlanRows, Transform};
use super::cost::{COLUMNS, Costs, PointCosts, Points, tile_rows};
use super::{NOTHING, Shared, block, blocks, part, small};
use crate::device::view::View;
use crate::ops::area;
use crate::ops::transport::{CERTIFICATE, Certificate, Problem, STATUS, Source, VALUES, put};

/// Sums of a block of rows in either pass.
const SUMS: usize = 8;

/// Places of a problem's working memory, in floats; a double takes two.
#[derive(Clone, Copy)]
struct Layout {
    /// Potentials of the columns in powers of two, with their weights.
    gs: TileArea,
    /// Rows of the plan once rounded, as factors.
    x: TileArea,
    /// Column sums of the plan and of the rounded one, and c-transforms of the columns.
    columns: [TileArea; 3],
    /// Shares that columns keep, and what they then lack.
    y: TileArea,
    missing: TileArea,
    /// The columns of each block, one of the three after the other.
    partials: TileArea,
    /// [`SUMS`] numbers of each block.
    sums: TileArea,
    /// The points of the columns, transposed.
    points: TileArea,
}

fn layout(p: &Problem, points: Option<usize>, areas: &mut TileAreas) -> Layout {
    let (n, m) = (p.n as usize, p.stride as usize);
    let count = n.div_ceil(block(n));
    Layout {
        gs: areas.take(m),
        x: areas.take(2 * n),
        columns: [(); 3].map(|()| areas.take(2 * m)),
        y: areas.take(2 * m),
        missing: areas.take(2 * m),
        partials: areas.take(count * 3 * 2 * m),
        sums: areas.take(count * 2 * SUMS),
        points: areas.take(points.map_or(0, |d| m * d)),
    }
}

/// Dimensions of the points whose costs are not stored.
fn free(op: &Certificate, d: usize) -> Option<usize> {
    (op.source != Source::Stored).then_some(d)
}

fn needed(p: &Problem, points: Option<usize>) -> usize {
    let mut areas = TileAreas::default();
    layout(p, points, &mut areas);
    areas.len()
}

/// Scratch of [`Certificate`] on points of `d` dimensions: the working memory of the largest problem that is not one task.
pub fn certificate_scratch(op: &Certificate, d: usize) -> usize {
    let points = free(op, d);
    let large = op.table.problems.iter().filter(|p| points.is_some() || !small(p));
    large.map(|p| needed(p, points)).max().unwrap_or(0)
}

/// See [`Certificate`].
pub struct CertificateKernel {
    op: Certificate,
    /// Costs or points, weights, potentials, status.
    inputs: [View<f32>; 4],
    points: Option<Points>,
    rows: View<f32>,
    scratch: View<f32>,
    small: Vec<usize>,
    large: Vec<usize>,
    tile: usize,
}

impl CertificateKernel {
    /// The kernel, unless a vector has gaps.
    pub fn new(op: &Certificate, launch: &Launch<'_>) -> Option<Self> {
        let inputs: [View<f32>; 4] = launch.inputs.get(..4)?.try_into().ok()?;
        let points = Points::of(op.source, &launch.inputs, 3);
        let problems = &op.table.problems;
        let alone = |p: &Problem| points.is_none() && small(p);
        let of = |which: bool| (0..problems.len()).filter(|&i| alone(&problems[i]) == which).collect();
        let free = free(op, inputs[0].shape.c);
        let rows = |p: &Problem| {
            let stride = p.stride as usize;
            area(stride) + if points.is_some() { area(tile_rows(stride) * stride) } else { 0 }
        };
        let rows = problems.iter().map(rows).max().unwrap_or(0);
        let work = problems.iter().filter(|p| alone(p)).map(|p| needed(p, free)).max().unwrap_or(0);
        let serves =
            inputs.iter().all(contiguous) && points.is_none_or(|points| points.serve()) && !launch.accumulate[0];
        serves.then(|| Self {
            op: op.clone(),
            inputs,
            points,
            rows: launch.outputs[0],
            scratch: launch.scratch,
            small: of(true),
            large: of(false),
            tile: (rows + work).max(CERTIFICATE),
        })
    }

    fn certify(&self, context: &Context<'_>, number: usize, tile: Tile, wide: bool) {
        let [costs, weights, potentials, status] = &self.inputs;
        let p = &self.op.table.problems[number];
        let eps = status.at(number * STATUS + 1);
        let (n, m, stride) = (p.n as usize, p.m as usize, p.stride as usize);
        let mut areas = TileAreas::default();
        if !wide {
            areas.take(stride);
        }
        let layout = layout(p, self.points.map(|points| points.points.shape.c), &mut areas);
        let memory = if wide { Tile(self.scratch.ptr()) } else { tile };
        let costs = match self.points {
            None => Costs::Stored { first: part(costs, p.cost, n * stride), stride },
            Some(from) => {
                let columns = Shared(memory.at(layout.points));
                let (x, y) = (p.x as usize, p.y as usize);
                context.parallel(stride.div_ceil(COLUMNS), |block, _| {
                    // SAFETY: the area has room for the side, and the block is this task's.
                    unsafe { from.transpose_block((y, m), stride, block, columns.get()) };
                });
                Costs::Points(PointCosts { from, x, y, m, stride, columns: columns.get(), turned: false })
            }
        };
        let certify = Certify {
            context,
            wide,
            tile,
            n,
            m,
            stride,
            scale: std::f32::consts::LOG2_E / eps,
            costs,
            a: part(weights, p.f, n),
            b: part(weights, p.g, m),
            f: part(potentials, p.f, n),
            g: part(potentials, p.g, m),
            memory,
            layout,
        };
        put(&self.rows, number, certify.values());
    }
}

impl Kernel for CertificateKernel {
    fn run(&self, context: &Context<'_>) {
        for &number in &self.large {
            context.parallel(1, |_, tile| self.certify(context, number, tile, true));
        }
        context.parallel(self.small.len(), |task, tile| self.certify(context, self.small[task], tile, false));
    }

    fn tile(&self) -> usize {
        self.tile
    }
}

/// A problem being certified: its data and its working memory.
struct Certify<'a> {
    context: &'a Context<'a>,
    wide: bool,
    tile: Tile,
    n: usize,
    m: usize,
    /// `m` with padding.
    stride: usize,
    /// `log2(e) / eps`.
    scale: f32,
    costs: Costs,
    a: *const f32,
    b: *const f32,
    f: *const f32,
    g: *const f32,
    memory: Tile,
    layout: Layout,
}

// SAFETY: the pointers lead to memory that belongs to the problem; tasks of a block write only their rows' part.
unsafe impl Sync for Certify<'_> {}

impl Certify<'_> {
    /// Doubles of the working memory.
    fn doubles(&self, area: TileArea) -> *mut f64 {
        self.memory.at(area).cast()
    }

    /// The same as a slice: the caller's word is that nobody else has it open.
    #[allow(clippy::mut_from_ref)]
    fn wide(&self, start: *mut f64, len: usize) -> &mut [f64] {
        // SAFETY: all areas have their length; only the thread that drives the problem, or the block's, opens them.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    fn input(&self, start: *const f32, len: usize) -> &[f32] {
        // SAFETY: weights and potentials have their length, and nobody writes them.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Exponentials of a row, without its weight.
    fn exponentials(&self, i: usize, cost: *const f32, e: *mut f32) {
        // SAFETY: a row of the problem.
        let row = unsafe { *self.f.add(i) } * self.scale;
        let (one, mut sum) = (1.0f32, 0.0f32);
        let args = LogRows {
            cost,
            stride: self.stride,
            rows: 1,
            scale: self.scale,
            fs: &raw const row,
            gs: self.memory.at(self.layout.gs),
            weights: &raw const one,
            e,
            keep: false,
            sums: &raw mut sum,
            columns: null_mut(),
            add: false,
        };
        // SAFETY: one row of the problem.
        unsafe { (self.context.micro.log_rows)(&args) };
    }

    fn plan(
        &self,
        (cost, e): (*const f32, *const f32),
        weight: f64,
        kept: [*const f64; 2],
        columns: *mut f64,
    ) -> [f64; 3] {
        let mut sums = [0.0f64; 3];
        let [y, missing] = kept;
        let args = PlanRows { e, cost, m: self.m, weight, y, sums: sums.as_mut_ptr(), missing, columns };
        // SAFETY: one row of the problem; the columns have `m` elements.
        unsafe { (self.context.micro.plan_rows)(&args) };
        sums
    }

    fn transform(&self, i: usize, cost: *const f32, columns: *mut f64, other: *const f64) -> f64 {
        let mut least = 0.0;
        // SAFETY: a row of the problem.
        let potential = f64::from(unsafe { *self.f.add(i) });
        let args = Transform { cost, m: self.m, potential, columns, other, least: &raw mut least };
        // SAFETY: one row of the problem; the columns have `m` elements.
        unsafe { (self.context.micro.transform)(&args) };
        least
    }

    /// Calls `f(row, its costs, its exponentials, sums of the block, number of the block)` for all rows, block by block;
    /// the sums of all blocks, added in order.
    fn pass(&self, f: impl Fn(usize, *const f32, *const f32, &mut [f64], usize) + Sync + Send) -> [f64; SUMS] {
        let first = self.doubles(self.layout.sums);
        let all = Shared(first);
        blocks(self.context, self.wide, self.tile, self.n, |first, rows, block, tile| {
            let sums = self.wide(all.get().wrapping_add(block * SUMS), SUMS);
            sums.fill(0.0);
            let e = tile.0;
            // SAFETY: rows of the problem; the tile has room for the row of exponentials and for costs behind it.
            unsafe {
                self.costs.each(
                    self.context.micro,
                    (first, rows),
                    e.wrapping_add(area(self.stride)),
                    |at, rows, costs| {
                        for row in 0..rows {
                            let cost = costs.wrapping_add(row * self.stride);
                            self.exponentials(at + row, cost, e);
                            f(at + row, cost, e, sums, block);
                        }
                    },
                );
            }
        });
        let mut total = [0.0; SUMS];
        for sums in self.wide(first, self.n.div_ceil(block(self.n)) * SUMS).chunks_exact(SUMS) {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += *sum);
        }
        total
    }

    /// Folds the column sums of the blocks.
    fn fold(&self) {
        let Layout { columns, partials, .. } = self.layout;
        let count = self.n.div_ceil(block(self.n));
        for (which, &area) in columns.iter().enumerate() {
            let to = self.wide(self.doubles(area), self.m);
            for block in 0..count {
                let from = self.wide(self.partial(partials, block, which), self.m);
                for (to, from) in to.iter_mut().zip(from) {
                    *to = match (block, which) {
                        (0, _) => *from,
                        (_, 2) => to.min(*from),
                        _ => *to + *from,
                    };
                }
            }
        }
    }

    fn partial(&self, partials: TileArea, block: usize, which: usize) -> *mut f64 {
        self.doubles(partials).wrapping_add((3 * block + which) * self.stride)
    }

    fn values(&self) -> [f64; VALUES] {
        let Layout { gs, x, columns, y, missing, partials, .. } = self.layout;
        let (a, b) = (self.input(self.a, self.n), self.input(self.b, self.m));
        let (f, g) = (self.input(self.f, self.n), self.input(self.g, self.m));
        // SAFETY: the area has that length, and no one else has it open yet.
        let gs = unsafe { std::slice::from_raw_parts_mut(self.memory.at(gs), self.stride) };
        gs.fill(NOTHING);
        gs.iter_mut().zip(g.iter().zip(b)).for_each(|(s, (g, b))| *s = g * self.scale + b.log2());
        for block in 0..self.n.div_ceil(block(self.n)) {
            for (which, start) in [0.0, 0.0, f64::INFINITY].into_iter().enumerate() {
                self.wide(self.partial(partials, block, which), self.m).fill(start);
            }
        }

        let factors = Shared(self.doubles(x));
        let [value, mass, row_error, dual_left, ..] = self.pass(|i, cost, e, sums, block| {
            let [s, s2, gc] = [0, 1, 2].map(|which| self.partial(partials, block, which));
            let weight = f64::from(a[i]);
            let [sum, product, _] = self.plan((cost, e), weight, [null(); 2], s);
            for (to, term) in sums.iter_mut().zip([product, sum, (sum - weight).abs(), weight * f64::from(f[i])]) {
                *to += term;
            }
            let factor = weight * (weight / sum).min(1.0);
            // SAFETY: the row's own place.
            unsafe { *factors.get().add(i) = factor };
            self.plan((cost, e), factor, [null(); 2], s2);
            self.transform(i, cost, gc, null());
        });
        self.fold();
        let [s, s2, gc] = columns.map(|area| self.wide(self.doubles(area), self.m));
        let (shares, lacking) = (self.wide(self.doubles(y), self.m), self.wide(self.doubles(missing), self.m));
        let (mut column_error, mut dual, mut lower) = (0.0, dual_left, 0.0);
        for (j, &b) in b.iter().enumerate() {
            let b = f64::from(b);
            column_error += (s[j] - b).abs();
            shares[j] = (b / s2[j]).min(1.0);
            lacking[j] = b - shares[j] * s2[j];
            dual += b * f64::from(g[j]);
            lower += b * gc[j];
        }
        let [shares, lacking, gc] = [shares, lacking, gc].map(|columns| Shared(columns.as_mut_ptr()));
        let [mut upper, short, correction, lower_left, ..] = self.pass(|i, cost, e, sums, _| {
            // SAFETY: the row's own place.
            let factor = unsafe { *factors.get().add(i) };
            let [sum, product, gap] = self.plan((cost, e), factor, [shares.get(), lacking.get()], null_mut());
            let lacks = f64::from(a[i]) - sum;
            let least = self.transform(i, cost, null_mut(), gc.get());
            for (to, term) in sums.iter_mut().zip([product, lacks, lacks * gap, f64::from(a[i]) * least]) {
                *to += term;
            }
        });
        if short > 0.0 {
            upper += correction / short;
        }
        [value, upper, lower + lower_left, dual, row_error, column_error, mass]
    }
}
