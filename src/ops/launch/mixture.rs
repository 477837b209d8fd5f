//! Mixtures on GPUs. Forward: one launch; a thread owns a quad of channels and a few rows and walks over the sources of
//! the table. Backward: one launch sums `g` and `g y_hat` over chunks of rows for each source, one merges the chunks
//! and writes coefficients and affine gradients, one sums channels and sources into the weights' gradient.

use super::{BLOCK, Lanes, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, batches, grid, record};
use crate::graph::Shape;
use crate::ops::mixture::{Mixture, MixtureBackward, Source};

/// Rows that a thread of `mixture_forward` holds in registers.
pub const ROWS: usize = 4;
/// Most chunks of rows in the backward reductions.
const CHUNKS: usize = 64;
/// Most sources that one launch takes: `TABLE` in the shader.
pub const TABLE: usize = 64;

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
];

record! {
    /// Parameters of all mixture kernels.
    MixtureParams {
        /// Blocks that have work.
        blocks: u32,
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
        /// Records of the table.
        sources: u32,
        /// Whether the output (node or weights' gradient) is added to what is there.
        accumulate: u32,
        /// The node, or in the backward its gradient.
        node: Spot,
        /// Gradient of the weights.
        dweights: Spot,
        /// Elements from one pixel of `node` to the next.
        node_stride: u32,
        /// Chunks of rows.
        chunks: u32,
        /// Rows of a chunk; the last one may have fewer.
        chunk_rows: u32,
        /// Columns of `dweights`.
        weight_columns: u32,
        /// Elements from one row of `dweights` to the next.
        weight_stride: u32,
        /// Zero.
        unused_0: u32,
        /// Zero.
        unused_1: Spot,
    }
}

record! {
    /// One source of a mixture.
    MixtureSource {
        /// The map.
        map: Spot,
        /// Elements from one pixel of the map to the next.
        map_stride: u32,
        /// What applies and what is wanted.
        flags: u32,
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
        /// Added to the variance.
        eps: f32,
        /// Index of the weight, in the gradient of the weights.
        weight_index: u32,
        /// Coefficients a, b, d, a row each.
        coef: Spot,
        /// Elements from one row of the coefficients to the next.
        coef_stride: u32,
        /// Zero.
        unused: u32,
        /// Gradient of gamma.
        dgamma: Spot,
        /// Gradient of beta.
        dbeta: Spot,
        /// Sums: a chunk two rows, of the channels rounded up to quads; then one row, each channel's share of the
        /// weight's gradient.
        partial: Spot,
    }
}

