//! The three vector updates of DARTS' unrolled architecture step (Liu et al. 2019, eq. 7 and 8), each one launch over
//! the flat weights: the virtual step, the two perturbed copies, and the finite-difference Hessian term. The moved
//! weights are constants for the gradients taken at them: what the alphas did to them is the Hessian term's business.

use super::{Family, Real};
use crate::device::view::Io;
use crate::graph::{Graph, Tensor};

/// `w' = w - lr (momentum v + g + decay w)`: inputs `w, v, g, lr [1]`; output `w'`.
#[derive(Clone, Copy, Debug)]
pub struct Unroll {
    /// Momentum of the weight optimiser.
    pub momentum: f64,
    /// Its weight decay.
    pub decay: f64,
}

impl Unroll {
    /// Records the virtual step.
    pub fn record(graph: &mut Graph, op: Self, [w, v, g, lr]: [Tensor; 4]) -> Tensor {
        let out = graph.tensor(graph.shape(w), "unrolled weights");
        graph.push(op, vec![w, v, g, lr], vec![out.into()]);
        out
    }
}

impl Family for Unroll {
    const NAME: &'static str = "unroll";
    const DETACHED: bool = true;

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [w, v, g, lr] = io.inputs else { unreachable!("recorded with four inputs") };
        for i in 0..w.shape.len() {
            let step = T::of(self.momentum) * v.at(i) + g.at(i) + T::of(self.decay) * w.at(i);
            io.put(0, 0, i, w.at(i) - lr.at(0) * step);
        }
    }
}

/// `R = radius / |d|`. A gradient of zero has no direction: then R is the radius itself, which moves nothing, and the
/// Hessian term is zero.
pub(crate) fn radius<T: Real>(radius: f64, norm: T) -> T {
    if norm == T::of(0.0) { T::of(radius) } else { T::of(radius) / norm }
}

/// `w +- R d` with `R = radius / norm`: inputs `w, d, norm [1]`; output the perturbed weights.
#[derive(Clone, Copy, Debug)]
pub struct Perturb {
    /// 0.01 in DARTS, negative for the other side.
    pub radius: f64,
}

impl Perturb {
    /// Records one side.
    pub fn record(graph: &mut Graph, op: Self, [w, d, norm]: [Tensor; 3]) -> Tensor {
        let out = graph.tensor(graph.shape(w), "perturbed weights");
        graph.push(op, vec![w, d, norm], vec![out.into()]);
        out
    }
}

impl Family for Perturb {
    const NAME: &'static str = "perturb";
    const DETACHED: bool = true;

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [w, d, norm] = io.inputs else { unreachable!("recorded with three inputs") };
        let r = radius(self.radius, norm.at(0));
        for i in 0..w.shape.len() {
            io.put(0, 0, i, w.at(i) + r * d.at(i));
        }
    }
}

/// `hessian = (plus - minus) / (2 R)` and `total = direct - lr * hessian`, `R = radius / norm`.
/// Inputs `direct, plus, minus, norm [1], lr [1]`; outputs `hessian, total`.
#[derive(Clone, Copy, Debug)]
pub struct HessianTerm {
    /// As in [`Perturb`], positive.
    pub radius: f64,
}

impl HessianTerm {
    /// Records the combination; returns (hessian, total).
    pub fn record(graph: &mut Graph, op: Self, inputs: [Tensor; 5]) -> (Tensor, Tensor) {
        let shape = graph.shape(inputs[0]);
        let (hessian, total) = (graph.tensor(shape, "hessian term"), graph.tensor(shape, "alpha gradient"));
        graph.push(op, inputs.to_vec(), vec![hessian.into(), total.into()]);
        (hessian, total)
    }
}

impl Family for HessianTerm {
    const NAME: &'static str = "hessian_term";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let [direct, plus, minus, norm, lr] = io.inputs else { unreachable!("recorded with five inputs") };
        let twice = T::of(2.0) * radius(self.radius, norm.at(0));
        for i in 0..direct.shape.len() {
            let hessian = (plus.at(i) - minus.at(i)) / twice;
            io.put(0, 0, i, hessian);
            io.put(1, 0, i, direct.at(i) - lr.at(0) * hessian);
        }
    }
}
