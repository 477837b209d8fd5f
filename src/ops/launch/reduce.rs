//! Factorized reduces on GPUs: each half of an edge is a convolution of stride 2 that writes some of the channels of the
//! edge's map, the shifted one with a padding of minus one. The kernels are those of dense convolutions, so that all halves
//! of all edges are jobs of one launch.

use super::dense::{Convolution, Forward, Source, Weight, forward, input, weights};
use super::terms::{PlacedTerm, channels, take};
use super::{Launch, Lower, Place, Places};
use crate::graph::Shape;
use crate::ops::reduce::{Reduce, ReduceBackward};

/// The half of an edge that starts `shift` pixels inside the image.
fn half(x: Shape, c: usize, shift: usize) -> Convolution {
    Convolution { x, y: Reduce::output(x, c), kernel: 1, stride: 2, pad: -(shift as i32), relu: true }
}

impl Lower for Reduce {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        let halves = inputs[1..].iter().enumerate().map(|(i, w)| half(inputs[0], w.c, i % 2));
        if self.statistics { halves.map(|h| h.moments_len()).sum() } else { 0 }
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let x = at.inputs[0];
        let mut items = Vec::new();
        for (edge, halves) in at.inputs[1..].chunks(2).enumerate() {
            let output = edge * self.outputs_an_edge();
            let mut first = 0;
            for (shift, &w) in halves.iter().enumerate() {
                let c = w.shape.c;
                let part = |place: Place| channels(place, first, c);
                items.push(Forward {
                    convolution: half(x.shape, c, shift),
                    x,
                    w,
                    bias: None,
                    y: part(at.outputs[output]),
                    accumulate: at.accumulate[output],
                    statistics: self.statistics.then(|| (part(at.outputs[output + 1]), part(at.outputs[output + 2]))),
                });
                first += c;
            }
        }
        forward(&items, at.scratch)
    }
}

/// One half of an edge in the backward.
struct Half {
    source: Source,
    /// The gradient of its weights is wanted.
    weight: bool,
}

impl ReduceBackward {
    fn halves(&self, at: &Places<'_>) -> Vec<Half> {
        let mut inputs = at.inputs;
        let x = take(&mut inputs);
        let mut halves = Vec::new();
        for &(kind, weight) in &self.edges {
            let pair = [take(&mut inputs), take(&mut inputs)];
            let y = kind.coef.then(|| take(&mut inputs));
            let term = PlacedTerm::take(kind, y, &mut inputs);
            let mut first = 0;
            for (shift, w) in pair.into_iter().enumerate() {
                let c = w.shape.c;
                let source = Source { convolution: half(x.shape, c, shift), w, term: term.channels(first, c) };
                halves.push(Half { source, weight });
                first += c;
            }
        }
        halves
    }
}

impl Lower for ReduceBackward {
    fn scratch(&self, inputs: &[Shape], _outputs: &[Shape]) -> usize {
        let mut len = 0;
        for (at, _) in self.weights().zip(&self.edges).filter(|(_, (_, weight))| *weight) {
            let halves = [0, 1].map(|shift| half(inputs[0], inputs[at + shift].c, shift));
            len += halves.map(|h| h.weight_len(false)).iter().sum::<usize>();
        }
        len
    }

    fn launches(&self, at: &Places<'_>) -> Vec<Launch> {
        let x = at.inputs[0];
        let mut outputs = at.outputs.iter().copied().zip(at.accumulate.iter().copied());
        let dx = if self.input { outputs.next() } else { None };
        let (mut sources, mut wanted) = (Vec::new(), Vec::new());
        for Half { source, weight } in self.halves(at) {
            if weight {
                let Source { convolution, term, .. } = source;
                wanted.push(Weight { convolution, x, term, dw: outputs.next(), dbias: None });
            }
            sources.push(source);
        }
        let mut launches = dx.map_or_else(Vec::new, |(dx, accumulate)| input(x, true, dx, accumulate, 2, &sources));
        launches.extend(weights(&wanted, at.scratch));
        launches
    }
}
