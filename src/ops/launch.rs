//! The contract between ops and GPU devices: how an op becomes kernel launches, the same ones on CUDA and on wgpu.
//!
//! A device cuts its memory (arena and store) into *pages*: buffers of fewer than 2^32 elements, aligned to 16 bytes.
//! A tensor lies within one page, at a [`Place`]. An op that implements [`Lower`] turns the places of its tensors into
//! [`Launch`]es; a launch names an entry point of `kernels/<source>.cu` and `shaders/<source>.wgsl` and carries what
//! both take:
//!
//! - a parameter record, `repr(C)`, of `u32`, `f32` and [`Spot`] only, its size a multiple of 16 bytes: the same bytes
//!   are a CUDA kernel's first argument and a WGSL uniform;
//! - the whole pages that it binds, at most [`PAGES`]: records name tensors by [`Spot`], never by a binding of their
//!   own, so that a mixture of 42 maps binds as few buffers as a mixture of one;
//! - if the number of tensors is not fixed, a *table* of records of the same kind, at most [`TABLE_BYTES`].
//!
//! The launches of an op run in order, each after the last one's writes have landed. Within a launch every element
//! is written by one thread at most: there are no atomics, and each reduction has a shape that depends on tensor shapes
//! only. An op lowers whatever its tensors' pages are, but the fewer they are, the fewer launches it takes.
//!
//! To give an op its launches: implement [`Lower`] in `ops/launch/<family>.rs`, name it in [`Op::lower`], write the
//! kernel and the shader, and add cases to `tests/gpu/cases.rs`.

pub mod augment;
pub mod certificate;
pub mod dense;
pub mod elementary;
pub mod elementwise;
pub mod fold;
pub mod folded;
pub mod global_pool;
pub mod jobs;
pub mod loss;
pub mod merge;
pub mod mixture;
pub mod norm;
pub mod optimiser;
pub mod pool;
pub mod reduce;
pub mod second_order;
pub mod separable;
pub mod separable_backward;
pub mod separable_records;
pub mod softmax;
mod terms;
pub mod transport;

use std::ops::Range;

use super::Op;
use crate::graph::Shape;
use crate::graph::plan::Piece;

/// Threads of a block; `workgroup_size` of a shader.
pub const BLOCK: u32 = 256;
/// Pages that one launch can bind: the storage buffers that WebGPU grants every shader.
pub const PAGES: usize = 8;
/// Largest table: the uniform range that Vulkan grants every shader.
pub const TABLE_BYTES: usize = 16 << 10;
/// Largest extent of a grid in any dimension.
pub const GRID: u32 = 65_535;

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Page, as the device counts them.
    pub page: u32,
    /// First element, counted from the start of the page.
    pub offset: u32,
    /// Elements from one pixel to the next.
    pub row_stride: u32,
    /// Extent.
    pub shape: Shape,
    /// Stored in halves, two elements a word, in whole quads (`Place::wide`): offset and stride count halves.
    pub half: bool,
}

impl Place {
    /// Offset of element `i` in row-major order.
    fn element(self, i: usize) -> u32 {
        self.offset + (i / self.shape.c) as u32 * self.row_stride + (i % self.shape.c) as u32
    }

    /// The same place, checked to be `c` consecutive elements.
    fn vector(self, c: usize) -> Self {
        let adjacent = self.shape.rows() == 1 || self.row_stride as usize == self.shape.c;
        assert!(self.shape.len() == c && adjacent, "a vector of {c} channels must be contiguous, not {self:?}");
        self
    }

    /// Whether each group of four channels starts at a multiple of 16 bytes and none is cut.
    fn wide(self) -> bool {
        [self.offset, self.row_stride, self.shape.c as u32].iter().all(|n| n % 4 == 0)
    }

    /// Whether a vector starts at a multiple of 16 bytes and no group of four channels is cut.
    fn packed(self) -> bool {
        self.offset.is_multiple_of(4) && self.shape.len().is_multiple_of(4)
    }

