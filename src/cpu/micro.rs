//! The micro-kernels and their dispatch table.
//!
//! Every kernel is written once, generic over [`Vector`](super::simd::Vector), as `#[inline(always)]` code, and
//! instantiated for each instruction set inside a `#[target_feature]` wrapper. [`Micro::new`] collects the wrappers of
//! one level as plain function pointers. The kernels work on one image, single-threaded, without global state and in a
//! fixed order of operations, so a result depends on the level and on nothing else.
//!
//! Channels are processed in blocks of one register; what is left over goes to a half register where that suffices
//! and is masked where the channels do not fill it, so any number of channels works and nothing is accessed beyond it.

/// Calls `f::<vector, FULL, consts..>(args.., lo, n)` for each block of channels `lo..lo + n`.
macro_rules! blocks {
    ($v:ident, $c:expr, $f:ident [$($k:tt),*] ($($arg:expr),*)) => {{
        let c: usize = $c;
        let mut lo = 0;
        while lo + $v::LANES <= c {
            $f::<$v, true, $($k),*>($($arg,)* lo, $v::LANES);
            lo += $v::LANES;
        }
        blocks!(@tail $v, c, lo, $f [$($k),*] ($($arg),*));
    }};
    (@tail $v:ident, $c:ident, $lo:ident, $f:ident [$($k:tt),*] ($($arg:expr),*)) => {
        if $lo < $c {
            let n = $c - $lo;
            let half = <$v::Half as Vector>::LANES;
            if half < $v::LANES && n > half {
                $f::<$v, false, $($k),*>($($arg,)* $lo, n);
            } else if half < $v::LANES && n == half {
                $f::<$v::Half, true, $($k),*>($($arg,)* $lo, n);
            } else {
                $f::<$v::Half, false, $($k),*>($($arg,)* $lo, n);
            }
        }
    };
}

/// Repeats a block for each literal, as a constant that `const { .. }` expressions in the block can use.
macro_rules! each {
    ($i:ident in [$($n:literal)*] $body:block) => { $( #[allow(unused_braces)] { const $i: usize = $n; $body } )* };
}

pub mod args;
mod depthwise;
mod flat;
mod matmul;
mod mix;
mod norm;
mod pool;
mod prologue;
#[cfg(test)]
mod testing;
mod transport;

pub use args::*;
pub use depthwise::flip_taps;
pub use transport::{CostTile, KernelRows, LogRows, LseColumns, LseRows, PlanRows, PotentialUpdate, Transform};

use super::simd::Portable;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};

/// Instruction sets that the kernels are compiled for, from slowest to fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The baseline of the compilation target.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F and VL.
    Avx512,
}

impl Level {
    /// The fastest level that this machine has.
    pub fn detect() -> Self {
        *Self::available().last().unwrap_or(&Self::Portable)
    }

    /// All levels that this machine has, from slowest to fastest.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|level| level.is_available()).collect()
    }

    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            match self {
                Self::Portable => true,
                Self::Avx2 => avx2,
                Self::Avx512 => avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }
}

/// Wrappers of all kernels for one vector type.
macro_rules! wrappers {
    ($level:ident $vector:ident $attribute:tt
     $($name:ident in $module:ident ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        mod $level {
            use super::*;
            $(
                # $attribute
                pub(super) unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the table is only handed out where the CPU has the level; the rest is the caller's.
                    unsafe { super::$module::$name::<$vector>($($arg),*) }
                }
            )*
        }
    };
}

