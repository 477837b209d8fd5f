//! Gradients of separable convolutions on GPUs. A first launch takes each branch's gradient back through its pointwise
//! weights. A second one does three things that do not depend on each other: it sums the gradients of both weights over
//! chunks of pixels, and computes that of the input, once for all branches that read one map. On CUDA all three have what
//! stencils reach in shared memory. Sums of chunks are folded, those
//! that become coefficients in the company of pools ([`pool`]).

use super::jobs::{self, Job};
use super::pool::{self, PoolTerm};
use super::separable::{PIXELS, Read, Regions, SIDE, STEP, chunks, columns, is_tiled, pages, step};
use super::separable_records::{ADD, COEF, INPUT, MASK, POINTWISE, STORE, SUMS, SeparableGradient, TAPS, TILED};
use super::{BLOCK, Lanes, Launch, Lower, PAGES, Place, Places, Slots, TABLE_BYTES, fold, stretch};
use crate::graph::Shape;
use crate::graph::plan::Piece;
use crate::ops::separable::{BackwardBranch, BackwardLayout, Branch, SeparableBackward};

/// Most chunks of pixels in the sums of weights' gradients.
const WEIGHT_CHUNKS: usize = 64;
/// Most chunks of pixels in the sums of a normalised input's gradient.
const INPUT_CHUNKS: usize = 256;
/// Most quads of output channels of which a block sums the pointwise weights' gradient.
const OUT_QUADS: usize = 16;
/// Pieces of a branch's scratch.
const PIECES: usize = 3;
/// Most branches in one gradient of an input.
const BRANCHES: usize = TABLE_BYTES / size_of::<SeparableGradient>();

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

/// Quads that a block covers, and blocks side by side, for at most `most` quads a block.
fn cover(c: usize, most: usize) -> (usize, usize) {
    let quads = c.div_ceil(4);
    let groups = quads.div_ceil(most);
    (quads.div_ceil(groups), groups)
}

/// Elements rounded up to whole quads.
fn padded(elements: usize) -> usize {
    elements.next_multiple_of(4)
}

/// How the pixels of a map are cut into chunks: into rows, and where CUDA has a stencil for the branch into regions.
struct Cut {
    chunk_rows: usize,
    chunks: usize,
    regions: Option<(Regions, usize)>,
}

impl Cut {
    /// At most `most` chunks, of rows as given if there is no stencil.
    fn new(branch: &Branch, map: Shape, most: usize, (chunk_rows, chunks): (usize, usize)) -> Self {
        if !is_tiled(branch) {
            return Self { chunk_rows, chunks, regions: None };
        }
        let regions = Regions::of(map, if map.w > SIDE { 2 } else { 1 });
        let chunk = regions.count.div_ceil(most).max(1);
        let chunks = regions.count.div_ceil(chunk);
        Self { chunk_rows: map.rows().div_ceil(chunks), chunks, regions: Some((regions, chunk)) }
    }

    /// That for the sums of a normalised input's gradient.
    fn sums(branch: &Branch, x: Shape) -> Self {
        Self::new(branch, x, INPUT_CHUNKS, Lanes::new(x.c).chunks(x.rows(), 1, INPUT_CHUNKS))
    }

    /// That for the gradients of weights.
    fn weights(branch: &Branch, y: Shape) -> Self {
        Self::new(branch, y, WEIGHT_CHUNKS, chunks(y.rows(), PIXELS, WEIGHT_CHUNKS))
    }

    /// Says so in a record.
    fn put(&self, record: SeparableGradient) -> SeparableGradient {
        let record = SeparableGradient { chunk_rows: self.chunk_rows as u32, ..record };
        let Some((regions, chunk)) = &self.regions else { return record };
        SeparableGradient {
            flags: record.flags | TILED,
            tiles: regions.tiles as u32,
            across: regions.across as u32,
            down: regions.down as u32,
            regions: regions.count as u32,
            chunk_regions: *chunk as u32,
            ..record
        }
    }
}