    /// From the first element to behind the last one, in units of two bytes.
    pub(crate) fn extent(self) -> Range<u64> {
        let rows = self.shape.rows() as u64;
        let end = u64::from(self.offset) + rows.saturating_sub(1) * u64::from(self.row_stride) + self.shape.c as u64;
        let unit = if self.half { 1 } else { 2 };
        unit * u64::from(self.offset)..unit * end
    }

    /// Whether both have memory in common. Slices of channels of one map lie between each other without; what lies in the
    /// rows of a map of the other kind counts as touched.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        let (a, b) = (self.extent(), other.extent());
        if self.page != other.page || a.start >= b.end || b.start >= a.end {
            return false;
        }
        let stride = self.row_stride;
        let strided = stride == other.row_stride && self.shape.rows() > 1 && other.shape.rows() > 1;
        if !strided || self.half != other.half {
            return true;
        }
        // Columns of `other` counted from the first of `self`, around the row.
        let (width, other_width) = (self.shape.c as u32, other.shape.c as u32);
        let apart = (other.offset % stride + stride - self.offset % stride) % stride;
        apart < width || apart + other_width > stride
    }
}

/// `elements` elements of `scratch`, from `start` on.
fn stretch(scratch: Place, start: usize, elements: usize) -> Place {
    let offset = scratch.offset + start as u32;
    Place { offset, row_stride: elements as u32, shape: Shape::vector(elements), ..scratch }
}

/// The tensors of one op, placed.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Tensors read.
    pub inputs: &'a [Place],
    /// Tensors written.
    pub outputs: &'a [Place],
    /// For each output, whether it adds to what is there.
    pub accumulate: &'a [bool],
    /// The op's private memory, [`Lower::scratch`] elements from `offset` on, `offset` a multiple of 4.
    pub scratch: Place,
    /// All of [`Lower::pieces`], each at a multiple of 4; the first one is `scratch`.
    pub pieces: &'a [Place],
}

/// A tensor as a record names it: page (index into [`Launch::pages`], with the bit [`HALF`] for a tensor in halves) and
/// first element. `uint2` in CUDA, `vec2<u32>` in WGSL.
pub type Spot = [u32; 2];

/// The bit of a [`Spot`]'s page that says that the tensor is stored in halves.
pub const HALF: u32 = 1 << 16;

/// A `repr(C)` record that CUDA and WGSL declare with the same fields; a test compares the three declarations.
pub trait Record: bytemuck::Pod {
    /// Name of the struct.
    const NAME: &'static str;
    /// Names and types of the fields, in order.
    const FIELDS: &'static [(&'static str, &'static str)];
}

/// Declares a [`Record`].
macro_rules! record {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ident),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_meta])* pub $field: $kind),* }

        impl $crate::ops::launch::Record for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), stringify!($kind))),*];
        }

        const _: () = assert!(size_of::<$name>() % 16 == 0, "records are multiples of 16 bytes");
    };
}
pub(crate) use record;

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Stem of the file in `kernels/` and `shaders/`.
    pub source: &'static str,
    /// Entry point.
    pub kernel: &'static str,
    /// Compile the source with 16-byte accesses: every group of four channels is aligned and whole.
    pub wide: bool,
    /// Compile the source with accesses to halves: some tensor of the launch is stored so. They all are bf16 on CUDA and f16
    /// on wgpu; kernels compute in f32 whatever is stored.
    pub halves: bool,
    /// Bytes of the parameter record.
    pub params: Vec<u8>,
    /// Bytes of the table; empty if the kernel takes none.
    pub table: Vec<u8>,
    /// The page to bind at each slot.
    pub pages: Vec<u32>,
    /// Blocks in each dimension, at most [`GRID`]; the kernel counts `x + y * grid[0]`.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Fields of the table's records, if the launch is made of jobs ([`jobs`]) and others can join it.
    pub jobs: Option<&'static [(&'static str, &'static str)]>,
    /// What a launch of jobs reads; none for others.
    pub reads: Vec<Place>,
    /// What a launch of jobs writes; none for others, of which only the op is known.
    pub writes: Vec<Place>,
}

