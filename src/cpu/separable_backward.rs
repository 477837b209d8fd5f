//! The gradient of separable convolutions. A task is one chunk of images and one group of branches: those that read the
//! same map in the same way, or add to the same gradient, run in order within a task. What the forward can compute
//! again (the padded map, the depthwise result) is computed again; sums over the batch go to one partial a chunk.

use super::common::{
    Areas, Prologue, Terms, TileArea, TileAreas, contiguous, element, fold, image, overlap, pixels, take_terms,
    transpose,
};
use super::kernel::{Context, Kernel, Launch, Tile};
use super::micro::{self, MaskAccumulate, MaskSums, Matmul, Micro, PadPrologue, flip_taps};
use super::separable::Padded;
use crate::device::view::View;
use crate::graph::Shape;
use crate::ops::norm;
use crate::ops::separable::{BackwardBranch, BackwardLayout, SeparableBackward};

/// Where the gradient of the input goes.
struct InputGradient {
    out: View<f32>,
    accumulate: bool,
    normalised: Option<NormGradient>,
}

/// What a normalised input needs beside the gradient itself.
struct NormGradient {
    s1: View<f32>,
    s2: View<f32>,
    coefficients: (View<f32>, bool),
    affine: Option<[(View<f32>, bool); 2]>,
}

/// Partials and totals of the weights' gradients.
struct WeightGradient {
    depthwise: (View<f32>, View<f32>, bool),
    pointwise: (View<f32>, View<f32>, bool),
}

struct BranchKernel {
    branch: BackwardBranch,
    y: Shape,
    prologue: Prologue,
    /// Whether the padded map of the branch before is that of this one.
    shared: bool,
    terms: Terms,
    depthwise: View<f32>,
    pointwise: View<f32>,
    flipped: View<f32>,
    transposed: View<f32>,
    input: Option<InputGradient>,
    weight: Option<WeightGradient>,
}

/// Tile areas.
struct Tiles {
    padded: TileArea,
    convolved: TileArea,
    dy: TileArea,
    dd: TileArea,
    padded_gradient: TileArea,
    dx: TileArea,
}

/// See [`SeparableBackward`].
pub struct SeparableBackwardKernel {
    branches: Vec<BranchKernel>,
    /// Ranges of branches, and the widest border in each.
    groups: Vec<(std::ops::Range<usize>, usize)>,
    /// Whether two branches add to the same total, so that totals are folded one after the other.
    serial: bool,
    images: usize,
    tiles: Tiles,
    tile: usize,
}

fn branch(l: &BackwardLayout, launch: &Launch<'_>, areas: &mut Areas) -> BranchKernel {
    let BackwardBranch { branch, term, input, weight } = l.branch;
    let prologue = Prologue::new(branch.norm, &launch.inputs[l.input..], areas);
    let (depthwise, pointwise) = (launch.inputs[l.weights], launch.inputs[l.weights + 1]);
    let mut rest = &launch.inputs[l.gradient..];
    let terms = take_terms(&[term], &mut rest);
    let x = prologue.x.shape;
    let chunks = norm::chunks(x.n);
    let output = |i: usize| (launch.outputs[i], launch.accumulate[i]);
    let input = input.then(|| {
        let (out, accumulate) = output(l.output);
        let normalised = branch.norm.map(|norm| NormGradient {
            s1: areas.take(chunks * x.c),
            s2: areas.take(chunks * x.c),
            coefficients: output(l.output + 1),
            affine: norm.affine.then(|| [output(l.output + 2), output(l.output + 3)]),
        });
        InputGradient { out, accumulate, normalised }
    });
    let (flipped, transposed) = (areas.take(depthwise.shape.len()), areas.take(pointwise.shape.len()));
    let weight = weight.then(|| {
        let mut one = |i: usize, len: usize| {
            let (out, accumulate) = output(i);
            (areas.take(chunks * len), out, accumulate)
        };
        WeightGradient {
            depthwise: one(l.weight_output, depthwise.shape.len()),
            pointwise: one(l.weight_output + 1, pointwise.shape.len()),
        }
    });
    let (y, branch) = (branch.output(x, pointwise.shape.c), l.branch);
    let shared = false;
    BranchKernel { branch, y, prologue, shared, terms, depthwise, pointwise, flipped, transposed, input, weight }
}

