//! Random numbers inside a step: augmentation of image batches and drop-path masks. Counter-based (Philox4x32-10), so
//! an image's augmentation depends on (seed, epoch, index) only, never on threads or on what ran before.

use super::{Family, Real};
use crate::device::view::Io;
use crate::graph::{Graph, Shape, Tensor};
use crate::random::{philox4x32_10, uniform};

/// Purposes keep the streams of one seed apart.
pub mod purpose {
    /// Augmentation of training images.
    pub const AUGMENT: u32 = 1;
    /// Drop path.
    pub const DROP_PATH: u32 = 2;
}

fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Crop with padding, horizontal flip, normalisation, cutout after normalisation (a hole of zeros, clipped at the
/// borders). Inputs `pixels [n, h, w, c]` in 0..255, `index [n]`, `epoch [1]`; output the same shape.
#[derive(Clone, Debug)]
pub struct Augment {
    /// Pixels of zero padding from which a crop of the original size is drawn.
    pub pad: usize,
    /// Flip half of the images.
    pub flip: bool,
    /// Side of the square hole; 0 for none.
    pub cutout: usize,
    /// Mean a channel of pixels scaled to 0..1.
    pub mean: Vec<f32>,
    /// Deviation a channel.
    pub std: Vec<f32>,
    /// Seed.
    pub seed: u64,
}

/// What was drawn for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Shift of the crop, -pad..=pad.
    pub dy: isize,
    /// Shift of the crop.
    pub dx: isize,
    /// Mirror left to right.
    pub flip: bool,
    /// Centre row of the hole.
    pub hole_y: usize,
    /// Centre column of the hole.
    pub hole_x: usize,
}

impl Augment {
    /// Records the op.
    pub fn record(graph: &mut Graph, op: Self, [pixels, index, epoch]: [Tensor; 3]) -> Tensor {
        let out = graph.tensor(graph.shape(pixels), "images");
        graph.push(op, vec![pixels, index, epoch], vec![out.into()]);
        out
    }

    /// The random choices for image `index` of an epoch.
    pub fn draw(&self, shape: Shape, index: u32, epoch: u32) -> Draw {
        let bits = |word| philox4x32_10([index, epoch, purpose::AUGMENT, word], key(self.seed));
        let below = |bits: u32, n: usize| ((u64::from(bits) * n as u64) >> 32) as usize;
        let (a, b) = (bits(0), bits(1));
        let span = 2 * self.pad + 1;
        Draw {
            dy: below(a[0], span) as isize - self.pad as isize,
            dx: below(a[1], span) as isize - self.pad as isize,
            flip: self.flip && a[2] >> 31 == 1,
            hole_y: below(b[0], shape.h),
            hole_x: below(b[1], shape.w),
        }
    }

    /// Whether a pixel lies in the hole.
    pub fn in_hole(&self, draw: &Draw, y: usize, x: usize) -> bool {
        let inside = |at: usize, centre: usize| {
            let first = centre as isize - (self.cutout / 2) as isize;
            (at as isize) >= first && (at as isize) < first + self.cutout as isize
        };
        self.cutout > 0 && inside(y, draw.hole_y) && inside(x, draw.hole_x)
    }

    /// Source pixel of an output pixel, if it lies within the image.
    pub fn source(&self, shape: Shape, draw: &Draw, y: usize, x: usize) -> Option<(usize, usize)> {
        let x = if draw.flip { shape.w - 1 - x } else { x };
        let (sy, sx) = (y as isize + draw.dy, x as isize + draw.dx);
        let inside = sy >= 0 && sx >= 0 && (sy as usize) < shape.h && (sx as usize) < shape.w;
        inside.then_some((sy as usize, sx as usize))
    }
}

impl Family for Augment {
    const NAME: &'static str = "augment";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (pixels, index, epoch) = (&io.inputs[0], &io.inputs[1], io.inputs[2].at(0).wide() as u32);
        let shape = pixels.shape;
        for n in 0..shape.n {
            let draw = self.draw(shape, index.at(n).wide() as u32, epoch);
            for (y, x) in (0..shape.h).flat_map(|y| (0..shape.w).map(move |x| (y, x))) {
                let source = self.source(shape, &draw, y, x);
                for c in 0..shape.c {
                    let raw = source.map_or(T::of(0.0), |(sy, sx)| pixels.get(pixels.pixel(n, sy, sx), c));
                    let scaled = raw / T::of(255.0);
                    let value = (scaled - T::of(f64::from(self.mean[c]))) / T::of(f64::from(self.std[c]));
                    let kept = if self.in_hole(&draw, y, x) { T::of(0.0) } else { value };
                    io.put(0, pixels.pixel(n, y, x), c, kept);
                }
            }
        }
    }
}

/// Drop-path factors: 0 with probability p, else 1 / (1 - p), one an image and path.
/// Inputs `p [1]`, `step [1]`; output `[paths, n]`.
#[derive(Clone, Copy, Debug)]
pub struct DropMask {
    /// Seed.
    pub seed: u64,
}

impl DropMask {
    /// Records masks for `paths` paths of a batch of `n`.
    pub fn record(graph: &mut Graph, op: Self, paths: usize, n: usize, [p, step]: [Tensor; 2]) -> Tensor {
        let out = graph.tensor(Shape::matrix(paths, n), "drop path");
        graph.push(op, vec![p, step], vec![out.into()]);
        out
    }

    /// The factor of a path for a row of the batch.
    pub fn factor(&self, p: f32, step: u32, path: usize, row: usize) -> f32 {
        let bits = philox4x32_10([row as u32, path as u32, purpose::DROP_PATH, step], key(self.seed))[0];
        if uniform(bits) < p { 0.0 } else { 1.0 / (1.0 - p) }
    }
}

impl Family for DropMask {
    const NAME: &'static str = "drop_mask";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (p, step) = (io.inputs[0].at(0).wide() as f32, io.inputs[1].at(0).wide() as u32);
        let shape = io.outputs[0].shape;
        for path in 0..shape.rows() {
            for row in 0..shape.c {
                io.put(0, path, row, T::of(f64::from(self.factor(p, step, path, row))));
            }
        }
    }
}
