//! Vectors of `f32` for each instruction set behind one trait, so that every kernel is written once.
//!
//! All methods are `#[inline(always)]` and carry no target features themselves: they dissolve into a
//! `#[target_feature]` wrapper (see [`super::micro`]), and only there do the intrinsics become single instructions.
//! Called from anywhere else they would still be correct on a machine that has the instructions, but slow.

/// A register of `LANES` floats.
///
/// Values can only be made by `unsafe` constructors whose caller vouches that the CPU has the instruction set; the
/// arithmetic on existing values is therefore safe.
pub trait Vector: Copy {
    /// A narrower vector for tails of at most half the lanes; the type itself where there is none.
    type Half: Vector;
    /// One truth value a lane.
    type Mask: Copy;
    /// Number of floats.
    const LANES: usize;
    /// Number of architectural registers, which bounds the register tiles.
    const REGISTERS: usize;

    /// All lanes 0.
    ///
    /// # Safety
    /// The CPU has the instruction set of the type.
    unsafe fn zero() -> Self;
    /// All lanes `x`.
    ///
    /// # Safety
    /// The CPU has the instruction set of the type.
    unsafe fn splat(x: f32) -> Self;
    /// Reads `LANES` floats, of any alignment.
    ///
    /// # Safety
    /// The CPU has the instruction set of the type and `p` is valid for reading `LANES` floats.
    unsafe fn load(p: *const f32) -> Self;
    /// Reads the first `n <= LANES` floats and nothing behind them; the other lanes are 0.
    ///
    /// # Safety
    /// The CPU has the instruction set of the type and `p` is valid for reading `n` floats.
    unsafe fn load_part(p: *const f32, n: usize) -> Self;
    /// Asks for the cache line of `p`, which may lie anywhere; does nothing where there is no such instruction.
    #[inline(always)]
    fn prefetch(_p: *const f32) {}
    /// Writes `LANES` floats, of any alignment.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` floats.
    unsafe fn store(self, p: *mut f32);
    /// Writes the first `n <= LANES` floats and nothing behind them.
    ///
    /// # Safety
    /// `p` is valid for writing `n` floats.
    unsafe fn store_part(self, p: *mut f32, n: usize);

    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self * a + b`, rounded once where the instruction set fuses it.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// `self > other ? self : other`: `other` when a lane of either is NaN.
    fn max(self, other: Self) -> Self;
    /// `self < other ? self : other`: `other` when a lane of either is NaN.
    fn min(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * 2^n` where `self` is within 0.5..2 and the low bits of `magic` are those of the integer n in -126..=127.
    fn shift_exponent(self, magic: Self) -> Self;
    /// Mantissa within `sqrt(1/2)..sqrt(2)` and exponent of positive normal numbers: `self = mantissa * 2^exponent`.
    fn split_exponent(self) -> (Self, Self);
    /// Lanes where `self > 0`.
    fn positive(self) -> Self::Mask;
    /// Lanes where `self == other`.
    fn equal(self, other: Self) -> Self::Mask;
    /// `self` where the mask is set, 0 elsewhere.
    fn keep(self, mask: Self::Mask) -> Self;
    /// `self` where the mask is clear, 0 elsewhere.
    fn drop_where(self, mask: Self::Mask) -> Self;

    /// Sum of the lanes: the upper half is folded onto the lower until one is left.
    #[inline(always)]
    fn reduce_sum(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        const { assert!(Self::LANES <= 16 && Self::LANES.is_power_of_two()) };
        // SAFETY: the array holds at least `LANES` floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
        }
        lanes[0]
    }
}

/// `2^x` to two units in the last place. The exponent is clamped to -126..=126, so a result is always normal and a
/// sum of them shows an overflow by its size; NaN gives the smallest.
///
/// # Safety
/// The CPU has the instruction set of the type.
#[inline(always)]
pub(crate) unsafe fn exp2<V: Vector>(x: V) -> V {
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // Smallest relative error on -1/2..1/2: 7.5e-8.
    const C: [f32; 5] = [1.0, 0.693_146_97, 0.240_221_2, 0.055_507_13, 0.009_675_541];
    const LAST: f32 = 0.001_327_647;
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let magic = V::splat(MAGIC);
        let x = x.max(V::splat(-126.0)).min(V::splat(126.0));
        let n = x.add(magic);
        let r = x.sub(n.sub(magic));
        let mut p = V::splat(LAST);
        for &c in C.iter().rev() {
            p = p.mul_add(r, V::splat(c));
        }
        p.shift_exponent(n)
    }
}

