//! Mixtures on GPUs. Forward: one launch; a thread owns a quad of channels and a few rows and walks over the sources of
//! the table. Backward: one launch sums `g` and `g y_hat` over chunks of rows for each source, one merges the chunks
//! and writes coefficients and affine gradients, one sums channels and sources into the weights' gradient.

use super::jobs::{self, Job};
use super::{Lanes, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, batches, record, stretch};
use crate::graph::Shape;
use crate::graph::plan::Piece;
use crate::ops::mixture::{Mixture, MixtureBackward, Source};

/// Rows that a thread of `mixture_forward` holds in registers.
pub const ROWS: usize = 4;
/// Most chunks of rows in the backward reductions.
const CHUNKS: usize = 64;
/// Records of a full table: `TABLE` in the shader.
pub const TABLE: usize = 93;

/// The record's map is normalised.
pub const NORM: u32 = 1;
/// gamma and beta apply.
pub const AFFINE: u32 = 2;
/// A weight applies.
pub const WEIGHT: u32 = 4;
/// A factor an image applies.
pub const MASK: u32 = 8;
/// There are sums over rows.
pub const SUMS: u32 = 16;
/// Coefficients are wanted.
pub const COEF: u32 = 32;
/// Coefficients are added to what is there.
pub const COEF_ADD: u32 = 64;
/// dgamma and dbeta are wanted.
pub const PARAMETERS: u32 = 128;
/// dgamma is added to what is there.
pub const DGAMMA_ADD: u32 = 256;
/// dbeta is added to what is there.
pub const DBETA_ADD: u32 = 512;
/// Shares of the weight's gradient are wanted.
pub const SHARE: u32 = 1024;
/// The node, or the weights' gradient, is added to what is there.
pub const ACCUMULATE: u32 = 2048;

/// The flags by name, as the kernels declare them.
pub const FLAGS: &[(&str, u32)] = &[
    ("NORM", NORM),
    ("AFFINE", AFFINE),
    ("WEIGHT", WEIGHT),
    ("MASK", MASK),
    ("SUMS", SUMS),
    ("COEF", COEF),
    ("COEF_ADD", COEF_ADD),
    ("PARAMETERS", PARAMETERS),
    ("DGAMMA_ADD", DGAMMA_ADD),
    ("DBETA_ADD", DBETA_ADD),
    ("SHARE", SHARE),
    ("ACCUMULATE", ACCUMULATE),
];

record! {
    /// One source of a mixture. In the forward and in the gradient of the weights a job is a list of sources, of which the
    /// first one also says what is common; otherwise each source is a job.
    MixtureSource {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// Records of the job, this one included; zero if a node has none.
        sources: u32,
        /// What applies and what is wanted.
        flags: u32,
        /// Rows of the maps.
        rows: u32,
        /// Channels of the maps.
        channels: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Rows of one image.
        pixels: u32,
        /// Chunks of rows.
        chunks: u32,
        /// Rows of a chunk; the last one may have fewer.
        chunk_rows: u32,
        /// Elements from one pixel (or row) of `node` to the next.
        node_stride: u32,
        /// Elements from one pixel of the map to the next.
        map_stride: u32,
        /// Elements from one row of the coefficients to the next.
        coef_stride: u32,
        /// Index of the weight, in the gradient of the weights.
        weight_index: u32,
        /// Columns of the weights' gradient.
        weight_columns: u32,
        /// Added to the variance.
        eps: f32,
        /// Zero.
        unused: u32,
        /// The node; in the backward its gradient, and in the end the gradient of the weights.
        node: Spot,
        /// The map.
        map: Spot,
        /// Mean a channel.
        mean: Spot,
        /// Variance a channel.
        variance: Spot,
        /// Scale a channel.
        gamma: Spot,
        /// Shift a channel.
        beta: Spot,
        /// The weight itself.
        weight: Spot,
        /// The row of factors, one an image.
        mask: Spot,
        /// Coefficients a, b, d, a row each.
        coef: Spot,
        /// Gradient of gamma.
        dgamma: Spot,
        /// Gradient of beta.
        dbeta: Spot,
        /// Sums: a chunk two rows, of the channels rounded up to quads.
        partial: Spot,
        /// Each channel's share of the weight's gradient.
        shares: Spot,
    }
}

const _: () = assert!(TABLE == TABLE_BYTES / size_of::<MixtureSource>());

