//! Fill, sums of scaled tensors, and the computation of pending gradient terms.

use super::{Cost, Family, Real};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Shape, Tensor, TermKind};

/// Writes a constant: no inputs; one output.
#[derive(Clone, Debug)]
pub struct Fill {
    /// The constant.
    pub value: f64,
}

impl Family for Fill {
    const NAME: &'static str = "fill";

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let out = &io.outputs[0];
        for r in 0..out.shape.rows() {
            for c in 0..out.shape.c {
                io.put(0, r, c, T::of(self.value));
            }
        }
    }
}

/// `out = sum_i coefs[i] * x_i`: inputs of one shape, the output a new tensor or a given one of that shape.
#[derive(Clone, Debug)]
pub struct Linear {
    /// One factor an input.
    pub coefs: Vec<f64>,
}

impl Linear {
    /// Records the sum into a new tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn record(graph: &mut Graph, terms: &[(f64, Tensor)], name: &str) -> Result<Tensor> {
        let out = graph.tensor(graph.shape(terms[0].1), name);
        Self::record_into(graph, terms, out)?;
        Ok(out)
    }

    /// Records the sum into `out`, such as a slice of a concatenation.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn record_into(graph: &mut Graph, terms: &[(f64, Tensor)], out: Tensor) -> Result<()> {
        let shape = graph.shape(out);
        if let Some(&(_, odd)) = terms.iter().find(|t| graph.shape(t.1) != shape) {
            let message = format!("cannot add a {} to a {shape}", graph.shape(odd));
            return Err(Error::Shape { op: Self::NAME, message });
        }
        let coefs = terms.iter().map(|t| t.0).collect();
        graph.push(Self { coefs }, terms.iter().map(|t| t.1).collect(), vec![out.into()]);
        Ok(())
    }
}

impl Family for Linear {
    const NAME: &'static str = "linear";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(2 * inputs.len() * outputs[0].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let shape = io.outputs[0].shape;
        for r in 0..shape.rows() {
            for c in 0..shape.c {
                let mut sum = T::of(0.0);
                for (x, &k) in io.inputs.iter().zip(&self.coefs) {
                    sum += T::of(k) * x.get(r, c);
                }
                io.put(0, r, c, sum);
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        for (i, &coef) in self.coefs.iter().enumerate() {
            let x = tape.input(i);
            if tape.wants(x) {
                let slot = tape.slot(x);
                tape.push(Self { coefs: vec![coef] }, vec![g], vec![slot]);
            }
        }
        Ok(())
    }
}

/// Computes pending gradient terms: `out = sum_t a_t * mask_t * g_t + b_t * y + d_t`.
/// Inputs: `y` if any term has coefficients, then a term's `g, [coef], [mask]`.
#[derive(Clone, Debug)]
pub struct Affine {
    /// What each term consists of.
    pub terms: Vec<TermKind>,
}

/// One term with its tensors resolved.
pub struct TermView<T> {
    /// The gradient.
    pub g: View<T>,
    /// `[3, c]`.
    pub coef: Option<View<T>>,
    /// Mask tensor and row.
    pub mask: Option<(View<T>, usize)>,
}

impl<T: Real> TermView<T> {
    /// Takes the tensors of a term off the front of an input list.
    pub fn take(kind: TermKind, inputs: &mut &[View<T>]) -> Self {
        let mut next = || {
            let (first, rest) = inputs.split_first().expect("the op was recorded with all its term tensors");
            *inputs = rest;
            *first
        };
        let g = next();
        let coef = kind.coef.then(&mut next);
        let mask = kind.mask.map(|row| (next(), row));
        Self { g, coef, mask }
    }

    /// Factor of an image.
    pub fn factor(&self, n: usize) -> T {
        self.mask.map_or(T::of(1.0), |(mask, row)| mask.get(row, n))
    }

    /// The term at a pixel of image `n`; `y` is the value of the map there.
    pub fn value(&self, n: usize, row: usize, c: usize, y: impl FnOnce() -> T) -> T {
        let g = self.g.get(row, c) * self.factor(n);
        match &self.coef {
            None => g,
            Some(k) => k.get(0, c) * g + k.get(1, c) * y() + k.get(2, c),
        }
    }
}

impl Family for Affine {
    const NAME: &'static str = "affine";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(4 * self.terms.len() * outputs[0].len(), inputs, outputs)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let mut inputs = io.inputs;
        let y = self.terms.iter().any(|t| t.coef).then(|| {
            let y = inputs[0];
            inputs = &inputs[1..];
            y
        });
        let terms: Vec<_> = self.terms.iter().map(|&t| TermView::take(t, &mut inputs)).collect();
        let shape = io.outputs[0].shape;
        for r in 0..shape.rows() {
            for c in 0..shape.c {
                let mut sum = T::of(0.0);
                for term in &terms {
                    sum +=
                        term.value(r / (shape.h * shape.w), r, c, || y.expect("present with coefficients").get(r, c));
                }
                io.put(0, r, c, sum);
            }
        }
    }
}
