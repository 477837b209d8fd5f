//! Pending gradient terms as launches take them: each a record of its own, or a part of one.

use super::{PAGES, Place, Slots, Spot};
use crate::graph::{Shape, TermKind};

/// `a * mask * g + b * y + d`, or `mask * g`, placed.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedTerm {
    /// The gradient.
    pub g: Place,
    /// Coefficients a, b, d, a row each, and the map `y`.
    pub coef: Option<(Place, Place)>,
    /// Factors, one an image.
    pub mask: Option<Place>,
}

/// What records say of a term.
#[derive(Clone, Copy, Default)]
pub(super) struct TermSpots {
    pub g: Spot,
    pub y: Spot,
    pub coef: Spot,
    pub mask: Spot,
    pub g_stride: u32,
    pub y_stride: u32,
    pub coef_stride: u32,
}

impl PlacedTerm {
    /// Takes the tensors of a term off the front of an input list; `y` is the map that its coefficients multiply.
    pub fn take(kind: TermKind, y: Option<Place>, inputs: &mut &[Place]) -> Self {
        let mut next = || take(inputs);
        let g = next();
        let coef = kind.coef.then(|| (next(), y.expect("present with coefficients")));
        let mask = kind.mask.map(|row| {
            let mask = next();
            let (offset, images) = (mask.element(row * mask.shape.c), mask.shape.c);
            Place { offset, row_stride: images as u32, shape: Shape::vector(images), ..mask }
        });
        Self { g, coef, mask }
    }

    /// The term at `c` channels from `first` on.
    pub fn channels(self, first: usize, c: usize) -> Self {
        let slice = |place| channels(place, first, c);
        Self { g: slice(self.g), coef: self.coef.map(|(coef, y)| (slice(coef), slice(y))), ..self }
    }

    /// Names the tensors.
    pub fn spots(&self, slots: &mut Slots) -> TermSpots {
        let mut spots = TermSpots { g: slots.reads(self.g), g_stride: self.g.row_stride, ..Default::default() };
        if let Some((coef, y)) = self.coef {
            (spots.coef, spots.coef_stride) = (slots.reads(coef), coef.row_stride);
            (spots.y, spots.y_stride) = (slots.reads(y), y.row_stride);
        }
        if let Some(mask) = self.mask {
            spots.mask = slots.reads(mask);
        }
        spots
    }

    /// Whether the maps and coefficients allow 16-byte accesses; factors are read one by one.
    pub fn wide(&self) -> bool {
        self.g.wide() && self.coef.is_none_or(|(coef, y)| coef.wide() && y.wide())
    }
}

/// Takes the first of an input list.
pub(super) fn take(inputs: &mut &[Place]) -> Place {
    let (first, rest) = inputs.split_first().expect("recorded with all inputs");
    *inputs = rest;
    *first
}

/// `c` channels of a map from `first` on.
pub(super) fn channels(place: Place, first: usize, c: usize) -> Place {
    Place { offset: place.offset + first as u32, shape: place.shape.with_channels(c), ..place }
}

/// Cuts a list of what one job sums up into stretches that bind no more pages than a launch has, one at least; each but the
/// first is to add to what the one before has written. `base` holds what every stretch touches.
pub(super) fn stretches<'a, T>(
    items: &'a [T],
    base: &Slots,
    most: usize,
    touch: impl Fn(&T, &mut Slots),
) -> Vec<&'a [T]> {
    let mut done = Vec::new();
    let (mut start, mut slots) = (0, base.clone());
    for (index, item) in items.iter().enumerate() {
        touch(item, &mut slots);
        if index > start && (slots.pages.len() > PAGES || index - start == most) {
            done.push(&items[start..index]);
            (start, slots) = (index, base.clone());
            touch(item, &mut slots);
        }
    }
    done.push(&items[start..]);
    done
}
