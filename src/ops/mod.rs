//! The op families: one file a family, each with its recording function, shapes, gradient rule, cost and reference
//! implementation (generic over f32 and f64, written for clarity). Tuned kernels live in `cpu/`, `kernels/` (CUDA) and
//! `shaders/` (WGSL) under the same stems.
//!
//! To add an op: write its struct and `impl Family` in the file of its family, name it in the table at the end of this
//! file, and add a case to `tests/cases/` (a test fails while it is missing there). For GPUs see [`launch`].

pub mod augment;
pub mod dense;
pub mod elementary;
pub mod elementwise;
pub mod folded;
pub mod launch;
pub mod loss;
pub mod mixture;
pub mod norm;
pub mod optimiser;
pub mod pool;
pub mod reduce;
pub mod running;
pub mod second_order;
pub mod separable;
pub mod softmax;
pub mod transport;

use crate::device::view::Io;
use crate::error::{Error, Result};
use crate::graph::{Backward, Shape};

/// A floating-point type in which the reference implementations run.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + std::fmt::Debug
    + Send
    + Sync
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + 'static
{
    /// Rounds a constant to the type.
    fn of(value: f64) -> Self;
    /// Widens.
    fn wide(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Natural exponential.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Neither NaN nor infinite.
    fn finite(self) -> bool;
    /// `max(0, x)` that lets NaN through: a map that has overflowed is not to look sound.
    fn rectified(self) -> Self {
        if self < Self::of(0.0) { Self::of(0.0) } else { self }
    }
}

macro_rules! real {
    ($type:ty) => {
        impl Real for $type {
            fn of(value: f64) -> Self {
                value as $type
            }
            fn wide(self) -> f64 {
                self as f64
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
real!(f32);
real!(f64);

/// What one op, or a whole program, must at least do.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    /// Multiply-adds of convolutions and products count two.
    pub flops: f64,
    /// Bytes if every input is read and every output written once.
    pub bytes: f64,
    /// Kernel launches on a GPU.
    pub launches: usize,
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), |a, b| Self {
            flops: a.flops + b.flops,
            bytes: a.bytes + b.bytes,
            launches: a.launches + b.launches,
        })
    }
}

impl Cost {
    /// `flops` on tensors each touched once, in one launch.
    pub fn touching(flops: usize, inputs: &[Shape], outputs: &[Shape]) -> Self {
        let elements: usize = inputs.iter().chain(outputs).map(|s| s.len()).sum();
        Self { flops: flops as f64, bytes: 4.0 * elements as f64, launches: 1 }
    }
}

/// Length of an area of an op's scratch: areas start on a cache line.
pub const fn area(len: usize) -> usize {
    len.next_multiple_of(16)
}

/// What a family says of one of its ops.
pub trait Family {
    /// Name of the op, also the stem of its kernels.
    const NAME: &'static str;

    /// Whether gradients stop here: the op's outputs are constants of whatever is recorded behind it.
    const DETACHED: bool = false;

    /// Cost at the given shapes. The default is elementwise: one operation an output element.
    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(outputs.iter().map(|s| s.len()).sum(), inputs, outputs)
    }

    /// Elements of private scratch that the tuned kernels need, a function of the shapes only.
    fn scratch(&self, _inputs: &[Shape], _outputs: &[Shape]) -> usize {
        0
    }

    /// Computes the outputs, plainly.
    fn reference<T: Real>(&self, io: &Io<'_, T>);

    /// Appends the gradient ops.
    ///
    /// # Errors
    /// [`Error::Shape`] if the op has no gradient (gradients of gradients are taken by finite differences).
    fn backward(&self, _tape: &mut Backward<'_>) -> Result<()> {
        Err(Error::Shape { op: Self::NAME, message: "has no gradient rule".into() })
    }
}

macro_rules! table {
    ($($family:ident :: $op:ident),* $(,)?) => {
        /// Any op.
        #[derive(Clone, Debug)]
        #[allow(missing_docs)]
        pub enum Op {
            $($op($family::$op)),*
        }

        $(impl From<$family::$op> for Op {
            fn from(op: $family::$op) -> Self {
                Self::$op(op)
            }
        })*

        impl Op {
            /// Names of all ops.
            pub const NAMES: &'static [&'static str] = &[$(<$family::$op as Family>::NAME),*];

            /// Name, also the stem of the kernels.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$op(_) => <$family::$op as Family>::NAME),* }
            }

            /// See [`Family::DETACHED`].
            pub fn detached(&self) -> bool {
                match self { $(Self::$op(_) => <$family::$op as Family>::DETACHED),* }
            }

            /// See [`Family::cost`].
            pub fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
                match self { $(Self::$op(op) => op.cost(inputs, outputs)),* }
            }

            /// See [`Family::scratch`].
            pub fn scratch(&self, inputs: &[Shape], outputs: &[Shape]) -> usize {
                match self { $(Self::$op(op) => op.scratch(inputs, outputs)),* }
            }

            /// See [`Family::reference`].
            pub fn reference<T: Real>(&self, io: &Io<'_, T>) {
                match self { $(Self::$op(op) => op.reference(io)),* }
            }

            pub(crate) fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
                match self { $(Self::$op(op) => op.backward(tape)),* }
            }
        }
    };
}

table! {
    augment::Augment,
    augment::DropMask,
    dense::Dense,
    dense::DenseBackward,
    elementary::BatchNorm,
    elementary::BatchNormBackward,
    elementary::Depthwise,
    elementary::DepthwiseBackward,
    elementary::Relu,
    elementary::ReluBackward,
    elementary::Scale,
    elementary::ScaleBackward,
    elementwise::Affine,
    elementwise::Fill,
    elementwise::Linear,
    folded::Folded,
    loss::Accumulate,
    loss::CrossEntropy,
    loss::CrossEntropyBackward,
    mixture::Mixture,
    mixture::MixtureBackward,
    norm::Statistics,
    optimiser::Adam,
    optimiser::GlobalNorm,
    optimiser::Sgd,
    pool::GlobalPool,
    pool::GlobalPoolBackward,
    pool::Pool,
    pool::PoolBackward,
    reduce::Reduce,
    reduce::ReduceBackward,
    running::RunningUpdate,
    second_order::HessianTerm,
    second_order::Perturb,
    second_order::Unroll,
    separable::Separable,
    separable::SeparableBackward,
    softmax::Softmax,
    softmax::SoftmaxBackward,
    transport::Certificate,
    transport::CostExtent,
    transport::PairCost,
    transport::Sinkhorn,
}