impl BranchKernel {
    /// Everything that the branch writes to tensors of the program.
    fn totals(&self) -> Vec<View<f32>> {
        let weight = self.weight.iter().flat_map(|w| [w.depthwise.1, w.pointwise.1]);
        let norm = self.input.iter().filter_map(|i| i.normalised.as_ref());
        let affine = norm.flat_map(|n| n.affine.iter().flatten().map(|a| a.0));
        weight.chain(affine).collect()
    }

    fn prepare(&self) {
        self.prologue.prepare();
        transpose(&self.pointwise, &self.transposed);
        let (k, c) = (self.branch.branch.kernel, self.prologue.x.shape.c);
        // SAFETY: both hold `k * k * c` elements.
        unsafe { flip_taps(self.depthwise.ptr(), k, c, self.flipped.ptr()) };
    }

    /// The gradient of the depthwise result's input, in an image of rows that may have a border: first pixel, and
    /// distance between rows.
    fn spread(&self, micro: &Micro, dd: *const f32, tiles: &Tiles, tile: Tile) -> (*const f32, usize) {
        let (branch, x, y) = (self.branch.branch, self.prologue.x.shape, self.y);
        let (pad, c, gradient) = (branch.pad(), x.c, tile.at(tiles.padded_gradient));
        let width = x.w + 2 * pad;
        if branch.stride == 1 {
            let args = PadPrologue {
                x: dd,
                ldx: c,
                h: y.h,
                w: y.w,
                c,
                pad,
                scale: std::ptr::null(),
                shift: std::ptr::null(),
                relu: false,
                out: gradient,
            };
            // SAFETY: the tile of the gradient was sized for the padded image.
            unsafe { (micro.pad_prologue)(&args) };
            let (padded, dx) = (Padded { ptr: gradient, pad, width, c }, tile.at(tiles.dx));
            padded.depthwise(micro, &branch, (x.h, x.w), self.flipped.ptr(), dx);
            return (dx, x.w * c);
        }
        let args = micro::DepthwiseScatter {
            dd,
            ldd: c,
            oh: y.h,
            ow: y.w,
            c,
            k: branch.kernel,
            dilation: branch.dilation,
            stride: branch.stride,
            weights: self.depthwise.ptr(),
            dx: gradient,
            width,
        };
        // SAFETY: as above; windows of the output lie within the padded image.
        unsafe {
            gradient.write_bytes(0, width * (x.h + 2 * pad) * c);
            (micro.depthwise_scatter)(&args);
        }
        (gradient.wrapping_add((pad * width + pad) * c), width * c)
    }

    /// The gradient through ReLU and, if there is one, its sums for the normalisation.
    fn deliver(&self, micro: &Micro, n: usize, chunk: usize, (d, d_row_stride): (*const f32, usize)) {
        let Some(input) = &self.input else { return };
        let shape = self.prologue.x.shape;
        let mask = MaskAccumulate {
            d,
            d_row_stride,
            x: image(&self.prologue.x, n),
            ldx: self.prologue.x.row_stride,
            h: shape.h,
            w: shape.w,
            c: shape.c,
            scale: self.prologue.scale(),
            shift: self.prologue.shift(),
            relu: true,
            out: image(&input.out, n),
            ldo: input.out.row_stride,
            accumulate: input.accumulate,
        };
        // SAFETY: the views cover the image, the partials the chunk, the tile the gradient.
        unsafe {
            match &input.normalised {
                None => (micro.mask_accumulate)(&mask),
                Some(normalised) => (micro.mask_sums)(&MaskSums {
                    mask,
                    mean: self.prologue.mean(),
                    s1: element(&normalised.s1, chunk * shape.c),
                    s2: element(&normalised.s2, chunk * shape.c),
                }),
            }
        }
    }

