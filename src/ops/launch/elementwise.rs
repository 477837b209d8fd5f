//! Fill, sums of scaled maps, and pending gradient terms on GPUs. Fill and sums take the quads of a map in order,
//! whatever its shape: a flat vector of millions uses every thread. Terms have coefficients a channel, so that a
//! thread keeps to one quad of channels and walks over a few rows.

use super::{BLOCK, Lanes, Launch, Lower, Place, Places, Slots, Spot, TABLE_BYTES, batches, record};
use crate::graph::{Shape, TermKind};
use crate::ops::elementwise::{Affine, Fill, Linear};

/// Quads that a thread of `fill` and `linear` takes.
pub const TILE: usize = 4;
/// Rows that a thread of `affine` takes.
pub const ROWS: usize = 2;
/// Most maps that one launch adds: `TABLE` in the shader.
pub const TABLE: usize = 64;

/// A factor an image applies to a term.
pub const MASK: u32 = 1;
/// Coefficients apply to it.
pub const COEF: u32 = 2;

record! {
    /// Parameters of all elementwise kernels.
    ElementwiseParams {
        /// Blocks that have work.
        blocks: u32,
        /// Rows of the maps.
        rows: u32,
        /// Channels of the maps.
        channels: u32,
        /// Quads of a row.
        quads: u32,
        /// See [`Lanes`].
        lanes: u32,
        /// See [`Lanes`].
        groups: u32,
        /// Rows of one image.
        pixels: u32,
        /// Records of the table.
        terms: u32,
        /// Whether the result is added to what is there.
        accumulate: u32,
        /// Elements from one pixel of the result to the next.
        out_stride: u32,
        /// Elements from one pixel of `y` to the next.
        y_stride: u32,
        /// Whether there is `y`.
        with_y: u32,
        /// The constant of a fill.
        value: f32,
        /// Zero.
        unused: u32,
        /// The result.
        out: Spot,
        /// The map that coefficients multiply.
        y: Spot,
        /// Zero.
        unused_1: Spot,
    }
}

record! {
    /// A map of a sum.
    LinearSource {
        /// The map.
        map: Spot,
        /// Elements from one pixel to the next.
        stride: u32,
        /// Its factor.
        coef: f32,
    }
}

record! {
    /// A term of a gradient.
    AffineTerm {
        /// The gradient behind.
        g: Spot,
        /// Coefficients a, b, d, a row each.
        coef: Spot,
        /// The row of factors, one an image.
        mask: Spot,
        /// Elements from one pixel of `g` to the next.
        g_stride: u32,
        /// Elements from one row of the coefficients to the next.
        coef_stride: u32,
        /// What applies.
        flags: u32,
        /// Zero.
        unused: u32,
        /// Zero.
        unused_1: Spot,
    }
}

const _: () = assert!(TABLE * size_of::<AffineTerm>() <= TABLE_BYTES);

fn contiguous(place: &Place) -> bool {
    place.shape.rows() == 1 || place.row_stride as usize == place.shape.c
}

/// The same elements as one row, if they are contiguous.
fn flat(place: Place) -> Place {
    let len = place.shape.len();
    Place { row_stride: len as u32, shape: Shape::vector(len), ..place }
}

/// Parameters of kernels that take quads in order.
fn quads(out: Place, slots: &mut Slots) -> ElementwiseParams {
    let quads = out.shape.c.div_ceil(4);
    ElementwiseParams {
        blocks: (out.shape.rows() * quads).div_ceil(TILE * BLOCK as usize) as u32,
        rows: out.shape.rows() as u32,
        channels: out.shape.c as u32,
        quads: quads as u32,
        out: slots.writes(out),
        out_stride: out.row_stride,
        ..Default::default()
    }
}

impl Lower for Fill {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let out = if contiguous(&at.outputs[0]) { flat(at.outputs[0]) } else { at.outputs[0] };
        let mut slots = Slots::default();
        let params = ElementwiseParams {
            value: self.value as f32,
            accumulate: u32::from(at.accumulate[0]),
            ..quads(out, &mut slots)
        };
        vec![slots.launch(["elementwise", "fill"], out.wide(), params.blocks as usize, &params)]
    }
}

