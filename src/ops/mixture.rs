//! The softmax-weighted edge: a node is the sum over its incoming edges and their primitives of weight times normalised
//! map, in one pass. `node = sum_s m_s[n] * w_s * (gamma_s * (y_s - mean_s) * inv_s + beta_s)`, every factor optional:
//! search cells have w and no gamma and beta, derived cells gamma and beta and (with drop path) m, a lone source with
//! only a normalisation is batch norm itself.
//!
//! The gradient with respect to the weights comes from the reductions that batch norm's backward needs anyway:
//! `dw_s = sum_c gamma_s s2 + beta_s s1`. Gradients of the maps are left as terms (see `graph::autograd`).

use super::norm::{self, Norm, Normalised};
use super::{Cost, Family, Real, area};
use crate::device::view::{Io, View};
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Output, Shape, Tensor, Term};

/// One summand, as recorded.
#[derive(Clone, Copy, Debug)]
pub struct SourceInput {
    /// The map and how it is normalised.
    pub map: Normalised,
    /// Index of its weight in the weights tensor.
    pub weight: Option<usize>,
    /// Row of its factors in the mask tensor.
    pub mask: Option<usize>,
}

impl SourceInput {
    /// A map with neither weight nor mask.
    pub fn new(map: Normalised) -> Self {
        Self { map, weight: None, mask: None }
    }
}

/// One summand of the op.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Normalisation.
    pub norm: Option<Norm>,
    /// Index of its weight.
    pub weight: Option<usize>,
    /// Row of the mask.
    pub mask: Option<usize>,
}

/// Inputs `[weights], [mask]`, then a source `y, [mean, var, [gamma, beta]]`; output the node.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// The summands.
    pub sources: Vec<Source>,
}

impl Mixture {
    /// Records the sum into `out`, a tensor of the maps' shape such as a slice of the cell's concatenation.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes disagree, or a weight or mask is named without its tensor.
    pub fn record(
        graph: &mut Graph,
        sources: &[SourceInput],
        weights: Option<Tensor>,
        mask: Option<Tensor>,
        out: Tensor,
    ) -> Result<()> {
        let shape = graph.shape(out);
        let weights = weights.filter(|_| sources.iter().any(|s| s.weight.is_some()));
        let mask = mask.filter(|_| sources.iter().any(|s| s.mask.is_some()));
        let mut inputs: Vec<Tensor> = weights.into_iter().chain(mask).collect();
        let mut list = Vec::with_capacity(sources.len());
        let error = |message| Err(Error::Shape { op: Self::NAME, message });
        for s in sources {
            s.map.check(graph, Self::NAME)?;
            if graph.shape(s.map.y) != shape {
                return error(format!("a map {} into a node {shape}", graph.shape(s.map.y)));
            }
            if s.weight.is_some_and(|w| weights.is_none_or(|t| w >= graph.shape(t).len())) {
                return error(format!("no weight {:?}", s.weight));
            }
            if s.mask.is_some_and(|m| mask.is_none_or(|t| m >= graph.shape(t).w || graph.shape(t).c != shape.n)) {
                return error(format!("no mask row {:?} for {} images", s.mask, shape.n));
            }
            let norm = s.map.push(&mut inputs);
            list.push(Source { norm, weight: s.weight, mask: s.mask });
        }
        graph.push(Self { sources: list }, inputs, vec![out.into()]);
        Ok(())
    }

    /// Records batch norm of one map into a new tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] if the statistics do not fit.
    pub fn normalise(graph: &mut Graph, map: Normalised, name: &str) -> Result<Tensor> {
        let out = graph.tensor(graph.shape(map.y), name);
        Self::record(graph, &[SourceInput::new(map)], None, None, out)?;
        Ok(out)
    }
}