    /// Adds one image to the partials of the weights' gradients.
    fn weigh(
        &self,
        micro: &Micro,
        chunk: usize,
        padded: &Padded,
        dd: *const f32,
        dy: (*const f32, usize),
        d: *mut f32,
    ) {
        let Some(weight) = &self.weight else { return };
        let (branch, c, y) = (self.branch.branch, self.prologue.x.shape.c, self.y);
        padded.depthwise(micro, &branch, (y.h, y.w), self.depthwise.ptr(), d);
        let pointwise = Matmul {
            a: d,
            lda: c,
            b: dy.0,
            ldb: dy.1,
            out: element(&weight.pointwise.0, chunk * c * y.c),
            ldo: y.c,
            rows: pixels(y),
            k: c,
            n: y.c,
            accumulate: true,
        };
        let depthwise = micro::DepthwiseWeight {
            inp: padded.inner(branch.pad()),
            width: padded.width,
            oh: y.h,
            ow: y.w,
            c,
            k: branch.kernel,
            dilation: branch.dilation,
            stride: branch.stride,
            dd,
            ldd: c,
            dw: element(&weight.depthwise.0, chunk * branch.kernel * branch.kernel * c),
        };
        // SAFETY: the tiles hold the image's maps, the partials those of the chunk.
        unsafe {
            (micro.outer)(&pointwise);
            (micro.depthwise_weight)(&depthwise);
        }
    }

    /// Zeroes the partials of a chunk.
    fn clear(&self, chunk: usize) {
        let norm = self.input.iter().filter_map(|i| i.normalised.as_ref()).flat_map(|n| [&n.s1, &n.s2]);
        let weight = self.weight.iter().flat_map(|w| [&w.depthwise.0, &w.pointwise.0]);
        let chunks = norm::chunks(self.prologue.x.shape.n);
        for partials in norm.chain(weight) {
            let len = partials.shape.len() / chunks;
            // SAFETY: the chunk's part of the area, which no other task touches.
            unsafe { element(partials, chunk * len).write_bytes(0, len) };
        }
    }

    /// Adds up the partials.
    fn finish(&self) {
        if let Some(weight) = &self.weight {
            for (partials, out, accumulate) in [&weight.depthwise, &weight.pointwise] {
                fold(partials, out, *accumulate);
            }
        }
        let Some(norm) = self.input.as_ref().and_then(|i| i.normalised.as_ref()) else { return };
        let (c, rows) = (self.prologue.x.shape.c, self.prologue.x.shape.rows());
        let total = |partials: &View<f32>, i: usize| partials.slice().iter().skip(i).step_by(c).sum::<f32>();
        for i in 0..c {
            let (mean, inv, gamma, _) = self.prologue.channel(i);
            let (s1, s2) = (total(&norm.s1, i), total(&norm.s2, i) * inv);
            let (a, b, d) = norm::coefficients((mean, inv, gamma), 1.0, s1, s2, rows);
            for (row, value) in [a, b, d].into_iter().enumerate() {
                norm.coefficients.0.put(row, i, value, norm.coefficients.1);
            }
            for (total, value) in norm.affine.iter().flatten().zip([s2, s1]) {
                total.0.put(0, i, value, total.1);
            }
        }
    }
}

