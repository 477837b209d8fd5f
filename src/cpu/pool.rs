//! Pooling, the global mean, and their gradients: a task is one image.

use std::ptr::{null, null_mut};

use super::common::{
    Areas, BatchMoments, Gradient, Terms, TileArea, TileAreas, clear_image, image, pixels, take_terms,
};
use super::kernel::{Context, Kernel, Launch};
use super::micro::{self, Sums, WeightedSum};
use crate::device::view::View;
use crate::graph::Shape;
use crate::ops::pool::{Pool, PoolBackward};

/// See [`Pool`].
pub struct PoolKernel {
    pool: Pool,
    x: View<f32>,
    y: Shape,
    max: Option<View<f32>>,
    average: Option<View<f32>>,
    moments: Vec<BatchMoments>,
}

impl PoolKernel {
    /// The kernel, unless results are to be added to something.
    pub fn new(op: &Pool, launch: &Launch<'_>) -> Option<Self> {
        let mut areas = Areas::new(launch.scratch);
        if launch.accumulate.contains(&true) || op.pad >= op.kernel {
            return None;
        }
        let (x, step) = (launch.inputs[0], op.stride_of_outputs());
        let moments = if op.statistics {
            launch.outputs.chunks(step).map(|o| BatchMoments::new(o, &mut areas)).collect()
        } else {
            Vec::new()
        };
        let max = op.max.then(|| launch.outputs[0]);
        let average = op.average.then(|| launch.outputs[if op.max { step } else { 0 }]);
        Some(Self { pool: *op, x, y: op.output(x.shape), max, average, moments })
    }
}

impl Kernel for PoolKernel {
    fn run(&self, context: &Context<'_>) {
        let (x, p) = (self.x.shape, self.pool);
        context.parallel(x.n, |n, _| {
            let map = |map: &Option<View<f32>>| map.map_or((null_mut(), 0), |m| (image(&m, n), m.row_stride));
            let ((max, ldmax), (avg, ldavg)) = (map(&self.max), map(&self.average));
            let args = micro::PoolForward {
                x: image(&self.x, n),
                ldx: self.x.row_stride,
                h: x.h,
                w: x.w,
                c: x.c,
                k: p.kernel,
                stride: p.stride,
                pad: p.pad,
                oh: self.y.h,
                ow: self.y.w,
                max,
                ldmax,
                avg,
                ldavg,
            };
            // SAFETY: the views cover the image.
            unsafe { (context.micro.pool_forward)(&args) };
            self.moments.iter().for_each(|m| m.image(context.micro, n));
        });
        context.parallel(self.moments.len(), |i, _| self.moments[i].fold());
    }
}

/// See [`PoolBackward`].
pub struct PoolBackwardKernel {
    pool: Pool,
    x: View<f32>,
    y: Shape,
    max: Terms,
    average: Terms,
    direct: Terms,
    dx: View<f32>,
    accumulate: bool,
    dmax: TileArea,
    davg: TileArea,
    tile: usize,
}

impl PoolBackwardKernel {
    /// The kernel.
    pub fn new(op: &PoolBackward, launch: &Launch<'_>) -> Option<Self> {
        let x = launch.inputs[0];
        let mut rest = &launch.inputs[1..];
        let max = take_terms(&op.max, &mut rest);
        let average = take_terms(&op.average, &mut rest);
        let direct = take_terms(&op.direct, &mut rest);
        let y = op.pool.output(x.shape);
        let mut tiles = TileAreas::default();
        let (dmax, davg) = (tiles.take(pixels(y) * y.c), tiles.take(pixels(y) * y.c));
        let (dx, accumulate) = (launch.outputs[0], launch.accumulate[0]);
        let serves = op.pool.pad < op.pool.kernel;
        let tile = tiles.len();
        serves.then_some(Self { pool: op.pool, x, y, max, average, direct, dx, accumulate, dmax, davg, tile })
    }
}

