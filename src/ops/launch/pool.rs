//! Max and average pooling on GPUs. Forward: one read of each window serves both results and their moments. Backward: a
//! thread owns a quad of one pixel and gathers from all windows that hold it. That the pixel is a window's maximum is found
//! out again, as in the forward, for all of its windows in one walk over its neighbours.
//!
//! Both kernels take folds as well. A level of a cell needs its pools at the end only, and waits for two folds meanwhile,
//! which are a few blocks each: together they are one launch less, and the pools hide how long the folds take.

use super::jobs::{self, Job};
use super::terms::{PlacedTerm, TermSpots, stretches, take};
use super::{Lanes, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, fold, record, stretch};
use crate::graph::{Shape, TermKind};
use crate::ops::pool::{Pool, PoolBackward};

/// The maximum is wanted, or the term is its gradient.
pub const MAX: u32 = 1;
/// The average is wanted, or the term is its gradient.
pub const AVERAGE: u32 = 2;
/// Moments are wanted.
pub const MOMENTS: u32 = 4;
/// The maximum is added to what is there.
pub const MAX_ADD: u32 = 8;
/// The average is added to what is there.
pub const AVERAGE_ADD: u32 = 16;
/// The term has coefficients.
pub const COEF: u32 = 32;
/// The term has a factor an image.
pub const MASK: u32 = 64;
/// The gradient is added to what is there.
pub const ACCUMULATE: u32 = 128;

/// The job is a fold: of moments, or of sums that become the coefficients of a normalisation's gradient.
pub const FOLD: u32 = 256;
/// gamma and beta apply in a fold.
pub const AFFINE: u32 = 512;
/// dgamma is added to what is there.
pub const DGAMMA_ADD: u32 = 1024;
/// dbeta is added to what is there.
pub const DBETA_ADD: u32 = 2048;

/// The flags by name, as the kernels declare them.
pub const FLAGS: &[(&str, u32)] = &[
    ("MAX", MAX),
    ("AVERAGE", AVERAGE),
    ("MOMENTS", MOMENTS),
    ("MAX_ADD", MAX_ADD),
    ("AVERAGE_ADD", AVERAGE_ADD),
    ("COEF", COEF),
    ("MASK", MASK),
    ("ACCUMULATE", ACCUMULATE),
    ("FOLD", FOLD),
    ("AFFINE", AFFINE),
    ("DGAMMA_ADD", DGAMMA_ADD),
    ("DBETA_ADD", DBETA_ADD),
];

/// Most chunks of moments.
const CHUNKS: usize = 256;
/// Most windows that hold one pixel: bits of a word.
const WINDOWS: usize = 32;

record! {
    /// A map to be pooled, or moments to be folded.
    PoolJob {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Pixels of the results.
        rows: u32,
        /// Channels.
        channels: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Rows of a chunk; the last one may have fewer.
        chunk_rows: u32,
        /// What is wanted.
        flags: u32,
        /// Height of the map.
        x_height: u32,
        /// Width of the map.
        x_width: u32,
        /// Height of the results.
        y_height: u32,
        /// Width of the results.
        y_width: u32,
        /// Window size.
        kernel: u32,
        /// Stride.
        stride: u32,
        /// Padding.
        pad: u32,
        /// Elements from one pixel of the map to the next.
        x_stride: u32,
        /// Elements from one pixel of the maximum to the next.
        max_stride: u32,
        /// Elements from one pixel of the average to the next.
        average_stride: u32,
        /// Chunks of a fold.
        chunks: u32,
        /// Zero.
        unused: u32,
        /// The map.
        x: Spot,
        /// The maximum.
        max: Spot,
        /// The average.
        average: Spot,
        /// Moments of each chunk of the maximum: see `fold::moments_len`.
        max_partial: Spot,
        /// Moments of each chunk of the average.
        average_partial: Spot,
        /// Moments to be folded.
        partial: Spot,
        /// Mean a channel of what is folded.
        mean: Spot,
        /// Its biased variance.
        variance: Spot,
    }
}

