//! What the tuned implementation of an op looks like to the device, and the table from ops to implementations.

use rayon::prelude::*;

use super::augment::AugmentKernel;
use super::folded::FoldedKernel;
use super::micro::Micro;
use super::separable::SeparableKernel;
use super::separable_backward::SeparableBackwardKernel;
use super::{dense, flat, mixture, pool, reduce, transport};
use crate::device::view::{Io, View};
use crate::ops::Op;

/// An op with its tensors resolved, from which a kernel is made.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The op.
    pub op: &'a Op,
    /// Tensors read.
    pub inputs: Vec<View<f32>>,
    /// Tensors written.
    pub outputs: Vec<View<f32>>,
    /// For each output, whether it adds to what is there.
    pub accumulate: Vec<bool>,
    /// The op's private scratch.
    pub scratch: View<f32>,
}

/// One op of a program, ready to run any number of times.
pub trait Kernel: Send + Sync {
    /// Runs once.
    fn run(&self, context: &Context<'_>);

    /// Floats of tile memory that each thread needs.
    fn tile(&self) -> usize {
        0
    }
}

/// What a kernel runs with. Lives inside the device's thread pool.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The micro-kernels.
    pub micro: &'a Micro,
    tiles: View<f32>,
}

/// Tile memory of one task.
#[derive(Clone, Copy, Debug)]
pub struct Tile(pub *mut f32);

impl<'a> Context<'a> {
    /// `tiles`: a row of tile memory for each thread.
    pub fn new(micro: &'a Micro, tiles: View<f32>) -> Self {
        Self { micro, tiles }
    }

    /// Calls `f(task, tile)` for all tasks, spread over the threads. Tasks must write disjoint memory, and what each
    /// computes must depend on nothing but its number.
    pub fn parallel(&self, tasks: usize, f: impl Fn(usize, Tile) + Sync + Send) {
        if tasks <= 1 || self.tiles.shape.rows() == 1 {
            let tile = Tile(self.tiles.row(rayon::current_thread_index().unwrap_or(0)));
            (0..tasks).for_each(|task| f(task, tile));
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
                f(task, Tile(self.tiles.row(rayon::current_thread_index().unwrap_or(0))));
            });
        }
    }
}

/// The kernel of an op: the tuned one, or the plain implementation where there is none or where the tensors lie in a
/// way that it does not serve.
pub fn lower(launch: Launch<'_>) -> Box<dyn Kernel> {
    tuned(&launch).unwrap_or_else(|| Box::new(Plain::new(launch)))
}

fn tuned(launch: &Launch<'_>) -> Option<Box<dyn Kernel>> {
    fn boxed<K: Kernel + 'static>(kernel: Option<K>) -> Option<Box<dyn Kernel>> {
        kernel.map(|k| Box::new(k) as Box<dyn Kernel>)
    }
    match launch.op {
        Op::Adam(op) => boxed(flat::AdamKernel::new(op, launch)),
        Op::Affine(op) => boxed(Some(flat::AffineKernel::new(op, launch))),
        Op::Augment(op) => boxed(AugmentKernel::new(op, launch)),
        Op::Certificate(op) => boxed(transport::CertificateKernel::new(op, launch)),
        Op::Dense(op) => boxed(dense::DenseKernel::new(op, launch)),
        Op::DenseBackward(op) => boxed(dense::DenseBackwardKernel::new(op, launch)),
        Op::Fill(op) => boxed(flat::FillKernel::new(op, launch)),
        Op::Folded(op) => boxed(FoldedKernel::new(op, launch)),
        Op::GlobalNorm(_) => boxed(flat::GlobalNormKernel::new(launch)),
        Op::GlobalPool(_) => boxed(Some(pool::GlobalPoolKernel::new(launch))),
        Op::GlobalPoolBackward(_) => boxed(Some(pool::GlobalPoolBackwardKernel::new(launch))),
        Op::Linear(op) => boxed(Some(flat::LinearKernel::new(op, launch))),
        Op::Mixture(op) => boxed(Some(mixture::MixtureKernel::new(op, launch))),
        Op::MixtureBackward(op) => boxed(mixture::MixtureBackwardKernel::new(op, launch)),
        Op::PairCost(op) => boxed(transport::PairCostKernel::new(op, launch)),
        Op::Perturb(op) => boxed(flat::PerturbKernel::new(op, launch)),
        Op::Pool(op) => boxed(pool::PoolKernel::new(op, launch)),
        Op::PoolBackward(op) => boxed(pool::PoolBackwardKernel::new(op, launch)),
        Op::Reduce(op) => boxed(Some(reduce::ReduceKernel::new(op, launch))),
        Op::ReduceBackward(op) => boxed(reduce::ReduceBackwardKernel::new(op, launch)),
        Op::Separable(op) => boxed(SeparableKernel::new(op, launch)),
        Op::SeparableBackward(op) => boxed(SeparableBackwardKernel::new(op, launch)),
        Op::Sgd(op) => boxed(flat::SgdKernel::new(op, launch)),
        Op::Sinkhorn(op) => boxed(transport::SinkhornKernel::new(op, launch)),
        Op::Softmax(_) => boxed(Some(flat::SoftmaxKernel::new(launch))),
        Op::Statistics(_) => boxed(Some(flat::StatisticsKernel::new(launch))),
        Op::Unroll(op) => boxed(flat::UnrollKernel::new(op, launch)),
        _ => None,
    }
}

/// The reference implementation as a kernel, for ops whose time does not matter.
struct Plain {
    op: Op,
    inputs: Vec<View<f32>>,
    outputs: Vec<View<f32>>,
    accumulate: Vec<bool>,
}

impl Plain {
    fn new(launch: Launch<'_>) -> Self {
        let Launch { op, inputs, outputs, accumulate, .. } = launch;
        Self { op: op.clone(), inputs, outputs, accumulate }
    }
}

impl Kernel for Plain {
    fn run(&self, _context: &Context<'_>) {
        self.op.reference(&Io { inputs: &self.inputs, outputs: &self.outputs, accumulate: &self.accumulate });
    }
}
