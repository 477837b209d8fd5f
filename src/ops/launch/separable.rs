//! Separable convolutions on GPUs: one launch for all branches. The depthwise result of a tile of pixels goes into shared
//! memory, a few channels at a time, and is multiplied by the pointwise weights from there. On CUDA a block has what a
//! region's stencils reach of a map in shared memory too, and branches that read one map of few channels share a job, so
//! that it is brought there once for all of them. Moments of what a block has written are left for [`fold`].

use super::jobs::{self, Job};
use super::{BLOCK, Launch, Lower, PAGES, Place, Places, Slots, Spot, TABLE_BYTES, fold, norm, record, stretch};
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
/// Lines and columns of a tile.
pub(super) const SIDE: usize = 8;
/// Farthest that the taps of a stencil reach to each side of their pixel.
pub const REACH: usize = 4;
/// Most blocks that share the pixels of a map.
const CHUNKS: usize = 4096;
/// Blocks of an op that are enough to keep a device busy: as long as there are more, branches share jobs.
const BLOCKS: usize = 1024;

/// The map is normalised where it is read.
pub const NORM: u32 = 1;
/// gamma and beta apply.
pub const AFFINE: u32 = 2;
/// Moments of the output are wanted.
pub const MOMENTS: u32 = 4;
/// The output is added to what is there.
pub const ADD: u32 = 8;
/// The depthwise kernel is one of the stencils that CUDA computes from shared memory.
pub const TILED: u32 = 16;

/// The flags by name, as the kernels declare them.
pub const FLAGS: &[(&str, u32)] =
    &[("NORM", NORM), ("AFFINE", AFFINE), ("MOMENTS", MOMENTS), ("ADD", ADD), ("TILED", TILED)];

record! {
    /// One branch; a job goes on over the records of all branches that share it.
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
        /// Pixels of a chunk for who goes along rows; the last ones may have fewer.
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
        /// Tiles side by side in a region.
        tiles: u32,
        /// Regions side by side in an image.
        across: u32,
        /// Regions one below the other in an image.
        down: u32,
        /// Regions of all images.
        regions: u32,
        /// Regions of a chunk for who goes along regions; the last one may have fewer. One if there are several branches.
        chunk_regions: u32,
        /// Records of the job, one a branch.
        branches: u32,
        /// Farthest that taps of the job reach, up to [`REACH`].
        reach: u32,
        /// Added to the variance.
        eps: f32,
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
        self.read.places().chain([self.depthwise, self.pointwise, self.y]).chain(self.partial)
    }

    fn regions(&self) -> Regions {
        Regions::new(&self.branch, self.y.shape)
    }

    fn record(&self, slots: &mut Slots) -> SeparableJob {
        let (x, y, branch) = (self.read.map.shape, self.y.shape, &self.branch);
        let (lanes, groups) = columns(y.c);
        let regions = self.regions();
        let moments = if self.partial.is_some() { MOMENTS } else { 0 };
        let tiled = if is_tiled(branch) { TILED } else { 0 };
        let [mean, variance, gamma, beta] = self.read.vectors(slots);
        SeparableJob {
            flags: self.read.flags() | moments | tiled | if self.accumulate { ADD } else { 0 },
            rows: y.rows() as u32,
            channels: x.c as u32,
            step: step(x.c) as u32,
            out_channels: y.c as u32,
            lanes: lanes as u32,
            groups: groups as u32,
            chunk_rows: y.rows().div_ceil(regions.chunks()) as u32,
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
            tiles: regions.tiles as u32,
            across: regions.across as u32,
            down: regions.down as u32,
            regions: regions.count as u32,
            chunk_regions: regions.chunk() as u32,
            branches: 1,
            reach: branch.pad() as u32,
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
        }
    }
}

/// Whether CUDA computes a depthwise kernel from shared memory.
pub(super) fn is_tiled(branch: &Branch) -> bool {
    branch.stride == 1 && matches!((branch.kernel, branch.dilation), (3 | 5, 1 | 2))
}

/// Most channels of a map of which a region is in shared memory at once.
const WHOLE: usize = 4 * STEP;

/// How the pixels of a map are cut into regions.
pub(super) struct Regions {
    pub tiles: usize,
    pub across: usize,
    pub down: usize,
    pub count: usize,
}

