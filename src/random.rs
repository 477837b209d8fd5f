//! Counter-based randomness: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011).
//!
//! A draw is a pure function of a key (the seed) and a counter (what the number is for), so that nothing depends
//! on the order of evaluation, on the number of threads, or on whether a run was resumed.

/// Multipliers of the two halves of a round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Increments of the two key words between rounds (golden ratio and sqrt(3) - 1).
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// The four words that Philox4x32-10 gives for a counter under a key.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut x, mut k) = (counter, key);
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(x[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(x[2]);
        x = [(b >> 32) as u32 ^ x[1] ^ k[0], b as u32, (a >> 32) as u32 ^ x[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    x
}

/// A word as a number in `[0, 1)`: its top 24 bits, all of which an `f32` holds exactly.
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Two independent standard normal numbers from two words (Box-Muller, in `f64`).
pub fn normal(a: u32, b: u32) -> (f64, f64) {
    const STEP: f64 = 1.0 / 4_294_967_296.0;
    // The half step keeps the logarithm away from zero.
    let radius = (-2.0 * ((f64::from(a) + 0.5) * STEP).ln()).sqrt();
    let angle = std::f64::consts::TAU * (f64::from(b) * STEP);
    (radius * angle.cos(), radius * angle.sin())
}

/// The draws of one seed for one purpose. Two streams that differ in seed or purpose share no counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The Philox key: the seed, low word first.
    pub key: [u32; 2],
    /// What the numbers are for; the second word of the counter.
    pub purpose: u32,
}

impl Stream {
    /// The stream of a seed for a purpose.
    pub fn new(seed: u64, purpose: u32) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], purpose }
    }

    /// Block `block` of four words at `position` (an epoch or a step, say): counter
    /// `[block, purpose, position low, position high]`.
    pub fn block(&self, position: u64, block: u32) -> [u32; 4] {
        philox4x32_10([block, self.purpose, position as u32, (position >> 32) as u32], self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123.
    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_stays_below_one() {
        assert_eq!(uniform(0), 0.0);
        assert_eq!(uniform(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
        assert_eq!(uniform(1 << 31), 0.5);
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let stream = Stream::new(7, 1);
        let draws: Vec<f64> = (0..25_000)
            .flat_map(|i| {
                let [a, b, c, d] = stream.block(3, i);
                let ((p, q), (r, s)) = (normal(a, b), normal(c, d));
                [p, q, r, s]
            })
            .collect();
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.02, "variance {variance}");
        assert!(normal(0, 0).0.is_finite());
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_position() {
        let base = Stream::new(1, 2).block(3, 4);
        for other in [
            Stream::new(2, 2).block(3, 4),
            Stream::new(1 | 1 << 40, 2).block(3, 4),
            Stream::new(1, 3).block(3, 4),
            Stream::new(1, 2).block(3 | 1 << 40, 4),
            Stream::new(1, 2).block(3, 5),
        ] {
            assert_ne!(base, other);
        }
    }
}
