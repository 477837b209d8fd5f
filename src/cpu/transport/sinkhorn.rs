//! Iterations of Sinkhorn's algorithm.
//!
//! An iteration reads each row once. With `E = exp((f + g - C) / eps) b` of the present potentials, row sums give the
//! new left potentials, and since those only scale rows, the same E gives the column sums of the new plan: one
//! exponential an element where the textbook's two half steps need two. The present potentials take the place of the
//! maximum that makes a log-sum-exp safe; where sums leave the range in which that works, the iteration is done again
//! with true maxima. At the last eps E stays the same but for factors of rows and columns, so it is kept (in the
//! kernel domain), and the factors are absorbed into the potentials before they leave the range.
//!
//! Without a matrix the costs of some rows are computed into the tile of a thread and E takes their place there.

use std::ptr::{null, null_mut};

use super::super::common::{TileArea, TileAreas, contiguous};
use super::super::kernel::{Context, Kernel, Launch, Tile};
use super::super::micro::{KernelRows, LogRows, LseColumns, LseRows, PotentialUpdate};
use super::cost::{COLUMNS, Costs, PointCosts, Points, tile_rows};
use super::{NOTHING, Shared, block, blocks, part, small};
use crate::device::view::View;
use crate::ops::area;
use crate::ops::transport::{LANES, Problem, Progress, Rule, Sinkhorn, Source};

/// Rows of E that are worked on at once.
const GROUP: usize = 4;
/// Sums within `1 / LIMIT..LIMIT` are trusted.
const LIMIT: f32 = 1e30;
/// Factors beyond this range are absorbed into the potentials.
const ABSORB: f32 = 1e12;
/// Iterations for which a kernel matrix is worth computing.
const WORTHWHILE: usize = 4;

/// Places of a problem's working memory, in floats.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    fs: TileArea,
    hs: TileArea,
    gs: TileArea,
    log_a: TileArea,
    log_b: TileArea,
    sums: TileArea,
    last: TileArea,
    columns: TileArea,
    last_columns: TileArea,
    partials: TileArea,
    v: TileArea,
    kernel: TileArea,
    /// The points of either side, transposed, where there is no matrix.
    left: TileArea,
    right: TileArea,
}

/// `points`: dimensions of the points whose costs are not stored.
fn layout(p: &Problem, kernel: bool, points: Option<usize>, areas: &mut TileAreas) -> Layout {
    let (n, m) = ((p.n as usize).next_multiple_of(LANES), p.stride as usize);
    Layout {
        fs: areas.take(n),
        hs: areas.take(n),
        gs: areas.take(m),
        log_a: areas.take(n),
        log_b: areas.take(m),
        sums: areas.take(n),
        last: areas.take(n),
        columns: areas.take(m),
        last_columns: areas.take(m),
        partials: areas.take(m * (p.n as usize).div_ceil(block(p.n as usize))),
        v: areas.take(m),
        kernel: areas.take(if kernel { p.pairs() } else { 0 }),
        left: areas.take(points.map_or(0, |d| if p.symmetric == 0 { n * d } else { 0 })),
        right: areas.take(points.map_or(0, |d| m * d)),
    }
}

/// What decides on the working memory of an op on points of `d` dimensions.
#[derive(Clone, Copy)]
struct Plan {
    kernel: bool,
    points: Option<usize>,
}

impl Plan {
    fn of(op: &Sinkhorn, d: usize) -> Self {
        let points = (op.source != Source::Stored).then_some(d);
        Self { kernel: op.kernel && points.is_none(), points }
    }

    /// Whether a problem is one task.
    fn alone(self, p: &Problem) -> bool {
        self.points.is_none() && small(p)
    }

    fn needed(self, p: &Problem) -> usize {
        let mut areas = TileAreas::default();
        layout(p, self.kernel, self.points, &mut areas);
        areas.len()
    }

