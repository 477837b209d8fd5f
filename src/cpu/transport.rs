//! Optimal transport: costs, Sinkhorn iterations and certificates of a batch of problems of different sizes.
//!
//! Small problems are tasks of their own and keep everything in the tile memory of their thread, so a kernel matrix
//! stays in its cache. Large ones are cut into blocks of rows whose column sums are folded in order. Both do the same
//! arithmetic: a problem gives the same bits alone, in any batch and with any number of threads.
//!
//! An iteration reads each row once. With `E = exp((f + g - C) / eps) b` of the present potentials, row sums give the
//! new left potentials, and since those only scale rows, the same E gives the column sums of the new plan: one
//! exponential an element where the textbook's two half steps need two. The present potentials take the place of the
//! maximum that makes a log-sum-exp safe; where sums leave the range in which that works, the iteration is done again
//! with true maxima. At the last eps E stays the same but for factors of rows and columns, so it is kept (in the
//! kernel domain), and the factors are absorbed into the potentials before they leave the range.

use std::ptr::{null, null_mut};
use std::sync::Arc;

use super::common::{TileArea, TileAreas, contiguous, element};
use super::kernel::{Context, Kernel, Launch, Tile};
use super::micro::{CostTile, KernelRows, LogRows, LseColumns, LseRows, PlanRows, PotentialUpdate, Transform};
use crate::device::view::View;
use crate::ops::transport::{CERTIFICATE, PairCost, Problem, Progress, Rule, STATUS, Sinkhorn, Table, VALUES, put};
use crate::ops::{area, transport};

/// Elements of a cost matrix up to which a problem is one task: a kernel matrix of 1 MiB.
const SMALL: usize = 1 << 18;
/// Rows of E that are worked on at once.
const GROUP: usize = 4;
/// Sums within `1 / LIMIT..LIMIT` are trusted.
const LIMIT: f32 = 1e30;
/// Factors beyond this range are absorbed into the potentials.
const ABSORB: f32 = 1e12;
/// Iterations for which a kernel matrix is worth computing.
const WORTHWHILE: usize = 4;
/// Exponent of padding columns, whose mass is nothing.
const NOTHING: f32 = -1e30;
/// Columns of costs that are computed from one transposed block of points, and rows that use it.
const COLUMNS: usize = 64;
const ROWS: usize = 64;

/// Rows of a block; a function of the size of the problem only.
fn block(n: usize) -> usize {
    if n > 1024 { 128 } else { 64 }
}

fn small(p: &Problem) -> bool {
    (p.n * p.stride) as usize <= SMALL
}

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
}

fn layout(p: &Problem, kernel: bool, areas: &mut TileAreas) -> Layout {
    let (n, m) = ((p.n as usize).next_multiple_of(transport::LANES), p.stride as usize);
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
        kernel: areas.take(if kernel { p.n as usize * m } else { 0 }),
    }
}

fn needed(p: &Problem, kernel: bool) -> usize {
    let mut areas = TileAreas::default();
    layout(p, kernel, &mut areas);
    areas.len()
}

/// Scratch of [`Sinkhorn`]: the working memory of the largest problem that is not small.
pub fn scratch(table: &Table, kernel: bool) -> usize {
    table.problems.iter().filter(|p| !small(p)).map(|p| needed(p, kernel)).max().unwrap_or(0)
}

/// A part of a vector as a pointer.
fn part(view: &View<f32>, start: u32, len: usize) -> *mut f32 {
    assert!(start as usize + len <= view.shape.len(), "a problem reaches beyond its tensors");
    element(view, start as usize)
}

/// See [`PairCost`].
pub struct PairCostKernel {
    op: PairCost,
    inputs: Vec<View<f32>>,
    cost: View<f32>,
    /// Problem and first row of each task.
    tasks: Vec<(usize, usize)>,
}

impl PairCostKernel {
    /// The kernel, unless the points have gaps.
    pub fn new(op: &PairCost, launch: &Launch<'_>) -> Option<Self> {
        let (inputs, cost) = (launch.inputs.clone(), launch.outputs[0]);
        let tasks = |(number, p): (usize, &Problem)| (0..p.n as usize).step_by(ROWS).map(move |row| (number, row));
        let tasks = op.table.problems.iter().enumerate().flat_map(tasks).collect();
        let serves = contiguous(&cost) && contiguous(&inputs[0]) && !launch.accumulate[0];
        serves.then(|| Self { op: op.clone(), inputs, cost, tasks })
    }
}

