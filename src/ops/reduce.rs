//! Factorized reduce, the skip connection at stride 2: ReLU once, two 1x1 convolutions of stride 2, the second on the
//! image shifted by one pixel, their channels side by side, with batch statistics. All edges that leave one state stand
//! in one op. For an odd side of s pixels both halves have ceil(s / 2) pixels; where the shifted half looks beyond the
//! image it sees zero (DARTS itself fails there, its halves having different sizes).

use super::elementwise::TermView;
use super::{Cost, Family, Real, area, norm};
use crate::device::view::Io;
use crate::error::{Error, Result};
use crate::graph::{Backward, Graph, Output, Shape, Tensor, TermKind};

/// What one edge is recorded from.
#[derive(Clone, Copy, Debug)]
pub struct ReduceInput {
    /// Weights of the even half, `[c_in, c_even]`.
    pub even: Tensor,
    /// Weights of the shifted half, `[c_in, c_odd]`.
    pub odd: Tensor,
    /// Where mean and variance go, if wanted.
    pub statistics: Option<(Tensor, Tensor)>,
}

/// Inputs `x`, then an edge `even, odd`; outputs an edge `y, [mean, var]`.
#[derive(Clone, Copy, Debug)]
pub struct Reduce {
    /// Number of edges.
    pub edges: usize,
    /// Mean and variance are among the outputs.
    pub statistics: bool,
}

impl Reduce {
    /// Output extent.
    pub fn output(x: Shape, c: usize) -> Shape {
        Shape::map(x.n, x.h.div_ceil(2), x.w.div_ceil(2), c)
    }

    /// Records all edges that leave `x`; returns their maps.
    ///
    /// # Errors
    /// [`Error::Shape`] if weights and map disagree, or only some edges want statistics.
    pub fn record(graph: &mut Graph, x: Tensor, edges: &[ReduceInput]) -> Result<Vec<Tensor>> {
        let xs = graph.shape(x);
        let statistics = edges[0].statistics.is_some();
        let (mut inputs, mut outputs, mut maps) = (vec![x], Vec::<Output>::new(), Vec::new());
        for edge in edges {
            let (even, odd) = (graph.shape(edge.even), graph.shape(edge.odd));
            if even.rows() != xs.c || odd.rows() != xs.c || edge.statistics.is_some() != statistics {
                let message = format!("weights {even} and {odd} for a map {xs}");
                return Err(Error::Shape { op: Self::NAME, message });
            }
            norm::check_places(graph, Self::NAME, even.c + odd.c, edge.statistics.as_slice())?;
            let y = graph.tensor(Self::output(xs, even.c + odd.c), "map");
            inputs.extend([edge.even, edge.odd]);
            outputs.push(y.into());
            outputs.extend(edge.statistics.into_iter().flat_map(|(m, v)| [Output::from(m), Output::from(v)]));
            maps.push(y);
        }
        graph.push(Self { edges: edges.len(), statistics }, inputs, outputs);
        Ok(maps)
    }

    /// Outputs of one edge.
    pub fn outputs_an_edge(&self) -> usize {
        1 + 2 * usize::from(self.statistics)
    }
}

/// Input row that an output pixel of a half reads, if within the image.
fn source(x: Shape, y: Shape, out: usize, shift: usize) -> Option<usize> {
    let (n, oy, ox) = (out / (y.h * y.w), out / y.w % y.h, out % y.w);
    let (iy, ix) = (2 * oy + shift, 2 * ox + shift);
    (iy < x.h && ix < x.w).then(|| (n * x.h + iy) * x.w + ix)
}

impl Family for Reduce {
    const NAME: &'static str = "reduce";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        Cost::touching(2 * self.edges * outputs[0].len() * inputs[0].c, inputs, outputs)
    }

    fn scratch(&self, _inputs: &[Shape], outputs: &[Shape]) -> usize {
        if !self.statistics {
            return 0;
        }
        outputs.chunks(self.outputs_an_edge()).map(|o| norm::moments_scratch(o[0])).sum()
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        for edge in 0..self.edges {
            let at = edge * self.outputs_an_edge();
            let y = io.outputs[at].shape;
            let mut first = 0;
            for (shift, w) in io.inputs[1 + 2 * edge..3 + 2 * edge].iter().enumerate() {
                for out in 0..y.rows() {
                    let row = source(x.shape, y, out, shift);
                    for o in 0..w.shape.c {
                        let mut sum = T::of(0.0);
                        for i in 0..x.shape.c {
                            let value = row.map_or(T::of(0.0), |r| x.get(r, i));
                            if value > T::of(0.0) {
                                sum += value * w.get(i, o);
                            }
                        }
                        io.put(at, out, first + o, sum);
                    }
                }
                first += w.shape.c;
            }
            if self.statistics {
                norm::statistics(&io.outputs[at], &io.outputs[at + 1], &io.outputs[at + 2]);
            }
        }
    }

    fn backward(&self, tape: &mut Backward<'_>) -> Result<()> {
        let x = tape.input(0);
        let input = tape.wants(x);
        let (mut inputs, mut weights, mut edges) = (vec![x], Vec::new(), Vec::new());
        for edge in 0..self.edges {
            let (even, odd) = (tape.input(1 + 2 * edge), tape.input(2 + 2 * edge));
            let y = tape.output(edge * self.outputs_an_edge());
            let Some(term) = tape.single(y) else { continue };
            let weight = tape.wants(even) || tape.wants(odd);
            inputs.extend([even, odd]);
            if term.coef.is_some() {
                inputs.push(y);
            }
            edges.push((term.push(&mut inputs), weight));
            if weight {
                weights.extend([tape.slot(even), tape.slot(odd)]);
            }
        }
        if edges.is_empty() {
            return Ok(());
        }
        let mut outputs = Vec::new();
        if input {
            outputs.push(tape.slot(x));
        }
        outputs.extend(weights);
        tape.push(ReduceBackward { edges, input }, inputs, outputs);
        Ok(())
    }
}