/// Elements of the parts of a branch's scratch, in this order: dd and sums of the input's gradient; dy; sums of the taps and
/// of the pointwise weights. Each pair and dy are a piece of their own, so that no batch needs much in one piece.
fn parts(b: &BackwardBranch, x: Shape, y: Shape) -> [[usize; 2]; PIECES] {
    let sum = |on: bool, elements: usize| if on { elements } else { 0 };
    let weights = |elements: usize| sum(b.weight, Cut::weights(&b.branch, y).chunks * padded(elements));
    let normalised = b.input && b.branch.norm.is_some();
    [
        [y.rows() * padded(x.c), sum(normalised, 2 * Cut::sums(&b.branch, x).chunks * padded(x.c))],
        [sum(b.weight && is_computed(b), y.rows() * padded(y.c)), 0],
        [weights(b.branch.kernel * b.branch.kernel * x.c), weights(x.c * y.c)],
    ]
}

/// Whether the gradient at the output is something else than a tensor.
fn is_computed(b: &BackwardBranch) -> bool {
    b.term.coef || b.term.mask.is_some()
}

/// One branch with its tensors.
#[derive(Clone)]
struct Placed {
    b: BackwardBranch,
    read: Read,
    depthwise: Place,
    pointwise: Place,
    /// Extent of the output.
    shape: Shape,
    y: Option<Place>,
    g: Place,
    coef: Option<Place>,
    mask: Option<Place>,
    /// See [`parts`].
    dd: Place,
    dy: Place,
    taps: Place,
    products: Place,
    sums: Place,
    /// Gradient at the input, or at its normalised values.
    dx: Option<(Place, bool)>,
    /// Coefficients of the normalisation's gradient.
    dcoef: Option<(Place, bool)>,
    /// Gradients of gamma and beta.
    dnorm: Option<[(Place, bool); 2]>,
    /// Gradients of depthwise and pointwise weights.
    dweights: Option<[(Place, bool); 2]>,
}

impl Placed {
    fn new(l: &BackwardLayout, at: &Places<'_>, pieces: &mut impl Iterator<Item = Place>) -> Self {
        let b = l.branch;
        let read = Read::new(b.branch.norm, &at.inputs[l.input..]);
        let (depthwise, pointwise) = (at.inputs[l.weights], at.inputs[l.weights + 1]);
        let shape = b.branch.output(read.map.shape, pointwise.shape.c);
        let mut term = at.inputs[l.gradient..].iter().copied();
        let mut next = || term.next().expect("recorded with all tensors of the term");
        let y = b.term.coef.then(&mut next);
        let g = next();
        let coef = b.term.coef.then(&mut next);
        let mask = b.term.mask.map(|row| {
            let table = next();
            let offset = table.element(row * table.shape.c);
            Place { offset, shape: Shape::vector(table.shape.c), ..table }
        });
        let [[dd, sums], [dy, _], [taps, products]] = parts(&b, read.map.shape, shape).map(|[first, second]| {
            let empty = first + second == 0;
            let piece = if empty { Place::default() } else { pieces.next().expect("a place for every piece") };
            [stretch(piece, 0, first), stretch(piece, first, second)]
        });
        let strided = |place: Place, shape: Shape| Place { row_stride: padded(shape.c) as u32, shape, ..place };
        let output = |i: usize| (at.outputs[i], at.accumulate[i]);
        let vector = |i: usize| (at.outputs[i].vector(read.map.shape.c), at.accumulate[i]);
        let norm = b.branch.norm.filter(|_| b.input);
        Self {
            b,
            read,
            depthwise,
            pointwise,
            shape,
            y,
            g,
            coef,
            mask,
            dd,
            dy: if is_computed(&b) { strided(dy, shape) } else { g },
            taps,
            products,
            sums,
            dx: b.input.then(|| output(l.output)),
            dcoef: norm.map(|_| output(l.output + 1)),
            dnorm: norm.filter(|n| n.affine).map(|_| [vector(l.output + 2), vector(l.output + 3)]),
            dweights: b.weight.then(|| [output(l.weight_output), output(l.weight_output + 1)]),
        }
    }

