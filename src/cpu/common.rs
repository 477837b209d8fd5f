//! What the tuned ops share: areas of scratch and tiles, the normalisation in front of a map, batch statistics, pending
//! gradient terms, and the folding of partial sums.

use std::ptr::null;

use super::kernel::Tile;
use super::micro::{Affine, Micro, Moments};
use crate::device::view::View;
use crate::graph::{Shape, TermKind};
use crate::ops::area;
use crate::ops::elementwise::TermView;
use crate::ops::norm::{self, Norm};
use crate::ops::pool::TermGroup;

/// Divides an op's scratch into areas, in the order in which the op's `scratch` counts them.
pub struct Areas {
    scratch: View<f32>,
    end: usize,
}

impl Areas {
    /// The whole scratch.
    pub fn new(scratch: View<f32>) -> Self {
        Self { scratch, end: 0 }
    }

    /// The next `len` elements.
    pub fn take(&mut self, len: usize) -> View<f32> {
        let start = self.end;
        self.end += area(len);
        assert!(self.end <= self.scratch.shape.len(), "the op planned too little scratch");
        // SAFETY: within the scratch, as just checked.
        unsafe { View::new(self.scratch.ptr().add(start), Shape::vector(len), len) }
    }
}

/// Divides a thread's tile memory into areas.
#[derive(Default)]
pub struct TileAreas {
    end: usize,
}

/// An area of tile memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct TileArea(usize);

impl TileAreas {
    /// The next `len` floats.
    pub fn take(&mut self, len: usize) -> TileArea {
        let start = self.end;
        self.end += area(len);
        TileArea(start)
    }

    /// Floats in all.
    pub fn len(&self) -> usize {
        self.end
    }
}

impl Tile {
    /// First element of an area.
    pub fn at(self, area: TileArea) -> *mut f32 {
        // The device gives each thread as many floats as the kernel asked for, so the result is in bounds.
        self.0.wrapping_add(area.0)
    }
}

/// Pixels of one image.
pub fn pixels(shape: Shape) -> usize {
    shape.h * shape.w
}

/// First pixel of image `n` of a map.
pub fn image(map: &View<f32>, n: usize) -> *mut f32 {
    map.row(n * pixels(map.shape))
}

/// Element `i` of an area.
pub fn element(view: &View<f32>, i: usize) -> *mut f32 {
    assert!(i <= view.shape.len());
    view.ptr().wrapping_add(i)
}

/// Whether all elements follow one another.
pub fn contiguous(view: &View<f32>) -> bool {
    view.row_stride == view.shape.c || view.shape.rows() == 1
}

/// Whether the memory of two views may overlap; channel slices of one map count as overlapping.
pub fn overlap(a: &View<f32>, b: &View<f32>) -> bool {
    let range = |v: &View<f32>| {
        let start = v.ptr() as usize;
        (start, start + 4 * ((v.shape.rows().max(1) - 1) * v.row_stride + v.shape.c))
    };
    let (a, b) = (range(a), range(b));
    a.0 < b.1 && b.0 < a.1
}

/// `relu(h(x))` in front of a convolution: the normalisation as one factor and one summand a channel.
pub struct Prologue {
    /// The map.
    pub x: View<f32>,
    /// The rule.
    pub norm: Option<Norm>,
    /// The map and its statistics.
    inputs: Vec<View<f32>>,
    /// Scale, shift, mean and inverse deviation.
    coefficients: Option<View<f32>>,
}

impl Prologue {
    /// From the inputs that start with the map.
    pub fn new(norm: Option<Norm>, inputs: &[View<f32>], areas: &mut Areas) -> Self {
        let inputs = inputs[..norm::inputs_of(norm)].to_vec();
        let x = inputs[0];
        let coefficients = norm.map(|_| areas.take(4 * x.shape.c));
        Self { x, norm, inputs, coefficients }
    }

    /// Whether two branches read the same map in the same way.
    pub fn same(&self, norm: Option<Norm>, inputs: &[View<f32>]) -> bool {
        self.norm == norm
            && self
                .inputs
                .iter()
                .zip(inputs)
                .all(|(a, b)| (a.ptr(), a.shape, a.row_stride) == (b.ptr(), b.shape, b.row_stride))
    }