/// An op that runs on GPUs.
pub trait Lower {
    /// Elements of private memory that the launches need, a function of the shapes only.
    fn scratch(&self, _inputs: &[Shape], _outputs: &[Shape]) -> usize {
        0
    }

    /// The same memory in pieces, each within one page, for ops that need more than a page may hold.
    fn pieces(&self, inputs: &[Shape], outputs: &[Shape]) -> Vec<Piece> {
        Piece::one(self.scratch(inputs, outputs))
    }

    /// The launches, to be run in order.
    fn launches(&self, at: &Places<'_>) -> Vec<Launch>;
}

impl Op {
    /// How the op runs on GPUs.
    pub fn lower(&self) -> &dyn Lower {
        match self {
            Self::Accumulate(op) => op,
            Self::Adam(op) => op,
            Self::Affine(op) => op,
            Self::Certificate(op) => op,
            Self::CostExtent(op) => op,
            Self::CrossEntropy(op) => op,
            Self::CrossEntropyBackward(op) => op,
            Self::Fill(op) => op,
            Self::GlobalNorm(op) => op,
            Self::GlobalPool(op) => op,
            Self::GlobalPoolBackward(op) => op,
            Self::HessianTerm(op) => op,
            Self::Linear(op) => op,
            Self::Mixture(op) => op,
            Self::MixtureBackward(op) => op,
            Self::Separable(op) => op,
            Self::Dense(op) => op,
            Self::DenseBackward(op) => op,
            Self::Pool(op) => op,
            Self::PoolBackward(op) => op,
            Self::Reduce(op) => op,
            Self::ReduceBackward(op) => op,
            Self::SeparableBackward(op) => op,
            Self::Statistics(op) => op,
            Self::Augment(op) => op,
            Self::DropMask(op) => op,
            Self::Folded(op) => op,
            Self::Relu(op) => op,
            Self::ReluBackward(op) => op,
            Self::Scale(op) => op,
            Self::ScaleBackward(op) => op,
            Self::BatchNorm(op) => op,
            Self::BatchNormBackward(op) => op,
            Self::Depthwise(op) => op,
            Self::DepthwiseBackward(op) => op,
            Self::PairCost(op) => op,
            Self::Sinkhorn(op) => op,
            Self::Perturb(op) => op,
            Self::RunningUpdate(op) => op,
            Self::Sgd(op) => op,
            Self::Softmax(op) => op,
            Self::SoftmaxBackward(op) => op,
            Self::Unroll(op) => op,
        }
    }
}

/// Folds a number of blocks into a grid. The kernel ignores blocks beyond that number.
pub fn grid(blocks: usize) -> [u32; 3] {
    let x = blocks.clamp(1, GRID as usize);
    [x as u32, blocks.div_ceil(x).max(1) as u32, 1]
}

/// How a block of [`BLOCK`] threads covers a map: each thread owns four neighbouring channels (a quad) and walks over
/// rows; `lanes` quads lie side by side, `groups` such groups cover all channels. Depends on the number of channels
/// only, not on alignment, so that wide and narrow accesses sum in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    /// Quads that a block covers.
    pub lanes: usize,
    /// Blocks side by side that cover all channels.
    pub groups: usize,
    /// Rows that a block covers at once.
    pub rows: usize,
}

impl Lanes {
    /// The cover of `c` channels.
    pub fn new(c: usize) -> Self {
        let quads = c.div_ceil(4);
        let groups = quads.div_ceil(32);
        let lanes = quads.div_ceil(groups);
        Self { lanes, groups, rows: BLOCK as usize / lanes }
    }