record! {
    /// The gradient of a pooled map, and its first term; further terms follow. Or sums to be folded.
    PoolTerm {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Terms, this one included; zero if only zeros are to be written.
        terms: u32,
        /// What the term is.
        flags: u32,
        /// Pixels of the map.
        rows: u32,
        /// Channels.
        channels: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Height of the map.
        x_height: u32,
        /// Width of the map.
        x_width: u32,
        /// Height of the results.
        y_height: u32,
        /// Width of the results.
        y_width: u32,
        /// Window size.
        kernel: u32,
        /// Stride.
        stride: u32,
        /// Padding.
        pad: u32,
        /// Elements from one pixel of the map to the next.
        x_stride: u32,
        /// Elements from one pixel of the gradient to the next.
        dx_stride: u32,
        /// Elements from one pixel of the map that the coefficients multiply to the next.
        y_stride: u32,
        /// Elements from one pixel of the term to the next.
        g_stride: u32,
        /// Elements from one row of coefficients to the next.
        coef_stride: u32,
        /// Chunks of a fold.
        chunks: u32,
        /// Added to the variance.
        eps: f32,
        /// Zero.
        unused_0: u32,
        /// Zero.
        unused_1: u32,
        /// The map.
        x: Spot,
        /// Its gradient.
        dx: Spot,
        /// The map that the coefficients multiply.
        y: Spot,
        /// The term.
        g: Spot,
        /// Its coefficients; of a fold those that are written.
        coef: Spot,
        /// Its factors.
        mask: Spot,
        /// Mean a channel.
        mean: Spot,
        /// Variance a channel.
        variance: Spot,
        /// Scale a channel.
        gamma: Spot,
        /// A chunk two rows, of the channels rounded up to quads: sums of g, and of g (x - mean).
        partial: Spot,
        /// Gradient of gamma.
        dgamma: Spot,
        /// Gradient of beta.
        dbeta: Spot,
    }
}

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

fn chunks(y: Shape) -> (usize, usize) {
    Lanes::new(y.c).chunks(y.rows(), 1, CHUNKS)
}

/// One result of the forward.
struct Wanted {
    flags: u32,
    y: Place,
    partial: Place,
}

impl Pool {
    /// Maximum and average, where wanted.
    fn results(&self, at: &Places<'_>) -> [Option<Wanted>; 2] {
        let mut output = 0;
        let mut used = 0;
        [(self.max, MAX, MAX_ADD), (self.average, AVERAGE, AVERAGE_ADD)].map(|(wanted, on, add)| {
            wanted.then(|| {
                let y = at.outputs[output];
                let len = fold::moments_len(y.shape.c, chunks(y.shape).1);
                let partial = stretch(at.scratch, used, len);
                used += len;
                let result = Wanted { flags: on | flag(at.accumulate[output], add), y, partial };
                output += self.stride_of_outputs();
                result
            })
        })
    }
}

impl Lower for Pool {
    fn scratch(&self, _inputs: &[Shape], outputs: &[Shape]) -> usize {
        let results = usize::from(self.max) + usize::from(self.average);
        if self.statistics { results * fold::moments_len(outputs[0].c, chunks(outputs[0]).1) } else { 0 }
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (x, shape) = (at.inputs[0], at.outputs[0].shape);
        let Lanes { lanes, groups, .. } = Lanes::new(shape.c);
        let (chunk_rows, chunks) = chunks(shape);
        let results = self.results(at);
        let mut launches = jobs::launches("pool", "pool_forward", &[x], |x, slots| {
            let mut record = PoolJob {
                rows: shape.rows() as u32,
                channels: shape.c as u32,
                lanes: lanes as u32,
                groups: groups as u32,
                chunk_rows: chunk_rows as u32,
                flags: flag(self.statistics, MOMENTS) | results.iter().flatten().map(|r| r.flags).sum::<u32>(),
                x_height: x.shape.h as u32,
                x_width: x.shape.w as u32,
                y_height: shape.h as u32,
                y_width: shape.w as u32,
                kernel: self.kernel as u32,
                stride: self.stride as u32,
                pad: self.pad as u32,
                x_stride: x.row_stride,
                x: slots.reads(*x),
                ..Default::default()
            };
            let [max, average] = &results;
            if let Some(result) = max {
                (record.max, record.max_stride) = (slots.writes(result.y), result.y.row_stride);
                if self.statistics {
                    record.max_partial = slots.writes(result.partial);
                }
            }
            if let Some(result) = average {
                (record.average, record.average_stride) = (slots.writes(result.y), result.y.row_stride);
                if self.statistics {
                    record.average_partial = slots.writes(result.partial);
                }
            }
            let wide = x.wide() && results.iter().flatten().all(|r| r.y.wide());
            Job { records: vec![record], blocks: chunks * groups, wide }
        });
        if self.statistics {
            let places = at.outputs.chunks(self.stride_of_outputs());
            let moments = results.iter().flatten().zip(places).map(|(result, places)| fold::Moments {
                partial: result.partial,
                chunks,
                mean: places[1],
                variance: places[2],
            });
            launches.extend(fold::moments(&moments.collect::<Vec<_>>()));
        }
        launches
    }
}