/// One source with the places of its tensors.
struct Placed {
    source: Source,
    weight: Option<Place>,
    mask: Option<Place>,
    map: Place,
    mean_var: Option<(Place, Place)>,
    affine: Option<(Place, Place)>,
}

impl Placed {
    /// Takes an op's inputs apart, in the order of [`Mixture`].
    fn list(sources: &[Source], inputs: &[Place]) -> Vec<Self> {
        let mut inputs = inputs.iter().copied();
        let mut next = || inputs.next().expect("recorded with all inputs");
        let weights = sources.iter().any(|s| s.weight.is_some()).then(&mut next);
        let mask = sources.iter().any(|s| s.mask.is_some()).then(&mut next);
        let part = |table: Place, at: usize, len: usize| Place {
            offset: table.element(at),
            row_stride: len as u32,
            shape: Shape::vector(len),
            ..table
        };
        let one = |&source: &Source| {
            let map = next();
            let c = map.shape.c;
            Self {
                source,
                weight: source.weight.zip(weights).map(|(index, table)| part(table, index, 1)),
                mask: source.mask.zip(mask).map(|(row, table)| part(table, row * table.shape.c, table.shape.c)),
                map,
                mean_var: source.norm.map(|_| (next().vector(c), next().vector(c))),
                affine: source.norm.filter(|n| n.affine).map(|_| (next().vector(c), next().vector(c))),
            }
        };
        sources.iter().map(one).collect()
    }

    fn vectors(&self) -> impl Iterator<Item = Place> {
        let pairs = self.mean_var.into_iter().chain(self.affine);
        pairs.flat_map(|(a, b)| [a, b])
    }

    /// Whether map and vectors allow 16-byte accesses.
    fn wide(&self) -> bool {
        self.map.wide() && self.vectors().all(Place::wide)
    }

    /// Adds to a record those parts of the source that a kernel reads: NORM, AFFINE, WEIGHT, MASK.
    fn record(&self, common: MixtureSource, parts: u32, slots: &mut Slots) -> MixtureSource {
        let mut record = common;
        let mut part = |flag: u32, there: bool| {
            let flag = if there { parts & flag } else { 0 };
            record.flags |= flag;
            flag != 0
        };
        let has = [
            part(NORM, self.mean_var.is_some()),
            part(AFFINE, self.affine.is_some()),
            part(WEIGHT, self.weight.is_some()),
            part(MASK, self.mask.is_some()),
        ];
        if let (Some((mean, var)), true) = (self.mean_var, has[0]) {
            (record.mean, record.variance) = (slots.reads(mean), slots.reads(var));
            record.eps = self.source.norm.map_or(0.0, |n| n.eps as f32);
        }
        if let (Some((gamma, beta)), true) = (self.affine, has[1]) {
            (record.gamma, record.beta) = (slots.reads(gamma), slots.reads(beta));
        }
        if let (Some(weight), true) = (self.weight, has[2]) {
            record.weight = slots.reads(weight);
        }
        if let (Some(mask), true) = (self.mask, has[3]) {
            record.mask = slots.reads(mask);
        }
        record
    }

    /// The same for kernels that read the map too.
    fn record_with_map(&self, common: MixtureSource, parts: u32, slots: &mut Slots) -> MixtureSource {
        let map = slots.reads(self.map);
        MixtureSource { map, map_stride: self.map.row_stride, ..self.record(common, parts, slots) }
    }
}

/// What depends on the maps' shape alone.
fn common(shape: Shape) -> MixtureSource {
    let Lanes { lanes, groups, .. } = Lanes::new(shape.c);
    MixtureSource {
        rows: shape.rows() as u32,
        channels: shape.c as u32,
        lanes: lanes as u32,
        groups: groups as u32,
        pixels: (shape.h * shape.w) as u32,
        ..Default::default()
    }
}

/// Launches whose jobs are lists of sources, one launch for as many of them as pages and tables allow: each adds to what
/// the one before has left. `write` makes the record of a source that has what is common; the slots name `out` first.
fn lists<T>(
    kernel: &'static str,
    (common, out, accumulate): (MixtureSource, Place, bool),
    blocks: usize,
    sources: &[T],
    wide: impl Fn(&T) -> bool,
    write: impl Fn(&T, MixtureSource, &mut Slots) -> MixtureSource,
) -> Vec<Launch> {
    let mut base = Slots::default();
    let node = base.writes(out);
    let first = MixtureSource { node, node_stride: out.row_stride, ..common };
    let batches = batches(sources, &base, TABLE, |source, slots| write(source, first, slots));
    let one = |(index, batch): (usize, super::Batch<'_, T, MixtureSource>)| {
        jobs::launches("mixture", kernel, &[batch], |batch, slots| {
            slots.clone_from(&batch.slots);
            let mut records = batch.table.clone();
            let sources = records.len() as u32;
            if records.is_empty() {
                records.push(first);
            }
            records[0].sources = sources;
            records[0].flags |= flag(accumulate || index > 0, ACCUMULATE);
            Job { records, blocks, wide: out.wide() && batch.items.iter().all(&wide) }
        })
    };
    batches.into_iter().enumerate().flat_map(one).collect()
}