impl Kernel for PoolBackwardKernel {
    fn run(&self, context: &Context<'_>) {
        let (x, p) = (self.x.shape, self.pool);
        context.parallel(x.n, |n, tile| {
            let given = |terms: &Terms, area| match terms.is_empty() {
                true => Gradient { ptr: null(), ld: 0 },
                false => terms.gradient(context.micro, n, 1, tile.at(area)),
            };
            let (dmax, davg) = (given(&self.max, self.dmax), given(&self.average, self.davg));
            if !self.direct.is_empty() {
                self.direct.write(context.micro, n, image(&self.dx, n), self.dx.row_stride, self.accumulate);
            } else if !self.accumulate {
                clear_image(&self.dx, n);
            }
            let args = micro::PoolBackward {
                x: image(&self.x, n),
                ldx: self.x.row_stride,
                h: x.h,
                w: x.w,
                c: x.c,
                k: p.kernel,
                stride: p.stride,
                pad: p.pad,
                oh: self.y.h,
                ow: self.y.w,
                dmax: dmax.ptr,
                ldmax: dmax.ld,
                davg: davg.ptr,
                ldavg: davg.ld,
                dx: image(&self.dx, n),
                lddx: self.dx.row_stride,
            };
            // SAFETY: the views cover the image, the gradients its pooled maps.
            unsafe { (context.micro.pool_backward)(&args) };
        });
    }

    fn tile(&self) -> usize {
        self.tile
    }
}

/// See [`GlobalPool`](crate::ops::pool::GlobalPool).
pub struct GlobalPoolKernel {
    x: View<f32>,
    y: View<f32>,
    accumulate: bool,
}

impl GlobalPoolKernel {
    /// The kernel.
    pub fn new(launch: &Launch<'_>) -> Self {
        Self { x: launch.inputs[0], y: launch.outputs[0], accumulate: launch.accumulate[0] }
    }
}

impl Kernel for GlobalPoolKernel {
    fn run(&self, context: &Context<'_>) {
        let shape = self.x.shape;
        context.parallel(shape.n, |n, tile| {
            let sums = Sums {
                g: image(&self.x, n),
                ldg: self.x.row_stride,
                y: null(),
                ldy: 0,
                rows: pixels(shape),
                c: shape.c,
                mean: null(),
                s1: tile.0,
                s2: null_mut(),
            };
            // SAFETY: the view covers the image, the tile has an element for each channel.
            let sums = unsafe {
                tile.0.write_bytes(0, shape.c);
                (context.micro.sums)(&sums);
                std::slice::from_raw_parts(tile.0, shape.c)
            };
            let count = pixels(shape) as f32;
            sums.iter().enumerate().for_each(|(c, &s)| self.y.put(n, c, s / count, self.accumulate));
        });
    }

    fn tile(&self) -> usize {
        self.x.shape.c
    }
}

/// See [`GlobalPoolBackward`](crate::ops::pool::GlobalPoolBackward).
pub struct GlobalPoolBackwardKernel {
    g: View<f32>,
    dx: View<f32>,
    accumulate: bool,
}

impl GlobalPoolBackwardKernel {
    /// The kernel.
    pub fn new(launch: &Launch<'_>) -> Self {
        Self { g: launch.inputs[0], dx: launch.outputs[0], accumulate: launch.accumulate[0] }
    }
}

impl Kernel for GlobalPoolBackwardKernel {
    fn run(&self, context: &Context<'_>) {
        let shape = self.dx.shape;
        let count = pixels(shape) as f32;
        context.parallel(shape.n, |n, tile| {
            // SAFETY: the tile has an element for each channel.
            let share = unsafe {
                tile.0.write_bytes(0, shape.c);
                std::slice::from_raw_parts_mut(tile.0, shape.c)
            };
            share.iter_mut().enumerate().for_each(|(c, s)| *s = self.g.get(n, c) / count);
            let args = WeightedSum {
                sources: &[],
                bias: tile.0,
                rows: pixels(shape),
                c: shape.c,
                out: image(&self.dx, n),
                ldo: self.dx.row_stride,
                accumulate: self.accumulate,
                far: false,
            };
            // SAFETY: the view covers the image.
            unsafe { (context.micro.weighted_sum)(&args) };
        });
    }

    fn tile(&self) -> usize {
        self.dx.shape.c
    }
}
