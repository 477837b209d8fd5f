//! Factorized reduce: each half gathers every second pixel of the image into a tile, once for all edges, and multiplies
//! it with the edge's weights into its half of the edge's channels.

use super::common::{
    Areas, BatchMoments, Terms, TileArea, TileAreas, clear_image, element, fold, image, pixels, take_terms, transpose,
};
use super::kernel::{Context, Kernel, Launch, Tile};
use super::micro::{Gather, Matmul, Micro, ScatterMasked};
use crate::device::view::View;
use crate::graph::Shape;
use crate::ops::norm;
use crate::ops::reduce::{Reduce, ReduceBackward};

/// Gathers the pixels of a half, ReLU applied.
fn gather(micro: &Micro, x: &View<f32>, y: Shape, n: usize, shift: usize, out: *mut f32) {
    let shape = x.shape;
    let args = Gather {
        x: image(x, n),
        ldx: x.row_stride,
        h: shape.h,
        w: shape.w,
        c: shape.c,
        stride: 2,
        offset: shift,
        oh: y.h,
        ow: y.w,
        relu: true,
        out,
        ldo: shape.c,
    };
    // SAFETY: the view covers the image, the tile the half.
    unsafe { (micro.gather)(&args) };
}

struct Edge {
    /// Even and shifted weights.
    halves: [View<f32>; 2],
    y: View<f32>,
    accumulate: bool,
    moments: Option<BatchMoments>,
}

/// See [`Reduce`].
pub struct ReduceKernel {
    x: View<f32>,
    edges: Vec<Edge>,
    half: TileArea,
    tile: usize,
}

impl ReduceKernel {
    /// The kernel.
    pub fn new(op: &Reduce, launch: &Launch<'_>) -> Self {
        let mut areas = Areas::new(launch.scratch);
        let x = launch.inputs[0];
        let step = op.outputs_an_edge();
        let edge = |i: usize| Edge {
            halves: [launch.inputs[1 + 2 * i], launch.inputs[2 + 2 * i]],
            y: launch.outputs[i * step],
            accumulate: launch.accumulate[i * step],
            moments: op.statistics.then(|| BatchMoments::new(&launch.outputs[i * step..], &mut areas)),
        };
        let edges = (0..op.edges).map(edge).collect();
        let mut tiles = TileAreas::default();
        let half = tiles.take(pixels(Reduce::output(x.shape, 0)) * x.shape.c);
        Self { x, edges, half, tile: tiles.len() }
    }
}

impl Kernel for ReduceKernel {
    fn run(&self, context: &Context<'_>) {
        let (micro, c) = (context.micro, self.x.shape.c);
        context.parallel(self.x.shape.n, |n, tile| {
            let half = tile.at(self.half);
            for shift in 0..2 {
                gather(micro, &self.x, self.edges[0].y.shape, n, shift, half);
                for edge in &self.edges {
                    let (w, first) = (&edge.halves[shift], if shift == 0 { 0 } else { edge.halves[0].shape.c });
                    let args = Matmul {
                        a: half,
                        lda: c,
                        b: w.ptr(),
                        ldb: w.row_stride,
                        out: image(&edge.y, n).wrapping_add(first),
                        ldo: edge.y.row_stride,
                        rows: pixels(edge.y.shape),
                        k: c,
                        n: w.shape.c,
                        accumulate: edge.accumulate,
                    };
                    // SAFETY: the views cover weights and image, the tile the half.
                    unsafe { (micro.matmul)(&args) };
                }
            }
            self.edges.iter().filter_map(|e| e.moments.as_ref()).for_each(|m| m.image(micro, n));
        });
        context.parallel(self.edges.len(), |i, _| self.edges[i].moments.iter().for_each(BatchMoments::fold));
    }

    fn tile(&self) -> usize {
        self.tile
    }
}

/// A gradient of weights: partials of each chunk, the total, whether it is added.
type Total = (View<f32>, View<f32>, bool);

struct BackwardEdge {
    halves: [View<f32>; 2],
    transposed: [View<f32>; 2],
    terms: Terms,
    totals: Option<[Total; 2]>,
}

/// See [`ReduceBackward`].
pub struct ReduceBackwardKernel {
    x: View<f32>,
    y: Shape,
    dx: Option<(View<f32>, bool)>,
    edges: Vec<BackwardEdge>,
    halves: [TileArea; 2],
    gradients: [TileArea; 2],
    dy: TileArea,
    tile: usize,
}

