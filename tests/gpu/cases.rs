//! The cases that every GPU device must pass: odd sizes, batches of one, channels that do not fill a quad, views as
//! inputs and outputs, normalisations, weights and masks in many combinations, outputs that accumulate, tensors used
//! twice, more sources than a launch takes.

use supernet::graph::{Graph, Output, Shape, StoreLayout, Tensor};
use supernet::ops::Op;
use supernet::ops::mixture::{Mixture, MixtureBackward, SourceInput};
use supernet::ops::norm::{NormTensors, Normalised, Statistics};
use supernet::random::{normal, philox4x32_10};

use super::harness::Case;

/// Channels `start..` of a map with `total` channels; None: the whole map.
pub(super) type Slice = Option<(usize, usize)>;

pub(super) struct Builder {
    pub(super) case: Case,
}

impl Builder {
    pub(super) fn new(name: String) -> Self {
        Self { case: Case { name, graph: Graph::new(), layout: StoreLayout::new(), values: Vec::new() } }
    }

    /// A state with the value that `value` makes of a standard normal.
    pub(super) fn state(&mut self, name: &str, shape: Shape, value: impl Fn(f64) -> f64) -> Tensor {
        let state = self.case.layout.add(name, shape);
        let draw = |i: usize| {
            let [a, b, ..] = philox4x32_10([i as u32, state.id, 0, 0], [7, 0]);
            value(normal(a, b).0) as f32
        };
        self.case.values.push((0..shape.len()).map(draw).collect());
        self.case.graph.state(state)
    }

    /// A map of `shape`, possibly within a wider one.
    pub(super) fn map(&mut self, name: &str, shape: Shape, slice: Slice, value: impl Fn(f64) -> f64) -> Tensor {
        let Some((total, start)) = slice else { return self.state(name, shape, value) };
        let whole = self.state(name, shape.with_channels(total), value);
        self.case.graph.channels(whole, start, shape.c).expect("the slice lies within the map")
    }

    /// Something to be written: NaN, or if it is to accumulate, values.
    pub(super) fn output(&mut self, name: &str, shape: Shape, slice: Slice, accumulate: bool) -> Output {
        let value = move |x: f64| if accumulate { x } else { f64::NAN };
        Output { tensor: self.map(name, shape, slice, value), accumulate }
    }
}