    /// Rows of a chunk and number of chunks, if a block covers whole multiples of `tile` times its rows and there are
    /// to be at most `most` chunks.
    fn chunks(self, rows: usize, tile: usize, most: usize) -> (usize, usize) {
        let tile = self.rows * tile;
        let chunk = rows.div_ceil(tile).div_ceil(most).max(1) * tile;
        (chunk, rows.div_ceil(chunk))
    }
}

/// What one launch touches, collected while its records are written.
#[derive(Clone, Default)]
struct Slots {
    pages: Vec<u32>,
    halves: bool,
    read: Vec<Place>,
    written: Vec<Place>,
}

impl Slots {
    fn slot(&mut self, place: Place) -> Spot {
        let known = self.pages.iter().position(|&page| page == place.page);
        let slot = known.unwrap_or_else(|| {
            self.pages.push(place.page);
            self.pages.len() - 1
        });
        assert!(!place.half || place.wide(), "halves are stored in whole quads, not as {place:?}");
        self.halves |= place.half;
        [slot as u32 | if place.half { HALF } else { 0 }, place.offset]
    }

    /// Names a tensor that the launch reads.
    fn reads(&mut self, place: Place) -> Spot {
        self.read.push(place);
        self.slot(place)
    }

    /// Names a tensor that the launch writes.
    fn writes(&mut self, place: Place) -> Spot {
        self.written.push(place);
        self.slot(place)
    }

    /// The launch of `[source, kernel]` that touches these tensors, of a kernel that takes no table.
    fn launch<P: Record>(&self, [source, kernel]: [&'static str; 2], wide: bool, blocks: usize, params: &P) -> Launch {
        Launch {
            source,
            kernel,
            wide,
            halves: self.halves,
            params: bytemuck::bytes_of(params).to_vec(),
            table: Vec::new(),
            pages: self.pages.clone(),
            grid: grid(blocks),
            block: BLOCK,
            jobs: None,
            reads: Vec::new(),
            writes: Vec::new(),
        }
    }

    fn clashes(&self, other: &Self) -> bool {
        let hits = |a: &[Place], b: &[Place]| a.iter().any(|x| b.iter().any(|y| x.overlaps(*y)));
        hits(&self.written, &other.written) || hits(&self.written, &other.read) || hits(&self.read, &other.written)
    }
}

/// The records of one launch.
struct Batch<'a, T, R> {
    slots: Slots,
    items: &'a [T],
    table: Vec<R>,
}