    /// Computes the coefficients from the statistics.
    pub fn prepare(&self) {
        let Some(coefficients) = &self.coefficients else { return };
        let c = self.x.shape.c;
        for i in 0..c {
            let (mean, inv, gamma, beta) = norm::channel(self.norm, &self.inputs, i);
            for (row, value) in [gamma * inv, beta - mean * (gamma * inv), mean, inv].into_iter().enumerate() {
                coefficients.set(0, row * c + i, value);
            }
        }
    }

    fn row(&self, row: usize) -> *const f32 {
        self.coefficients.as_ref().map_or(null(), |k| element(k, row * self.x.shape.c))
    }

    /// Factor a channel; null for 1.
    pub fn scale(&self) -> *const f32 {
        self.row(0)
    }

    /// Summand a channel; null for 0.
    pub fn shift(&self) -> *const f32 {
        self.row(1)
    }

    /// Mean a channel; null for 0.
    pub fn mean(&self) -> *const f32 {
        self.row(2)
    }

    /// Mean, inverse deviation, gamma and beta of a channel.
    pub fn channel(&self, c: usize) -> (f32, f32, f32, f32) {
        norm::channel(self.norm, &self.inputs, c)
    }
}

/// Mean and variance of a map over the batch, from centred partials of each image.
pub struct BatchMoments {
    y: View<f32>,
    mean: View<f32>,
    var: View<f32>,
    partials: View<f32>,
}

impl BatchMoments {
    /// From the three outputs of an op.
    pub fn new(outputs: &[View<f32>], areas: &mut Areas) -> Self {
        let (y, mean, var) = (outputs[0], outputs[1], outputs[2]);
        Self { y, mean, var, partials: areas.take(2 * y.shape.n * y.shape.c) }
    }

    /// Reduces image `n`, which has just been written.
    pub fn image(&self, micro: &Micro, n: usize) {
        let c = self.y.shape.c;
        let mean = element(&self.partials, 2 * n * c);
        let m2 = element(&self.partials, (2 * n + 1) * c);
        let y = image(&self.y, n);
        // SAFETY: the image lies within the map and the partials within their area.
        unsafe {
            (micro.moments)(&Moments { y, ldy: self.y.row_stride, rows: pixels(self.y.shape), c, mean, m2 });
        }
    }

    /// Merges the images: all have as many pixels, so the mean is the mean of the means, and the squared deviations
    /// are those within the images and those of the images' means.
    pub fn fold(&self) {
        const LANES: usize = 8;
        let (n, c) = (self.y.shape.n, self.y.shape.c);
        let partials = self.partials.slice();
        let count = pixels(self.y.shape) as f64;
        for lo in (0..c).step_by(LANES) {
            let width = LANES.min(c - lo);
            let rows = |row: usize| partials[row * c + lo..row * c + lo + width].iter().map(|&v| f64::from(v));
            let (mut mean, mut m2) = ([0.0f64; LANES], [0.0f64; LANES]);
            for i in 0..n {
                mean.iter_mut().zip(rows(2 * i)).for_each(|(s, v)| *s += v);
            }
            mean.iter_mut().for_each(|m| *m /= n as f64);
            for i in 0..n {
                for (k, (m, own)) in rows(2 * i).zip(rows(2 * i + 1)).enumerate() {
                    let d = m - mean[k];
                    m2[k] += own + count * d * d;
                }
            }
            for k in 0..width {
                let at = |view: &View<f32>| ((lo + k) / view.shape.c, (lo + k) % view.shape.c);
                let (row, column) = at(&self.mean);
                self.mean.set(row, column, mean[k] as f32);
                let (row, column) = at(&self.var);
                self.var.set(row, column, (m2[k] / (count * n as f64)) as f32);
            }
        }
    }
}

/// Where the gradient at a map is read: as it stands, or computed into a tile.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    /// First pixel.
    pub ptr: *const f32,
    /// Distance between pixels.
    pub ld: usize,
}

/// Takes terms off the front of an input list, after the map that their coefficients multiply.
pub fn take_terms(kinds: &[TermKind], inputs: &mut &[View<f32>]) -> Terms {
    let group = TermGroup::take(kinds, inputs);
    Terms::new(group.y, group.terms)
}