impl Lower for Linear {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let all_flat = at.inputs.iter().chain(at.outputs).all(contiguous);
        let place = |place: Place| if all_flat { flat(place) } else { place };
        let out = place(at.outputs[0]);
        let sources: Vec<_> = at.inputs.iter().map(|&x| place(x)).zip(self.coefs.iter().copied()).collect();
        let mut base = Slots::default();
        let params = quads(out, &mut base);
        let record = |&(map, coef): &(Place, f64), slots: &mut Slots| LinearSource {
            map: slots.reads(map),
            stride: map.row_stride,
            coef: coef as f32,
        };
        let one = |(index, batch): (usize, super::Batch<'_, (Place, f64), LinearSource>)| {
            let wide = out.wide() && batch.items.iter().all(|(map, _)| map.wide());
            let accumulate = u32::from(at.accumulate[0] || index > 0);
            let params = ElementwiseParams { terms: batch.table.len() as u32, accumulate, ..params };
            let launch = batch.slots.launch(["elementwise", "linear"], wide, params.blocks as usize, &params);
            Launch { table: bytemuck::cast_slice(&batch.table).to_vec(), ..launch }
        };
        batches(&sources, &base, TABLE, record).into_iter().enumerate().map(one).collect()
    }
}

/// A term with the places of its tensors.
struct Term {
    g: Place,
    coef: Option<Place>,
    /// Factor of the first image.
    mask: Option<Place>,
}

impl Term {
    /// Takes the tensors of a term off the front of an input list.
    fn take(kind: TermKind, inputs: &mut impl Iterator<Item = Place>) -> Self {
        let mut next = || inputs.next().expect("recorded with all term tensors");
        let g = next();
        let coef = kind.coef.then(&mut next);
        let mask = kind.mask.map(|row| {
            let factors = next();
            let shape = Shape::vector(factors.shape.c);
            Place { offset: factors.element(row * factors.shape.c), shape, ..factors }
        });
        Self { g, coef, mask }
    }

    fn record(&self, slots: &mut Slots) -> AffineTerm {
        let mut record = AffineTerm { g: slots.reads(self.g), g_stride: self.g.row_stride, ..Default::default() };
        if let Some(coef) = self.coef {
            record.flags |= COEF;
            (record.coef, record.coef_stride) = (slots.reads(coef), coef.row_stride);
        }
        if let Some(mask) = self.mask {
            record.flags |= MASK;
            record.mask = slots.reads(mask);
        }
        record
    }

    fn wide(&self) -> bool {
        self.g.wide() && self.coef.is_none_or(Place::wide)
    }
}

impl Lower for Affine {
    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let (out, shape) = (at.outputs[0], at.outputs[0].shape);
        let mut inputs = at.inputs.iter().copied();
        let with_y = self.terms.iter().any(|t| t.coef);
        let y = if with_y { inputs.next() } else { None };
        let terms: Vec<_> = self.terms.iter().map(|&kind| Term::take(kind, &mut inputs)).collect();
        let lanes = Lanes::new(shape.c);
        let mut base = Slots::default();
        let params = ElementwiseParams {
            blocks: (shape.rows().div_ceil(lanes.rows * ROWS) * lanes.groups) as u32,
            rows: shape.rows() as u32,
            channels: shape.c as u32,
            lanes: lanes.lanes as u32,
            groups: lanes.groups as u32,
            pixels: (shape.h * shape.w) as u32,
            out_stride: out.row_stride,
            y_stride: y.map_or(0, |y| y.row_stride),
            with_y: u32::from(with_y),
            out: base.writes(out),
            y: y.map(|y| base.reads(y)).unwrap_or_default(),
            ..Default::default()
        };
        let one = |(index, batch): (usize, super::Batch<'_, Term, AffineTerm>)| {
            let wide = out.wide() && y.is_none_or(Place::wide) && batch.items.iter().all(Term::wide);
            let accumulate = u32::from(at.accumulate[0] || index > 0);
            let params = ElementwiseParams { terms: batch.table.len() as u32, accumulate, ..params };
            let launch = batch.slots.launch(["elementwise", "affine"], wide, params.blocks as usize, &params);
            Launch { table: bytemuck::cast_slice(&batch.table).to_vec(), ..launch }
        };
        batches(&terms, &base, TABLE, Term::record).into_iter().enumerate().map(one).collect()
    }
}
