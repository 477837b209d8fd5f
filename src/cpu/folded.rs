//! Convolutions at inference. A task is a band of rows of one image: small enough that its windows and its results stay
//! in the second-level cache, where bias, residual and activation are added to them.

use super::common::{TileArea, TileAreas, contiguous, element, image};
use super::kernel::{Context, Kernel, Launch, Tile};
use super::micro::{Bound, Depthwise, Matmul};
use crate::device::view::View;
use crate::ops::folded::Folded;

/// Floats of a band: windows and results, 256 KiB.
const BAND: usize = 64 << 10;

/// See [`Folded`].
pub struct FoldedKernel {
    op: Folded,
    x: View<f32>,
    w: View<f32>,
    bias: View<f32>,
    residual: Option<View<f32>>,
    y: View<f32>,
    /// Rows of the output a band.
    band: usize,
    windows: TileArea,
    tile: usize,
}

impl FoldedKernel {
    /// The kernel, unless the tensors lie in a way that it does not serve.
    pub fn new(op: &Folded, launch: &Launch<'_>) -> Option<Self> {
        let (x, w, bias, y) = (launch.inputs[0], launch.inputs[1], launch.inputs[2], launch.outputs[0]);
        if !contiguous(&x) || !contiguous(&w) || launch.accumulate[0] {
            return None;
        }
        let (xs, ys) = (x.shape, y.shape);
        // Elements of the windows of some rows of the output.
        let windows = |rows: usize| match (op.depthwise, Self::direct(op)) {
            (true, _) => ((rows - 1) * op.stride + op.kernel) * Self::width(op, &x) * xs.c,
            (_, true) => 0,
            _ => rows * ys.w * w.shape.rows(),
        };
        let read = if Self::direct(op) { xs.w * xs.c } else { windows(1).div_ceil(op.kernel) };
        let band = (BAND / (read + ys.w * ys.c)).clamp(1, ys.h);
        let mut tiles = TileAreas::default();
        let area = tiles.take(windows(band));
        let residual = op.residual.then(|| launch.inputs[3]);
        Some(Self { op: *op, x, w, bias, residual, y, band, windows: area, tile: tiles.len() })
    }

    /// Whether the map itself holds the windows.
    fn direct(op: &Folded) -> bool {
        !op.depthwise && op.kernel == 1 && op.stride == 1
    }

    /// Pixels of a padded row.
    fn width(op: &Folded, x: &View<f32>) -> usize {
        (x.shape.w.div_ceil(op.stride) - 1) * op.stride + op.kernel
    }

    /// Copies `len` pixels from column `first` on (counted in the padded row) of row `iy` of image `n`, zeros where
    /// there are none; `iy` wraps around in front of the image.
    fn pixels(&self, n: usize, iy: usize, first: usize, len: usize, out: *mut f32) {
        let (x, left) = (self.x.shape, self.op.before(self.x.shape.w));
        let inside = if iy < x.h { first.max(left)..(first + len).min(left + x.w) } else { 0..0 };
        // SAFETY: the caller gives room for `len` pixels; those inside lie in a row of the map, which is contiguous.
        unsafe {
            if inside.is_empty() {
                return out.write_bytes(0, len * x.c);
            }
            let (front, back) = (inside.start - first, first + len - inside.end);
            out.write_bytes(0, front * x.c);
            let from = image(&self.x, n).add((iy * x.w + inside.start - left) * x.c);
            out.add(front * x.c).copy_from_nonoverlapping(from, inside.len() * x.c);
            out.add((len - back) * x.c).write_bytes(0, back * x.c);
        }
    }

    /// The convolution of rows `from..from + rows` of image `n`.
    fn convolve(&self, context: &Context<'_>, tile: Tile, (n, from, rows): (usize, usize, usize), out: *mut f32) {
        let (op, x, y) = (&self.op, self.x.shape, self.y.shape);
        let (windows, top) = (tile.at(self.windows), op.before(x.h));
        if op.depthwise {
            let width = Self::width(op, &self.x);
            for row in 0..(rows - 1) * op.stride + op.kernel {
                let line = windows.wrapping_add(row * width * x.c);
                self.pixels(n, (from * op.stride + row).wrapping_sub(top), 0, width, line);
            }
            let args = Depthwise {
                inp: windows,
                width,
                oh: rows,
                ow: y.w,
                c: x.c,
                k: op.kernel,
                dilation: 1,
                stride: op.stride,
                weights: self.w.ptr(),
                out,
                ldo: self.y.row_stride,
            };
            // SAFETY: the tile holds the padded rows of the band, the views cover weights and results.
            return unsafe { (context.micro.depthwise)(&args) };
        }
        let k = self.w.shape.rows();
        let a = if Self::direct(op) {
            self.x.row((n * x.h + from) * x.w).cast_const()
        } else {
            let line = op.kernel * x.c;
            for (pixel, tap) in (0..rows * y.w).flat_map(|pixel| (0..op.kernel).map(move |tap| (pixel, tap))) {
                let iy = ((from + pixel / y.w) * op.stride + tap).wrapping_sub(top);
                let out = windows.wrapping_add(pixel * k + tap * line);
                self.pixels(n, iy, pixel % y.w * op.stride, op.kernel, out);
            }
            windows.cast_const()
        };
        let (lda, ldb, ldo) = (k, self.w.row_stride, self.y.row_stride);
        let args = Matmul { a, lda, b: self.w.ptr(), ldb, out, ldo, rows: rows * y.w, k, n: y.c, accumulate: false };
        // SAFETY: the windows lie in the map or in the tile, the views cover weights and results.
        unsafe { (context.micro.matmul)(&args) };
    }
}

impl Kernel for FoldedKernel {
    fn run(&self, context: &Context<'_>) {
        let y = self.y.shape;
        let bands = y.h.div_ceil(self.band);
        let (low, high) = self.op.activation.bounds();
        context.parallel(y.n * bands, |task, tile| {
            let (n, from) = (task / bands, task % bands * self.band);
            let rows = self.band.min(y.h - from);
            let first = (n * y.h + from) * y.w;
            let out = self.y.row(first);
            self.convolve(context, tile, (n, from, rows), out);
            let (residual, ldr) =
                self.residual.as_ref().map_or((std::ptr::null(), 0), |r| (r.row(first).cast_const(), r.row_stride));
            let args = Bound {
                x: out,
                ldx: self.y.row_stride,
                rows: rows * y.w,
                c: y.c,
                bias: element(&self.bias, 0),
                residual,
                ldr,
                low: low as f32,
                high: high as f32,
            };
            // SAFETY: the views cover the band of results and of the residual, which is another map.
            unsafe { (context.micro.bound)(&args) };
        });
    }

    fn tile(&self) -> usize {
        self.tile
    }
}
