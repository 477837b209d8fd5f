//! Dense convolutions as matrix products. A task is one image, or a chunk of images where they are small; the windows
//! of a kernel larger than one pixel are gathered into rows of a tile, `[pixel][tap][channel]`.

use std::ptr::{null, null_mut};

use super::common::{
    Areas, BatchMoments, Gradient, Terms, TileArea, TileAreas, element, fold, image, pixels, take_terms, transpose,
};
use super::kernel::{Context, Kernel, Launch, Tile};
use super::micro::{self, Gather, MaskAccumulate, Matmul, Micro, PadPrologue, Sums};
use crate::device::view::View;
use crate::graph::Shape;
use crate::ops::dense::{Dense, DenseBackward};
use crate::ops::norm;

/// Pixels below which images are taken a chunk at a time.
const SMALL: usize = 64;

/// The rows that a convolution multiplies with its weights.
struct Windows {
    dense: Dense,
    x: View<f32>,
    y: Shape,
    padded: TileArea,
    columns: TileArea,
}

impl Windows {
    fn new(dense: &Dense, x: View<f32>, y: Shape, images: usize, tiles: &mut TileAreas) -> Self {
        let own = Self { dense: *dense, x, y, padded: tiles.take(0), columns: tiles.take(0) };
        let padded = if dense.kernel > 1 { own.padded_len() } else { 0 };
        let columns = if own.direct() { 0 } else { images * pixels(y) * own.k() };
        Self { padded: tiles.take(padded), columns: tiles.take(columns), ..own }
    }

    /// Elements of a row.
    fn k(&self) -> usize {
        self.dense.kernel * self.dense.kernel * self.x.shape.c
    }

    /// Whether the map itself holds the rows.
    fn direct(&self) -> bool {
        self.pointwise() && !self.dense.relu
    }

    /// Whether rows are pixels of the map.
    fn pointwise(&self) -> bool {
        self.dense.kernel == 1 && self.dense.stride == 1 && self.dense.pad == 0
    }

    fn width(&self) -> usize {
        self.x.shape.w + 2 * self.dense.pad
    }

    fn padded_len(&self) -> usize {
        (self.x.shape.h + 2 * self.dense.pad) * self.width() * self.x.shape.c
    }

    /// The rows of images `n..n + images`.
    fn gather(&self, micro: &Micro, n: usize, images: usize, tile: Tile) -> Gradient {
        if self.direct() {
            return Gradient { ptr: image(&self.x, n), ld: self.x.row_stride };
        }
        let columns = tile.at(self.columns);
        for i in 0..images {
            let out = columns.wrapping_add(i * pixels(self.y) * self.k());
            if self.dense.kernel == 1 && self.dense.pad == 0 {
                self.pick(micro, n + i, out);
            } else {
                self.windows(micro, n + i, tile, out);
            }
        }
        Gradient { ptr: columns, ld: self.k() }
    }

    fn pick(&self, micro: &Micro, n: usize, out: *mut f32) {
        let (x, c) = (self.x.shape, self.x.shape.c);
        let args = Gather {
            x: image(&self.x, n),
            ldx: self.x.row_stride,
            h: x.h,
            w: x.w,
            c,
            stride: self.dense.stride,
            offset: 0,
            oh: self.y.h,
            ow: self.y.w,
            relu: self.dense.relu,
            out,
            ldo: c,
        };
        // SAFETY: the view covers the image, the tile its rows.
        unsafe { (micro.gather)(&args) };
    }

    fn windows(&self, micro: &Micro, n: usize, tile: Tile, out: *mut f32) {
        let (x, padded) = (self.x.shape, tile.at(self.padded));
        let args = PadPrologue {
            x: image(&self.x, n),
            ldx: self.x.row_stride,
            h: x.h,
            w: x.w,
            c: x.c,
            pad: self.dense.pad,
            scale: null(),
            shift: null(),
            relu: self.dense.relu,
            out: padded,
        };
        // SAFETY: the view covers the image, the tile the padded image.
        unsafe { (micro.pad_prologue)(&args) };
        self.rows(|window, row, len| {
            // SAFETY: a row of the window lies in the padded image, and in the rows of the image.
            unsafe { out.add(row).copy_from_nonoverlapping(padded.add(window), len) };
        });
    }

    /// Calls `f(element of the padded image, element of the rows, elements)` for each row of each window.
    fn rows(&self, mut f: impl FnMut(usize, usize, usize)) {
        let Dense { kernel, stride, .. } = self.dense;
        let (c, width) = (self.x.shape.c, self.width());
        for (oy, ox) in (0..self.y.h).flat_map(|oy| (0..self.y.w).map(move |ox| (oy, ox))) {
            let row = (oy * self.y.w + ox) * self.k();
            for tap in 0..kernel {
                f(((oy * stride + tap) * width + ox * stride) * c, row + tap * kernel * c, kernel * c);
            }
        }
    }
}