impl Lower for Mixture {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (node, shape) = (at.outputs[0], at.outputs[0].shape);
        let lanes = Lanes::new(shape.c);
        let blocks = shape.rows().div_ceil(lanes.rows * ROWS) * lanes.groups;
        let record =
            |s: &Placed, first, slots: &mut Slots| s.record_with_map(first, NORM | AFFINE | WEIGHT | MASK, slots);
        let sources = Placed::list(&self.sources, at.inputs);
        let common = (common(shape), node, at.accumulate[0]);
        lists("mixture_forward", common, blocks, &sources, Placed::wide, record)
    }
}

/// One source with what the backward is to write.
struct Wanted {
    placed: Placed,
    coef: Option<(Place, bool)>,
    parameters: Option<[(Place, bool); 2]>,
    weight_index: Option<usize>,
    /// Sums of all chunks, within the scratch.
    sums: Place,
    /// Shares of the weight's gradient, in a piece of their own: they are summed late.
    shares: Place,
}

/// What one record of `mixture_backward_fold` writes. Both together could span more pages than a launch binds.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    CoefficientsAndShares,
    Parameters,
}

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

impl Wanted {
    /// Whether anything that is wanted depends on the sums over rows.
    fn sums(&self) -> bool {
        let coefficients = self.coef.is_some() && self.placed.source.norm.is_some();
        coefficients || self.parameters.is_some() || self.weight_index.is_some()
    }

    fn partial(&self, common: MixtureSource, g: Place, slots: &mut Slots) -> Job<MixtureSource> {
        let gradient = MixtureSource { node: slots.reads(g), node_stride: g.row_stride, ..common };
        let record = self.placed.record_with_map(gradient, NORM | MASK, slots);
        let record = MixtureSource { partial: slots.writes(self.sums), ..record };
        let blocks = (record.chunks * record.groups) as usize;
        Job { records: vec![record], blocks, wide: g.wide() && self.placed.wide() }
    }

    fn fold(&self, part: Part, common: MixtureSource, slots: &mut Slots) -> Job<MixtureSource> {
        let vectors = if part == Part::Parameters { 0 } else { NORM | AFFINE };
        let mut record = self.placed.record(common, vectors | WEIGHT, slots);
        if self.sums() {
            record.flags |= SUMS;
            record.partial = slots.reads(self.sums);
        }
        match (part, self.coef, self.parameters) {
            (Part::Parameters, _, Some([(dgamma, add_gamma), (dbeta, add_beta)])) => {
                record.flags |= PARAMETERS | flag(add_gamma, DGAMMA_ADD) | flag(add_beta, DBETA_ADD);
                (record.dgamma, record.dbeta) = (slots.writes(dgamma), slots.writes(dbeta));
            }
            (Part::CoefficientsAndShares, Some((coef, add)), _) => {
                record.flags |= COEF | flag(add, COEF_ADD);
                (record.coef, record.coef_stride) = (slots.writes(coef), coef.row_stride);
            }
            _ => {}
        }
        if part == Part::CoefficientsAndShares && self.weight_index.is_some() {
            record.flags |= SHARE;
            record.shares = slots.writes(self.shares);
        }
        Job { records: vec![record], blocks: record.groups as usize, wide: self.wide() }
    }

    /// What a part of the fold writes besides scratch.
    fn written(&self, part: Part) -> Vec<Place> {
        let parameters = self.parameters.into_iter().flatten().filter(|_| part == Part::Parameters);
        let coef = self.coef.into_iter().filter(|_| part == Part::CoefficientsAndShares);
        parameters.chain(coef).map(|(place, _)| place).collect()
    }

    fn weight(&self, first: MixtureSource, slots: &mut Slots) -> MixtureSource {
        let weight_index = self.weight_index.map_or(0, |index| index as u32);
        MixtureSource { shares: slots.reads(self.shares), weight_index, ..first }
    }