impl Kernel for PairCostKernel {
    fn run(&self, context: &Context<'_>) {
        let points = &self.inputs[0];
        let d = points.shape.c;
        context.parallel(self.tasks.len(), |task, tile| {
            let (number, first) = self.tasks[task];
            let p = &self.op.table.problems[number];
            let rows = ROWS.min(p.n as usize - first);
            let (m, stride) = (p.m as usize, p.stride as usize);
            let cost = part(&self.cost, p.cost, p.n as usize * stride).wrapping_add(first * stride);
            for column in (0..stride).step_by(COLUMNS) {
                let columns = COLUMNS.min(stride - column);
                // SAFETY: the tile holds COLUMNS points; it belongs to this task.
                let y = unsafe { std::slice::from_raw_parts_mut(tile.0, columns * d) };
                for j in 0..columns {
                    // Padding gets some point, and its costs are cleared below.
                    let row = points.row((p.y as usize + (column + j)).min((p.y + p.m) as usize - 1));
                    for k in 0..d {
                        // SAFETY: a row has `d` coordinates.
                        y[k * columns + j] = unsafe { *row.add(k) };
                    }
                }
                let args = CostTile {
                    x: points.row(p.x as usize + first),
                    ldx: points.row_stride,
                    rows,
                    d,
                    y: y.as_ptr(),
                    columns,
                    scale: self.op.point_scale as f32,
                    cost: cost.wrapping_add(column),
                    ldc: stride,
                };
                // SAFETY: the rows lie within the points (checked when recorded) and within the costs.
                unsafe { (context.micro.cost_tile)(&args) };
            }
            for i in 0..rows {
                // SAFETY: a row of the problem's costs, which belongs to this task.
                let row = unsafe { std::slice::from_raw_parts_mut(cost.add(i * stride), stride) };
                if let [_, labels, w] = &self.inputs[..] {
                    let own = labels.at(p.x as usize + first + i) as usize;
                    for (j, value) in row[..m].iter_mut().enumerate() {
                        *value += self.op.label_scale as f32 * w.get(own, labels.at(p.y as usize + j) as usize);
                    }
                }
                row[m..].fill(0.0);
            }
        });
    }

    fn tile(&self) -> usize {
        COLUMNS * self.inputs[0].shape.c
    }
}

/// See [`Sinkhorn`].
pub struct SinkhornKernel {
    op: Sinkhorn,
    inputs: [View<f32>; 3],
    outputs: [View<f32>; 2],
    scratch: View<f32>,
    small: Vec<usize>,
    large: Vec<usize>,
    tile: usize,
}

impl SinkhornKernel {
    /// The kernel, unless a vector has gaps.
    pub fn new(op: &Sinkhorn, launch: &Launch<'_>) -> Option<Self> {
        let [cost, weights, schedule] = launch.inputs[..] else { return None };
        let [potentials, status] = launch.outputs[..] else { return None };
        let problems = &op.table.problems;
        let group = |p: &Problem| area(GROUP * p.stride as usize);
        let rows = problems.iter().map(group).max().unwrap_or(0);
        let work = problems.iter().filter(|p| small(p)).map(|p| needed(p, op.kernel)).max().unwrap_or(0);
        let of = |which: bool| (0..problems.len()).filter(|&i| small(&problems[i]) == which).collect();
        let serves = [&cost, &weights, &schedule, &potentials, &status].into_iter().all(contiguous);
        serves.then(|| Self {
            op: op.clone(),
            inputs: [cost, weights, schedule],
            outputs: [potentials, status],
            scratch: launch.scratch,
            small: of(true),
            large: of(false),
            tile: rows + work,
        })
    }