/// The table and the wrappers from one list of kernels.
macro_rules! table {
    ($($(#[$doc:meta])* $name:ident in $module:ident ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        /// The kernels of one level.
        ///
        /// # Safety
        /// For every function: all pointers are valid for the elements that the description of the arguments names
        /// (with no element between or behind them required to exist), outputs overlap no inputs except where that is
        /// said to be allowed, and all sizes, strides and distances are consistent. Nothing is checked.
        #[derive(Clone, Copy, Debug)]
        pub struct Micro {
            /// The level of the kernels.
            pub level: Level,
            $($(#[$doc])* pub $name: unsafe fn($($ty),*) $(-> $ret)?,)*
        }

        wrappers! { portable Portable [inline] $($name in $module ($($arg: $ty),*) $(-> $ret)?;)* }
        #[cfg(target_arch = "x86_64")]
        wrappers! { avx2 Avx2 [target_feature(enable = "avx2,fma")]
            $($name in $module ($($arg: $ty),*) $(-> $ret)?;)* }
        #[cfg(target_arch = "x86_64")]
        wrappers! { avx512 Avx512 [target_feature(enable = "avx512f,avx512vl,avx2,fma")]
            $($name in $module ($($arg: $ty),*) $(-> $ret)?;)* }

        impl Micro {
            /// The kernels of `level`, or `None` where the machine lacks its instructions.
            pub fn new(level: Level) -> Option<Self> {
                if !level.is_available() {
                    return None;
                }
                Some(match level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => Self { level, $($name: avx512::$name,)* },
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => Self { level, $($name: avx2::$name,)* },
                    _ => Self { level, $($name: portable::$name,)* },
                })
            }
        }
    };
}

table! {
    /// Applies a normalisation and a ReLU to a map and surrounds it with zeros.
    pad_prologue in prologue (args: &PadPrologue);
    /// Depthwise convolution.
    depthwise in depthwise (args: &Depthwise);
    /// Gradient of `depthwise` with respect to the weights.
    depthwise_weight in depthwise (args: &DepthwiseWeight);
    /// Gradient of `depthwise` with respect to the input, for any stride. For stride 1 `depthwise` itself on the padded
    /// gradient with the taps of [`flip_taps`] is faster.
    depthwise_scatter in depthwise (args: &DepthwiseScatter);
    /// Matrix product: pointwise convolution and its gradient with respect to the input.
    matmul in matmul (args: &Matmul);
    /// Transposed matrix product: gradient of the pointwise convolution with respect to the weights.
    outer in matmul (args: &Matmul);
    /// Mean and sum of squared deviations of each channel.
    moments in norm (args: &Moments);
    /// Channel-wise linear combination of two maps.
    affine in norm (args: &Affine);
    /// Adds bias and residual to a map and keeps it within bounds.
    bound in norm (args: &Bound);
    /// Channel sums of a gradient and of its product with a centred map.
    sums in norm (args: &Sums);
    /// Gradient through a ReLU.
    mask_accumulate in prologue (args: &MaskAccumulate);
    /// Gradient through a ReLU with the sums that the normalisation before it needs.
    mask_sums in prologue (args: &MaskSums);
    /// Channel-wise linear combination of many maps.
    weighted_sum in mix (args: &WeightedSum<'_>);
    /// Gradients of the factors of `weighted_sum`.
    weighted_sums in mix (args: &WeightedSums<'_>);
    /// Maximum and average pooling.
    pool_forward in pool (args: &PoolForward);
    /// Gradient of `pool_forward`.
    pool_backward in pool (args: &PoolBackward);
    /// Copies a strided sub-grid of a map, with or without a ReLU.
    gather in pool (args: &Gather);
    /// Gradient of `gather`.
    scatter_masked in pool (args: &ScatterMasked);
    /// Sum of squares of `n` floats.
    sum_of_squares in flat (x: *const f32, n: usize) -> f32;
    /// One step of stochastic gradient descent with momentum.
    sgd in flat (args: &Sgd);
    /// Linear combination of up to four vectors.
    linear in flat (args: &Linear);
    /// Squared distances of points to a block of others.
    cost_tile in transport (args: &CostTile);
    /// Rows of a plan and its sums, exponentials computed on the way.
    log_rows in transport (args: &LogRows);
    /// Rows of a stored kernel, scaled, and its sums.
    kernel_rows in transport (args: &KernelRows);
    /// Log-sum-exp of rows with the maximum taken out.
    lse_rows in transport (args: &LseRows);
    /// Log-sum-exp of columns with the maximum taken out.
    lse_columns in transport (args: &LseColumns);
    /// Potentials from the sums of an iteration.
    update_potentials in transport (args: &PotentialUpdate);
    /// Weighted distance of `x / y` from 1, and the least and the greatest `x`.
    deviation in transport (weights: *const f32, x: *const f32, y: *const f32, n: usize) -> [f32; 3];
    /// `out[j] = sum over the `rows` partials`, `stride` floats each.
    fold_rows in transport (partials: *const f32, rows: usize, stride: usize, out: *mut f32);
    /// Sums of some rows of a plan, in f64.
    plan_rows in transport (args: &PlanRows);
    /// Unregularised c-transforms of some rows, in f64.
    transform in transport (args: &Transform);
}