/// Images a task.
fn images_a_task(y: Shape) -> usize {
    if pixels(y) < SMALL { norm::images_a_chunk(y.n) } else { 1 }
}

/// See [`Dense`].
pub struct DenseKernel {
    windows: Windows,
    w: View<f32>,
    bias: Option<View<f32>>,
    y: View<f32>,
    accumulate: bool,
    moments: Option<BatchMoments>,
    images: usize,
    tile: usize,
}

impl DenseKernel {
    /// The kernel.
    pub fn new(op: &Dense, launch: &Launch<'_>) -> Option<Self> {
        let mut areas = Areas::new(launch.scratch);
        let (x, w, y) = (launch.inputs[0], launch.inputs[1], launch.outputs[0]);
        let bias = op.bias.then(|| launch.inputs[2]);
        let moments = op.statistics.then(|| BatchMoments::new(&launch.outputs, &mut areas));
        let images = images_a_task(y.shape);
        let mut tiles = TileAreas::default();
        let windows = Windows::new(op, x, y.shape, images, &mut tiles);
        let accumulate = launch.accumulate[0];
        // A bias is added in place, which an accumulated map does not allow.
        let serves = !(accumulate && bias.is_some());
        let tile = tiles.len();
        serves.then_some(Self { windows, w, bias, y, accumulate, moments, images, tile })
    }
}

impl Kernel for DenseKernel {
    fn run(&self, context: &Context<'_>) {
        let (micro, shape) = (context.micro, self.y.shape);
        context.parallel(shape.n.div_ceil(self.images), |task, tile| {
            let n = task * self.images;
            let images = self.images.min(shape.n - n);
            let a = self.windows.gather(micro, n, images, tile);
            let (out, ldo, rows) = (image(&self.y, n), self.y.row_stride, images * pixels(shape));
            let args = Matmul {
                a: a.ptr,
                lda: a.ld,
                b: self.w.ptr(),
                ldb: self.w.row_stride,
                out,
                ldo,
                rows,
                k: self.windows.k(),
                n: shape.c,
                accumulate: self.accumulate,
            };
            // SAFETY: the views cover weights and images, the tile the rows.
            unsafe { (micro.matmul)(&args) };
            if let Some(bias) = &self.bias {
                let args = micro::Affine {
                    g: out,
                    ldg: ldo,
                    y: null(),
                    ldy: 0,
                    rows,
                    c: shape.c,
                    a: null(),
                    b: null(),
                    d: bias.ptr(),
                    s: 1.0,
                    out,
                    ldo,
                    accumulate: false,
                    far: false,
                };
                // SAFETY: as above; the kernel may work in place.
                unsafe { (micro.affine)(&args) };
            }
            if let Some(moments) = &self.moments {
                (n..n + images).for_each(|n| moments.image(micro, n));
            }
        });
        if let Some(moments) = &self.moments {
            moments.fold();
        }
    }

    fn tile(&self) -> usize {
        self.tile
    }
}

/// A gradient summed over the batch: partials of each chunk, and the total.
struct Total {
    partials: View<f32>,
    out: View<f32>,
    accumulate: bool,
}

/// See [`DenseBackward`].
pub struct DenseBackwardKernel {
    windows: Windows,
    terms: Terms,
    w: View<f32>,
    transposed: View<f32>,
    dx: Option<(View<f32>, bool)>,
    dw: Option<Total>,
    dbias: Option<Total>,
    images: usize,
    dy: TileArea,
    dcolumns: TileArea,
    dpadded: TileArea,
    tile: usize,
}

impl DenseBackwardKernel {
    /// The kernel.
    pub fn new(op: &DenseBackward, launch: &Launch<'_>) -> Option<Self> {
        let mut areas = Areas::new(launch.scratch);
        let (x, w) = (launch.inputs[0], launch.inputs[1]);
        let y = op.dense.output(x.shape, w.shape.c);
        let mut rest = &launch.inputs[2..];
        let terms = take_terms(&[op.term], &mut rest);
        let mut outputs = launch.outputs.iter().copied().zip(launch.accumulate.iter().copied());
        let dx = if op.input { outputs.next() } else { None };
        let chunks = norm::chunks(y.n);
        let mut total = |wanted: bool| {
            let (out, accumulate) = if wanted { outputs.next()? } else { return None };
            Some(Total { partials: areas.take(chunks * out.shape.len()), out, accumulate })
        };
        let (dw, dbias) = (total(op.weight), total(op.bias));
        let transposed = areas.take(w.shape.len());
        let images = images_a_task(y);
        let mut tiles = TileAreas::default();
        let windows = Windows::new(&op.dense, x, y, images, &mut tiles);
        let dy = tiles.take(images * pixels(y) * y.c);
        let dcolumns = tiles.take(images * pixels(y) * windows.k());
        let dpadded = tiles.take(windows.padded_len());
        let tile = tiles.len();
        Some(Self { windows, terms, w, transposed, dx, dw, dbias, images, dy, dcolumns, dpadded, tile })
    }

