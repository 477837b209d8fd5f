//! Dense convolutions on GPUs. Forward, gradient of the map and gradient of the weights are products of matrices that are
//! never built: kernels fetch patches of the map where they stand. The moments of the result come from the registers that
//! hold it. Jobs are made of `Convolution`s, which other families use too.

use super::jobs::{self, Job};
use super::terms::{PlacedTerm, TermSpots, stretches, take};
use super::{BLOCK, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, fold, record, stretch};
use crate::graph::Shape;
use crate::ops::dense::{Dense, DenseBackward};

/// ReLU on the map.
pub const RELU: u32 = 1;
/// A bias is added.
pub const BIAS: u32 = 2;
/// Moments of the result are wanted.
pub const MOMENTS: u32 = 4;
/// The result is added to what is there.
pub const ACCUMULATE: u32 = 8;
/// The gradient has coefficients.
pub const COEF: u32 = 16;
/// The gradient has a factor an image.
pub const MASK: u32 = 32;
/// The sum of the gradient is wanted, as if patches had one more element, 1.
pub const ONES: u32 = 64;

/// The flags by name, as the kernels declare them.
pub const FLAGS: &[(&str, u32)] = &[
    ("RELU", RELU),
    ("BIAS", BIAS),
    ("MOMENTS", MOMENTS),
    ("ACCUMULATE", ACCUMULATE),
    ("COEF", COEF),
    ("MASK", MASK),
    ("ONES", ONES),
];

/// Most chunks of moments.
const CHUNKS: usize = 256;
/// Most chunks of weight gradients.
const WEIGHT_CHUNKS: usize = 32;

record! {
    /// A convolution.
    DenseJob {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Pixels of the result.
        rows: u32,
        /// Height of the map.
        x_height: u32,
        /// Width of the map.
        x_width: u32,
        /// Channels of the map.
        x_channels: u32,
        /// Height of the result.
        y_height: u32,
        /// Width of the result.
        y_width: u32,
        /// Channels of the result.
        y_channels: u32,
        /// Kernel size.
        kernel: u32,
        /// Stride.
        stride: u32,
        /// Padding; wraps around if the kernel starts inside the image.
        pad: u32,
        /// Quads of columns that a block covers.
        lanes: u32,
        /// Blocks side by side that cover all columns.
        groups: u32,
        /// Tiles that a block computes.
        tiles: u32,
        /// What applies and what is wanted.
        flags: u32,
        /// Elements from one pixel of the map to the next.
        x_stride: u32,
        /// Elements from one row of the weights to the next.
        w_stride: u32,
        /// Elements from one pixel of the result to the next.
        y_stride: u32,
        /// Zero.
        unused: u32,
        /// The map.
        x: Spot,
        /// The weights.
        w: Spot,
        /// The bias.
        bias: Spot,
        /// The result.
        y: Spot,
        /// Moments of each chunk: see `fold::moments_len`.
        partial: Spot,
        /// Zero.
        unused_spot: Spot,
    }
}

record! {
    /// The gradient of a map at the pixels of one phase, and its first source; further sources follow.
    DenseInput {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Sources, this one included; zero if only zeros are to be written.
        sources: u32,
        /// Pixels of the phase.
        rows: u32,
        /// Height of the map.
        x_height: u32,
        /// Width of the map.
        x_width: u32,
        /// Channels of the map.
        x_channels: u32,
        /// Height of the result.
        y_height: u32,
        /// Width of the result.
        y_width: u32,
        /// Channels of the result.
        y_channels: u32,
        /// Kernel size.
        kernel: u32,
        /// Stride, the same for all sources.
        stride: u32,
        /// Padding; wraps around if the kernel starts inside the image.
        pad: u32,
        /// Rest of the pixels' y, times the stride, plus the rest of their x.
        phase: u32,
        /// Quads of columns that a block covers.
        lanes: u32,
        /// Blocks side by side that cover all columns.
        groups: u32,
        /// What applies.
        flags: u32,
        /// Elements from one pixel of the map to the next.
        x_stride: u32,
        /// Elements from one pixel of the gradient to the next.
        dx_stride: u32,
        /// Elements from one row of the weights to the next.
        w_stride: u32,
        /// Elements from one pixel of the result to the next.
        y_stride: u32,
        /// Elements from one pixel of the result's gradient to the next.
        g_stride: u32,
        /// Elements from one row of coefficients to the next.
        coef_stride: u32,
        /// Zero.
        unused: u32,
        /// The map.
        x: Spot,
        /// Its gradient.
        dx: Spot,
        /// The weights.
        w: Spot,
        /// The result.
        y: Spot,
        /// The result's gradient.
        g: Spot,
        /// Its coefficients.
        coef: Spot,
        /// Its factors.
        mask: Spot,
        /// Zero.
        unused_spot: Spot,
    }
}