/// `log2(x)` of positive normal numbers to about 1e-7 of the larger of 1 and the result.
///
/// # Safety
/// The CPU has the instruction set of the type.
#[inline(always)]
pub(crate) unsafe fn log2<V: Vector>(x: V) -> V {
    // 2 / ln 2 times the series of the inverse hyperbolic tangent: log m = 2 artanh((m - 1) / (m + 1)).
    const C: [f32; 5] = [2.885_39, 0.961_796_7, 0.577_078, 0.412_198_6, 0.320_598_9];
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let (m, e) = x.split_exponent();
        let one = V::splat(1.0);
        let s = m.sub(one).div(m.add(one));
        let z = s.mul(s);
        let mut p = V::splat(C[4]);
        for &c in C[..4].iter().rev() {
            p = p.mul_add(z, V::splat(c));
        }
        p.mul_add(s, e)
    }
}

/// `max(0, x)` that lets NaN through.
#[inline(always)]
pub(crate) fn relu<V: Vector>(x: V, zero: V) -> V {
    zero.max(x)
}

/// A whole vector, or its first `n` lanes where `FULL` is false.
///
/// # Safety
/// Like [`Vector::load`] or [`Vector::load_part`].
#[inline(always)]
pub(crate) unsafe fn ld<V: Vector, const FULL: bool>(p: *const f32, n: usize) -> V {
    // SAFETY: the caller's promise is the one of the method called.
    unsafe { if FULL { V::load(p) } else { V::load_part(p, n) } }
}

/// Writes a whole vector, or its first `n` lanes where `FULL` is false.
///
/// # Safety
/// Like [`Vector::store`] or [`Vector::store_part`].
#[inline(always)]
pub(crate) unsafe fn st<V: Vector, const FULL: bool>(p: *mut f32, n: usize, v: V) {
    // SAFETY: the caller's promise is the one of the method called.
    unsafe { if FULL { v.store(p) } else { v.store_part(p, n) } }
}

/// Coefficients `p[lo..lo + n]` of a channel block, or `default` in every lane where `p` is null.
///
/// # Safety
/// Like [`ld`] at `p + lo` unless `p` is null.
#[inline(always)]
pub(crate) unsafe fn coef<V: Vector, const FULL: bool>(p: *const f32, lo: usize, n: usize, default: f32) -> V {
    // SAFETY: the caller's promise.
    unsafe { if p.is_null() { V::splat(default) } else { ld::<V, FULL>(p.add(lo), n) } }
}

/// Bits of `sqrt(1/2)`: where a mantissa begins in [`Vector::split_exponent`].
const ROOT_HALF: i32 = 0x3f35_04f3;

/// Eight floats in plain Rust, which the compiler maps to whatever the baseline of the target offers.
#[derive(Clone, Copy, Debug)]
pub struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = [0.0; 8];
        for (o, (x, y)) in out.iter_mut().zip(self.0.into_iter().zip(other.0)) {
            *o = f(x, y);
        }
        Self(out)
    }
}

impl Vector for Portable {
    type Half = Self;
    type Mask = [bool; 8];
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise: eight floats, read without an alignment.
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut out = [0.0; 8];
        for (i, lane) in out.iter_mut().enumerate() {
            if i < n {
                // SAFETY: `i < n`, and the caller promises `n` floats.
                *lane = unsafe { *p.add(i) };
            }
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise: eight floats, written without an alignment.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        for (i, &lane) in self.0.iter().enumerate() {
            if i < n {
                // SAFETY: `i < n`, and the caller promises `n` floats.
                unsafe { *p.add(i) = lane }
            }
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }
    // Not `f32::mul_add`: without the FMA instruction that is a library call for each lane.
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        self.mul(a).add(b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |x, y| x / y)
    }
    #[inline(always)]
    fn shift_exponent(self, magic: Self) -> Self {
        self.zip(magic, |x, n| f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    fn split_exponent(self) -> (Self, Self) {
        let exponent = |x: f32| (x.to_bits() as i32).wrapping_sub(ROOT_HALF) >> 23;
        let mantissa = |x: f32| f32::from_bits(x.to_bits().wrapping_sub((exponent(x) << 23) as u32));
        (Self(self.0.map(mantissa)), Self(self.0.map(|x| exponent(x) as f32)))
    }
    #[inline(always)]
    fn positive(self) -> [bool; 8] {
        self.0.map(|x| x > 0.0)
    }
    #[inline(always)]
    fn equal(self, other: Self) -> [bool; 8] {
        let mut out = [false; 8];
        for (o, (x, y)) in out.iter_mut().zip(self.0.into_iter().zip(other.0)) {
            *o = x == y;
        }
        out
    }
    #[inline(always)]
    fn keep(self, mask: [bool; 8]) -> Self {
        let mut out = self.0;
        for (o, set) in out.iter_mut().zip(mask) {
            *o = if set { *o } else { 0.0 };
        }
        Self(out)
    }
    #[inline(always)]
    fn drop_where(self, mask: [bool; 8]) -> Self {
        self.keep(mask.map(|m| !m))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Half};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ROOT_HALF, Vector};

    /// The methods that differ between the widths in the name of the intrinsic only.
    macro_rules! arithmetic {
        ($zero:ident $splat:ident $load:ident $store:ident $add:ident $sub:ident $mul:ident $fma:ident $max:ident) => {
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller vouches for the instruction set.
                Self(unsafe { $zero() })
            }
            #[inline(always)]
            fn prefetch(p: *const f32) {
                // SAFETY: a hint, which never faults, of an instruction that every x86-64 has.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            }
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: the caller vouches for the instruction set.
                Self(unsafe { $splat(x) })
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                // SAFETY: the caller vouches for the instruction set and for the memory.
                Self(unsafe { $load(p) })
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                // SAFETY: the caller vouches for the memory; the value exists, so the CPU has the instruction.
                unsafe { $store(p, self.0) }
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instruction.
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instruction.
                Self(unsafe { $sub(self.0, other.0) })
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instruction.
                Self(unsafe { $mul(self.0, other.0) })
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instruction.
                Self(unsafe { $fma(self.0, a.0, b.0) })
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instruction.
                Self(unsafe { $max(self.0, other.0) })
            }
        };
    }