fn statistics(shape: Shape, slice: Slice, mean: f64) -> Case {
    let mut b = Builder::new(format!("statistics of {shape}, slice {slice:?}, mean {mean}"));
    let y = b.map("y", shape, slice, |x| 1.5 * x + mean);
    // Mean and variance as neighbouring parts of one vector, as a stack of edges has them.
    let vector = b.state("statistics", Shape::vector(2 * shape.c + 3), |_| f64::NAN);
    let start = if slice.is_some() { 3 } else { 0 };
    let part = |graph: &mut Graph, offset| graph.slice(vector, offset, Shape::vector(shape.c)).expect("it fits");
    let mean = part(&mut b.case.graph, start);
    let var = part(&mut b.case.graph, start + shape.c);
    b.case.graph.push(Statistics, vec![y], vec![mean.into(), var.into()]);
    b.case
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Norm {
    Plain,
    Batch,
    Affine,
}

/// One source of a mixture case.
#[derive(Clone, Copy)]
struct Source {
    norm: Norm,
    weight: Option<usize>,
    mask: Option<usize>,
    /// Coefficients, and gradients of gamma and beta, are wanted.
    wants: (bool, bool),
    /// Uses the map, the statistics, gamma and beta of the source before.
    again: bool,
}

/// What a mixture case has beside its sources.
#[derive(Clone, Copy)]
struct Setting {
    shape: Shape,
    slice: Slice,
    accumulate: bool,
    weights_wanted: bool,
}

/// Forward and backward of a mixture, in one program.
fn mixture(name: &str, setting: Setting, sources: &[Source]) -> Case {
    let Setting { shape, slice, accumulate, weights_wanted } = setting;
    let flags = if accumulate { ", accumulating" } else { "" };
    let mut b = Builder::new(format!("mixture: {name}, {} of {shape}, slice {slice:?}{flags}", sources.len()));
    let vector = Shape::vector(shape.c);
    let weights = sources.iter().any(|s| s.weight.is_some()).then(|| {
        let rows = sources.iter().filter_map(|s| s.weight).max().unwrap_or(0) / 8 + 2;
        b.state("weights", Shape::matrix(rows, 8), |x| 0.2 + 0.05 * x)
    });
    let mask = sources.iter().any(|s| s.mask.is_some()).then(|| {
        let rows = sources.iter().filter_map(|s| s.mask).max().unwrap_or(0) + 1;
        b.state("mask", Shape::matrix(rows, shape.n), |x| if x < -0.5 { 0.0 } else { 1.25 })
    });
    let mut inputs: Vec<SourceInput> = Vec::new();
    for (i, s) in sources.iter().enumerate() {
        let map = if s.again {
            inputs[i - 1].map
        } else {
            let y = b.map(&format!("y {i}"), shape, slice, |x| x + 0.5);
            let norm = (s.norm != Norm::Plain).then(|| NormTensors {
                mean: b.state(&format!("mean {i}"), vector, |x| 0.5 + 0.1 * x),
                var: b.state(&format!("var {i}"), vector, |x| 0.5 + 0.3 * x * x),
                affine: (s.norm == Norm::Affine).then(|| {
                    let gamma = b.state(&format!("gamma {i}"), vector, |x| 1.0 + 0.2 * x);
                    (gamma, b.state(&format!("beta {i}"), vector, |x| 0.3 * x + 0.2))
                }),
                eps: 1e-5,
            });
            Normalised { y, norm }
        };
        inputs.push(SourceInput { map, weight: s.weight, mask: s.mask });
    }

    let node = b.output("node", shape, slice, accumulate);
    let mut probe = b.case.graph.clone();
    Mixture::record(&mut probe, &inputs, weights, mask, node.tensor).expect("a sound mixture");
    let recorded = probe.nodes().last().expect("just recorded").clone();
    let Op::Mixture(op) = recorded.op else { panic!("a mixture was recorded") };
    b.case.graph.push(op.clone(), recorded.inputs.clone(), vec![node]);

    let g = b.map("g", shape, slice, |x| 0.3 + x);
    let mut outputs = Vec::new();
    if weights_wanted {
        let shape = b.case.graph.shape(weights.expect("weights are wanted, so there are some"));
        // A slice of a wider matrix: rows are not adjacent.
        outputs.push(b.output("dweights", shape, slice.map(|_| (11, 2)), accumulate));
    }
    let mut last: Option<[Tensor; 2]> = None;
    for (i, s) in sources.iter().enumerate() {
        if s.wants.0 {
            outputs.push(b.output(&format!("coefficients {i}"), Shape::matrix(3, shape.c), slice, accumulate));
        }
        if s.wants.1 {
            // A parameter that is used twice gets the sum of both gradients.
            let pair = match last {
                Some([dgamma, dbeta]) if s.again => [dgamma, dbeta].map(|tensor| Output { tensor, accumulate: true }),
                _ => ["dgamma", "dbeta"].map(|what| b.output(&format!("{what} {i}"), vector, None, accumulate)),
            };
            outputs.extend(pair);
            last = Some(pair.map(|o| o.tensor));
        }
    }
    if !outputs.is_empty() {
        let wants = sources.iter().map(|s| s.wants).collect();
        let backward = MixtureBackward { sources: op.sources, wants, weights: weights_wanted };
        let inputs = [g].into_iter().chain(recorded.inputs).collect();
        b.case.graph.push(backward, inputs, outputs);
    }
    b.case
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        Shape::map(1, 5, 7, 1),
        Shape::map(3, 5, 7, 3),
        Shape::map(2, 9, 9, 8),
        Shape::map(1, 13, 6, 10),
        Shape::map(5, 16, 15, 16),
        Shape::map(2, 3, 3, 36),
        Shape::map(1, 8, 8, 64),
        Shape::map(2, 5, 5, 150),
    ];
    let slices = |c: usize| [None, Some((2 * c + 4, c.next_multiple_of(4))), Some((c + 5, 3))];
    for shape in shapes {
        for slice in slices(shape.c) {
            cases.push(statistics(shape, slice, 0.3));
        }
    }
    // A mean far from zero, chunks of several tiles, and a single row.
    cases.push(statistics(Shape::map(4, 16, 16, 16), None, 1000.0));
    cases.push(statistics(Shape::map(8, 33, 33, 64), None, -3.0));
    cases.push(statistics(Shape::map(1, 1, 1, 16), None, 0.3));

    let batch = Source { norm: Norm::Batch, weight: None, mask: None, wants: (true, false), again: false };
    let affine = Source { norm: Norm::Affine, wants: (true, true), ..batch };
    let plain = Source { norm: Norm::Plain, wants: (false, false), ..batch };
    let weighted = |s: Source, w: usize| Source { weight: Some(w), ..s };
    let masked = |s: Source, m: usize| Source { mask: Some(m), ..s };
    for (i, shape) in shapes.into_iter().enumerate() {
        for slice in slices(shape.c) {
            let setting = Setting { shape, slice, accumulate: i % 2 == 1, weights_wanted: true };
            // A node of a search cell: seven primitives an edge, identity among them; one has no gradient.
            let mut edge: Vec<_> = (1..8).map(|w| weighted(batch, w)).collect();
            edge[2] = weighted(plain, 3);
            edge[3] = Source { wants: (true, false), ..weighted(plain, 4) };
            edge[4].wants = (false, false);
            cases.push(mixture("an edge", setting, &edge));
            // A node of a derived cell with drop path: two affine sources with masks, and an identity without.
            let derived = [masked(affine, 0), masked(affine, 1), plain];
            let setting = Setting { accumulate: !setting.accumulate, weights_wanted: false, ..setting };
            cases.push(mixture("a derived node", setting, &derived));
        }
    }
    let shape = Shape::map(2, 6, 6, 16);
    let setting = Setting { shape, slice: None, accumulate: false, weights_wanted: true };
    let many = |n: usize| (0..n).map(|i| weighted(if i % 6 == 5 { plain } else { batch }, i)).collect::<Vec<_>>();
    cases.push(mixture("a full node", setting, &many(42)));
    cases.push(mixture("more than a table", setting, &many(70)));
    cases.push(mixture("everything", setting, &[masked(weighted(affine, 3), 1), weighted(batch, 0), masked(plain, 0)]));
    let twice = [weighted(affine, 1), Source { again: true, ..weighted(affine, 1) }, weighted(plain, 1)];
    cases.push(mixture("one weight, map and gamma twice", setting, &twice));
    let alone = Setting { weights_wanted: false, ..setting };
    cases.push(mixture("batch norm", alone, &[affine]));
    cases.push(mixture("a sum", alone, &[plain, plain]));
    let large = Setting { shape: Shape::map(5, 30, 30, 64), ..setting };
    cases.push(mixture("many chunks", large, &[weighted(affine, 0), masked(weighted(batch, 1), 0)]));
    cases.extend(super::augment_cases::all());
    cases.extend(super::folded_cases::all());
    cases.extend(super::elementary_cases::all());
    cases.extend(super::transport_cases::all());
    cases.extend(super::separable_cases::all());
    cases.extend(super::optimiser_cases::all());
    cases.extend(super::loss_cases::all());
    cases.extend(super::elementwise_cases::all());
    cases.extend(super::dense_cases::all());
    cases.extend(super::pool_cases::all());
    cases.extend(super::reduce_cases::all());
    cases.extend(super::overflow_cases::all());
    cases
}