impl ReduceBackwardKernel {
    /// The kernel.
    pub fn new(op: &ReduceBackward, launch: &Launch<'_>) -> Option<Self> {
        let mut areas = Areas::new(launch.scratch);
        let x = launch.inputs[0];
        let mut rest = &launch.inputs[1..];
        let mut outputs = launch.outputs.iter().copied().zip(launch.accumulate.iter().copied());
        let dx = if op.input { outputs.next() } else { None };
        let chunks = norm::chunks(x.shape.n);
        let mut edges = Vec::with_capacity(op.edges.len());
        for &(kind, weight) in &op.edges {
            let halves = [rest[0], rest[1]];
            rest = &rest[2..];
            let terms = take_terms(&[kind], &mut rest);
            let transposed = halves.map(|w| areas.take(w.shape.len()));
            let mut total = || {
                let (out, accumulate) = outputs.next()?;
                Some((areas.take(chunks * out.shape.len()), out, accumulate))
            };
            let totals = if weight { Some([total()?, total()?]) } else { None };
            edges.push(BackwardEdge { halves, transposed, terms, totals });
        }
        let widest = edges.iter().map(|e| e.halves[0].shape.c + e.halves[1].shape.c).max()?;
        let y = Reduce::output(x.shape, widest);
        let mut tiles = TileAreas::default();
        let half = pixels(y) * x.shape.c;
        let halves = [tiles.take(half), tiles.take(half)];
        let gradients = [tiles.take(half), tiles.take(half)];
        let dy = tiles.take(pixels(y) * widest);
        Some(Self { x, y, dx, edges, halves, gradients, dy, tile: tiles.len() })
    }

    fn image(&self, micro: &Micro, chunk: usize, n: usize, tile: Tile) {
        let (c, rows) = (self.x.shape.c, pixels(self.y));
        if self.edges.iter().any(|e| e.totals.is_some()) {
            (0..2).for_each(|shift| gather(micro, &self.x, self.y, n, shift, tile.at(self.halves[shift])));
        }
        for (i, edge) in self.edges.iter().enumerate() {
            let dy = edge.terms.gradient(micro, n, 1, tile.at(self.dy));
            let mut first = 0;
            for shift in 0..2 {
                let columns = edge.halves[shift].shape.c;
                let g = dy.ptr.wrapping_add(first);
                first += columns;
                let product = Matmul {
                    a: g,
                    lda: dy.ld,
                    b: edge.transposed[shift].ptr(),
                    ldb: c,
                    out: tile.at(self.gradients[shift]),
                    ldo: c,
                    rows,
                    k: columns,
                    n: c,
                    accumulate: i > 0,
                };
                if self.dx.is_some() {
                    // SAFETY: gradient and tile hold the image's half, the scratch the transposed weights.
                    unsafe { (micro.matmul)(&product) };
                }
                if let Some(totals) = &edge.totals {
                    let args = Matmul {
                        a: tile.at(self.halves[shift]),
                        lda: c,
                        b: g,
                        ldb: dy.ld,
                        out: element(&totals[shift].0, chunk * c * columns),
                        ldo: columns,
                        rows,
                        k: c,
                        n: columns,
                        accumulate: true,
                    };
                    // SAFETY: as above, and the partial is the chunk's.
                    unsafe { (micro.outer)(&args) };
                }
            }
        }
        let Some((dx, accumulate)) = &self.dx else { return };
        if !accumulate {
            clear_image(dx, n);
        }
        for (shift, &gradient) in self.gradients.iter().enumerate() {
            let args = ScatterMasked {
                d: tile.at(gradient),
                ldd: c,
                oh: self.y.h,
                ow: self.y.w,
                c,
                stride: 2,
                offset: shift,
                x: image(&self.x, n),
                ldx: self.x.row_stride,
                h: self.x.shape.h,
                w: self.x.shape.w,
                relu: true,
                dx: image(dx, n),
                lddx: dx.row_stride,
            };
            // SAFETY: the views cover the image, the tile the half.
            unsafe { (micro.scatter_masked)(&args) };
        }
    }
}

impl Kernel for ReduceBackwardKernel {
    fn run(&self, context: &Context<'_>) {
        for edge in self.edges.iter().filter(|_| self.dx.is_some()) {
            edge.halves.iter().zip(&edge.transposed).for_each(|(w, t)| transpose(w, t));
        }
        let (n, images) = (self.x.shape.n, norm::images_a_chunk(self.x.shape.n));
        context.parallel(norm::chunks(n), |chunk, tile| {
            for (partials, out, _) in self.edges.iter().flat_map(|e| e.totals.iter().flatten()) {
                let len = out.shape.len();
                // SAFETY: the chunk's part of the area, which no other task touches.
                unsafe { element(partials, chunk * len).write_bytes(0, len) };
            }
            for n in chunk * images..((chunk + 1) * images).min(n) {
                self.image(context.micro, chunk, n, tile);
            }
        });
        for (partials, out, accumulate) in self.edges.iter().flat_map(|e| e.totals.iter().flatten()) {
            fold(partials, out, *accumulate);
        }
    }

    fn tile(&self) -> usize {
        self.tile
    }
}