const _: () = assert!(TABLE * size_of::<MixtureSource>() <= TABLE_BYTES);

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
        let place = |offset, table: Place| Place { offset, row_stride: 1, shape: Shape::vector(1), ..table };
        let one = |&source: &Source| {
            let map = next();
            let c = map.shape.c;
            Self {
                source,
                weight: source.weight.zip(weights).map(|(index, table)| place(table.element(index), table)),
                mask: source.mask.zip(mask).map(|(row, table)| place(table.element(row * table.shape.c), table)),
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

    /// A record of those parts of the source that a kernel reads: NORM, AFFINE, WEIGHT, MASK.
    fn record(&self, parts: u32, slots: &mut Slots) -> MixtureSource {
        let mut record = MixtureSource::default();
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
    fn record_with_map(&self, parts: u32, slots: &mut Slots) -> MixtureSource {
        let map = slots.reads(self.map);
        MixtureSource { map, map_stride: self.map.row_stride, ..self.record(parts, slots) }
    }
}

/// Parameters that depend on the maps' shape alone.
fn params(shape: Shape) -> MixtureParams {
    let Lanes { lanes, groups, .. } = Lanes::new(shape.c);
    MixtureParams {
        rows: shape.rows() as u32,
        channels: shape.c as u32,
        lanes: lanes as u32,
        groups: groups as u32,
        pixels: (shape.h * shape.w) as u32,
        ..Default::default()
    }
}

fn launch(kernel: &'static str, wide: bool, params: MixtureParams, table: &[MixtureSource], slots: Slots) -> Launch {
    Launch {
        source: "mixture",
        kernel,
        wide,
        params: bytemuck::bytes_of(&params).to_vec(),
        table: bytemuck::cast_slice(table).to_vec(),
        pages: slots.pages,
        grid: grid(params.blocks as usize),
        block: BLOCK,
        jobs: None,
    }
}

impl Lower for Mixture {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (node, shape) = (at.outputs[0], at.outputs[0].shape);
        let lanes = Lanes::new(shape.c);
        let mut base = Slots::default();
        let params = MixtureParams {
            blocks: (shape.rows().div_ceil(lanes.rows * ROWS) * lanes.groups) as u32,
            node: base.writes(node),
            node_stride: node.row_stride,
            ..params(shape)
        };
        let sources = Placed::list(&self.sources, at.inputs);
        let record = |s: &Placed, slots: &mut Slots| s.record_with_map(NORM | AFFINE | WEIGHT | MASK, slots);
        let batches = batches(&sources, &base, TABLE, record);
        let one = |(index, batch): (usize, super::Batch<'_, Placed, MixtureSource>)| {
            let wide = node.wide() && batch.items.iter().all(Placed::wide);
            let sources = batch.table.len() as u32;
            let accumulate = u32::from(at.accumulate[0] || index > 0);
            let params = MixtureParams { sources, accumulate, ..params };
            launch("mixture_forward", wide, params, &batch.table, batch.slots)
        };
        batches.into_iter().enumerate().map(one).collect()
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
    /// Shares of the weight's gradient, behind them.
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

    fn partial_record(&self, slots: &mut Slots) -> MixtureSource {
        MixtureSource { partial: slots.writes(self.sums), ..self.placed.record_with_map(NORM | MASK, slots) }
    }

    fn fold_record(&self, part: Part, slots: &mut Slots) -> MixtureSource {
        let vectors = if part == Part::Parameters { 0 } else { NORM | AFFINE };
        let mut record = self.placed.record(vectors | WEIGHT, slots);
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
            slots.writes(self.shares);
        }
        record
    }

    fn weight_record(&self, slots: &mut Slots) -> MixtureSource {
        let weight_index = self.weight_index.map_or(0, |index| index as u32);
        slots.reads(self.shares);
        MixtureSource { partial: slots.reads(self.sums), weight_index, ..Default::default() }
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
    (chunk_rows, chunks, (2 * chunks + 1) * shape.c.next_multiple_of(4))
}

impl MixtureBackward {
    /// The sources of which anything is wanted.
    fn wanted(&self, at: &Places<'_>) -> Vec<Wanted> {
        let shape = at.inputs[0].shape;
        let (_, chunks, extent) = layout(shape);
        let mut outputs = at.outputs.iter().copied().zip(at.accumulate.iter().copied());
        let mut next = || outputs.next().expect("recorded with all outputs");
        if self.weights {
            next();
        }
        let sources = Placed::list(&self.sources, &at.inputs[1..]);
        let mut list = Vec::new();
        for (index, (placed, &(coefficients, parameters))) in sources.into_iter().zip(&self.wants).enumerate() {
            let vector = |(place, add): (Place, bool)| (place.vector(shape.c), add);
            let stretch = |start: usize, c: usize| Place {
                offset: at.scratch.offset + (index * extent + start) as u32,
                row_stride: c as u32,
                shape: Shape::vector(c),
                ..at.scratch
            };
            let padded = shape.c.next_multiple_of(4);
            let wanted = Wanted {
                weight_index: placed.source.weight.filter(|_| self.weights),
                placed,
                coef: coefficients.then(&mut next),
                parameters: parameters.then(|| [vector(next()), vector(next())]),
                sums: stretch(0, 2 * chunks * padded),
                shares: stretch(2 * chunks * padded, padded),
            };
            if wanted.coef.is_some() || wanted.sums() {
                list.push(wanted);
            }
        }
        list
    }

    /// Sums over the rows of each chunk.
    fn partial(at: &Places<'_>, params: MixtureParams, wanted: &[Wanted], launches: &mut Vec<Launch>) {
        let sums: Vec<_> = wanted.iter().filter(|w| w.sums()).collect();
        if sums.is_empty() {
            return;
        }
        let g = at.inputs[0];
        let mut base = Slots::default();
        let params = MixtureParams { node: base.reads(g), node_stride: g.row_stride, ..params };
        for batch in batches(&sums, &base, TABLE, |w, slots| w.partial_record(slots)) {
            let sources = batch.table.len() as u32;
            let params = MixtureParams { sources, blocks: sources * params.chunks * params.groups, ..params };
            let wide = g.wide() && batch.items.iter().all(|w| w.placed.wide());
            launches.push(launch("mixture_backward_partial", wide, params, &batch.table, batch.slots));
        }
    }

    /// Merges the chunks; writes coefficients, affine gradients, and shares of the weights' gradient.
    fn fold(params: MixtureParams, wanted: &[Wanted], launches: &mut Vec<Launch>) {
        let mut parts = Vec::new();
        for w in wanted {
            if w.coef.is_some() || w.weight_index.is_some() {
                parts.push((w, Part::CoefficientsAndShares));
            }
            if w.parameters.is_some() {
                parts.push((w, Part::Parameters));
            }
        }
        if parts.is_empty() {
            return;
        }
        for batch in batches(&parts, &Slots::default(), TABLE, |(w, part), slots| w.fold_record(*part, slots)) {
            let sources = batch.table.len() as u32;
            let params = MixtureParams { sources, blocks: sources * params.groups, ..params };
            let wide = batch.items.iter().all(|(w, _)| w.wide());
            launches.push(launch("mixture_backward_fold", wide, params, &batch.table, batch.slots));
        }
    }

    /// Sums the shares of each weight; weights that no source uses get zero.
    fn weights(at: &Places<'_>, params: MixtureParams, wanted: &[Wanted], launches: &mut Vec<Launch>) {
        let dweights = at.outputs[0];
        let weighted: Vec<_> = wanted.iter().filter(|w| w.weight_index.is_some()).collect();
        let mut base = Slots::default();
        let params = MixtureParams {
            blocks: dweights.shape.len() as u32,
            dweights: base.writes(dweights),
            weight_columns: dweights.shape.c as u32,
            weight_stride: dweights.row_stride,
            ..params
        };
        let batches = batches(&weighted, &base, TABLE, |w, slots| w.weight_record(slots));
        for (index, batch) in batches.into_iter().enumerate() {
            let accumulate = u32::from(at.accumulate[0] || index > 0);
            let params = MixtureParams { sources: batch.table.len() as u32, accumulate, ..params };
            launches.push(launch("mixture_backward_weights", false, params, &batch.table, batch.slots));
        }
    }
}

impl Lower for MixtureBackward {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        self.sources.len() * layout(inputs[0]).2
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let shape = at.inputs[0].shape;
        let (chunk_rows, chunks, _) = layout(shape);
        let params = MixtureParams { chunks: chunks as u32, chunk_rows: chunk_rows as u32, ..params(shape) };
        let wanted = self.wanted(at);
        let mut launches = Vec::new();
        Self::partial(at, params, &wanted, &mut launches);
        Self::fold(params, &wanted, &mut launches);
        if self.weights {
            Self::weights(at, params, &wanted, &mut launches);
        }
        launches
    }
}
