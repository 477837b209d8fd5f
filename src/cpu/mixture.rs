//! The mixed operation and its gradient. Both pass over every source once: the forward with one factor a source and
//! channel and one summand a channel, the backward with the sums that all gradients are made of. Factors of images
//! (drop path) scale the factors of the forward and the partial sums of the backward; a source whose factor is zero is
//! not read for that image.

use std::ptr::{null, null_mut};

use super::common::{Areas, Prologue, TileArea, TileAreas, element, far, image, pixels};
use super::kernel::{Context, Kernel, Launch, Tile};
use super::micro::{self, SourceSum, WeightedSum, WeightedSums};
use crate::device::view::View;
use crate::ops::mixture::{Mixture, MixtureBackward, Source};
use crate::ops::norm;

/// Sources that one pass of the forward takes: more would be more streams through memory than a core follows.
const PASS: usize = 4;

/// Bytes of the node that stay in the first-level cache while the sources of the forward pass by.
const STRIP: usize = 8 << 10;

/// Sources that one pass of the backward takes. Its kernel reads one stream at a time; measured, fewer were slower.
const SUMS: usize = 64;

/// Calls `f(first pixel, pixels)` for the strips of an image of `rows` pixels.
fn strips(rows: usize, c: usize, mut f: impl FnMut(usize, usize)) {
    let strip = (STRIP / (4 * c)).next_multiple_of(8).max(8);
    (0..rows).step_by(strip).for_each(|first| f(first, strip.min(rows - first)));
}

/// A source with its tensors.
struct SourceKernel {
    source: Source,
    prologue: Prologue,
}

/// All sources, with the tensors that they share.
struct Sources {
    weights: Option<View<f32>>,
    mask: Option<View<f32>>,
    list: Vec<SourceKernel>,
}

impl Sources {
    fn new(sources: &[Source], mut inputs: &[View<f32>], areas: &mut Areas) -> Self {
        let mut next = |wanted: bool| {
            wanted.then(|| {
                let first = inputs[0];
                inputs = &inputs[1..];
                first
            })
        };
        let weights = next(sources.iter().any(|s| s.weight.is_some()));
        let mask = next(sources.iter().any(|s| s.mask.is_some()));
        let one = |&source: &Source| {
            let prologue = Prologue::new(source.norm, inputs, areas);
            inputs = &inputs[norm::inputs_of(source.norm)..];
            SourceKernel { source, prologue }
        };
        let list = sources.iter().map(one).collect();
        Self { weights, mask, list }
    }

    fn weight(&self, source: &Source) -> f32 {
        source.weight.zip(self.weights).map_or(1.0, |(i, w)| w.at(i))
    }

    fn factor(&self, source: &Source, n: usize) -> f32 {
        source.mask.zip(self.mask).map_or(1.0, |(row, mask)| mask.get(row, n))
    }
}

/// See [`Mixture`].
pub struct MixtureKernel {
    sources: Sources,
    /// Rows: the factors of each source, then its summands.
    factors: View<f32>,
    /// Summand of the node without masks.
    bias: View<f32>,
    out: View<f32>,
    accumulate: bool,
    scaled: TileArea,
    tile: usize,
}

impl MixtureKernel {
    /// The kernel.
    pub fn new(op: &Mixture, launch: &Launch<'_>) -> Self {
        let mut areas = Areas::new(launch.scratch);
        let sources = Sources::new(&op.sources, &launch.inputs, &mut areas);
        let (out, accumulate) = (launch.outputs[0], launch.accumulate[0]);
        let c = out.shape.c;
        let (factors, bias) = (areas.take(2 * sources.list.len() * c), areas.take(c));
        let mut tiles = TileAreas::default();
        let scaled = tiles.take((sources.list.len() + 1) * c);
        Self { sources, factors, bias, out, accumulate, scaled, tile: tiles.len() }
    }

    fn row(&self, row: usize) -> &[f32] {
        let c = self.out.shape.c;
        &self.factors.slice()[row * c..(row + 1) * c]
    }

    fn prepare(&self) {
        let columns = self.out.shape.c;
        (0..columns).for_each(|c| self.bias.set(0, c, 0.0));
        for (s, SourceKernel { source, prologue }) in self.sources.list.iter().enumerate() {
            let w = self.sources.weight(source);
            for c in 0..columns {
                let (mean, inv, gamma, beta) = prologue.channel(c);
                let shift = w * (beta - mean * (gamma * inv));
                self.factors.set(0, 2 * s * columns + c, w * gamma * inv);
                self.factors.set(0, (2 * s + 1) * columns + c, shift);
                self.bias.set(0, c, self.bias.get(0, c) + shift);
            }
        }
    }