impl SeparableBackwardKernel {
    /// The kernel, unless the tensors lie in a way that it does not serve.
    pub fn new(op: &SeparableBackward, launch: &Launch<'_>) -> Option<Self> {
        let mut areas = Areas::new(launch.scratch);
        let layouts = BackwardLayout::all(&op.branches);
        let mut branches: Vec<BranchKernel> = layouts.iter().map(|l| branch(l, launch, &mut areas)).collect();
        let mut groups: Vec<(std::ops::Range<usize>, usize)> = Vec::new();
        for i in 0..branches.len() {
            let b = &branches[i];
            let normalised = b.input.as_ref().is_some_and(|g| g.normalised.is_some() && g.accumulate);
            if !contiguous(&b.depthwise) || normalised {
                return None;
            }
            let out = |j: usize| branches[j].input.as_ref().map(|g| &g.out);
            let shared =
                i > 0 && branches[i - 1].prologue.same(b.branch.branch.norm, &launch.inputs[layouts[i].input..]);
            let touches = |j: usize| out(i).zip(out(j)).is_some_and(|(a, b)| overlap(a, b));
            // A branch that adds to an earlier group's gradient draws all groups since into one.
            let first = groups.iter().position(|(range, _)| range.clone().any(touches));
            let join = first.or_else(|| shared.then(|| groups.len() - 1));
            let mut range = (i..i + 1, b.branch.branch.pad());
            if let Some(first) = join {
                let pad = groups[first..].iter().map(|g| g.1).max().unwrap_or(0);
                range = (groups[first].0.start..i + 1, pad.max(range.1));
                groups.truncate(first);
            }
            groups.push(range);
            branches[i].shared = shared;
        }
        let totals: Vec<_> = branches.iter().map(BranchKernel::totals).collect();
        let meet = |i: usize, j: usize| totals[i].iter().any(|a| totals[j].iter().any(|b| overlap(a, b)));
        let serial = (0..branches.len()).any(|i| (0..i).any(|j| meet(i, j)));
        let most = |f: &dyn Fn(&BranchKernel) -> usize| branches.iter().map(f).max().unwrap_or(0);
        let padded = |b: &BranchKernel, pad: usize| {
            let x = b.prologue.x.shape;
            (x.h + 2 * pad) * (x.w + 2 * pad) * x.c
        };
        let widest = groups.iter().flat_map(|(r, pad)| r.clone().map(|i| padded(&branches[i], *pad))).max()?;
        let mut areas = TileAreas::default();
        let tiles = Tiles {
            padded: areas.take(widest),
            convolved: areas.take(most(&|b| pixels(b.y) * b.prologue.x.shape.c)),
            dy: areas.take(most(&|b| pixels(b.y) * b.y.c)),
            dd: areas.take(most(&|b| pixels(b.y) * b.prologue.x.shape.c)),
            padded_gradient: areas.take(most(&|b| padded(b, b.branch.branch.pad()))),
            dx: areas.take(most(&|b| pixels(b.prologue.x.shape) * b.prologue.x.shape.c)),
        };
        let images = branches[0].prologue.x.shape.n;
        Some(Self { branches, groups, serial, images, tiles, tile: areas.len() })
    }

    fn image(&self, micro: &Micro, (range, pad): &(std::ops::Range<usize>, usize), chunk: usize, n: usize, tile: Tile) {
        let mut padded: Option<Padded> = None;
        for b in &self.branches[range.clone()] {
            if !b.shared {
                padded = None;
            }
            let dy = b.terms.gradient(micro, n, 1, tile.at(self.tiles.dy));
            let (c, dd) = (b.prologue.x.shape.c, tile.at(self.tiles.dd));
            let args = Matmul {
                a: dy.ptr,
                lda: dy.ld,
                b: b.transposed.ptr(),
                ldb: c,
                out: dd,
                ldo: c,
                rows: pixels(b.y),
                k: b.y.c,
                n: c,
                accumulate: false,
            };
            // SAFETY: the gradient and the tile hold the image's map, the scratch the transposed weights.
            unsafe { (micro.matmul)(&args) };
            if b.weight.is_some() {
                let fill = || Padded::fill(micro, &b.prologue, n, *pad, tile.at(self.tiles.padded));
                let padded = padded.get_or_insert_with(fill);
                b.weigh(micro, chunk, padded, dd, (dy.ptr, dy.ld), tile.at(self.tiles.convolved));
            }
            if b.input.is_some() {
                let spread = b.spread(micro, dd, &self.tiles, tile);
                b.deliver(micro, n, chunk, spread);
            }
        }
    }
}

impl Kernel for SeparableBackwardKernel {
    fn run(&self, context: &Context<'_>) {
        let (branches, groups) = (self.branches.len(), self.groups.len());
        context.parallel(branches, |b, _| self.branches[b].prepare());
        let images = norm::images_a_chunk(self.images);
        context.parallel(norm::chunks(self.images) * groups, |task, tile| {
            let (chunk, group) = (task / groups, &self.groups[task % groups]);
            self.branches[group.0.clone()].iter().for_each(|b| b.clear(chunk));
            for n in chunk * images..((chunk + 1) * images).min(self.images) {
                self.image(context.micro, group, chunk, n, tile);
            }
        });
        if self.serial {
            self.branches.iter().for_each(BranchKernel::finish);
        } else {
            context.parallel(branches, |b, _| self.branches[b].finish());
        }
    }

    fn tile(&self) -> usize {
        self.tile
    }
}