record! {
    /// The gradient of weights.
    DenseWeight {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Pixels of the result.
        rows: u32,
        /// Height of the map.
        x_height: u32,
        /// Width of the map.
        x_width: u32,
        /// Channels of the map.
        x_channels: u32,
        /// Height of the result.
        y_height: u32,
        /// Width of the result.
        y_width: u32,
        /// Channels of the result.
        y_channels: u32,
        /// Kernel size.
        kernel: u32,
        /// Stride.
        stride: u32,
        /// Padding; wraps around if the kernel starts inside the image.
        pad: u32,
        /// Quads of rows of the weights that a block covers.
        row_quads: u32,
        /// Quads of their columns.
        column_quads: u32,
        /// Blocks that cover all rows.
        row_tiles: u32,
        /// Blocks that cover all columns.
        column_tiles: u32,
        /// Pixels of a chunk; the last one may have fewer.
        chunk_rows: u32,
        /// What applies and what is wanted.
        flags: u32,
        /// Elements from one pixel of the map to the next.
        x_stride: u32,
        /// Elements from one pixel of the result to the next.
        y_stride: u32,
        /// Elements from one pixel of the result's gradient to the next.
        g_stride: u32,
        /// Elements from one row of coefficients to the next.
        coef_stride: u32,
        /// The map.
        x: Spot,
        /// The result.
        y: Spot,
        /// The result's gradient.
        g: Spot,
        /// Its coefficients.
        coef: Spot,
        /// Its factors.
        mask: Spot,
        /// Sums of each chunk, row by row; the sums of the gradient last. Chunks are rounded up to quads.
        partial: Spot,
        /// Zero.
        unused_spot: Spot,
    }
}

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

/// Quads of columns that a block of `dense_forward` or `dense_input` covers, and blocks side by side: wide blocks fetch
/// less, but are not to leave many threads without columns.
fn cover(columns: usize) -> (usize, usize) {
    let quads = columns.div_ceil(4);
    let covers = [16, 8, 4].map(|lanes: usize| (lanes, quads.div_ceil(lanes)));
    covers.into_iter().min_by_key(|(lanes, groups)| (lanes + 2) * groups).unwrap_or((16, 1))
}

/// Rows of such a block.
fn tile_rows(lanes: usize) -> usize {
    4 * BLOCK as usize / lanes
}

/// Extents of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convolution {
    /// Extent of the map.
    pub x: Shape,
    /// Extent of the result.
    pub y: Shape,
    /// Kernel size.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Padding; negative if the kernel starts inside the image.
    pub pad: i32,
    /// ReLU on the map.
    pub relu: bool,
}

/// One result to be computed.
pub(super) struct Forward {
    pub convolution: Convolution,
    pub x: Place,
    pub w: Place,
    pub bias: Option<Place>,
    pub y: Place,
    pub accumulate: bool,
    /// Mean and variance.
    pub statistics: Option<(Place, Place)>,
}

/// One summand of the gradient of a map.
pub(super) struct Source {
    pub convolution: Convolution,
    pub w: Place,
    pub term: PlacedTerm,
}

/// Gradients of weights and bias.
pub(super) struct Weight {
    pub convolution: Convolution,
    pub x: Place,
    pub term: PlacedTerm,
    pub dw: Option<(Place, bool)>,
    pub dbias: Option<(Place, bool)>,
}