/// Inputs `x`, then an edge `even, odd, [y], g, [coef], [mask]`; outputs `[dx]`, then an edge with weights wanted
/// `d even, d odd`.
#[derive(Clone, Debug)]
pub struct ReduceBackward {
    /// How each edge's gradient is given, and whether its weights' gradients are wanted.
    pub edges: Vec<(TermKind, bool)>,
    /// dx is wanted.
    pub input: bool,
}

impl ReduceBackward {
    /// The input that is the first of each edge's two weights.
    pub(crate) fn weights(&self) -> impl Iterator<Item = usize> {
        let further = |(kind, _): &(TermKind, bool)| 3 + 2 * usize::from(kind.coef) + usize::from(kind.mask.is_some());
        self.edges.iter().scan(1, move |next, edge| {
            let first = *next;
            *next += further(edge);
            Some(first)
        })
    }
}

impl Family for ReduceBackward {
    const NAME: &'static str = "reduce_backward";

    fn cost(&self, inputs: &[Shape], outputs: &[Shape]) -> Cost {
        let y = Reduce::output(inputs[0], inputs[1].c + inputs[2].c);
        let once = 2 * y.len() * inputs[0].c;
        let parts = self.edges.iter().map(|e| usize::from(self.input) + usize::from(e.1)).sum::<usize>();
        Cost::touching(parts * once, inputs, outputs)
    }

    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        // The transposed weights of each edge, and their partial gradients of each chunk of images.
        let (chunks, mut at, mut len) = (norm::chunks(inputs[0].n), 1, 0);
        for &(term, weight) in &self.edges {
            for w in [inputs[at], inputs[at + 1]] {
                len += area(w.len()) + if weight { area(chunks * w.len()) } else { 0 };
            }
            at += 3 + 2 * usize::from(term.coef) + usize::from(term.mask.is_some());
        }
        len
    }

    fn reference<T: Real>(&self, io: &Io<'_, T>) {
        let x = &io.inputs[0];
        let mut dx = vec![T::of(0.0); x.shape.len()];
        let mut rest = &io.inputs[1..];
        let mut weight_output = usize::from(self.input);
        for &(kind, weight) in &self.edges {
            let (even, odd) = (rest[0], rest[1]);
            rest = &rest[2..];
            let map = kind.coef.then(|| rest[0]);
            if kind.coef {
                rest = &rest[1..];
            }
            let g = TermView::take(kind, &mut rest);
            let y = Reduce::output(x.shape, even.shape.c + odd.shape.c);
            let mut first = 0;
            for (shift, w) in [even, odd].iter().enumerate() {
                let mut dw = vec![T::of(0.0); w.shape.len()];
                for out in 0..y.rows() {
                    let Some(row) = source(x.shape, y, out, shift) else { continue };
                    for o in 0..w.shape.c {
                        let c = first + o;
                        let image = out / (y.h * y.w);
                        let dy = g.value(image, out, c, || map.expect("present with coefficients").get(out, c));
                        for i in 0..x.shape.c {
                            if x.get(row, i) > T::of(0.0) {
                                dx[row * x.shape.c + i] += dy * w.get(i, o);
                                dw[i * w.shape.c + o] += dy * x.get(row, i);
                            }
                        }
                    }
                }
                if weight {
                    for (i, &value) in dw.iter().enumerate() {
                        io.put(weight_output, i / w.shape.c, i % w.shape.c, value);
                    }
                    weight_output += 1;
                }
                first += w.shape.c;
            }
        }
        if self.input {
            for (i, &value) in dx.iter().enumerate() {
                io.put(0, i / x.shape.c, i % x.shape.c, value);
            }
        }
    }
}
