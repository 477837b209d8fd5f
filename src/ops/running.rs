//! Running statistics of batch norm: one op for all layers of a network, whose batch statistics lie in one vector.
//! `running = (1 - momentum) * running + momentum * batch`, the variance with the unbiased factor n / (n - 1).

use super::{Family, Real};
use crate::device::view::Io;
use crate::graph::{Graph, Tensor};

/// A stretch of the statistics vector and the factor that its batch values get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// First element.
    pub offset: usize,
    /// Elements.
    pub len: usize,
    /// 1 for means, n / (n - 1) for variances of n rows.
    pub factor: f64,
}

/// Inputs `batch statistics [len]`, `guard [1]`; output (in place) `running [len]`. Nothing changes if the guard, a
/// gradient norm, is not finite.
#[derive(Clone, Debug)]
pub struct RunningUpdate {
    /// Share of the new value, 0.1 in DARTS.
    pub momentum: f64,
    /// The layers.
    pub segments: Vec<Segment>,
}

impl RunningUpdate {
    /// Records the update.
    pub fn record(graph: &mut Graph, op: Self, batch: Tensor, guard: Tensor, running: Tensor) {
        graph.push(op, vec![batch, guard], vec![running.into()]);
    }
}

impl Family for RunningUpdate {
    const NAME: &'static str = "running_update";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        if !io.inputs[1].at(0).finite() {
            return;
        }
        let (keep, share) = (T::of(1.0 - self.momentum), T::of(self.momentum));
        for segment in &self.segments {
            for i in segment.offset..segment.offset + segment.len {
                let batch = io.inputs[0].at(i) * T::of(segment.factor);
                io.outputs[0].set(0, i, keep * io.outputs[0].get(0, i) + share * batch);
            }
        }
    }
}