    /// Rows in the tile of a thread: a group of E, or costs of either side.
    fn rows(self, p: &Problem) -> usize {
        let wide = |stride: usize| tile_rows(stride) * stride;
        match self.points {
            None => area(GROUP * p.stride as usize),
            Some(_) => area(wide(p.stride as usize).max(wide((p.n as usize).next_multiple_of(LANES)))),
        }
    }
}

/// Scratch of [`Sinkhorn`] on points of `d` dimensions: the working memory of the largest problem that is not one task.
pub fn sinkhorn_scratch(op: &Sinkhorn, d: usize) -> usize {
    let plan = Plan::of(op, d);
    op.table.problems.iter().filter(|p| !plan.alone(p)).map(|p| plan.needed(p)).max().unwrap_or(0)
}

/// See [`Sinkhorn`].
pub struct SinkhornKernel {
    op: Sinkhorn,
    /// Costs or points, weights, schedule.
    inputs: [View<f32>; 3],
    points: Option<Points>,
    outputs: [View<f32>; 2],
    scratch: View<f32>,
    plan: Plan,
    small: Vec<usize>,
    large: Vec<usize>,
    tile: usize,
}

impl SinkhornKernel {
    /// The kernel, unless a vector has gaps.
    pub fn new(op: &Sinkhorn, launch: &Launch<'_>) -> Option<Self> {
        let [first, weights, schedule, ..] = launch.inputs[..] else { return None };
        let [potentials, status] = launch.outputs[..] else { return None };
        let problems = &op.table.problems;
        let plan = Plan::of(op, first.shape.c);
        let points = Points::of(op.source, &launch.inputs, 2);
        let rows = problems.iter().map(|p| plan.rows(p)).max().unwrap_or(0);
        let work = problems.iter().filter(|p| plan.alone(p)).map(|p| plan.needed(p)).max().unwrap_or(0);
        let of = |which: bool| (0..problems.len()).filter(|&i| plan.alone(&problems[i]) == which).collect();
        let serves = [&first, &weights, &schedule, &potentials, &status].into_iter().all(contiguous)
            && points.is_none_or(|points| points.serve());
        serves.then(|| Self {
            op: op.clone(),
            inputs: [first, weights, schedule],
            points,
            outputs: [potentials, status],
            scratch: launch.scratch,
            plan,
            small: of(true),
            large: of(false),
            tile: rows + work,
        })
    }

    fn solve(&self, context: &Context<'_>, number: usize, tile: Tile, wide: bool) {
        let [costs, weights, schedule] = &self.inputs;
        let [potentials, status] = &self.outputs;
        let mut progress = Progress::read(self.op.rule, schedule, status, number);
        if progress.state != 0 {
            return;
        }
        let p = &self.op.table.problems[number];
        let (n, m, stride) = (p.n as usize, p.m as usize, p.stride as usize);
        let mut areas = TileAreas::default();
        if !wide {
            areas.take(GROUP * stride);
        }
        let layout = layout(p, self.plan.kernel, self.plan.points, &mut areas);
        let memory = if wide { Tile(self.scratch.ptr()) } else { tile };
        let n16 = n.next_multiple_of(LANES);
        let symmetric = p.symmetric != 0;
        let (x, y) = (p.x as usize, p.y as usize);
        let (costs, turned) = match self.points {
            None => (Costs::Stored { first: part(costs, p.cost, n * stride), stride }, None),
            Some(from) => {
                let (right, left) = (memory.at(layout.right), memory.at(layout.left));
                let sides = [(y, m, stride, right), (x, n, n16, left)];
                for (start, len, padded, to) in sides.into_iter().take(if symmetric { 1 } else { 2 }) {
                    let to = Shared(to);
                    context.parallel(padded.div_ceil(COLUMNS), |block, _| {
                        // SAFETY: the area has room for the side, and the block is this task's.
                        unsafe { from.transpose_block((start, len), padded, block, to.get()) };
                    });
                }
                let costs = PointCosts { from, x, y, m, stride, columns: right, turned: false };
                let turned = PointCosts { from, x: y, y: x, m: n, stride: n16, columns: left, turned: true };
                (Costs::Points(costs), Some(Costs::Points(turned)))
            }
        };
        let solve = Solve {
            context,
            wide,
            rule: self.op.rule,
            tile,
            n,
            m,
            n16,
            stride,
            symmetric,
            costs,
            turned,
            a: part(weights, p.f, n16),
            b: part(weights, p.g, stride),
            f: part(potentials, p.f, n16),
            g: part(potentials, p.g, stride),
            memory,
            layout,
        };
        solve.prepare();
        let mut left = self.op.iterations;
        while left > 0 && progress.state == 0 {
            let balanced = self.op.rule == Rule::Alternating && progress.rho <= 0.0;
            let keep = self.plan.kernel && balanced && !solve.symmetric && progress.settled() && left >= WORTHWHILE;
            let done = progress.done;
            if keep {
                solve.stretch(&mut progress, left);
            }
            if progress.done == done {
                let fast = if balanced { solve.fused(&progress) } else { None };
                let error = fast.unwrap_or_else(|| solve.robust(&progress));
                progress.advance(error);
            }
            left -= (progress.done - done) as usize;
        }
        progress.write(status, number);
    }
}

