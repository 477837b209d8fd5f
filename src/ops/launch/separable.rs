//! Separable convolutions on GPUs: one launch for all branches. A block takes a branch and walks over tiles of pixels: the
//! depthwise result of a tile goes into shared memory, a few channels at a time, and is multiplied by the pointwise
//! weights from there. Moments of what a block has written are left for [`fold`].

use super::jobs::{self, Job};
use super::{Launch, Lower, PAGES, Place, Places, Slots, Spot, fold, norm, record, stretch};
use crate::graph::Shape;
use crate::ops::norm::Norm;
use crate::ops::separable::{Branch, Layout, Separable};

/// Pixels of a tile.
pub const PIXELS: usize = 64;
/// Pixels of a tile that one thread multiplies.
pub const ROWS: usize = 4;
/// Quads of channels that are in shared memory at once.
pub const STEP: usize = 4;
/// Most quads of columns that a block multiplies.
pub const COLUMNS: usize = 12;
/// Most blocks that share the pixels of a map.
const CHUNKS: usize = 512;

/// The map is normalised where it is read.
pub const NORM: u32 = 1;
/// gamma and beta apply.
pub const AFFINE: u32 = 2;
/// Moments of the output are wanted.
pub const MOMENTS: u32 = 4;
/// The output is added to what is there.
pub const ADD: u32 = 8;

/// The flags by name, as the kernels declare them.
pub const FLAGS: &[(&str, u32)] = &[("NORM", NORM), ("AFFINE", AFFINE), ("MOMENTS", MOMENTS), ("ADD", ADD)];

record! {
    /// One branch.
    SeparableJob {
        /// See [`jobs`].
        first_block: u32,
        /// See [`jobs`].
        blocks: u32,
        /// What applies and what is wanted.
        flags: u32,
        /// Pixels of the output.
        rows: u32,
        /// Channels of the input.
        channels: u32,
        /// Quads of input channels that are in shared memory at once.
        step: u32,
        /// Channels of the output.
        out_channels: u32,
        /// Quads of output channels that a block computes.
        lanes: u32,
        /// Blocks side by side that cover all output channels.
        groups: u32,
        /// Pixels of a chunk, whole tiles; the last one may have fewer.
        chunk_rows: u32,
        /// Lines of an image of the input.
        x_h: u32,
        /// Pixels of its lines.
        x_w: u32,
        /// Lines of an image of the output.
        y_h: u32,
        /// Pixels of its lines.
        y_w: u32,
        /// Side of the depthwise kernel.
        kernel: u32,
        /// Spacing of the taps.
        dilation: u32,
        /// Stride of the convolution.
        stride: u32,
        /// Padding on each side.
        pad: u32,
        /// Elements from one pixel of the input to the next.
        x_stride: u32,
        /// Elements from one tap to the next.
        tap_stride: u32,
        /// Elements from one row of the pointwise weights to the next.
        weight_stride: u32,
        /// Elements from one pixel of the output to the next.
        y_stride: u32,
        /// Added to the variance.
        eps: f32,
        /// Zero.
        unused: u32,
        /// The map.
        x: Spot,
        /// Mean a channel.
        mean: Spot,
        /// Variance a channel.
        variance: Spot,
        /// Scale a channel.
        gamma: Spot,
        /// Shift a channel.
        beta: Spot,
        /// Depthwise weights.
        depthwise: Spot,
        /// Pointwise weights.
        pointwise: Spot,
        /// The output.
        y: Spot,
        /// Moments of each chunk: see `fold::moments_len`.
        partial: Spot,
        /// Zero.
        unused_spot: Spot,
    }
}

/// How the columns of a product are distributed: quads of a block, and blocks side by side.
pub(super) fn columns(c: usize) -> (usize, usize) {
    let quads = c.div_ceil(4);
    let groups = quads.div_ceil(COLUMNS);
    (quads.div_ceil(groups), groups)
}

/// Quads of channels of one step, so that all steps are about as long.
pub(super) fn step(c: usize) -> usize {
    let quads = c.div_ceil(4);
    quads.div_ceil(quads.div_ceil(STEP))
}

/// Pixels of a chunk, and chunks: whole tiles of `tile` pixels, at most `most` chunks.
pub(super) fn chunks(rows: usize, tile: usize, most: usize) -> (usize, usize) {
    let chunk = rows.div_ceil(tile).div_ceil(most).max(1) * tile;
    (chunk, rows.div_ceil(chunk))
}

/// A map with the normalisation under which a branch reads it.
#[derive(Clone, Copy)]
pub(super) struct Read {
    pub map: Place,
    pub mean_var: Option<(Place, Place)>,
    pub affine: Option<(Place, Place)>,
    pub eps: f32,
}

impl Read {
    /// Takes a branch's inputs apart.
    pub fn new(norm: Option<Norm>, inputs: &[Place]) -> Self {
        let map = inputs[0];
        let pair = |i: usize| (inputs[i].vector(map.shape.c), inputs[i + 1].vector(map.shape.c));
        Self {
            map,
            mean_var: norm.map(|_| pair(1)),
            affine: norm.filter(|n| n.affine).map(|_| pair(3)),
            eps: norm.map_or(0.0, |n| n.eps as f32),
        }
    }

