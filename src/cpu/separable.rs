//! Separable convolutions. A task is one image and one group of branches that read the same map in the same way: the
//! map is padded once, with the widest border of the group, and each branch goes from there through a depthwise tile
//! to its product with the pointwise weights, all in the second-level cache.

use super::common::{Areas, BatchMoments, Prologue, TileArea, TileAreas, contiguous, image, overlap, pixels};
use super::kernel::{Context, Kernel, Launch, Tile};
use super::micro::{self, Matmul, Micro, PadPrologue};
use crate::device::view::View;
use crate::ops::separable::{Branch, Layout, Separable};

/// A map of one image with its normalisation, its ReLU and a border of zeros, in a tile.
#[derive(Clone, Copy, Debug)]
pub struct Padded {
    /// First pixel, in the border.
    pub ptr: *const f32,
    /// Border.
    pub pad: usize,
    /// Pixels of a row, border included.
    pub width: usize,
    /// Channels.
    pub c: usize,
}

impl Padded {
    /// Fills `tile` with image `n` of a prologue's map.
    pub fn fill(micro: &Micro, prologue: &Prologue, n: usize, pad: usize, tile: *mut f32) -> Self {
        let (x, shape) = (image(&prologue.x, n), prologue.x.shape);
        let args = PadPrologue {
            x,
            ldx: prologue.x.row_stride,
            h: shape.h,
            w: shape.w,
            c: shape.c,
            pad,
            scale: prologue.scale(),
            shift: prologue.shift(),
            relu: true,
            out: tile,
        };
        // SAFETY: the view covers the image; the tile was sized for the padded image.
        unsafe { (micro.pad_prologue)(&args) };
        Self { ptr: tile, pad, width: shape.w + 2 * pad, c: shape.c }
    }

    /// First pixel of the same image with a smaller border.
    pub fn inner(&self, pad: usize) -> *const f32 {
        let skip = self.pad - pad;
        self.ptr.wrapping_add((skip * self.width + skip) * self.c)
    }

    /// The depthwise convolution of a branch into `out`, `y.h * y.w` pixels without gaps.
    pub fn depthwise(
        &self,
        micro: &Micro,
        branch: &Branch,
        (oh, ow): (usize, usize),
        weights: *const f32,
        out: *mut f32,
    ) {
        let args = micro::Depthwise {
            inp: self.inner(branch.pad()),
            width: self.width,
            oh,
            ow,
            c: self.c,
            k: branch.kernel,
            dilation: branch.dilation,
            stride: branch.stride,
            weights,
            out,
            ldo: self.c,
        };
        // SAFETY: the border is at least the branch's, so all windows lie in the padded image; `out` was sized for it.
        unsafe { (micro.depthwise)(&args) };
    }
}

/// Branches that share a padded map.
struct Group {
    prologue: Prologue,
    pad: usize,
    branches: Vec<BranchKernel>,
}

struct BranchKernel {
    branch: Branch,
    depthwise: View<f32>,
    pointwise: View<f32>,
    y: View<f32>,
    accumulate: bool,
    moments: Option<BatchMoments>,
}

/// See [`Separable`].
pub struct SeparableKernel {
    groups: Vec<Group>,
    images: usize,
    padded: TileArea,
    convolved: TileArea,
    tile: usize,
}

impl SeparableKernel {
    /// The kernel, unless the tensors lie in a way that it does not serve.
    pub fn new(op: &Separable, launch: &Launch<'_>) -> Option<Self> {
        let mut areas = Areas::new(launch.scratch);
        let mut groups: Vec<Group> = Vec::new();
        for layout in Layout::all(&op.branches) {
            let inputs = &launch.inputs[layout.input..];
            let (depthwise, pointwise) = (launch.inputs[layout.weights()], launch.inputs[layout.weights() + 1]);
            let outputs = &launch.outputs[layout.output..];
            let y = outputs[0];
            if !contiguous(&depthwise) || groups.iter().any(|g| overlap(&g.prologue.x, &y)) {
                return None;
            }
            if !groups.last().is_some_and(|g| g.prologue.same(layout.branch.norm, inputs)) {
                let prologue = Prologue::new(layout.branch.norm, inputs, &mut areas);
                groups.push(Group { prologue, pad: 0, branches: Vec::new() });
            }
            let moments = layout.branch.statistics.then(|| BatchMoments::new(outputs, &mut areas));
            let group = groups.last_mut()?;
            group.pad = group.pad.max(layout.branch.pad());
            let accumulate = launch.accumulate[layout.output];
            group.branches.push(BranchKernel { branch: layout.branch, depthwise, pointwise, y, accumulate, moments });
        }
        let mut tiles = TileAreas::default();
        let padded = |g: &Group| {
            let x = g.prologue.x.shape;
            (x.h + 2 * g.pad) * (x.w + 2 * g.pad) * x.c
        };
        let convolved = |g: &Group| g.branches.iter().map(|b| pixels(b.y.shape) * g.prologue.x.shape.c).max();
        let padded = tiles.take(groups.iter().map(padded).max()?);
        let convolved = tiles.take(groups.iter().filter_map(convolved).max()?);
        let images = groups[0].prologue.x.shape.n;
        Some(Self { images, groups, padded, convolved, tile: tiles.len() })
    }

    fn image(&self, micro: &Micro, group: &Group, n: usize, tile: Tile) {
        let padded = Padded::fill(micro, &group.prologue, n, group.pad, tile.at(self.padded));
        let convolved = tile.at(self.convolved);
        for b in &group.branches {
            let shape = b.y.shape;
            padded.depthwise(micro, &b.branch, (shape.h, shape.w), b.depthwise.ptr(), convolved);
            let args = Matmul {
                a: convolved,
                lda: padded.c,
                b: b.pointwise.ptr(),
                ldb: b.pointwise.row_stride,
                out: image(&b.y, n),
                ldo: b.y.row_stride,
                rows: pixels(shape),
                k: padded.c,
                n: shape.c,
                accumulate: b.accumulate,
            };
            // SAFETY: the tile holds the depthwise result, the views cover weights and image.
            unsafe { (micro.matmul)(&args) };
            if let Some(moments) = &b.moments {
                moments.image(micro, n);
            }
        }
    }
}

impl Kernel for SeparableKernel {
    fn run(&self, context: &Context<'_>) {
        self.groups.iter().for_each(|g| g.prologue.prepare());
        context.parallel(self.images * self.groups.len(), |task, tile| {
            let group = &self.groups[task % self.groups.len()];
            self.image(context.micro, group, task / self.groups.len(), tile);
        });
        context.parallel(self.groups.len(), |group, _| {
            self.groups[group].branches.iter().filter_map(|b| b.moments.as_ref()).for_each(BatchMoments::fold);
        });
    }

    fn tile(&self) -> usize {
        self.tile
    }
}