    /// What all kinds of jobs need, without any tensor.
    fn record(&self) -> SeparableGradient {
        let (x, y, branch) = (self.read.map.shape, self.shape, &self.b.branch);
        SeparableGradient {
            rows: y.rows() as u32,
            x_rows: x.rows() as u32,
            channels: x.c as u32,
            out_channels: y.c as u32,
            step: step(y.c) as u32,
            out_groups: 1,
            branches: 1,
            x_h: x.h as u32,
            x_w: x.w as u32,
            y_h: y.h as u32,
            y_w: y.w as u32,
            kernel: branch.kernel as u32,
            dilation: branch.dilation as u32,
            stride: branch.stride as u32,
            pad: branch.pad() as u32,
            inverse_stride: 1.0 / branch.stride as f32,
            ..Default::default()
        }
    }

    /// Adds the map and its normalisation.
    fn reading(&self, record: SeparableGradient, slots: &mut Slots) -> SeparableGradient {
        let [mean, variance, gamma, beta] = self.read.vectors(slots);
        let flags = record.flags | self.read.flags();
        let x = slots.reads(self.read.map);
        let (x_stride, eps) = (self.read.map.row_stride, self.read.eps);
        SeparableGradient { flags, x_stride, eps, x, mean, variance, gamma, beta, ..record }
    }

    fn product(&self, slots: &mut Slots) -> Job<SeparableGradient> {
        let (lanes, groups) = columns(self.read.map.shape.c);
        let (chunk_rows, chunks) = chunks(self.shape.rows(), PIXELS, usize::MAX);
        let store = self.b.weight && is_computed(&self.b);
        let mut record = SeparableGradient {
            flags: flag(self.y.is_some(), COEF) | flag(self.mask.is_some(), MASK) | flag(store, STORE),
            lanes: lanes as u32,
            groups: groups as u32,
            chunk_rows: chunk_rows as u32,
            weight_stride: self.pointwise.row_stride,
            g_stride: self.g.row_stride,
            pointwise: slots.reads(self.pointwise),
            g: slots.reads(self.g),
            dd: slots.writes(self.dd),
            ..self.record()
        };
        if let (Some(y), Some(coef)) = (self.y, self.coef) {
            (record.y, record.y_stride) = (slots.reads(y), y.row_stride);
            (record.coef, record.coef_stride) = (slots.reads(coef), coef.row_stride);
        }
        if let Some(mask) = self.mask {
            record.mask = slots.reads(mask);
        }
        if store {
            // Whole quads are written.
            let shape = self.dy.shape.with_channels(self.dy.row_stride as usize);
            record.dy = slots.writes(Place { shape, ..self.dy });
        }
        let mut maps = [Some(self.g), self.y, self.coef].into_iter().flatten();
        Job { records: vec![record], blocks: chunks * groups, wide: maps.all(Place::wide) }
    }

    fn products(&self, slots: &mut Slots) -> Job<SeparableGradient> {
        let (out_lanes, out_groups) = cover(self.shape.c, OUT_QUADS);
        let (lanes, groups) = cover(self.read.map.shape.c, STEP);
        let cut = Cut::weights(&self.b.branch, self.shape);
        let record = SeparableGradient {
            kind: POINTWISE,
            lanes: lanes as u32,
            groups: groups as u32,
            out_lanes: out_lanes as u32,
            out_groups: out_groups as u32,
            tap_stride: self.depthwise.row_stride,
            g_stride: self.dy.row_stride,
            depthwise: slots.reads(self.depthwise),
            g: slots.reads(self.dy),
            partial: slots.writes(self.products),
            ..self.record()
        };
        let mut places = self.read.places().chain([self.depthwise, self.dy]);
        let record = cut.put(self.reading(record, slots));
        Job { records: vec![record], blocks: cut.chunks * groups * out_groups, wide: places.all(Place::wide) }
    }