    /// The methods on the bits of exponents.
    macro_rules! exponents {
        ($min:ident $div:ident $bits:ident $float:ident $shl:ident $sar:ident $add:ident $sub:ident $set:ident $cvt:ident) => {
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instruction.
                Self(unsafe { $min(self.0, other.0) })
            }
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instruction.
                Self(unsafe { $div(self.0, other.0) })
            }
            #[inline(always)]
            fn shift_exponent(self, magic: Self) -> Self {
                // SAFETY: the value exists, so the CPU has the instructions.
                Self(unsafe { $float($add($bits(self.0), $shl::<23>($bits(magic.0)))) })
            }
            #[inline(always)]
            fn split_exponent(self) -> (Self, Self) {
                // SAFETY: the value exists, so the CPU has the instructions.
                unsafe {
                    let bits = $bits(self.0);
                    let exponent = $sar::<23>($sub(bits, $set(ROOT_HALF)));
                    (Self($float($sub(bits, $shl::<23>(exponent)))), Self($cvt(exponent)))
                }
            }
        };
    }

    /// Sixteen floats; needs AVX-512 F and VL (the latter for [`Avx512Half`]).
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512(__m512);

    /// Mask of the first `n` lanes.
    #[inline(always)]
    fn first(n: usize) -> u32 {
        (1u32 << n) - 1
    }

    impl Vector for Avx512 {
        type Half = Avx512Half;
        type Mask = __mmask16;
        const LANES: usize = 16;
        const REGISTERS: usize = 32;

        arithmetic!(_mm512_setzero_ps _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps
            _mm512_mul_ps _mm512_fmadd_ps _mm512_max_ps);
        exponents!(_mm512_min_ps _mm512_div_ps _mm512_castps_si512 _mm512_castsi512_ps _mm512_slli_epi32
            _mm512_srai_epi32 _mm512_add_epi32 _mm512_sub_epi32 _mm512_set1_epi32 _mm512_cvtepi32_ps);

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            // SAFETY: masked lanes are not accessed; the caller vouches for the rest and the instruction set.
            Self(unsafe { _mm512_maskz_loadu_ps(first(n) as __mmask16, p) })
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            // SAFETY: masked lanes are not accessed; the caller vouches for the rest.
            unsafe { _mm512_mask_storeu_ps(p, first(n) as __mmask16, self.0) }
        }
        #[inline(always)]
        fn positive(self) -> __mmask16 {
            // SAFETY: the value exists, so the CPU has the instruction.
            unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_ps()) }
        }
        #[inline(always)]
        fn equal(self, other: Self) -> __mmask16 {
            // SAFETY: the value exists, so the CPU has the instruction.
            unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
        }
        #[inline(always)]
        fn keep(self, mask: __mmask16) -> Self {
            // SAFETY: the value exists, so the CPU has the instruction.
            Self(unsafe { _mm512_maskz_mov_ps(mask, self.0) })
        }
        #[inline(always)]
        fn drop_where(self, mask: __mmask16) -> Self {
            self.keep(!mask)
        }
    }

    /// Eight floats with the masks and the 32 registers of AVX-512: the tail of [`Avx512`].
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512Half(__m256);

    impl Vector for Avx512Half {
        type Half = Self;
        type Mask = __mmask8;
        const LANES: usize = 8;
        const REGISTERS: usize = 32;

        arithmetic!(_mm256_setzero_ps _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps
            _mm256_mul_ps _mm256_fmadd_ps _mm256_max_ps);
        exponents!(_mm256_min_ps _mm256_div_ps _mm256_castps_si256 _mm256_castsi256_ps _mm256_slli_epi32
            _mm256_srai_epi32 _mm256_add_epi32 _mm256_sub_epi32 _mm256_set1_epi32 _mm256_cvtepi32_ps);

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            // SAFETY: masked lanes are not accessed; the caller vouches for the rest and the instruction set.
            Self(unsafe { _mm256_maskz_loadu_ps(first(n) as __mmask8, p) })
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, n: usize) {
            // SAFETY: masked lanes are not accessed; the caller vouches for the rest.
            unsafe { _mm256_mask_storeu_ps(p, first(n) as __mmask8, self.0) }
        }
        #[inline(always)]
        fn positive(self) -> __mmask8 {
            // SAFETY: the value exists, so the CPU has the instruction.
            unsafe { _mm256_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps()) }
        }
        #[inline(always)]
        fn equal(self, other: Self) -> __mmask8 {
            // SAFETY: the value exists, so the CPU has the instruction.
            unsafe { _mm256_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
        }
        #[inline(always)]
        fn keep(self, mask: __mmask8) -> Self {
            // SAFETY: the value exists, so the CPU has the instruction.
            Self(unsafe { _mm256_maskz_mov_ps(mask, self.0) })
        }
        #[inline(always)]
        fn drop_where(self, mask: __mmask8) -> Self {
            self.keep(!mask)
        }
    }

    /// Eight floats; needs AVX2 and FMA.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2(__m256);

    /// Eight set lanes followed by eight clear ones: a window of it masks the first `n` lanes.
    static LANE_MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    impl Vector for Avx2 {
        type Half = Self;
        type Mask = __m256;
        const LANES: usize = 8;
        const REGISTERS: usize = 16;

        arithmetic!(_mm256_setzero_ps _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps
            _mm256_mul_ps _mm256_fmadd_ps _mm256_max_ps);
        exponents!(_mm256_min_ps _mm256_div_ps _mm256_castps_si256 _mm256_castsi256_ps _mm256_slli_epi32
            _mm256_srai_epi32 _mm256_add_epi32 _mm256_sub_epi32 _mm256_set1_epi32 _mm256_cvtepi32_ps);

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            debug_assert!(n <= 8);
            // SAFETY: the window `8 - n..16 - n` lies in the table; masked lanes are not accessed, and the caller
            // vouches for the rest and the instruction set.
            unsafe {
                let mask = _mm256_loadu_si256(LANE_MASKS.as_ptr().add(8 - n).cast());
                Self(_mm256_maskload_ps(p, mask))
            }
        }
        // Not `_mm256_maskstore_ps`, which some CPUs run as dozens of micro-operations.
        #[inline(always)]
        unsafe fn store_part(self, mut p: *mut f32, n: usize) {
            debug_assert!(n <= 8);
            // SAFETY: the pieces of 8, 4, 2 and 1 floats add up to `n`, for which the caller vouches.
            unsafe {
                if n == 8 {
                    return self.store(p);
                }
                let mut v = _mm256_castps256_ps128(self.0);
                if n & 4 != 0 {
                    _mm_storeu_ps(p, v);
                    v = _mm256_extractf128_ps::<1>(self.0);
                    p = p.add(4);
                }
                if n & 2 != 0 {
                    _mm_storel_pd(p.cast(), _mm_castps_pd(v));
                    v = _mm_movehl_ps(v, v);
                    p = p.add(2);
                }
                if n & 1 != 0 {
                    _mm_store_ss(p, v);
                }
            }
        }
        #[inline(always)]
        fn positive(self) -> __m256 {
            // SAFETY: the value exists, so the CPU has the instruction.
            unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps()) }
        }
        #[inline(always)]
        fn equal(self, other: Self) -> __m256 {
            // SAFETY: the value exists, so the CPU has the instruction.
            unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0) }
        }
        #[inline(always)]
        fn keep(self, mask: __m256) -> Self {
            // SAFETY: the value exists, so the CPU has the instruction.
            Self(unsafe { _mm256_and_ps(mask, self.0) })
        }
        #[inline(always)]
        fn drop_where(self, mask: __m256) -> Self {
            // SAFETY: the value exists, so the CPU has the instruction.
            Self(unsafe { _mm256_andnot_ps(mask, self.0) })
        }
    }
}