impl Convolution {
    /// Tiles of a block, and chunks.
    fn tiles(&self, statistics: bool) -> (usize, usize) {
        let tiles = self.y.rows().div_ceil(tile_rows(cover(self.y.c).0));
        let each = if statistics { tiles.div_ceil(CHUNKS).max(1) } else { 1 };
        (each, tiles.div_ceil(each))
    }

    /// Scratch of [`forward`] for its statistics.
    pub fn moments_len(&self) -> usize {
        fold::moments_len(self.y.c, self.tiles(true).1)
    }

    /// Rows of the weights.
    fn depth(&self) -> usize {
        self.kernel * self.kernel * self.x.c
    }

    /// Quads of rows and columns that a block of `dense_weight` covers, pixels of a chunk, chunks.
    fn weight_cover(&self, bias: bool) -> (usize, usize, usize, usize) {
        let quads = |n: usize| n.div_ceil(4).next_power_of_two().clamp(4, 16);
        let (row_quads, column_quads) = (quads(self.depth() + usize::from(bias)), quads(self.y.c));
        let step = BLOCK as usize / row_quads.max(column_quads);
        let chunk_rows = self.y.rows().div_ceil(step).div_ceil(WEIGHT_CHUNKS).max(1) * step;
        (row_quads, column_quads, chunk_rows, self.y.rows().div_ceil(chunk_rows))
    }

    /// Elements of the sums of one chunk.
    fn weight_chunk(&self, bias: bool) -> usize {
        ((self.depth() + usize::from(bias)) * self.y.c).next_multiple_of(4)
    }

    /// Scratch of [`weights`].
    pub fn weight_len(&self, bias: bool) -> usize {
        self.weight_chunk(bias) * self.weight_cover(bias).3
    }

    /// Whether a pixel with these rests is under any tap.
    fn reaches(&self, phase: usize) -> bool {
        let stride = self.stride as i32;
        let first = |rest: usize| (rest as i32 + self.pad).rem_euclid(stride) < self.kernel as i32;
        first(phase / self.stride) && first(phase % self.stride)
    }
}

/// Launches of convolutions that do not depend on each other. Their moments lie one after another in `scratch`.
pub(super) fn forward(items: &[Forward], scratch: Place) -> Vec<Launch> {
    let mut used = 0;
    let mut moments = Vec::new();
    let mut placed = Vec::new();
    for item in items {
        let partial = stretch(scratch, used, item.convolution.moments_len());
        if let Some((mean, variance)) = item.statistics {
            moments.push(fold::Moments { partial, chunks: item.convolution.tiles(true).1, mean, variance });
            used += item.convolution.moments_len();
        }
        placed.push((item, partial));
    }
    let mut launches = jobs::launches("dense", "dense_forward", &placed, |(f, partial), slots| {
        let s = f.convolution;
        let (lanes, groups) = cover(s.y.c);
        let (tiles, chunks) = s.tiles(f.statistics.is_some());
        let record = DenseJob {
            rows: s.y.rows() as u32,
            x_height: s.x.h as u32,
            x_width: s.x.w as u32,
            x_channels: s.x.c as u32,
            y_height: s.y.h as u32,
            y_width: s.y.w as u32,
            y_channels: s.y.c as u32,
            kernel: s.kernel as u32,
            stride: s.stride as u32,
            pad: s.pad as u32,
            lanes: lanes as u32,
            groups: groups as u32,
            tiles: tiles as u32,
            flags: flag(s.relu, RELU)
                | flag(f.bias.is_some(), BIAS)
                | flag(f.statistics.is_some(), MOMENTS)
                | flag(f.accumulate, ACCUMULATE),
            x_stride: f.x.row_stride,
            w_stride: f.w.row_stride,
            y_stride: f.y.row_stride,
            x: slots.reads(f.x),
            w: slots.reads(f.w),
            bias: f.bias.map_or([0; 2], |bias| slots.reads(bias.vector(s.y.c))),
            y: slots.writes(f.y),
            partial: if f.statistics.is_some() { slots.writes(*partial) } else { [0; 2] },
            ..Default::default()
        };
        let wide = [Some(f.x), Some(f.w), f.bias, Some(f.y)].iter().flatten().all(|place| place.wide());
        Job { records: vec![record], blocks: chunks * groups, wide }
    });
    launches.extend(fold::moments(&moments));
    launches
}