    fn taps(&self, slots: &mut Slots) -> Job<SeparableGradient> {
        let taps = self.b.branch.kernel * self.b.branch.kernel;
        assert!(taps <= BLOCK as usize, "a depthwise kernel of {taps} taps, at most {BLOCK} run on GPUs");
        let cut = Cut::weights(&self.b.branch, self.shape);
        let most = if cut.regions.is_some() { STEP } else { BLOCK as usize / taps };
        let (lanes, groups) = cover(self.read.map.shape.c, most);
        let record = SeparableGradient {
            kind: TAPS,
            lanes: lanes as u32,
            groups: groups as u32,
            dd: slots.reads(self.dd),
            partial: slots.writes(self.taps),
            ..self.record()
        };
        let record = cut.put(self.reading(record, slots));
        Job { records: vec![record], blocks: cut.chunks * groups, wide: self.read.places().all(Place::wide) }
    }

    fn fold(&self, slots: &mut Slots) -> Job<PoolTerm> {
        let x = self.read.map.shape;
        let Lanes { lanes, groups, .. } = Lanes::new(x.c);
        let (coef, add) = self.dcoef.expect("only normalised inputs are folded");
        let [mean, variance, gamma, _] = self.read.vectors(slots);
        let mut record = PoolTerm {
            flags: pool::FOLD | flag(add, pool::ACCUMULATE),
            channels: x.c as u32,
            lanes: lanes as u32,
            groups: groups as u32,
            chunks: Cut::sums(&self.b.branch, x).chunks as u32,
            rows: x.rows() as u32,
            coef_stride: coef.row_stride,
            eps: self.read.eps,
            mean,
            variance,
            gamma,
            partial: slots.reads(self.sums),
            coef: slots.writes(coef),
            ..Default::default()
        };
        if let Some([(dgamma, add_gamma), (dbeta, add_beta)]) = self.dnorm {
            record.flags |= pool::AFFINE | flag(add_gamma, pool::DGAMMA_ADD) | flag(add_beta, pool::DBETA_ADD);
            (record.dgamma, record.dbeta) = (slots.writes(dgamma), slots.writes(dbeta));
        }
        let outputs = self.dnorm.into_iter().flatten().map(|(place, _)| place);
        let wide = self.read.places().skip(1).chain(outputs).chain([coef]).all(Place::wide);
        Job { records: vec![record], blocks: groups, wide }
    }

    /// Sums of both weights' gradients, with the places that they go to.
    fn sums(&self) -> Vec<fold::Sums> {
        let chunks = Cut::weights(&self.b.branch, self.shape).chunks;
        let parts = self.dweights.into_iter().flat_map(|outputs| outputs.into_iter().zip([self.taps, self.products]));
        let sums = |((out, accumulate), partial): ((Place, bool), Place)| {
            let chunk_stride = padded(out.shape.len());
            fold::Sums { partial, chunks, chunk_stride, out, accumulate }
        };
        parts.map(sums).collect()
    }
}

/// Branches whose gradients at the input become one.
struct Input {
    branches: Vec<Placed>,
    dx: Place,
    add: bool,
}

impl Input {
    /// Groups the branches that add to the same gradient of the same map.
    fn list(branches: &[Placed]) -> Vec<Self> {
        let mut list: Vec<Self> = Vec::new();
        for placed in branches {
            let Some((dx, add)) = placed.dx else { continue };
            let fits = |input: &Self| {
                let plain = placed.b.branch.norm.is_none() && input.branches[0].b.branch.norm.is_none();
                let first = &input.branches[0];
                let alike = is_tiled(&first.b.branch) == is_tiled(&placed.b.branch);
                let same = alike && input.dx == dx && first.read.map == placed.read.map;
                let places = input.places().chain([placed.depthwise, placed.dd]);
                plain && same && add && input.branches.len() < BRANCHES && pages(places) <= PAGES
            };
            match list.iter_mut().find(|input| fits(input)) {
                Some(input) => input.branches.push(placed.clone()),
                None => list.push(Self { branches: vec![placed.clone()], dx, add }),
            }
        }
        list
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let weights = self.branches.iter().flat_map(|b| [b.depthwise, b.dd]);
        self.branches[0].read.places().chain([self.dx]).chain(weights)
    }

