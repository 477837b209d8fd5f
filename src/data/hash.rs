//! A 128-bit content hash: identities of datasets, keys and checksums of cache files.
//!
//! It guards against accidents (another dataset, a damaged file), not against an adversary who builds collisions.

/// Odd multipliers with well spread bits, one a lane.
const PRIMES: [u64; 2] = [0x9E37_79B1_85EB_CA87, 0xC2B2_AE3D_27D4_EB4F];

/// Incremental hash over a sequence of fields; the boundaries between the fields count.
#[derive(Clone, Debug)]
pub(crate) struct Hasher {
    lanes: [u64; 2],
}

impl Hasher {
    /// An empty hash for one use: hashes with different `domain`s never meet.
    pub(crate) fn new(domain: &str) -> Self {
        let mut hasher = Self { lanes: [0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7344] };
        hasher.field(domain.as_bytes());
        hasher
    }

    /// Adds bytes of any length.
    pub(crate) fn field(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.word(u64::from_le_bytes(word.try_into().expect("chunks of eight")));
        }
        let mut tail = [0; 8];
        tail[..words.remainder().len()].copy_from_slice(words.remainder());
        self.word(u64::from_le_bytes(tail));
        self.word(bytes.len() as u64);
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, value: u64) {
        self.word(value);
    }

    fn word(&mut self, word: u64) {
        // The rotation carries the high bits, which the product alone would never move down.
        for (lane, prime) in self.lanes.iter_mut().zip(PRIMES) {
            *lane = (*lane ^ word).wrapping_mul(prime).rotate_left(29);
        }
        self.lanes[1] = self.lanes[1].wrapping_add(word.rotate_left(17));
    }

    /// The hash.
    pub(crate) fn finish(&self) -> [u8; 16] {
        let [mut a, mut b] = self.lanes;
        for _ in 0..2 {
            a = avalanche(a.wrapping_add(b));
            b = avalanche(b ^ a);
        }
        let mut out = [0; 16];
        out[..8].copy_from_slice(&a.to_le_bytes());
        out[8..].copy_from_slice(&b.to_le_bytes());
        out
    }

    /// The hash as 32 hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        self.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The finaliser of splitmix64: every input bit reaches every output bit.
fn avalanche(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn of(fields: &[&[u8]]) -> String {
        let mut hasher = Hasher::new("test");
        for field in fields {
            hasher.field(field);
        }
        hasher.hex()
    }

    #[test]
    fn every_single_bit_changes_the_hash() {
        let base = [0u8; 40];
        let mut seen = HashSet::from([of(&[&base])]);
        for bit in 0..base.len() * 8 {
            let mut changed = base;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(of(&[&changed])), "bit {bit}");
        }
    }

    #[test]
    fn lengths_boundaries_and_domains_count() {
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b""]), of(&[]));
        assert_ne!(of(&[&[0; 7]]), of(&[&[0; 8]]));
        assert_ne!(Hasher::new("a").hex(), Hasher::new("b").hex());
        assert_eq!(of(&[b"same"]), of(&[b"same"]));
    }
}