impl PoolBackward {
    /// All terms, each with the flag of what it is a gradient of.
    fn terms(&self, inputs: &mut &[Place]) -> Vec<(u32, PlacedTerm)> {
        let mut terms = Vec::new();
        let mut group = |kinds: &[TermKind], flag: u32| {
            let y = kinds.iter().any(|kind| kind.coef).then(|| take(inputs));
            terms.extend(kinds.iter().map(|&kind| (flag, PlacedTerm::take(kind, y, inputs))));
        };
        group(&self.max, MAX);
        group(&self.average, AVERAGE);
        group(&self.direct, 0);
        terms
    }
}

impl Lower for PoolBackward {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let mut inputs = at.inputs;
        let (x, dx) = (take(&mut inputs), at.outputs[0]);
        let (shape, y) = (x.shape, self.pool.output(x.shape));
        let around = self.pool.kernel.div_ceil(self.pool.stride).pow(2);
        assert!(around <= WINDOWS, "a pixel lies in {around} windows of {:?}, more than {WINDOWS}", self.pool);
        let terms = self.terms(&mut inputs);
        let mut base = Slots::default();
        base.reads(x);
        base.writes(dx);
        let touch = |(_, term): &(u32, PlacedTerm), slots: &mut Slots| {
            term.spots(slots);
        };
        let Lanes { lanes, groups, rows } = Lanes::new(shape.c);
        let mut launches = Vec::new();
        for (round, stretch) in
            stretches(&terms, &base, TABLE_BYTES / size_of::<PoolTerm>(), touch).into_iter().enumerate()
        {
            launches.extend(jobs::launches("pool", "pool_backward", &[stretch], |stretch, slots| {
                let accumulate = at.accumulate[0] || round > 0;
                let map = PoolTerm {
                    terms: stretch.len() as u32,
                    flags: flag(accumulate, ACCUMULATE),
                    rows: shape.rows() as u32,
                    channels: shape.c as u32,
                    lanes: lanes as u32,
                    groups: groups as u32,
                    x_height: shape.h as u32,
                    x_width: shape.w as u32,
                    y_height: y.h as u32,
                    y_width: y.w as u32,
                    kernel: self.pool.kernel as u32,
                    stride: self.pool.stride as u32,
                    pad: self.pool.pad as u32,
                    x_stride: x.row_stride,
                    dx_stride: dx.row_stride,
                    x: slots.reads(x),
                    dx: slots.writes(dx),
                    ..Default::default()
                };
                let term = |(kind, term): &(u32, PlacedTerm)| {
                    let TermSpots { g, y, coef, mask, g_stride, y_stride, coef_stride } = term.spots(slots);
                    let parts = flag(term.coef.is_some(), COEF) | flag(term.mask.is_some(), MASK);
                    let flags = map.flags | kind | parts;
                    PoolTerm { flags, y_stride, g_stride, coef_stride, y, g, coef, mask, ..map }
                };
                let mut records: Vec<_> = stretch.iter().map(term).collect();
                if records.is_empty() {
                    records.push(map);
                }
                let wide = x.wide() && dx.wide() && stretch.iter().all(|(_, term)| term.wide());
                Job { records, blocks: shape.rows().div_ceil(rows) * groups, wide }
            }));
        }
        launches
    }
}
