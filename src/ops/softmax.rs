//! Softmax over the primitives of each edge: rows of alphas to mixing weights.

use super::{Family, Real};
use crate::device::view::Io;
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Shape, Tensor};

/// Row softmax: input `[rows, c]`; output the same shape.
#[derive(Clone, Debug)]
pub struct Softmax;

impl Softmax {
    /// Records the softmax of consecutive rows of the given lengths into a flat vector like `alphas`; neighbouring rows
    /// of one length share a launch.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows do not make up the vector.
    pub fn record(graph: &mut Graph, alphas: Tensor, rows: &[usize]) -> Result<Tensor> {
        let len = graph.shape(alphas).len();
        if rows.iter().sum::<usize>() != len {
            let message = format!("rows of {rows:?} for {len} alphas");
            return Err(Error::Shape { op: Self::NAME, message });
        }
        let flat = graph.tensor(Shape::vector(len), "mixing weights");
        let mut at = 0;
        for run in rows.chunk_by(|a, b| a == b) {
            let shape = Shape::matrix(run.len(), run[0]);
            let (x, y) = (graph.slice(alphas, at, shape)?, graph.slice(flat, at, shape)?);
            graph.push(Self, vec![x], vec![y.into()]);
            at += shape.len();
        }
        Ok(flat)
    }
}

impl Family for Softmax {
    const NAME: &'static str = "softmax";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        for r in 0..x.shape.rows() {
            let row: Vec<T> = (0..x.shape.c).map(|c| x.get(r, c)).collect();
            let top = row.iter().copied().fold(row[0], |a, b| if b > a { b } else { a });
            let exp: Vec<T> = row.iter().map(|&v| (v - top).exp()).collect();
            let mut sum = T::of(0.0);
            for &e in &exp {
                sum += e;
            }
            for (c, &e) in exp.iter().enumerate() {
                io.put(0, r, c, e / sum);
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let p = tape.output(0);
        let Some(dp) = tape.dense(p) else { return Ok(()) };
        let slot = tape.slot(tape.input(0));
        tape.push(SoftmaxBackward, vec![p, dp], vec![slot]);
        Ok(())
    }
}

/// `dx = p * (dp - sum(p dp))` a row: inputs p, dp; output dx.
#[derive(Clone, Debug)]
pub struct SoftmaxBackward;

impl Family for SoftmaxBackward {
    const NAME: &'static str = "softmax_backward";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (p, dp) = (&io.inputs[0], &io.inputs[1]);
        for r in 0..p.shape.rows() {
            let mut dot = T::of(0.0);
            for c in 0..p.shape.c {
                dot += p.get(r, c) * dp.get(r, c);
            }
            for c in 0..p.shape.c {
                io.put(0, r, c, p.get(r, c) * (dp.get(r, c) - dot));
            }
        }
    }
}