/// Launches that write the gradient of `x`, the sum over all sources.
pub(super) fn input(
    x: Place,
    relu: bool,
    dx: Place,
    accumulate: bool,
    stride: usize,
    sources: &[Source],
) -> Vec<Launch> {
    let mut base = Slots::default();
    base.reads(x);
    base.writes(dx);
    let most = TABLE_BYTES / size_of::<DenseInput>();
    // One launch for the first stretch of the sources of each phase, one for the second, ...
    let mut rounds: Vec<Vec<(usize, Vec<&Source>)>> = Vec::new();
    for phase in 0..stride * stride {
        let reaching: Vec<_> = sources.iter().filter(|s| s.convolution.reaches(phase)).collect();
        let touch = |s: &&Source, slots: &mut Slots| {
            slots.reads(s.w);
            s.term.spots(slots);
        };
        for (round, stretch) in stretches(&reaching, &base, most, touch).into_iter().enumerate() {
            if round == rounds.len() {
                rounds.push(Vec::new());
            }
            if !stretch.is_empty() || !accumulate {
                rounds[round].push((phase, stretch.to_vec()));
            }
        }
    }
    let mut launches = Vec::new();
    for (round, items) in rounds.iter().enumerate() {
        launches.extend(jobs::launches("dense", "dense_input", items, |(phase, sources), slots| {
            let side = |s: usize, rest: usize| (s + stride - 1).saturating_sub(rest) / stride;
            let (lanes, groups) = cover(x.shape.c);
            let rows = x.shape.n * side(x.shape.h, phase / stride) * side(x.shape.w, phase % stride);
            let map = DenseInput {
                sources: sources.len() as u32,
                rows: rows as u32,
                x_height: x.shape.h as u32,
                x_width: x.shape.w as u32,
                x_channels: x.shape.c as u32,
                stride: stride as u32,
                phase: *phase as u32,
                lanes: lanes as u32,
                groups: groups as u32,
                flags: flag(relu, RELU) | flag(accumulate || round > 0, ACCUMULATE),
                x_stride: x.row_stride,
                dx_stride: dx.row_stride,
                x: slots.reads(x),
                dx: slots.writes(dx),
                ..Default::default()
            };
            let source = |s: &&Source| {
                let TermSpots { g, y, coef, mask, g_stride, y_stride, coef_stride } = s.term.spots(slots);
                DenseInput {
                    y_height: s.convolution.y.h as u32,
                    y_width: s.convolution.y.w as u32,
                    y_channels: s.convolution.y.c as u32,
                    kernel: s.convolution.kernel as u32,
                    pad: s.convolution.pad as u32,
                    flags: map.flags | flag(s.term.coef.is_some(), COEF) | flag(s.term.mask.is_some(), MASK),
                    w_stride: s.w.row_stride,
                    w: slots.reads(s.w),
                    y_stride,
                    g_stride,
                    coef_stride,
                    y,
                    g,
                    coef,
                    mask,
                    ..map
                }
            };
            let mut records: Vec<_> = sources.iter().map(source).collect();
            if records.is_empty() {
                records.push(map);
            }
            let wide = x.wide() && dx.wide() && sources.iter().all(|s| s.w.wide() && s.term.wide());
            Job { records, blocks: rows.div_ceil(tile_rows(lanes)) * groups, wide }
        }));
    }
    launches
}