    fn solve(&self, context: &Context<'_>, number: usize, tile: Tile, wide: bool) {
        let [cost, weights, schedule] = &self.inputs;
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
        let layout = layout(p, self.op.kernel, &mut areas);
        let memory = if wide { Tile(self.scratch.ptr()) } else { tile };
        let n16 = n.next_multiple_of(transport::LANES);
        let solve = Solve {
            context,
            wide,
            rule: self.op.rule,
            tile,
            n,
            m,
            n16,
            stride,
            symmetric: p.symmetric != 0,
            cost: part(cost, p.cost, n * stride),
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
            let keep = self.op.kernel && balanced && !solve.symmetric && progress.settled() && left >= WORTHWHILE;
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
    cost: *mut f32,
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

    /// Calls `f(first row, rows, number of the block, tile)` for the blocks of rows.
    fn blocks(&self, f: impl Fn(usize, usize, usize, Tile) + Sync + Send) {
        let size = block(self.n);
        let count = self.n.div_ceil(size);
        let task = |b: usize, tile: Tile| f(b * size, size.min(self.n - b * size), b, tile);
        if self.wide {
            self.context.parallel(count, task);
        } else {
            (0..count).for_each(|b| task(b, self.tile));
        }
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
            let args = LogRows {
                cost: self.cost.wrapping_add(first * self.stride),
                stride: self.stride,
                rows,
                scale,
                fs: self.at(fs).wrapping_add(first),
                gs: self.at(gs),
                weights: self.a.wrapping_add(first),
                e: tile.0,
                keep: false,
                sums: self.at(sums).wrapping_add(first),
                columns: if self.symmetric { null_mut() } else { partial },
            };
            // SAFETY: rows of the problem; every tile has room for a group of rows; the partial sums are the block's.
            unsafe { (self.context.micro.log_rows)(&args) };
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
        self.blocks(|first, rows, _, _| {
            let args = LseRows {
                cost: self.cost.wrapping_add(first * self.stride),
                stride: self.stride,
                rows,
                scale,
                gs: self.at(gs),
                out: self.at(sums).wrapping_add(first),
            };
            // SAFETY: rows of the problem.
            unsafe { (self.context.micro.lse_rows)(&args) };
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
            let count = self.stride.div_ceil(COLUMNS);
            let task = |block: usize| {
                let column = block * COLUMNS;
                let args = LseColumns {
                    cost: self.cost.wrapping_add(column),
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
            if self.wide {
                self.context.parallel(count, |block, _| task(block));
            } else {
                (0..count).for_each(task);
            }
            self.update(false, columns, null(), false, progress);
        }
        // The fused path wants ones behind the end.
        self.slice(self.at(sums), self.n16)[self.n..].fill(1.0);
        self.slice(self.at(last), self.n16)[self.n..].fill(1.0);
        error as f32
    }

    /// Up to `left` iterations on a stored kernel. Does none if the first leaves the range.
    fn stretch(&self, progress: &mut Progress, left: usize) {
        let scale = self.scale(progress.eps);
        let Layout { fs, gs, sums, last, columns, last_columns, partials, log_b, v, kernel, .. } = self.layout;
        self.blocks(|first, rows, _, _| {
            let args = LogRows {
                cost: self.cost.wrapping_add(first * self.stride),
                stride: self.stride,
                rows,
                scale,
                fs: self.at(fs).wrapping_add(first),
                gs: self.at(gs),
                weights: self.a.wrapping_add(first),
                e: self.at(kernel).wrapping_add(first * self.stride),
                keep: true,
                sums: self.at(sums).wrapping_add(first),
                columns: null_mut(),
            };
            // SAFETY: rows of the problem and of its kernel.
            unsafe { (self.context.micro.log_rows)(&args) };
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

/// See [`transport::Certificate`].
pub struct CertificateKernel {
    table: Arc<Table>,
    inputs: [View<f32>; 4],
    rows: View<f32>,
}

impl CertificateKernel {
    /// The kernel, unless a vector has gaps.
    pub fn new(op: &transport::Certificate, launch: &Launch<'_>) -> Option<Self> {
        let inputs: [View<f32>; 4] = launch.inputs[..].try_into().ok()?;
        let serves = inputs.iter().all(contiguous) && !launch.accumulate[0];
        serves.then(|| Self { table: Arc::clone(&op.table), inputs, rows: launch.outputs[0] })
    }

    fn certify(&self, context: &Context<'_>, p: &Problem, eps: f32, tile: Tile) -> [f64; VALUES] {
        let [cost, weights, potentials, _] = &self.inputs;
        let (n, m, stride) = (p.n as usize, p.m as usize, p.stride as usize);
        let cost = part(cost, p.cost, n * stride);
        let (a, b) = (part(weights, p.f, n), part(weights, p.g, m));
        let (f, g) = (part(potentials, p.f, n), part(potentials, p.g, m));
        let areas = Wide::new(n, stride);
        let scale = std::f32::consts::LOG2_E / eps;
        // SAFETY: the tile has all areas of `Wide`, each of which is opened once; the rest are vectors of the problem.
        let (a, b, f, g, e, gs, [x, gc], [s, s2, y, missing]) = unsafe {
            let input = |p: *mut f32, len| std::slice::from_raw_parts(p.cast_const(), len);
            let own = |i: usize| std::slice::from_raw_parts_mut(tile.at(areas.floats[i]), stride);
            let wide = |i: usize, len| std::slice::from_raw_parts_mut(tile.at(areas.doubles[i]).cast::<f64>(), len);
            let long = [wide(0, n), wide(1, m)];
            let columns = [wide(2, m), wide(3, m), wide(4, m), wide(5, m)];
            (input(a, n), input(b, m), input(f, n), input(g, m), own(0), own(1), long, columns)
        };
        gs.fill(NOTHING);
        gs.iter_mut().zip(g.iter().zip(b)).for_each(|(s, (g, b))| *s = g * scale + b.log2());
        s.fill(0.0);
        s2.fill(0.0);
        let exponentials = |i: usize, e: &mut [f32]| {
            let (one, mut sum, row) = (1.0f32, 0.0f32, f[i] * scale);
            let args = LogRows {
                cost: cost.wrapping_add(i * stride),
                stride,
                rows: 1,
                scale,
                fs: &raw const row,
                gs: gs.as_ptr(),
                weights: &raw const one,
                e: e.as_mut_ptr(),
                keep: false,
                sums: &raw mut sum,
                columns: null_mut(),
            };
            // SAFETY: one row of the problem.
            unsafe { (context.micro.log_rows)(&args) };
        };
        let plan = |i: usize, e: &[f32], weight: f64, y: *const f64, missing: *const f64, columns: *mut f64| {
            let mut sums = [0.0f64; 3];
            let row = cost.wrapping_add(i * stride);
            let args = PlanRows { e: e.as_ptr(), cost: row, m, weight, y, sums: sums.as_mut_ptr(), missing, columns };
            // SAFETY: one row of the problem; the columns have `m` elements.
            unsafe { (context.micro.plan_rows)(&args) };
            sums
        };
        let (mut value, mut mass, mut row_error) = (0.0, 0.0, 0.0);
        for i in 0..n {
            exponentials(i, e);
            let weight = f64::from(a[i]);
            let [sum, product, _] = plan(i, e, weight, null(), null(), s.as_mut_ptr());
            (value, mass, row_error) = (value + product, mass + sum, row_error + (sum - weight).abs());
            x[i] = weight * (weight / sum).min(1.0);
            plan(i, e, x[i], null(), null(), s2.as_mut_ptr());
        }
        let mut column_error = 0.0;
        for (j, &b) in b.iter().enumerate() {
            let b = f64::from(b);
            column_error += (s[j] - b).abs();
            y[j] = (b / s2[j]).min(1.0);
            missing[j] = b - y[j] * s2[j];
        }
        let (mut upper, mut short, mut correction) = (0.0, 0.0, 0.0);
        for i in 0..n {
            exponentials(i, e);
            let [sum, product, gap] = plan(i, e, x[i], y.as_ptr(), missing.as_ptr(), null_mut());
            let lacks = f64::from(a[i]) - sum;
            (upper, short, correction) = (upper + product, short + lacks, correction + lacks * gap);
        }
        if short > 0.0 {
            upper += correction / short;
        }
        gc.fill(f64::INFINITY);
        let transform = |i: usize, columns: *mut f64, other: *const f64| {
            let mut least = 0.0;
            let row = cost.wrapping_add(i * stride);
            let args = Transform { cost: row, m, potential: f64::from(f[i]), columns, other, least: &raw mut least };
            // SAFETY: one row of the problem; the columns have `m` elements.
            unsafe { (context.micro.transform)(&args) };
            least
        };
        for i in 0..n {
            transform(i, gc.as_mut_ptr(), null());
        }
        let (mut lower, mut dual) = (0.0, 0.0);
        for i in 0..n {
            lower += f64::from(a[i]) * transform(i, null_mut(), gc.as_ptr());
            dual += f64::from(a[i]) * f64::from(f[i]);
        }
        for (j, &b) in b.iter().enumerate() {
            lower += f64::from(b) * gc[j];
            dual += f64::from(b) * f64::from(g[j]);
        }
        [value, upper, lower, dual, row_error, column_error, mass]
    }
}

/// Areas of a certificate: two rows of floats, and doubles.
struct Wide {
    floats: [TileArea; 2],
    doubles: [TileArea; 6],
    end: usize,
}

impl Wide {
    fn new(n: usize, stride: usize) -> Self {
        let mut areas = TileAreas::default();
        let floats = [areas.take(stride), areas.take(stride)];
        let doubles = [n, stride, stride, stride, stride, stride].map(|len| areas.take(2 * len));
        Self { floats, doubles, end: areas.len() }
    }
}

impl Kernel for CertificateKernel {
    fn run(&self, context: &Context<'_>) {
        context.parallel(self.table.problems.len(), |number, tile| {
            let eps = self.inputs[3].at(number * STATUS + 1);
            put(&self.rows, number, self.certify(context, &self.table.problems[number], eps, tile));
        });
    }

    fn tile(&self) -> usize {
        let need = |p: &Problem| Wide::new(p.n as usize, p.stride as usize).end;
        self.table.problems.iter().map(need).max().unwrap_or(0).max(CERTIFICATE)
    }
}