impl Regions {
    /// Those of a branch's output. Two tiles share what lies between them, if a block has threads for both.
    fn new(branch: &Branch, y: Shape) -> Self {
        let fits = 2 * columns(y.c).0 * PIXELS / ROWS <= BLOCK as usize;
        Self::of(y, if is_tiled(branch) && fits && y.w > SIDE { 2 } else { 1 })
    }

    /// Those of so many tiles each.
    pub fn of(y: Shape, tiles: usize) -> Self {
        let (across, down) = (y.w.div_ceil(tiles * SIDE), y.h.div_ceil(SIDE));
        Self { tiles, across, down, count: y.n * across * down }
    }

    /// Regions of a chunk.
    fn chunk(&self) -> usize {
        self.count.div_ceil(CHUNKS).max(1)
    }

    fn chunks(&self) -> usize {
        self.count.div_ceil(self.chunk())
    }
}

/// Branches that share a job.
struct Group {
    branches: Vec<Placed>,
}

impl Group {
    /// Puts branches into groups: those that read one map of few channels without normalisation together, in as many groups
    /// as a device wants blocks.
    fn list(branches: Vec<Placed>) -> Vec<Self> {
        let mut list: Vec<Self> = Vec::new();
        for placed in branches {
            match list.iter_mut().find(|group| group.takes(&placed)) {
                Some(group) => group.branches.push(placed),
                None => list.push(Self { branches: vec![placed] }),
            }
        }
        list.into_iter().flat_map(Self::split).collect()
    }

    fn takes(&self, other: &Placed) -> bool {
        let first = &self.branches[0];
        let shares = |placed: &Placed| {
            let small = placed.read.map.shape.c <= WHOLE && placed.regions().chunk() == 1;
            placed.read.mean_var.is_none() && is_tiled(&placed.branch) && small
        };
        let fits = || pages(self.branches.iter().flat_map(Placed::places).chain(other.places())) <= PAGES;
        let same = first.read.map == other.read.map && first.y.shape == other.y.shape;
        let most = TABLE_BYTES / size_of::<SeparableJob>();
        shares(first) && shares(other) && same && self.branches.len() < most && fits()
    }

    fn blocks(&self) -> usize {
        let first = &self.branches[0];
        first.regions().chunks() * columns(first.y.shape.c).1
    }

    fn split(self) -> Vec<Self> {
        let count = self.branches.len();
        let most = (count * self.blocks() / BLOCKS).clamp(1, count);
        let size = count.div_ceil(count.div_ceil(most));
        let mut branches = self.branches.into_iter();
        let groups = std::iter::from_fn(|| {
            let branches: Vec<Placed> = branches.by_ref().take(size).collect();
            (!branches.is_empty()).then_some(Self { branches })
        });
        groups.collect()
    }

    fn job(&self, slots: &mut Slots) -> Job<SeparableJob> {
        let mut records: Vec<_> = self.branches.iter().map(|placed| placed.record(slots)).collect();
        records[0].branches = records.len() as u32;
        records[0].reach = records.iter().map(|record| record.reach).max().unwrap_or(0);
        let wide = self.branches.iter().flat_map(Placed::places).all(Place::wide);
        Job { records, blocks: self.blocks(), wide }
    }
}

/// Distinct pages.
pub(super) fn pages(places: impl Iterator<Item = Place>) -> usize {
    let mut pages: Vec<u32> = places.map(|p| p.page).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.len()
}

/// Elements of scratch for the moments of a branch's output, whichever kernel takes them.
fn moments_len(branch: &Branch, y: Shape) -> usize {
    fold::moments_len(y.c, Regions::new(branch, y).chunks().max(norm::chunks(y)))
}

impl Lower for Separable {
    fn scratch(&self, _inputs: &[Shape], outputs: &[Shape]) -> usize {
        let layouts = Layout::all(&self.branches);
        let moments = |l: &Layout| moments_len(&l.branch, outputs[l.output]);
        layouts.iter().filter(|l| l.branch.statistics).map(moments).sum()
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
                let partial = stretch(at.scratch, used, moments_len(&placed.branch, y.shape));
                used += partial.shape.len();
                let fits = pages(placed.places().chain([partial])) <= PAGES;
                let chunks = if fits { placed.regions().chunks() } else { norm::chunks(y.shape) };
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
        let mut launches = jobs::launches("separable", "separable_forward", &Group::list(branches), Group::job);
        launches.extend(norm::partial(&apart));
        launches.extend(fold::moments(&moments));
        launches
    }
}
