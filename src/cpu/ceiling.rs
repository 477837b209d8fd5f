//! The arithmetic ceiling of a core: multiply-adds in registers, with the vector types of the kernels.

use std::hint::black_box;

use super::micro::Level;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Vector};

/// Steps of one chain of multiply-adds.
const CHAIN: usize = 4096;
/// Independent chains: enough to hide the latency of a multiply-add on two or three ports.
const CHAINS: usize = 12;
/// The same without an instruction for it, where the portable type's lanes take more registers.
const PORTABLE_CHAINS: usize = 6;

/// Multiply-adds of [`CHAIN`] steps on `N` independent vectors.
///
/// # Safety
/// The CPU has the instruction set of the type.
#[inline(always)]
unsafe fn chains<V: Vector, const N: usize>() -> f32 {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let (x, mut acc) = (V::splat(black_box(1e-3)), [V::splat(black_box(1.0)); N]);
        for _ in 0..CHAIN {
            for a in &mut acc {
                *a = x.mul_add(x, *a);
            }
        }
        acc.into_iter().fold(V::zero(), V::add).reduce_sum()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
unsafe fn avx512() -> f32 {
    // SAFETY: the features are those of the type.
    unsafe { chains::<Avx512, CHAINS>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2() -> f32 {
    // SAFETY: the features are those of the type.
    unsafe { chains::<Avx2, CHAINS>() }
}

/// Runs a burst of multiply-adds in the registers of one core and returns how many floating-point operations it was
/// (two a multiply-add). A level that the machine lacks falls back to the portable one.
pub fn burst(level: Level) -> f64 {
    let (lanes, result) = match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has the level, as the guard has just checked.
        Level::Avx512 if level.is_available() => (CHAINS * Avx512::LANES, unsafe { avx512() }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 if level.is_available() => (CHAINS * Avx2::LANES, unsafe { avx2() }),
        // SAFETY: this type needs no particular instructions.
        _ => (PORTABLE_CHAINS * Portable::LANES, unsafe { chains::<Portable, PORTABLE_CHAINS>() }),
    };
    black_box(result);
    (2 * CHAIN * lanes) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_counts_its_lanes() {
        for level in Level::available() {
            let lanes = match level {
                Level::Portable => PORTABLE_CHAINS * 8,
                Level::Avx2 => CHAINS * 8,
                Level::Avx512 => CHAINS * 16,
            };
            assert_eq!(burst(level), (2 * CHAIN * lanes) as f64);
        }
    }
}
