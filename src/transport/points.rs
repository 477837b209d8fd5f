//! Point clouds as the kernels want them: side by side in one matrix, centred, and scaled by a power of two, so that
//! squared distances neither cancel nor leave the range of f32.

use std::ops::Range;

use crate::error::{Error, Result};

/// Coordinates of a cloud, row after row.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// In single precision.
    Single(&'a [f32]),
    /// In double precision.
    Double(&'a [f64]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Single(v) => v.len(),
            Self::Double(v) => v.len(),
        }
    }

    fn at(&self, i: usize) -> f64 {
        match self {
            Self::Single(v) => v[i].into(),
            Self::Double(v) => v[i],
        }
    }
}

/// A cloud of points with a name for messages.
#[derive(Clone, Copy, Debug)]
pub struct Cloud<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// Coordinates, `[points, dim]`.
    pub values: Values<'a>,
    /// Dimensions.
    pub dim: usize,
}

/// All clouds of a batch of problems.
#[derive(Clone, Debug)]
pub struct Points {
    /// Centred and scaled coordinates, `[all points, dim]`.
    pub(super) rows: Vec<f32>,
    /// Dimensions.
    pub(super) dim: usize,
    /// The factor of the coordinates, a power of two.
    pub(super) scale: f64,
    /// Largest norm of a scaled point.
    pub(super) radius: f64,
    /// First row of each cloud, and the end.
    offsets: Vec<usize>,
}

/// A cost of two points, given that of the kernels, which is half the squared distance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metric {
    /// Half the squared distance.
    #[default]
    Squared,
    /// `1 - cos` of the angle between them: half the squared distance of their directions.
    Cosine,
}

impl Points {
    /// Puts clouds side by side.
    ///
    /// # Errors
    /// [`Error::Usage`] for an empty cloud, unequal dimensions or a coordinate that is not finite, naming the cloud and
    /// the place.
    pub fn new(clouds: &[Cloud<'_>]) -> Result<Self> {
        Self::of(clouds, Metric::Squared)
    }

    /// Puts clouds side by side, their points reduced to directions where angles are to be measured.
    ///
    /// # Errors
    /// As [`Points::new`]; also for a point at the origin, which has no direction.
    pub fn of(clouds: &[Cloud<'_>], metric: Metric) -> Result<Self> {
        let dim = clouds.first().map_or(0, |c| c.dim);
        let (mut offsets, mut lengths) = (vec![0], Vec::new());
        for cloud in clouds {
            let Cloud { name, values, dim: own } = cloud;
            if *own != dim {
                let first = clouds[0].name;
                return Err(Error::usage(format!(
                    "{name} has points of {own} dimensions, {first} of {dim}: both need the same"
                )));
            }
            if dim == 0 || values.len() == 0 || values.len() % dim != 0 {
                return Err(Error::usage(format!(
                    "{name} has {} values in {dim} dimensions: at least one whole point is needed",
                    values.len()
                )));
            }
            if let Some(i) = (0..values.len()).find(|&i| !values.at(i).is_finite()) {
                let (row, column, value) = (i / dim, i % dim, values.at(i));
                return Err(Error::usage(format!(
                    "{name} has the value {value} in row {row}, column {column}: remove or repair that point"
                )));
            }
            let count = values.len() / dim;
            offsets.push(offsets[offsets.len() - 1] + count);
            if metric == Metric::Squared {
                lengths.extend(std::iter::repeat_n((1.0, 1.0), count));
                continue;
            }
            for row in 0..count {
                // In units of the largest coordinate, whose square alone might leave the range.
                let row_values = (row * dim..(row + 1) * dim).map(|i| values.at(i));
                let largest = row_values.clone().fold(0.0, |m: f64, x| m.max(x.abs()));
                if largest == 0.0 {
                    return Err(Error::usage(format!(
                        "{name} has a point at the origin in row {row}: it has no direction; remove it, or measure \
                         squared distances"
                    )));
                }
                lengths.push((largest, row_values.map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()));
            }
        }
        let count = offsets[offsets.len() - 1];
        let (offsets_of, lengths) = (&offsets, &lengths);
        let each = || {
            clouds.iter().zip(offsets_of).flat_map(move |(c, first)| {
                (0..c.values.len()).map(move |i| {
                    let (largest, length) = lengths[first + i / dim];
                    (i % dim, c.values.at(i) / largest / length)
                })
            })
        };
        // The sum is taken of parts, for coordinates near the largest number would overflow it.
        let mut centre = vec![0.0f64; dim];
        each().for_each(|(k, x)| centre[k] += x / count as f64);
        let far = each().map(|(k, x)| (x - centre[k]).abs()).fold(0.0, f64::max);
        if !(4.0 * far * far * dim as f64).is_finite() {
            return Err(Error::usage(format!(
                "points of {} lie too far apart for squares in double precision; scale them down",
                clouds[0].name
            )));
        }
        // The largest coordinate becomes 1/2 to 1; points nearer than 2^-500 count as one, as their squares would.
        let exponent = if far > 0.0 { -(far.log2().floor() + 1.0) } else { 0.0 };
        let scale = exponent.clamp(-520.0, 500.0).exp2();
        let rows: Vec<f32> = each().map(|(k, x)| ((x - centre[k]) * scale) as f32).collect();
        let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let radius = rows.chunks_exact(dim).map(norm).fold(0.0, f64::max);
        Ok(Self { rows, dim, scale, radius, offsets })
    }

    /// Rows of a cloud.
    pub fn cloud(&self, number: usize) -> Range<usize> {
        self.offsets[number]..self.offsets[number + 1]
    }

    /// Dimensions.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Appends copies of rows; returns where they are.
    pub(super) fn repeat(&mut self, rows: &[usize]) -> Range<usize> {
        let start = self.rows.len() / self.dim;
        rows.iter().for_each(|row| self.rows.extend_from_within(row * self.dim..(row + 1) * self.dim));
        start..start + rows.len()
    }

    /// What a cost in the units of the caller is in those of the kernels: the square of the scale.
    pub(super) fn unit(&self) -> f64 {
        self.scale * self.scale
    }

    /// Mean of `|x - y|^2` over all pairs of two ranges of rows, in the caller's units.
    pub fn mean_square_distance(&self, left: Range<usize>, right: Range<usize>) -> f64 {
        let moments = |rows: Range<usize>| {
            let count = rows.len() as f64;
            let (mut mean, mut square) = (vec![0.0f64; self.dim], 0.0);
            for row in self.rows[rows.start * self.dim..rows.end * self.dim].chunks_exact(self.dim) {
                for (m, &x) in mean.iter_mut().zip(row) {
                    *m += f64::from(x) / count;
                    square += f64::from(x).powi(2) / count;
                }
            }
            (mean, square)
        };
        let ((m, a), (n, b)) = (moments(left), moments(right));
        let product: f64 = m.iter().zip(&n).map(|(m, n)| m * n).sum();
        (a + b - 2.0 * product).max(0.0) / self.unit()
    }
}