    /// The map and its vectors.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let pairs = self.mean_var.into_iter().chain(self.affine);
        std::iter::once(self.map).chain(pairs.flat_map(|(a, b)| [a, b]))
    }

    /// [`NORM`] and [`AFFINE`], as they apply.
    pub fn flags(&self) -> u32 {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        flag(self.mean_var.is_some(), NORM) | flag(self.affine.is_some(), AFFINE)
    }

    /// Spots of mean, variance, gamma and beta.
    pub fn vectors(&self, slots: &mut Slots) -> [Spot; 4] {
        let mut pair =
            |pair: Option<(Place, Place)>| pair.map_or([[0; 2]; 2], |(a, b)| [slots.reads(a), slots.reads(b)]);
        let ([mean, variance], [gamma, beta]) = (pair(self.mean_var), pair(self.affine));
        [mean, variance, gamma, beta]
    }
}

/// One branch with its tensors.
struct Placed {
    branch: Branch,
    read: Read,
    depthwise: Place,
    pointwise: Place,
    y: Place,
    accumulate: bool,
    /// Moments of the chunks, if the block that writes them can.
    partial: Option<Place>,
}

impl Placed {
    fn places(&self) -> impl Iterator<Item = Place> {
        self.read.places().chain([self.depthwise, self.pointwise, self.y])
    }

    fn job(&self, slots: &mut Slots) -> Job<SeparableJob> {
        let (x, y, branch) = (self.read.map.shape, self.y.shape, &self.branch);
        let (lanes, groups) = columns(y.c);
        let (chunk_rows, chunks) = chunks(y.rows(), PIXELS, CHUNKS);
        let moments = if self.partial.is_some() { MOMENTS } else { 0 };
        let [mean, variance, gamma, beta] = self.read.vectors(slots);
        let record = SeparableJob {
            flags: self.read.flags() | moments | if self.accumulate { ADD } else { 0 },
            rows: y.rows() as u32,
            channels: x.c as u32,
            step: step(x.c) as u32,
            out_channels: y.c as u32,
            lanes: lanes as u32,
            groups: groups as u32,
            chunk_rows: chunk_rows as u32,
            x_h: x.h as u32,
            x_w: x.w as u32,
            y_h: y.h as u32,
            y_w: y.w as u32,
            kernel: branch.kernel as u32,
            dilation: branch.dilation as u32,
            stride: branch.stride as u32,
            pad: branch.pad() as u32,
            x_stride: self.read.map.row_stride,
            tap_stride: self.depthwise.row_stride,
            weight_stride: self.pointwise.row_stride,
            y_stride: self.y.row_stride,
            eps: self.read.eps,
            x: slots.reads(self.read.map),
            mean,
            variance,
            gamma,
            beta,
            depthwise: slots.reads(self.depthwise),
            pointwise: slots.reads(self.pointwise),
            y: slots.writes(self.y),
            partial: self.partial.map_or([0; 2], |partial| slots.writes(partial)),
            ..Default::default()
        };
        Job { records: vec![record], blocks: chunks * groups, wide: self.places().all(Place::wide) }
    }
}

/// Distinct pages.
pub(super) fn pages(places: impl Iterator<Item = Place>) -> usize {
    let mut pages: Vec<u32> = places.map(|p| p.page).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.len()
}

/// Elements of scratch for the moments of a map, whichever kernel takes them.
fn moments_len(y: Shape) -> usize {
    fold::moments_len(y.c, chunks(y.rows(), PIXELS, CHUNKS).1.max(norm::chunks(y)))
}

impl Lower for Separable {
    fn scratch(&self, _inputs: &[Shape], outputs: &[Shape]) -> usize {
        let layouts = Layout::all(&self.branches);
        layouts.iter().filter(|l| l.branch.statistics).map(|l| moments_len(outputs[l.output])).sum()
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (mut branches, mut apart, mut moments, mut used) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for layout in Layout::all(&self.branches) {
            let y = at.outputs[layout.output];
            let mut placed = Placed {
                branch: layout.branch,
                read: Read::new(layout.branch.norm, &at.inputs[layout.input..]),
                depthwise: at.inputs[layout.weights()],
                pointwise: at.inputs[layout.weights() + 1],
                y,
                accumulate: at.accumulate[layout.output],
                partial: None,
            };
            if layout.branch.statistics {
                let partial = stretch(at.scratch, used, moments_len(y.shape));
                used += partial.shape.len();
                let fits = pages(placed.places().chain([partial])) <= PAGES;
                let chunks = if fits { chunks(y.shape.rows(), PIXELS, CHUNKS).1 } else { norm::chunks(y.shape) };
                if fits {
                    placed.partial = Some(partial);
                } else {
                    apart.push((y, partial));
                }
                let (mean, variance) = (at.outputs[layout.output + 1], at.outputs[layout.output + 2]);
                moments.push(fold::Moments { partial, chunks, mean, variance });
            }
            branches.push(placed);
        }
        let mut launches = jobs::launches("separable", "separable_forward", &branches, Placed::job);
        launches.extend(norm::partial(&apart));
        launches.extend(fold::moments(&moments));
        launches
    }
}