    fn job(&self, slots: &mut Slots) -> Job<SeparableGradient> {
        let first = &self.branches[0];
        let x = first.read.map.shape;
        let Lanes { mut lanes, mut groups, rows } = Lanes::new(x.c);
        let (sums, branch) = (first.dcoef.is_some(), &first.b.branch);
        let alone = || Cut::new(branch, x, usize::MAX, chunks(x.rows(), rows, usize::MAX));
        let cut = if sums { Cut::sums(branch, x) } else { alone() };
        if cut.regions.is_some() {
            (lanes, groups) = cover(x.c, STEP);
        }
        let mut records: Vec<_> = self.branches.iter().map(|b| b.record()).collect();
        for (record, branch) in records.iter_mut().zip(&self.branches) {
            record.kind = INPUT;
            record.tap_stride = branch.depthwise.row_stride;
            record.depthwise = slots.reads(branch.depthwise);
            record.dd = slots.reads(branch.dd);
        }
        records[0].flags = flag(self.add, ADD) | flag(sums, SUMS);
        records[0] = SeparableGradient {
            lanes: lanes as u32,
            groups: groups as u32,
            branches: self.branches.len() as u32,
            dx_stride: self.dx.row_stride,
            dx: slots.writes(self.dx),
            ..first.reading(records[0], slots)
        };
        if sums {
            records[0].partial = slots.writes(first.sums);
        }
        records[0] = cut.put(records[0]);
        let mut places = first.read.places().chain([self.dx]).chain(self.branches.iter().map(|b| b.depthwise));
        Job { records, blocks: cut.chunks * groups, wide: places.all(Place::wide) }
    }
}

/// A job of `separable_backward_gradients`.
enum Gradient {
    Products(Placed),
    Taps(Placed),
    Input(Input),
}

impl Gradient {
    fn job(&self, slots: &mut Slots) -> Job<SeparableGradient> {
        match self {
            Self::Products(placed) => placed.products(slots),
            Self::Taps(placed) => placed.taps(slots),
            Self::Input(input) => input.job(slots),
        }
    }

    /// What is written besides scratch.
    fn output(&self) -> Option<Place> {
        match self {
            Self::Input(input) => Some(input.dx),
            _ => None,
        }
    }
}

impl Lower for SeparableBackward {
    fn pieces(&self, inputs: &[Shape], _outputs: &[Shape]) -> Vec<Piece> {
        let branch = |l: &BackwardLayout| {
            let x = inputs[l.input];
            let y = l.branch.branch.output(x, inputs[l.weights + 1].c);
            let piece =
                |(index, parts): (usize, [usize; 2])| Piece { len: parts.iter().sum(), kept: index == PIECES - 1 };
            parts(&l.branch, x, y).into_iter().enumerate().map(piece).filter(|piece| piece.len > 0)
        };
        BackwardLayout::all(&self.branches).iter().flat_map(branch).collect()
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let mut pieces = at.pieces.iter().copied();
        let layouts = BackwardLayout::all(&self.branches);
        let branches: Vec<_> = layouts.iter().map(|layout| Placed::new(layout, at, &mut pieces)).collect();
        const STEM: &str = "separable_backward";
        let mut launches = jobs::launches(STEM, "separable_backward_product", &branches, Placed::product);
        // The longest first, so that no block of theirs runs alone at the end.
        let weighted = || branches.iter().filter(|b| b.b.weight).cloned();
        let inputs = Input::list(&branches).into_iter().map(Gradient::Input);
        let gradients = weighted().map(Gradient::Products).chain(weighted().map(Gradient::Taps)).chain(inputs);
        for wave in jobs::waves(gradients, |g| g.output().into_iter().collect()) {
            launches.extend(jobs::launches(STEM, "separable_backward_gradients", &wave, Gradient::job));
        }
        let normalised = branches.iter().filter(|b| b.dcoef.is_some());
        let written = |b: &&Placed| b.dnorm.into_iter().flatten().chain(b.dcoef).map(|(place, _)| place).collect();
        for wave in jobs::waves(normalised, written) {
            launches.extend(jobs::launches("pool", "pool_backward", &wave, |b, slots| b.fold(slots)));
        }
        for wave in jobs::waves(branches.iter().flat_map(Placed::sums), |s| vec![s.out]) {
            launches.extend(fold::sums(&wave));
        }
        launches
    }
}