    /// The gradient of the rows, back to where they came from.
    fn spread(&self, context: &Context<'_>, n: usize, images: usize, dy: Gradient, tile: Tile) {
        let Some((dx, accumulate)) = &self.dx else { return };
        let (k, y, x) = (self.windows.k(), self.windows.y, &self.windows.x);
        let columns = tile.at(self.dcolumns);
        let args = Matmul {
            a: dy.ptr,
            lda: dy.ld,
            b: self.transposed.ptr(),
            ldb: k,
            out: columns,
            ldo: k,
            rows: images * pixels(y),
            k: y.c,
            n: k,
            accumulate: false,
        };
        // SAFETY: the gradient and the tile hold the images' maps, the scratch the transposed weights.
        unsafe { (context.micro.matmul)(&args) };
        let (shape, pad, width) = (x.shape, self.windows.dense.pad, self.windows.width());
        for i in 0..images {
            let own = columns.wrapping_add(i * pixels(y) * k).cast_const();
            let (d, d_row_stride) = if self.windows.pointwise() {
                (own, shape.w * shape.c)
            } else {
                let padded = tile.at(self.dpadded);
                // SAFETY: the tile was sized for the padded image.
                let all = unsafe {
                    padded.write_bytes(0, self.windows.padded_len());
                    std::slice::from_raw_parts_mut(padded, self.windows.padded_len())
                };
                // SAFETY: the rows of the image, written just now.
                let rows = unsafe { std::slice::from_raw_parts(own, pixels(y) * k) };
                self.windows.rows(|window, row, len| {
                    all[window..window + len].iter_mut().zip(&rows[row..row + len]).for_each(|(o, &v)| *o += v);
                });
                (padded.wrapping_add((pad * width + pad) * shape.c).cast_const(), width * shape.c)
            };
            let args = MaskAccumulate {
                d,
                d_row_stride,
                x: image(x, n + i),
                ldx: x.row_stride,
                h: shape.h,
                w: shape.w,
                c: shape.c,
                scale: null(),
                shift: null(),
                relu: self.windows.dense.relu,
                out: image(dx, n + i),
                ldo: dx.row_stride,
                accumulate: *accumulate,
            };
            // SAFETY: the views cover the image, the tile its gradient.
            unsafe { (context.micro.mask_accumulate)(&args) };
        }
    }

    /// Adds images to a chunk's partials.
    fn weigh(&self, context: &Context<'_>, chunk: usize, n: usize, images: usize, dy: Gradient, tile: Tile) {
        let (k, y) = (self.windows.k(), self.windows.y);
        if let Some(dw) = &self.dw {
            let a = self.windows.gather(context.micro, n, images, tile);
            let args = Matmul {
                a: a.ptr,
                lda: a.ld,
                b: dy.ptr,
                ldb: dy.ld,
                out: element(&dw.partials, chunk * k * y.c),
                ldo: y.c,
                rows: images * pixels(y),
                k,
                n: y.c,
                accumulate: true,
            };
            // SAFETY: the tile holds the rows, the partial is the chunk's.
            unsafe { (context.micro.outer)(&args) };
        }
        if let Some(dbias) = &self.dbias {
            let args = Sums {
                g: dy.ptr,
                ldg: dy.ld,
                y: null(),
                ldy: 0,
                rows: images * pixels(y),
                c: y.c,
                mean: null(),
                s1: element(&dbias.partials, chunk * y.c),
                s2: null_mut(),
            };
            // SAFETY: as above.
            unsafe { (context.micro.sums)(&args) };
        }
    }
}

impl Kernel for DenseBackwardKernel {
    fn run(&self, context: &Context<'_>) {
        if self.dx.is_some() {
            transpose(&self.w, &self.transposed);
        }
        let (n, chunk_images) = (self.windows.y.n, norm::images_a_chunk(self.windows.y.n));
        context.parallel(norm::chunks(n), |chunk, tile| {
            for total in self.dw.iter().chain(&self.dbias) {
                let len = total.out.shape.len();
                // SAFETY: the chunk's part of the area, which no other task touches.
                unsafe { element(&total.partials, chunk * len).write_bytes(0, len) };
            }
            let (start, end) = (chunk * chunk_images, ((chunk + 1) * chunk_images).min(n));
            for first in (start..end).step_by(self.images) {
                let images = self.images.min(end - first);
                let dy = self.terms.gradient(context.micro, first, images, tile.at(self.dy));
                self.spread(context, first, images, dy, tile);
                self.weigh(context, chunk, first, images, dy, tile);
            }
        });
        for total in self.dw.iter().chain(&self.dbias) {
            fold(&total.partials, &total.out, total.accumulate);
        }
    }

    fn tile(&self) -> usize {
        self.tile
    }
}