/// Writes the records of all items and distributes them over launches, in order: at most `most` to one, at most
/// [`PAGES`] pages together with those that `base` names, and none writing what another one of the same launch touches.
/// There is one launch at least.
fn batches<'a, T, R>(
    items: &'a [T],
    base: &Slots,
    most: usize,
    record: impl Fn(&T, &mut Slots) -> R,
) -> Vec<Batch<'a, T, R>> {
    let mut done = Vec::new();
    let mut start = 0;
    let mut batch = Batch { slots: base.clone(), items: &items[..0], table: Vec::new() };
    for (index, item) in items.iter().enumerate() {
        let mut alone = Slots::default();
        record(item, &mut alone);
        let mut slots = batch.slots.clone();
        let mut written = record(item, &mut slots);
        if !batch.table.is_empty()
            && (slots.pages.len() > PAGES || batch.table.len() == most || alone.clashes(&batch.slots))
        {
            start = index;
            slots = base.clone();
            written = record(item, &mut slots);
            done.push(std::mem::replace(&mut batch, Batch { slots: base.clone(), items: &[], table: Vec::new() }));
        }
        assert!(slots.pages.len() <= PAGES, "one record spans more than {PAGES} pages");
        batch.table.push(written);
        batch = Batch { slots, items: &items[start..=index], table: batch.table };
    }
    done.push(batch);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(page: u32, offset: u32, c: usize) -> Place {
        Place { page, offset, row_stride: c as u32, shape: Shape::vector(c), half: false }
    }

    #[test]
    fn grids_stay_within_the_limit_and_cover_all_blocks() {
        for blocks in [1, 65_535, 65_536, 200_000, 4_000_000] {
            let [x, y, z] = grid(blocks);
            assert!(x <= GRID && y <= GRID && z == 1);
            assert!(x as usize * y as usize >= blocks);
        }
    }

    #[test]
    fn lanes_cover_every_channel() {
        for c in 1..600 {
            let Lanes { lanes, groups, rows } = Lanes::new(c);
            assert!(lanes * groups * 4 >= c && lanes * rows <= BLOCK as usize && lanes <= 32, "{c} channels");
        }
    }

    #[test]
    fn slices_of_one_map_do_not_overlap() {
        let slice = |offset, c| Place { shape: Shape::map(2, 3, 3, c), row_stride: 16, ..vector(0, offset, c) };
        assert!(!slice(100, 4).overlaps(slice(104, 12)) && !slice(104, 12).overlaps(slice(100, 4)));
        assert!(slice(100, 5).overlaps(slice(104, 12)) && slice(104, 12).overlaps(slice(100, 5)));
        // A row further down, and beside it.
        assert!(slice(100, 4).overlaps(slice(132, 4)) && !slice(100, 4).overlaps(slice(136, 4)));
        assert!(!slice(100, 4).overlaps(slice(100 + 18 * 16, 4)));
        assert!(slice(100, 4).overlaps(vector(0, 120, 4)), "a vector in between counts as touched");
    }

    #[test]
    fn halves_take_half_the_memory() {
        let map = |offset: u32, half: bool| Place { half, shape: Shape::map(1, 2, 2, 8), ..vector(0, offset, 8) };
        // 32 elements: words 100 to 115 in halves, 100 to 131 otherwise.
        assert_eq!((map(200, true).extent(), map(100, false).extent()), (200..232, 200..264));
        assert!(map(200, true).overlaps(map(84, false)) && map(84, false).overlaps(map(200, true)));
        assert!(!map(200, true).overlaps(map(116, false)) && !map(200, true).overlaps(map(68, false)));
        assert!(map(200, true).overlaps(map(224, true)) && !map(200, true).overlaps(map(232, true)));
        let slice = |offset: u32, half: bool| Place { row_stride: 16, ..map(offset, half) };
        assert!(!slice(200, true).overlaps(slice(208, true)) && slice(200, true).overlaps(slice(204, true)));
        assert!(slice(200, true).overlaps(slice(104, false)), "different kinds");
        let mut slots = Slots::default();
        assert_eq!((slots.reads(map(8, false)), slots.halves), ([0, 8], false));
        assert_eq!((slots.reads(map(8, true)), slots.halves), ([HALF, 8], true));
    }

    #[test]
    fn batches_respect_pages_and_never_write_twice() {
        let record = |&(read, write): &(Place, Place), slots: &mut Slots| (slots.reads(read), slots.writes(write));
        let sizes = |items: &[(Place, Place)], base: &Slots, most: usize| {
            let batches = batches(items, base, most, record);
            assert!(batches.iter().all(|b| b.slots.pages.len() <= PAGES && b.table.len() == b.items.len()));
            batches.iter().map(|b| b.items.len()).collect::<Vec<_>>()
        };
        let mut base = Slots::default();
        base.writes(vector(200, 0, 4));
        let spread: Vec<_> = (0..20).map(|i| (vector(i, 0, 4), vector(100, 4 * i, 4))).collect();
        assert_eq!(sizes(&spread, &base, 64), [6, 6, 6, 2]);
        let same: Vec<_> = (0..3).map(|_| (vector(0, 0, 4), vector(1, 0, 4))).collect();
        assert_eq!(sizes(&same, &base, 64), [1, 1, 1]);
        let apart: Vec<_> = (0..5).map(|i| (vector(0, 0, 4), vector(1, 4 * i, 4))).collect();
        assert_eq!(sizes(&apart, &base, 64), [5]);
        assert_eq!(sizes(&apart, &base, 2), [2, 2, 1]);
        assert_eq!(sizes(&[], &base, 2), [0]);
    }
}