/// Launches that write gradients of weights. Their sums lie one after another in `scratch`.
pub(super) fn weights(items: &[Weight], scratch: Place) -> Vec<Launch> {
    let mut used = 0;
    let (mut sums, mut placed) = (Vec::new(), Vec::new());
    for item in items {
        let (s, bias) = (item.convolution, item.dbias.is_some());
        let partial = stretch(scratch, used, s.weight_len(bias));
        used += s.weight_len(bias);
        placed.push((item, partial));
        let (chunks, chunk_stride) = (s.weight_cover(bias).3, s.weight_chunk(bias));
        if let Some((out, accumulate)) = item.dw {
            sums.push(fold::Sums { partial, chunks, chunk_stride, out, accumulate });
        }
        if let Some((out, accumulate)) = item.dbias {
            let before = s.depth() * s.y.c;
            let partial = stretch(partial, before, partial.shape.len() - before);
            sums.push(fold::Sums { partial, chunks, chunk_stride, out: out.vector(s.y.c), accumulate });
        }
    }
    let mut launches = jobs::launches("dense", "dense_weight", &placed, |(item, partial), slots| {
        let (s, bias) = (item.convolution, item.dbias.is_some());
        let (row_quads, column_quads, chunk_rows, chunks) = s.weight_cover(bias);
        let row_tiles = (s.depth() + usize::from(bias)).div_ceil(4 * row_quads);
        let column_tiles = s.y.c.div_ceil(4 * column_quads);
        let TermSpots { g, y, coef, mask, g_stride, y_stride, coef_stride } = item.term.spots(slots);
        let record = DenseWeight {
            rows: s.y.rows() as u32,
            x_height: s.x.h as u32,
            x_width: s.x.w as u32,
            x_channels: s.x.c as u32,
            y_height: s.y.h as u32,
            y_width: s.y.w as u32,
            y_channels: s.y.c as u32,
            kernel: s.kernel as u32,
            stride: s.stride as u32,
            pad: s.pad as u32,
            row_quads: row_quads as u32,
            column_quads: column_quads as u32,
            row_tiles: row_tiles as u32,
            column_tiles: column_tiles as u32,
            chunk_rows: chunk_rows as u32,
            flags: flag(s.relu, RELU)
                | flag(item.term.coef.is_some(), COEF)
                | flag(item.term.mask.is_some(), MASK)
                | flag(bias, ONES),
            x_stride: item.x.row_stride,
            y_stride,
            g_stride,
            coef_stride,
            x: slots.reads(item.x),
            y,
            g,
            coef,
            mask,
            partial: slots.writes(*partial),
            ..Default::default()
        };
        let wide = item.x.wide() && item.term.wide();
        Job { records: vec![record], blocks: chunks * row_tiles * column_tiles, wide }
    });
    launches.extend(fold::sums(&sums));
    launches
}

impl Dense {
    fn convolution(&self, x: Shape, c: usize) -> Convolution {
        let Self { kernel, stride, relu, .. } = *self;
        Convolution { x, y: self.output(x, c), kernel, stride, pad: self.pad as i32, relu }
    }
}

impl Lower for Dense {
    fn scratch(&self, inputs: &[Shape], outputs: &[Shape]) -> usize {
        if self.statistics { self.convolution(inputs[0], outputs[0].c).moments_len() } else { 0 }
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (x, y) = (at.inputs[0], at.outputs[0]);
        let item = Forward {
            convolution: self.convolution(x.shape, y.shape.c),
            x,
            w: at.inputs[1],
            bias: self.bias.then(|| at.inputs[2]),
            y,
            accumulate: at.accumulate[0],
            statistics: self.statistics.then(|| (at.outputs[1], at.outputs[2])),
        };
        forward(&[item], at.scratch)
    }
}

impl Lower for DenseBackward {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        let wanted = self.weight || self.bias;
        if wanted { self.dense.convolution(inputs[0], inputs[1].c).weight_len(self.bias) } else { 0 }
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let mut inputs = at.inputs;
        let (x, w) = (take(&mut inputs), take(&mut inputs));
        let y = self.term.coef.then(|| take(&mut inputs));
        let term = PlacedTerm::take(self.term, y, &mut inputs);
        let convolution = self.dense.convolution(x.shape, w.shape.c);
        let mut outputs = at.outputs.iter().copied().zip(at.accumulate.iter().copied());
        let mut next = |wanted: bool| if wanted { outputs.next() } else { None };
        let mut launches = Vec::new();
        if let Some((dx, accumulate)) = next(self.input) {
            let source = Source { convolution, w, term };
            launches.extend(input(x, self.dense.relu, dx, accumulate, self.dense.stride, &[source]));
        }
        let (dw, dbias) = (next(self.weight), next(self.bias));
        if dw.is_some() || dbias.is_some() {
            launches.extend(weights(&[Weight { convolution, x, term, dw, dbias }], at.scratch));
        }
        launches
    }
}