    /// Whether the vectors that the fold reads and writes allow 16-byte accesses.
    fn wide(&self) -> bool {
        let outputs = self.coef.into_iter().chain(self.parameters.into_iter().flatten()).map(|(place, _)| place);
        self.placed.map.shape.c.is_multiple_of(4) && self.placed.vectors().chain(outputs).all(Place::wide)
    }
}

/// Rows of a chunk, chunks, and elements of scratch that a source needs.
fn layout(shape: Shape) -> (usize, usize, usize) {
    let (chunk_rows, chunks) = Lanes::new(shape.c).chunks(shape.rows(), ROWS, CHUNKS);
    (chunk_rows, chunks, 2 * chunks * shape.c.next_multiple_of(4))
}

impl MixtureBackward {
    /// The sources of which anything is wanted.
    fn wanted(&self, at: &Places<'_>) -> Vec<Wanted> {
        let shape = at.inputs[0].shape;
        let (extent, padded) = (layout(shape).2, shape.c.next_multiple_of(4));
        let shares = at.pieces.get(1).copied().unwrap_or_default();
        let mut outputs = at.outputs.iter().copied().zip(at.accumulate.iter().copied());
        let mut next = || outputs.next().expect("recorded with all outputs");
        if self.weights {
            next();
        }
        let sources = Placed::list(&self.sources, &at.inputs[1..]);
        let mut list = Vec::new();
        for (index, (placed, &(coefficients, parameters))) in sources.into_iter().zip(&self.wants).enumerate() {
            let vector = |(place, add): (Place, bool)| (place.vector(shape.c), add);
            let wanted = Wanted {
                weight_index: placed.source.weight.filter(|_| self.weights),
                placed,
                coef: coefficients.then(&mut next),
                parameters: parameters.then(|| [vector(next()), vector(next())]),
                sums: stretch(at.scratch, index * extent, extent),
                shares: stretch(shares, index * padded, padded),
            };
            if wanted.coef.is_some() || wanted.sums() {
                list.push(wanted);
            }
        }
        list
    }
}

impl Lower for MixtureBackward {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        self.sources.len() * layout(inputs[0]).2
    }

    fn pieces(&self, inputs: &[Shape], outputs: &[Shape]) -> Vec<Piece> {
        let mut pieces = Piece::one(self.scratch(inputs, outputs));
        if self.weights {
            pieces.push(Piece { len: self.sources.len() * inputs[0].c.next_multiple_of(4), kept: true });
        }
        pieces
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let shape = at.inputs[0].shape;
        let (chunk_rows, chunks, _) = layout(shape);
        let common = MixtureSource { chunks: chunks as u32, chunk_rows: chunk_rows as u32, ..common(shape) };
        let wanted = self.wanted(at);
        let sums: Vec<_> = wanted.iter().filter(|w| w.sums()).collect();
        let partial = |w: &&Wanted, slots: &mut Slots| w.partial(common, at.inputs[0], slots);
        let mut launches = jobs::launches("mixture", "mixture_backward_partial", &sums, partial);
        let coefficients = |w: &Wanted| w.coef.is_some() || w.weight_index.is_some();
        let parts = wanted.iter().flat_map(|w| {
            let parameters = w.parameters.map(|_| (w, Part::Parameters));
            coefficients(w).then_some((w, Part::CoefficientsAndShares)).into_iter().chain(parameters)
        });
        for wave in jobs::waves(parts, |(w, part)| w.written(*part)) {
            let fold = |&(w, part): &(&Wanted, Part), slots: &mut Slots| w.fold(part, common, slots);
            launches.extend(jobs::launches("mixture", "mixture_backward_fold", &wave, fold));
        }
        if self.weights {
            // Each weight's shares are summed; weights that no source uses get zero.
            let (dweights, accumulate) = (at.outputs[0], at.accumulate[0]);
            let weighted: Vec<_> = wanted.iter().filter(|w| w.weight_index.is_some()).collect();
            let common = MixtureSource { weight_columns: dweights.shape.c as u32, ..common };
            let record = |w: &&Wanted, first, slots: &mut Slots| w.weight(first, slots);
            let (kernel, blocks) = ("mixture_backward_weights", dweights.shape.len());
            launches.extend(lists(kernel, (common, dweights, accumulate), blocks, &weighted, |_| false, record));
        }
        launches
    }
}