    /// The factors of one image under the masks, a row a source after the summands, to which the result points.
    fn scaled(&self, n: usize, tile: Tile) -> *const f32 {
        let c = self.out.shape.c;
        // SAFETY: the tile holds a row for each source and one for the summands.
        let area = unsafe { std::slice::from_raw_parts_mut(tile.at(self.scaled), (self.sources.list.len() + 1) * c) };
        let (bias, scales) = area.split_at_mut(c);
        bias.fill(0.0);
        for (s, (own, scales)) in self.sources.list.iter().zip(scales.chunks_exact_mut(c)).enumerate() {
            let m = self.sources.factor(&own.source, n);
            scales.iter_mut().zip(self.row(2 * s)).for_each(|(o, &k)| *o = m * k);
            bias.iter_mut().zip(self.row(2 * s + 1)).for_each(|(o, &k)| *o += m * k);
        }
        bias.as_ptr()
    }

    /// The node on some pixels of an image.
    fn strip(&self, context: &Context<'_>, n: usize, (first, rows): (usize, usize), bias: *const f32) {
        let (c, masked) = (self.out.shape.c, self.sources.mask.is_some());
        let mut list = [micro::Source { y: null(), ld: 0, scale: null() }; PASS];
        let (mut count, mut fresh) = (0, true);
        let far = far(self.sources.list.len(), self.out.shape.len());
        let (out, ldo) = (image(&self.out, n).wrapping_add(first * self.out.row_stride), self.out.row_stride);
        let flush = |sources: &[micro::Source], fresh: bool| {
            let (bias, accumulate) = if fresh { (bias, self.accumulate) } else { (null(), true) };
            let args = WeightedSum { sources, bias, rows, c, out, ldo, accumulate, far };
            // SAFETY: the views cover the image; factors and summands have one element a channel.
            unsafe { (context.micro.weighted_sum)(&args) };
        };
        for (s, own) in self.sources.list.iter().enumerate() {
            if masked && self.sources.factor(&own.source, n) == 0.0 {
                continue;
            }
            let x = &own.prologue.x;
            let y = image(x, n).wrapping_add(first * x.row_stride);
            let scale = if masked { bias.wrapping_add((s + 1) * c) } else { element(&self.factors, 2 * s * c) };
            list[count] = micro::Source { y, ld: x.row_stride, scale };
            count += 1;
            if count == PASS {
                flush(&list, fresh);
                (count, fresh) = (0, false);
            }
        }
        // Where every source is masked the node is still written.
        if count > 0 || fresh {
            flush(&list[..count], fresh);
        }
    }
}

impl Kernel for MixtureKernel {
    fn run(&self, context: &Context<'_>) {
        self.prepare();
        let shape = self.out.shape;
        context.parallel(shape.n, |n, tile| {
            let bias = if self.sources.mask.is_some() { self.scaled(n, tile) } else { self.bias.ptr().cast_const() };
            strips(pixels(shape), shape.c, |first, rows| self.strip(context, n, (first, rows), bias));
        });
    }

    fn tile(&self) -> usize {
        self.tile
    }
}

/// What is wanted of one source.
struct Wanted {
    coefficients: Option<(View<f32>, bool)>,
    /// dgamma and dbeta.
    parameters: Option<[(View<f32>, bool); 2]>,
    /// Whether its sums are needed at all.
    sums: bool,
}

/// See [`MixtureBackward`].
pub struct MixtureBackwardKernel {
    sources: Sources,
    wanted: Vec<Wanted>,
    g: View<f32>,
    dweights: Option<(View<f32>, bool)>,
    /// A chunk's sums, `[chunk][source][2][c]`: of g, and of g and the centred map.
    partials: View<f32>,
    /// Each source's part of the gradient of its weight.
    shares: View<f32>,
    /// Sums of one image, laid out like a chunk's.
    sums: TileArea,
    tile: usize,
}

impl MixtureBackwardKernel {
    /// The kernel.
    pub fn new(op: &MixtureBackward, launch: &Launch<'_>) -> Option<Self> {
        let mut areas = Areas::new(launch.scratch);
        let g = launch.inputs[0];
        let sources = Sources::new(&op.sources, &launch.inputs[1..], &mut areas);
        let mut outputs = launch.outputs.iter().copied().zip(launch.accumulate.iter().copied());
        let dweights = if op.weights { outputs.next() } else { None };
        let mut wanted = Vec::with_capacity(op.wants.len());
        for (source, &(coefficients, parameters)) in op.sources.iter().zip(&op.wants) {
            let coefficients = if coefficients { outputs.next() } else { None };
            let parameters = if parameters { Some([outputs.next()?, outputs.next()?]) } else { None };
            let sums = (op.weights && source.weight.is_some())
                || (coefficients.is_some() && source.norm.is_some())
                || parameters.is_some();
            wanted.push(Wanted { coefficients, parameters, sums });
        }
        let chunk = 2 * sources.list.len() * g.shape.c;
        let (partials, shares) = (areas.take(norm::chunks(g.shape.n) * chunk), areas.take(sources.list.len()));
        let mut tiles = TileAreas::default();
        let sums = tiles.take(chunk);
        Some(Self { sources, wanted, g, dweights, partials, shares, sums, tile: tiles.len() })
    }