/// The op's inputs, resolved.
pub struct Sources<'a, T> {
    /// Softmax weights.
    pub weights: Option<View<T>>,
    /// Factors `[rows, n]`.
    pub mask: Option<View<T>>,
    /// A source's `y, [mean, var, [gamma, beta]]`.
    pub maps: Vec<(Source, &'a [View<T>])>,
}

impl<'a, T: Real> Sources<'a, T> {
    /// Takes the inputs apart.
    pub fn split(sources: &[Source], mut inputs: &'a [View<T>]) -> Self {
        let mut next = |wanted: bool| {
            wanted.then(|| {
                let first = inputs[0];
                inputs = &inputs[1..];
                first
            })
        };
        let weights = next(sources.iter().any(|s| s.weight.is_some()));
        let mask = next(sources.iter().any(|s| s.mask.is_some()));
        let maps = sources
            .iter()
            .map(|&s| {
                let (own, rest) = inputs.split_at(norm::inputs_of(s.norm));
                inputs = rest;
                (s, own)
            })
            .collect();
        Self { weights, mask, maps }
    }

    /// Weight of a source.
    pub fn weight(&self, source: Source) -> T {
        source.weight.map_or(T::of(1.0), |w| self.weights.expect("recorded with weights").at(w))
    }

    /// Factor of a source for image `n`; where it is zero the summand is absent, and its map may hold anything.
    pub fn factor(&self, source: Source, n: usize) -> T {
        source.mask.map_or(T::of(1.0), |row| self.mask.expect("recorded with a mask").get(row, n))
    }
}

