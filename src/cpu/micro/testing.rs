//! What the tests of the kernels share: guarded buffers, reproducible numbers and tolerances.

use super::{Level, Micro};

/// Numbers of channels that exercise whole vectors, halves and tails of every width.
pub(super) const CHANNELS: [usize; 10] = [1, 3, 8, 10, 16, 24, 32, 36, 48, 64];

/// Floats before and behind every buffer that no kernel may use.
const GUARD: usize = 64;

/// Every table of kernels that this machine can run.
pub(super) fn tables() -> Vec<Micro> {
    Level::available().into_iter().filter_map(Micro::new).collect()
}

/// Numbers in [-1, 1) from a linear congruential generator.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A map whose gaps and surroundings are NaN: reading them spoils the result, writing them is found by
/// [`Map::values`].
#[derive(Clone)]
pub(super) struct Map {
    data: Vec<f32>,
    rows: usize,
    c: usize,
    pub(super) ld: usize,
}

impl Map {
    /// `rows * c` numbers with a gap of `gap` floats between the rows.
    pub(super) fn random(rows: usize, c: usize, gap: usize, random: &mut Random) -> Self {
        let mut map = Self::poisoned(rows, c, gap);
        for r in 0..rows {
            for i in 0..c {
                *map.at_mut(r, i) = random.next();
            }
        }
        map
    }

    /// NaN everywhere: a map to be overwritten.
    pub(super) fn poisoned(rows: usize, c: usize, gap: usize) -> Self {
        let ld = c + gap;
        Self { data: vec![f32::NAN; rows * ld + 2 * GUARD], rows, c, ld }
    }

    /// One number for each channel.
    pub(super) fn vector(c: usize, random: &mut Random) -> Self {
        Self::random(1, c, 0, random)
    }

    pub(super) fn ptr(&self) -> *const f32 {
        self.data[GUARD..].as_ptr()
    }

    pub(super) fn ptr_mut(&mut self) -> *mut f32 {
        self.data[GUARD..].as_mut_ptr()
    }

    pub(super) fn at(&self, r: usize, i: usize) -> f64 {
        assert!(r < self.rows && i < self.c);
        f64::from(self.data[GUARD + r * self.ld + i])
    }

    pub(super) fn at_mut(&mut self, r: usize, i: usize) -> &mut f32 {
        assert!(r < self.rows && i < self.c);
        &mut self.data[GUARD + r * self.ld + i]
    }

    /// All numbers in order, after a check that what surrounds them is untouched.
    pub(super) fn values(&self) -> Vec<f64> {
        for (i, x) in self.data.iter().enumerate() {
            let inside = i >= GUARD && i < GUARD + self.rows * self.ld && (i - GUARD) % self.ld < self.c;
            assert!(inside || x.is_nan(), "a float outside the map was written");
        }
        (0..self.rows).flat_map(|r| (0..self.c).map(move |i| (r, i))).map(|(r, i)| self.at(r, i)).collect()
    }

    /// Asserts that the numbers are `expected(r, i)` up to rounding.
    pub(super) fn check(&self, what: &str, expected: impl Fn(usize, usize) -> f64) {
        for (at, x) in self.values().into_iter().enumerate() {
            let (r, i) = (at / self.c, at % self.c);
            let e = expected(r, i);
            assert!((x - e).abs() <= 2e-5 * (1.0 + e.abs()), "{what}: row {r} channel {i}: {x} instead of {e}");
        }
    }
}

/// The images of the convolution and pooling tests: (h, w).
pub(super) const IMAGES: [(usize, usize); 4] = [(9, 8), (3, 5), (2, 2), (5, 19)];

/// Output length of a window walk over a padded length.
pub(super) fn out_len(len: usize, pad: usize, k: usize, dilation: usize, stride: usize) -> usize {
    (len + 2 * pad - dilation * (k - 1) - 1) / stride + 1
}