impl Kernel for SinkhornKernel {
    fn run(&self, context: &Context<'_>) {
        for &number in &self.large {
            // Blocks of rows are spread over the threads, each of which has room for a group of rows.
            context.parallel(1, |_, tile| self.solve(context, number, tile, true));
        }
        context.parallel(self.small.len(), |task, tile| self.solve(context, self.small[task], tile, false));
    }

    fn tile(&self) -> usize {
        self.tile
    }
}

/// A problem being solved: its data and its working memory.
struct Solve<'a> {
    context: &'a Context<'a>,
    wide: bool,
    rule: Rule,
    tile: Tile,
    n: usize,
    m: usize,
    /// `n` with padding.
    n16: usize,
    /// `m` with padding.
    stride: usize,
    symmetric: bool,
    costs: Costs,
    /// Columns of costs as rows, where they are not stored; only problems of two sides have their points.
    turned: Option<Costs>,
    a: *mut f32,
    b: *mut f32,
    f: *mut f32,
    g: *mut f32,
    memory: Tile,
    layout: Layout,
}

// SAFETY: the pointers lead to memory that belongs to the problem; tasks of a block write only their rows' part.
unsafe impl Sync for Solve<'_> {}

impl Solve<'_> {
    fn at(&self, area: TileArea) -> *mut f32 {
        self.memory.at(area)
    }

    /// A vector of the working memory or of the problem.
    ///
    /// The lifetime is the caller's word that nobody else uses the memory meanwhile; vectors that are open at the same
    /// time are different ones.
    #[allow(clippy::mut_from_ref)]
    fn slice(&self, start: *mut f32, len: usize) -> &mut [f32] {
        // SAFETY: all vectors have their length with padding; only the thread that drives the problem opens them.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Logarithms of the weights, and padding that has no effect.
    fn prepare(&self) {
        let Layout { log_a, log_b, sums, last, .. } = self.layout;
        for (weights, log, len, padded) in [(self.a, log_a, self.n, self.n16), (self.b, log_b, self.m, self.stride)] {
            let log = self.slice(self.at(log), padded);
            log.iter_mut().zip(self.slice(weights, len)).for_each(|(log, w)| *log = w.log2());
            log[len..].fill(NOTHING);
        }
        // Sums of padding rows are never written; as ones they leave the potentials alone.
        self.slice(self.at(sums), self.n16).fill(1.0);
        self.slice(self.at(last), self.n16).fill(1.0);
    }

    /// Potentials in units of eps and powers of 2.
    fn scale(&self, eps: f32) -> f32 {
        let scale = std::f32::consts::LOG2_E / eps;
        let Layout { fs, gs, log_b, .. } = self.layout;
        let fs = self.slice(self.at(fs), self.n16);
        fs.iter_mut().zip(self.slice(self.f, self.n16)).for_each(|(s, f)| *s = *f * scale);
        let gs = self.slice(self.at(gs), self.stride);
        let log_b = self.slice(self.at(log_b), self.stride);
        for ((s, g), log) in gs.iter_mut().zip(self.slice(self.g, self.stride)).zip(log_b) {
            *s = *g * scale + *log;
        }
        gs[self.m..].fill(NOTHING);
        scale
    }

    fn blocks(&self, f: impl Fn(usize, usize, usize, Tile) + Sync + Send) {
        blocks(self.context, self.wide, self.tile, self.n, f);
    }

    /// Sums of columns over the blocks.
    fn fold(&self) {
        let Layout { partials, columns, .. } = self.layout;
        let count = self.n.div_ceil(block(self.n));
        // SAFETY: one row of partial sums a block.
        unsafe { (self.context.micro.fold_rows)(self.at(partials), count, self.stride, self.at(columns)) };
    }

    /// Weighted distance of the row sums from `whole` (null: 1), and whether all sums are within `1 / LIMIT..LIMIT`.
    fn rows_deviate(&self, whole: *const f32) -> (f32, [f32; 2]) {
        // SAFETY: vectors of the problem's rows.
        let [error, low, high] =
            unsafe { (self.context.micro.deviation)(self.a, self.at(self.layout.sums), whole, self.n) };
        (error, [low, high])
    }

    fn columns_range(&self) -> [f32; 2] {
        // SAFETY: vectors of the problem's columns.
        let [_, low, high] =
            unsafe { (self.context.micro.deviation)(self.b, self.at(self.layout.columns), null(), self.m) };
        [low, high]
    }

    fn update(&self, left: bool, sums: TileArea, target: *const f32, relative: bool, progress: &Progress) {
        let args = PotentialUpdate {
            n: if left { self.n16 } else { self.stride },
            potential: if left { self.f } else { self.g },
            sums: self.at(sums),
            target,
            relative,
            unit: progress.eps / std::f32::consts::LOG2_E,
            step: progress.step(self.symmetric),
            damping: progress.damping(),
        };
        // SAFETY: vectors of the problem with their padding.
        unsafe { (self.context.micro.update_potentials)(&args) };
        // Padding keeps no value that could grow.
        if left {
            self.slice(self.f, self.n16)[self.n..].fill(0.0);
        } else {
            self.slice(self.g, self.stride)[self.m..].fill(0.0);
        }
    }

    /// One balanced alternating iteration that reads the costs once; None, with nothing changed, where the sums leave
    /// the range.
    fn fused(&self, progress: &Progress) -> Option<f32> {
        let scale = self.scale(progress.eps);
        let Layout { fs, gs, sums, partials, columns, log_b, .. } = self.layout;
        self.blocks(|first, rows, block, tile| {
            let partial = self.at(partials).wrapping_add(block * self.stride);
            let computed = matches!(self.costs, Costs::Points(_));
            // SAFETY: rows of the problem; every tile has room for a group of rows, and for all costs that are computed,
            // whose place E then takes; the partial sums are the block's.
            unsafe {
                self.costs.each(self.context.micro, (first, rows), tile.0, |at, rows, cost| {
                    let args = LogRows {
                        cost,
                        stride: self.stride,
                        rows,
                        scale,
                        fs: self.at(fs).wrapping_add(at),
                        gs: self.at(gs),
                        weights: self.a.wrapping_add(at),
                        e: tile.0,
                        keep: computed,
                        sums: self.at(sums).wrapping_add(at),
                        columns: if self.symmetric { null_mut() } else { partial },
                        add: at > first,
                    };
                    (self.context.micro.log_rows)(&args);
                });
            }
        });
        let (error, range) = self.rows_deviate(null());
        if !within(range, LIMIT) {
            return None;
        }
        if !self.symmetric {
            self.fold();
            if !within(self.columns_range(), LIMIT) {
                return None;
            }
            // Sums of padding are denormal or so; their logarithm is dropped below.
            self.slice(self.at(columns), self.stride)[self.m..].fill(1.0);
            self.update(false, columns, self.at(log_b), true, progress);
        }
        self.update(true, sums, null(), true, progress);
        Some(error)
    }

    /// One iteration with true maxima, for any rule.
    fn robust(&self, progress: &Progress) -> f32 {
        let scale = self.scale(progress.eps);
        let Layout { fs, hs, gs, sums, last, columns, log_a, .. } = self.layout;
        self.blocks(|first, rows, _, tile| {
            self.lse_rows(&self.costs, (first, rows), (self.stride, scale), self.at(gs), self.at(sums), tile);
        });
        let (mut error, damping) = (0.0, progress.damping());
        let (scaled, logs) = (self.slice(self.at(fs), self.n), self.slice(self.at(sums), self.n));
        for ((&f, &log), &a) in scaled.iter().zip(logs.iter()).zip(self.slice(self.a, self.n).iter()) {
            let off = if progress.rho > 0.0 {
                (damping * log + f) / std::f32::consts::LOG2_E
            } else {
                (f + log).min(120.0).exp2() - 1.0
            };
            // The plan of an unfinished schedule may have any mass.
            error += f64::from(a * off.abs().min(1e30));
        }
        self.slice(self.at(sums), self.n16)[self.n..].fill(0.0);
        self.update(true, sums, null(), false, progress);
        if !self.symmetric {
            let log_a = self.slice(self.at(log_a), self.n);
            let hs_slice = self.slice(self.at(hs), self.n);
            if self.rule == Rule::Alternating {
                for ((h, f), log) in hs_slice.iter_mut().zip(self.slice(self.f, self.n)).zip(log_a) {
                    *h = *f * scale + *log;
                }
            } else {
                for ((h, f), log) in hs_slice.iter_mut().zip(scaled).zip(log_a) {
                    *h = *f + *log;
                }
            }
            if let Some(turned) = &self.turned {
                self.slice(self.at(hs), self.n16)[self.n..].fill(NOTHING);
                self.slice(self.at(columns), self.stride)[self.m..].fill(0.0);
                blocks(self.context, self.wide, self.tile, self.m, |first, rows, _, tile| {
                    self.lse_rows(turned, (first, rows), (self.n16, scale), self.at(hs), self.at(columns), tile);
                });
            } else if let Costs::Stored { first, .. } = self.costs {
                self.lse_columns(first, scale);
            }
            self.update(false, columns, null(), false, progress);
        }
        // The fused path wants ones behind the end.
        self.slice(self.at(sums), self.n16)[self.n..].fill(1.0);
        self.slice(self.at(last), self.n16)[self.n..].fill(1.0);
        error as f32
    }

    /// Logarithms of sums of powers over rows of costs of `stride` columns, to `out` from the first row of all on.
    fn lse_rows(
        &self,
        costs: &Costs,
        rows: (usize, usize),
        (stride, scale): (usize, f32),
        gs: *const f32,
        out: *mut f32,
        tile: Tile,
    ) {
        // SAFETY: rows of the problem; the tile has room for costs that are computed.
        unsafe {
            costs.each(self.context.micro, rows, tile.0, |at, rows, cost| {
                let args = LseRows { cost, stride, rows, scale, gs, out: out.wrapping_add(at) };
                (self.context.micro.lse_rows)(&args);
            });
        }
    }

    /// The same over the columns of a stored matrix.
    fn lse_columns(&self, cost: *const f32, scale: f32) {
        let Layout { hs, columns, .. } = self.layout;
        let cost = Shared(cost.cast_mut());
        let task = |block: usize| {
            let column = block * COLUMNS;
            let args = LseColumns {
                cost: cost.get().wrapping_add(column),
                stride: self.stride,
                rows: self.n,
                columns: COLUMNS.min(self.stride - column),
                scale,
                fs: self.at(hs),
                out: self.at(columns).wrapping_add(column),
            };
            // SAFETY: columns of the problem, which belong to this task.
            unsafe { (self.context.micro.lse_columns)(&args) };
        };
        let count = self.stride.div_ceil(COLUMNS);
        if self.wide {
            self.context.parallel(count, |block, _| task(block));
        } else {
            (0..count).for_each(task);
        }
    }

    /// Up to `left` iterations on a stored kernel. Does none if the first leaves the range.
    fn stretch(&self, progress: &mut Progress, left: usize) {
        let scale = self.scale(progress.eps);
        let Layout { fs, gs, sums, last, columns, last_columns, partials, log_b, v, kernel, .. } = self.layout;
        self.blocks(|first, rows, _, tile| {
            let args = |at: usize, rows: usize, cost: *const f32| LogRows {
                cost,
                stride: self.stride,
                rows,
                scale,
                fs: self.at(fs).wrapping_add(at),
                gs: self.at(gs),
                weights: self.a.wrapping_add(at),
                e: self.at(kernel).wrapping_add(at * self.stride),
                keep: true,
                sums: self.at(sums).wrapping_add(at),
                columns: null_mut(),
                add: false,
            };
            // SAFETY: rows of the problem and of its kernel.
            unsafe {
                self.costs.each(self.context.micro, (first, rows), tile.0, |at, rows, cost| {
                    (self.context.micro.log_rows)(&args(at, rows, cost));
                });
            }
        });
        self.slice(self.at(v), self.stride).fill(1.0);
        self.slice(self.at(v), self.stride)[self.m..].fill(0.0);
        let whole = self.slice(self.at(last), self.n);
        whole.fill(1.0);
        let (step, mut done) = (*progress, 0);
        for _ in 0..left {
            self.blocks(|first, rows, block, _| {
                let args = KernelRows {
                    kernel: self.at(kernel).wrapping_add(first * self.stride),
                    stride: self.stride,
                    rows,
                    v: self.at(v),
                    weights: self.a.wrapping_add(first),
                    sums: self.at(sums).wrapping_add(first),
                    columns: self.at(partials).wrapping_add(block * self.stride),
                };
                // SAFETY: rows of the kernel; the partial sums are the block's.
                unsafe { (self.context.micro.kernel_rows)(&args) };
            });
            let (error, rows) = self.rows_deviate(self.at(last));
            if !within(rows, LIMIT) {
                break;
            }
            self.fold();
            let range = self.columns_range();
            if !within(range, LIMIT) {
                break;
            }
            let sums = self.slice(self.at(sums), self.n);
            self.slice(self.at(last), self.n).copy_from_slice(sums);
            let (v, b) = (self.slice(self.at(v), self.m), self.slice(self.b, self.m));
            let (columns, kept) = (self.slice(self.at(columns), self.m), self.slice(self.at(last_columns), self.m));
            for (((v, b), c), kept) in v.iter_mut().zip(b.iter()).zip(columns.iter()).zip(kept) {
                *v = *b / *c;
                *kept = *c;
            }
            done += 1;
            progress.advance(error);
            if progress.state != 0 || !within(rows, ABSORB) || !within(range, ABSORB) {
                break;
            }
        }
        if done > 0 {
            self.slice(self.at(last_columns), self.stride)[self.m..].fill(1.0);
            self.update(true, last, null(), true, &step);
            self.update(false, last_columns, self.at(log_b), true, &step);
        }
    }
}

fn within([low, high]: [f32; 2], limit: f32) -> bool {
    low >= 1.0 / limit && high <= limit
}