impl Family for Mixture {
    const NAME: &'static str = "mixture";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(2 * self.sources.len() * outputs[0].len(), inputs, outputs)
    }

    fn scratch(&self, _inputs: &[Shape], outputs: &[Shape]) -> usize {
        // A source's normalisation; its factors and summands, and the sum of the summands.
        let c = outputs[0].c;
        let norms: usize = self.sources.iter().map(|s| norm::prologue_scratch(s.norm, c)).sum();
        norms + area(2 * self.sources.len() * c) + area(c)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let sources = Sources::split(&self.sources, io.inputs);
        let shape = io.outputs[0].shape;
        for c in 0..shape.c {
            for row in 0..shape.rows() {
                let mut sum = T::of(0.0);
                for &(source, inputs) in &sources.maps {
                    let factor = sources.factor(source, row / (shape.h * shape.w));
                    if factor == T::of(0.0) {
                        continue;
                    }
                    let (mean, inv, gamma, beta) = norm::channel(source.norm, inputs, c);
                    let h = gamma * ((inputs[0].get(row, c) - mean) * inv) + beta;
                    sum += factor * sources.weight(source) * h;
                }
                io.put(0, row, c, sum);
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let Some(g) = tape.dense(tape.output(0)) else { return Ok(()) };
        let any_weight = self.sources.iter().any(|s| s.weight.is_some());
        let any_mask = self.sources.iter().any(|s| s.mask.is_some());
        let mask = any_mask.then(|| tape.input(usize::from(any_weight)));
        let mut at = usize::from(any_weight) + usize::from(any_mask);
        let (mut outputs, mut wants, mut leave) = (Vec::<Output>::new(), Vec::new(), Vec::new());
        let want_weights = any_weight && tape.wants(tape.input(0));
        if want_weights {
            let weights = tape.input(0);
            outputs.push(tape.slot(weights));
        }
        for s in &self.sources {
            let y = tape.input(at);
            let affine = s.norm.filter(|n| n.affine).map(|_| (tape.input(at + 3), tape.input(at + 4)));
            at += norm::inputs_of(s.norm);
            let term_mask = s.mask.map(|row| (mask.expect("recorded with a mask"), row));
            let map = tape.wants(y);
            let parameters = affine.is_some_and(|(gamma, beta)| tape.wants(gamma) || tape.wants(beta));
            let coefficients = (map && (s.norm.is_some() || s.weight.is_some())) || parameters;
            if coefficients {
                let shape = Shape::matrix(3, tape.shape(y).c);
                let coef = tape.tensor(shape, y, "coefficients");
                outputs.push(coef.into());
                if map {
                    leave.push((y, Term { g, coef: Some(coef), mask: term_mask }));
                }
            } else if map {
                leave.push((y, Term { g, coef: None, mask: term_mask }));
            }
            if parameters {
                let (gamma, beta) = affine.expect("checked just now");
                outputs.extend([tape.slot(gamma), tape.slot(beta)]);
            }
            wants.push((coefficients, parameters));
        }
        if !outputs.is_empty() {
            let mut inputs = vec![g];
            inputs.extend_from_slice(tape.inputs());
            let op = MixtureBackward { sources: self.sources.clone(), wants, weights: want_weights };
            tape.push(op, inputs, outputs);
        }
        for (y, term) in leave {
            tape.leave(y, term);
        }
        Ok(())
    }
}

/// Inputs `g`, then those of the forward. Outputs `[dweights]`, then a source `[coefficients [3, c]]`,
/// `[dgamma, dbeta]`. Weights that no source uses (`none`) get zero.
#[derive(Clone, Debug)]
pub struct MixtureBackward {
    /// The summands.
    pub sources: Vec<Source>,
    /// For each, whether coefficients, and whether dgamma and dbeta are wanted.
    pub wants: Vec<(bool, bool)>,
    /// dweights is wanted.
    pub weights: bool,
}

impl Family for MixtureBackward {
    const NAME: &'static str = "mixture_backward";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(4 * self.sources.len() * inputs[0].len(), inputs, outputs)
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        // A source's normalisation; two sums a chunk of images, source and channel; a share of each weight's gradient.
        let (g, sources) = (inputs[0], self.sources.len());
        let norms: usize = self.sources.iter().map(|s| norm::prologue_scratch(s.norm, g.c)).sum();
        norms + area(norm::chunks(g.n) * 2 * sources * g.c) + area(sources)
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let g = &io.inputs[0];
        let sources = Sources::split(&self.sources, &io.inputs[1..]);
        let shape = g.shape;
        let mut dweights = vec![T::of(0.0); sources.weights.map_or(0, |w| w.shape.len())];
        let mut at = usize::from(self.weights);
        for (&(source, inputs), &(coefficients, parameters)) in sources.maps.iter().zip(&self.wants) {
            let w = sources.weight(source);
            for c in 0..shape.c {
                let (mean, inv, gamma, beta) = norm::channel(source.norm, inputs, c);
                let (mut s1, mut s2) = (T::of(0.0), T::of(0.0));
                for row in 0..shape.rows() {
                    let factor = sources.factor(source, row / (shape.h * shape.w));
                    if factor == T::of(0.0) {
                        continue;
                    }
                    let value = factor * g.get(row, c);
                    s1 += value;
                    s2 += value * ((inputs[0].get(row, c) - mean) * inv);
                }
                if let Some(index) = source.weight {
                    dweights[index] += gamma * s2 + beta * s1;
                }
                if coefficients {
                    let (a, b, d) = match source.norm {
                        Some(_) => norm::coefficients((mean, inv, gamma), w, s1, s2, shape.rows()),
                        None => (w, T::of(0.0), T::of(0.0)),
                    };
                    for (row, value) in [a, b, d].into_iter().enumerate() {
                        io.put(at, row, c, value);
                    }
                }
                if parameters {
                    let first = at + usize::from(coefficients);
                    io.put(first, 0, c, w * s2);
                    io.put(first + 1, 0, c, w * s1);
                }
            }
            at += usize::from(coefficients) + 2 * usize::from(parameters);
        }
        if self.weights {
            let columns = io.outputs[0].shape.c;
            for (i, &value) in dweights.iter().enumerate() {
                io.put(0, i / columns, i % columns, value);
            }
        }
    }
}
