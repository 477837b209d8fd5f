//! Cross-entropy with label smoothing, hit counts, and their accumulation over the steps of an epoch.
//! A label below zero marks a padding row: it counts nowhere.

use super::{Cost, Family, Real};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Shape, Tensor};

/// Mean over valid rows of `-(1 - s) log p[label] - s / k sum_j log p[j]`.
/// Inputs `logits [n, 1, 1, k]`, `labels [n]`; outputs `loss [1]`, `counts [top-1 hits, top-5 hits, valid rows]`.
/// A hit at rank r: fewer than r classes have a larger logit, or an equal one at a lower index.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    /// Label smoothing s.
    pub smoothing: f64,
}

impl CrossEntropy {
    /// Records the op; returns (loss, counts).
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one label a row.
    pub fn record(graph: &mut Graph, op: Self, logits: Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
        if graph.shape(labels).len() != graph.shape(logits).rows() {
            let message = format!("{} labels for logits {}", graph.shape(labels).len(), graph.shape(logits));
            return Err(Error::Shape { op: Self::NAME, message });
        }
        let (loss, counts) = (graph.tensor(Shape::vector(1), "loss"), graph.tensor(Shape::vector(3), "counts"));
        graph.push(op, vec![logits, labels], vec![loss.into(), counts.into()]);
        Ok((loss, counts))
    }
}

/// Label of a row, if it is valid.
pub fn label<T: Real>(labels: &View<T>, row: usize) -> Option<usize> {
    let value = labels.at(row).wide();
    (value >= 0.0).then_some(value as usize)
}

/// Valid rows.
pub fn valid_rows<T: Real>(labels: &View<T>) -> usize {
    (0..labels.shape.len()).filter(|&r| label(labels, r).is_some()).count()
}

/// Log of the partition function of a row, with the maximum taken out.
pub fn log_partition<T: Real>(logits: &View<T>, row: usize) -> T {
    let k = logits.shape.c;
    let mut top = logits.get(row, 0);
    for j in 1..k {
        let value = logits.get(row, j);
        top = if value > top { value } else { top };
    }
    let mut sum = T::of(0.0);
    for j in 0..k {
        sum += (logits.get(row, j) - top).exp();
    }
    top + sum.ln()
}

impl Family for CrossEntropy {
    const NAME: &'static str = "cross_entropy";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(5 * inputs[0].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (logits, labels) = (&io.inputs[0], &io.inputs[1]);
        let k = logits.shape.c;
        let (mut total, mut hits, mut hits5, mut valid) = (T::of(0.0), 0.0, 0.0, 0.0);
        for row in 0..logits.shape.rows() {
            let Some(label) = label(labels, row) else { continue };
            let z = log_partition(logits, row);
            let own = logits.get(row, label);
            let mut sum = T::of(0.0);
            let mut ahead = 0;
            for j in 0..k {
                let value = logits.get(row, j);
                sum += z - value;
                ahead += usize::from(value > own || (value == own && j < label));
            }
            total += T::of(1.0 - self.smoothing) * (z - own) + T::of(self.smoothing / k as f64) * sum;
            valid += 1.0;
            // A NaN logit compares false everywhere: it must not count as a hit.
            hits += f64::from(ahead < 1 && own.finite());
            hits5 += f64::from(ahead < 5 && own.finite());
        }
        let rows = if valid > 0.0 { valid } else { 1.0 };
        io.put(0, 0, 0, total / T::of(rows));
        for (i, count) in [hits, hits5, valid].into_iter().enumerate() {
            io.put(1, 0, i, T::of(count));
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        let (logits, labels) = (tape.input(0), tape.input(1));
        let slot = tape.slot(logits);
        tape.push(CrossEntropyBackward { smoothing: self.smoothing }, vec![logits, labels, g], vec![slot]);
        Ok(())
    }
}

/// `dlogits = g (softmax - target) / valid rows`: inputs logits, labels, `g [1]`; output dlogits.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyBackward {
    /// Label smoothing.
    pub smoothing: f64,
}

impl Family for CrossEntropyBackward {
    const NAME: &'static str = "cross_entropy_backward";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (logits, labels, g) = (&io.inputs[0], &io.inputs[1], io.inputs[2].at(0));
        let k = logits.shape.c;
        let scale = g / T::of(valid_rows(labels).max(1) as f64);
        for row in 0..logits.shape.rows() {
            let label = label(labels, row);
            let z = log_partition(logits, row);
            for j in 0..k {
                let mut target = T::of(self.smoothing / k as f64);
                if label == Some(j) {
                    target += T::of(1.0 - self.smoothing);
                }
                let value = scale * ((logits.get(row, j) - z).exp() - target);
                io.put(0, row, j, if label.is_some() { value } else { T::of(0.0) });
            }
        }
    }
}

/// Adds a step to an epoch's sums. Inputs `loss [1]`, `counts [3]`; output (in place)
/// `[loss * rows, top-1 hits, top-5 hits, rows]`.
#[derive(Clone, Copy, Debug)]
pub struct Accumulate;

impl Family for Accumulate {
    const NAME: &'static str = "accumulate";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let (loss, counts, sums) = (io.inputs[0].at(0), &io.inputs[1], &io.outputs[0]);
        let add = [loss * counts.at(2), counts.at(0), counts.at(1), counts.at(2)];
        for (i, value) in add.into_iter().enumerate() {
            sums.set(0, i, sums.get(0, i) + value);
        }
    }
}