    /// Adds image `n` to sums laid out like a chunk's. Without masks all sources share the sums of g of the first.
    fn image(&self, context: &Context<'_>, n: usize, sums: *mut f32) {
        let (shape, masked) = (self.g.shape, self.sources.mask.is_some());
        let far = far(self.sources.list.len(), shape.len());
        let pass = |sources: &[SourceSum], s1: *mut f32| {
            let (g, ldg) = (image(&self.g, n), self.g.row_stride);
            let args = WeightedSums { sources, g, ldg, rows: pixels(shape), c: shape.c, s1, far };
            // SAFETY: the views cover the image, the sums have one element a channel.
            unsafe { (context.micro.weighted_sums)(&args) };
        };
        let mut list = [SourceSum { y: null(), ld: 0, mean: null(), s2: null_mut() }; SUMS];
        let (mut count, mut s1) = (0, sums);
        for (s, (own, wanted)) in self.sources.list.iter().zip(&self.wanted).enumerate() {
            if !wanted.sums || (masked && self.sources.factor(&own.source, n) == 0.0) {
                continue;
            }
            let (x, s2) = (&own.prologue.x, sums.wrapping_add((2 * s + 1) * shape.c));
            list[count] = SourceSum { y: image(x, n), ld: x.row_stride, mean: own.prologue.mean(), s2 };
            count += 1;
            if count == SUMS {
                pass(&list, s1);
                (count, s1) = (0, null_mut());
            }
        }
        pass(&list[..count], s1);
    }

    /// Sums of the images of a chunk under the masks.
    fn chunk(&self, context: &Context<'_>, chunk: usize, tile: Tile) {
        let shape = self.g.shape;
        let (len, images) = (2 * self.sources.list.len() * shape.c, norm::images_a_chunk(shape.n));
        let partial = element(&self.partials, chunk * len);
        // SAFETY: the chunk's part of the area, which no other task touches.
        let total = unsafe { std::slice::from_raw_parts_mut(partial, len) };
        total.fill(0.0);
        for n in chunk * images..((chunk + 1) * images).min(shape.n) {
            if self.sources.mask.is_none() {
                self.image(context, n, partial);
                continue;
            }
            let area = tile.at(self.sums);
            // SAFETY: the tile was sized for the sums of an image.
            unsafe { area.write_bytes(0, len) };
            self.image(context, n, area);
            // SAFETY: as above.
            let own = unsafe { std::slice::from_raw_parts(area, len) };
            for (s, source) in self.sources.list.iter().enumerate() {
                let m = self.sources.factor(&source.source, n);
                for c in 0..shape.c {
                    total[2 * s * shape.c + c] += m * own[c];
                    total[(2 * s + 1) * shape.c + c] += m * own[(2 * s + 1) * shape.c + c];
                }
            }
        }
    }

    /// The gradients that one source is part of.
    fn finish(&self, s: usize) {
        let (SourceKernel { source, prologue }, wanted) = (&self.sources.list[s], &self.wanted[s]);
        let (c, rows, w) = (self.g.shape.c, self.g.shape.rows(), self.sources.weight(source));
        let len = 2 * self.sources.list.len() * c;
        let partials = self.partials.slice();
        let s1_row = if self.sources.mask.is_some() { 2 * s } else { 0 };
        let total = |row: usize, i: usize| partials.iter().skip(row * c + i).step_by(len).sum::<f32>();
        let mut share = 0.0f64;
        for i in 0..c {
            let (mean, inv, gamma, beta) = prologue.channel(i);
            let (mut s1, mut s2) = (0.0, 0.0);
            if wanted.sums {
                (s1, s2) = (total(s1_row, i), total(2 * s + 1, i) * inv);
            }
            share += f64::from(gamma * s2 + beta * s1);
            if let Some((out, accumulate)) = &wanted.coefficients {
                let values = match source.norm {
                    Some(_) => norm::coefficients((mean, inv, gamma), w, s1, s2, rows),
                    None => (w, 0.0, 0.0),
                };
                for (row, value) in [values.0, values.1, values.2].into_iter().enumerate() {
                    out.put(row, i, value, *accumulate);
                }
            }
            for ((out, accumulate), value) in wanted.parameters.iter().flatten().zip([w * s2, w * s1]) {
                out.put(0, i, value, *accumulate);
            }
        }
        self.shares.set(0, s, share as f32);
    }
}

impl Kernel for MixtureBackwardKernel {
    fn run(&self, context: &Context<'_>) {
        self.sources.list.iter().for_each(|s| s.prologue.prepare());
        context.parallel(norm::chunks(self.g.shape.n), |chunk, tile| self.chunk(context, chunk, tile));
        (0..self.sources.list.len()).for_each(|s| self.finish(s));
        let Some((out, accumulate)) = &self.dweights else { return };
        for i in 0..out.shape.len() {
            let own = self.sources.list.iter().enumerate().filter(|(_, s)| s.source.weight == Some(i));
            let sum = own.map(|(s, _)| self.shares.get(0, s)).sum::<f32>();
            out.put(i / out.shape.c, i % out.shape.c, sum, *accumulate);
        }
    }

    fn tile(&self) -> usize {
        self.tile
    }
}