/// Pending gradient of one map: terms, and the map that their coefficients multiply.
pub struct Terms {
    map: Option<View<f32>>,
    terms: Vec<TermView<f32>>,
}

impl Terms {
    /// From the terms of an op and their map, present if any has coefficients.
    fn new(map: Option<View<f32>>, terms: Vec<TermView<f32>>) -> Self {
        for term in &terms {
            if let Some(k) = &term.coef {
                assert!(k.shape.rows() == 3, "coefficients are three rows");
            }
        }
        Self { map, terms }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether the gradient stands as it is in one tensor.
    pub fn plain(&self) -> bool {
        matches!(&self.terms[..], [TermView { coef: None, mask: None, .. }])
    }

    /// The gradient of images `n..n + images`, computed into `tile` unless it is plain.
    pub fn gradient(&self, micro: &Micro, n: usize, images: usize, tile: *mut f32) -> Gradient {
        let g = &self.terms[0].g;
        if self.plain() {
            return Gradient { ptr: image(g, n), ld: g.row_stride };
        }
        let c = g.shape.c;
        for i in 0..images {
            self.write(micro, n + i, tile.wrapping_add(i * pixels(g.shape) * c), c, false);
        }
        Gradient { ptr: tile, ld: c }
    }

    /// Writes or adds the gradient of image `n`.
    pub fn write(&self, micro: &Micro, n: usize, out: *mut f32, ldo: usize, mut accumulate: bool) {
        for term in &self.terms {
            let shape = term.g.shape;
            let row = |i: usize| term.coef.as_ref().map_or(null(), |k| k.row(i).cast_const());
            let map = self.map.as_ref().filter(|_| term.coef.is_some());
            let args = Affine {
                g: image(&term.g, n),
                ldg: term.g.row_stride,
                y: map.map_or(null(), |y| image(y, n).cast_const()),
                ldy: map.map_or(0, |y| y.row_stride),
                rows: pixels(shape),
                c: shape.c,
                a: row(0),
                b: row(1),
                d: row(2),
                s: term.factor(n),
                out,
                ldo,
                accumulate,
                far: far(3, shape.len()),
            };
            // SAFETY: the views cover the image, the coefficients have three rows, and the caller's `out` holds it.
            unsafe { (micro.affine)(&args) };
            accumulate = true;
        }
    }
}

/// Bytes of maps that a processor's shared cache does not keep for one core, by measurement of mixtures: asking ahead makes
/// those of 29 MB and more 1.1 to 2 times as fast, and those of 18 MB slower by a fifth.
const FAR_BYTES: usize = 20 << 20;

/// Whether so many maps of so many floats are to be asked for ahead of their use.
pub fn far(maps: usize, len: usize) -> bool {
    maps * len * size_of::<f32>() > FAR_BYTES
}

/// `out (+)= sum of the partials`, each as long as `out`, in order.
pub fn fold(partials: &View<f32>, out: &View<f32>, accumulate: bool) {
    let (len, columns) = (out.shape.len(), out.shape.c);
    let partials = partials.slice();
    for row in 0..out.shape.rows() {
        // SAFETY: a row of the output; the device runs nothing else that touches it.
        let out = unsafe { std::slice::from_raw_parts_mut(out.row(row), columns) };
        if !accumulate {
            out.fill(0.0);
        }
        for partial in partials.chunks_exact(len) {
            out.iter_mut().zip(&partial[row * columns..]).for_each(|(o, &p)| *o += p);
        }
    }
}

/// `out[j][i] = w[i][j]`.
pub fn transpose(w: &View<f32>, out: &View<f32>) {
    let (rows, columns) = (w.shape.rows(), w.shape.c);
    for i in 0..rows {
        for j in 0..columns {
            out.set(0, j * rows + i, w.get(i, j));
        }
    }
}

/// Fills image `n` of a map with zeros.
pub fn clear_image(map: &View<f32>, n: usize) {
    let rows = pixels(map.shape);
    for row in n * rows..(n + 1) * rows {
        // SAFETY: a row of the view.
        unsafe { map.row(row).write_bytes(0, map.shape.c) };
    }
}
