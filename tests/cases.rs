//! The table of cases: each records one op, or a few that work together, into the middle of a graph. Gradient checks,
//! device parity and the planner's tests all walk this table, so a new op needs one entry here and nothing else.
//!
//! A case never sees a leaf: [`Setup::var`] hands it a scaled copy of a state, and what it gives to [`Setup::out`] is
//! multiplied by random numbers and added up. Every variable also enters the loss directly, recorded before or after
//! the case's own ops as [`Case::build`] is told, so that gradients are overwritten in one run and accumulated in the
//! other. A backward that ignores its upstream gradient, or the flag of its output, cannot pass.

use std::collections::HashSet;

use supernet::device::reference::Reference;
use supernet::graph::{Graph, Output, Program, Shape, State, StoreLayout, Tensor};
use supernet::ops::augment::{Augment, DropMask};
use supernet::ops::dense::Dense;
use supernet::ops::elementary::{BatchNorm, Depthwise, Relu, Scale};
use supernet::ops::elementwise::{Fill, Linear};
use supernet::ops::folded::{Activation, Folded, Padding};
use supernet::ops::loss::{Accumulate, CrossEntropy};
use supernet::ops::mixture::{Mixture, SourceInput};
use supernet::ops::norm::{NormTensors, Normalised, Statistics};
use supernet::ops::optimiser::{Adam, GlobalNorm, Sgd};
use supernet::ops::pool::{GlobalPool, Pool};
use supernet::ops::reduce::{Reduce, ReduceInput};
use supernet::ops::running::{RunningUpdate, Segment};
use supernet::ops::second_order::{HessianTerm, Perturb, Unroll};
use supernet::ops::separable::{BranchInput, Separable};
use supernet::ops::softmax::Softmax;
use supernet::ops::transport::{
    Certificate, CostExtent, PairCost, Rule, SCHEDULE, STATUS, Sinkhorn, SinkhornTensors, Source, Table,
};
use supernet::ops::{Op, Real};
use supernet::random::{Stream, normal, uniform};
use supernet::{Error, Result};

/// How the values of a state are drawn. All are rounded to f32, so that every device starts from the same numbers.
#[derive(Clone, Copy, Debug)]
pub enum Draw {
    /// Standard normal times a factor.
    Normal(f64),
    /// Magnitude within 0.2..1.2, either sign: no ReLU sits near its kink, no two pixels of a window are close.
    Away,
    /// Within 0.5..1.5.
    Positive,
    /// One of -1, 0, 1, 2: windows full of ties.
    Ties,
    /// Whole numbers within 0..n.
    Below(usize),
    /// All the same.
    Constant(f64),
}

/// Purpose of the draws, for the counter-based generator.
const PURPOSE: u32 = 4000;

/// `len` values for draw number `number` of a seed.
pub fn draw(seed: u64, number: u64, len: usize, how: Draw) -> Vec<f64> {
    let stream = Stream::new(seed, PURPOSE);
    let value = |i: usize| {
        let [a, b, ..] = stream.block(number, i as u32);
        let (u, v) = (f64::from(uniform(a)), f64::from(uniform(b)));
        let value = match how {
            Draw::Normal(factor) => factor * normal(a, b).0,
            Draw::Away => (0.2 + u) * if v < 0.5 { -1.0 } else { 1.0 },
            Draw::Positive => 0.5 + u,
            Draw::Ties => (4.0 * u).floor() - 1.0,
            Draw::Below(n) => (n as f64 * u).floor(),
            Draw::Constant(value) => value,
        };
        f64::from(value as f32)
    };
    (0..len).map(value).collect()
}

/// A state with respect to which the loss is differentiated.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its state.
    pub state: State,
    /// Whether the loss is smooth there: not where ties make the maximum jump.
    pub smooth: bool,
}

/// What a case records into.
pub struct Setup {
    /// The graph.
    pub graph: Graph,
    layout: StoreLayout,
    values: Vec<(State, Vec<f64>)>,
    variables: Vec<Variable>,
    outputs: Vec<Tensor>,
    watched: Vec<State>,
    terms: Vec<(f64, Tensor)>,
    deferred: Vec<Tensor>,
    late: bool,
    seed: u64,
}

/// Dot product with a weight column.
const DOT: Dense = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
/// Factors that f32 holds exactly.
const FACTORS: [f64; 4] = [0.75, -1.25, 0.625, 1.5];

impl Setup {
    /// An empty one; see [`Case::build`] for `late`.
    pub fn new(seed: u64, late: bool) -> Self {
        Self {
            graph: Graph::new(),
            layout: StoreLayout::new(),
            values: Vec::new(),
            variables: Vec::new(),
            outputs: Vec::new(),
            watched: Vec::new(),
            terms: Vec::new(),
            deferred: Vec::new(),
            late,
            seed,
        }
    }

    /// A state with drawn values.
    pub fn state(&mut self, shape: Shape, how: Draw) -> State {
        let number = self.values.len() as u64;
        let state = self.layout.add(format!("state {number}"), shape);
        self.values.push((state, draw(self.seed, number, shape.len(), how)));
        state
    }

    /// Replaces the values of the state that was declared last.
    pub fn set(&mut self, values: &[f64]) {
        let last = self.values.last_mut().expect("a state is declared");
        assert_eq!(last.1.len(), values.len());
        last.1.copy_from_slice(values);
    }

    /// A state without gradient.
    pub fn constant(&mut self, shape: Shape, how: Draw) -> Tensor {
        let state = self.state(shape, how);
        self.graph.state(state)
    }

    /// A scaled copy of a fresh variable, which also enters the loss by another way.
    pub fn var(&mut self, shape: Shape, how: Draw) -> Tensor {
        let state = self.state(shape, how);
        let number = self.variables.len();
        self.variables.push(Variable { state, smooth: !matches!(how, Draw::Ties) });
        let leaf = self.graph.state(state);
        let x = Linear::record(&mut self.graph, &[(FACTORS[number % 2 * 2], leaf)], "x").expect("one shape");
        if number.is_multiple_of(2) == self.late {
            self.deferred.push(x);
        } else {
            self.functional(x);
        }
        x
    }

    /// A map variable as a slice of the channels of a wider one.
    pub fn wide(&mut self, shape: Shape, how: Draw) -> Tensor {
        let wide = self.var(shape.with_channels(shape.c + 3), how);
        self.graph.channels(wide, 2, shape.c).expect("lies within")
    }

    /// Slices of one flat vector variable, with unused elements between them, as networks hold their weights.
    pub fn flat(&mut self, shapes: &[Shape]) -> Vec<Tensor> {
        const GAP: usize = 3;
        let len = shapes.iter().map(|s| s.len() + GAP).sum();
        let vector = self.var(Shape::vector(len), Draw::Normal(0.5));
        let mut at = 0;
        let mut next = |shape: &Shape| {
            at += shape.len() + GAP;
            self.graph.slice(vector, at - shape.len(), *shape).expect("lies within")
        };
        shapes.iter().map(&mut next).collect()
    }

    /// Weights of a given shape.
    pub fn weight(&mut self, rows: usize, c: usize) -> Tensor {
        self.var(Shape::matrix(rows, c), Draw::Normal(0.5))
    }

    /// gamma and beta.
    pub fn affine(&mut self, c: usize) -> (Tensor, Tensor) {
        (self.var(Shape::vector(c), Draw::Positive), self.var(Shape::vector(c), Draw::Normal(0.1)))
    }

    /// Where mean and variance of `c` channels go: slices of one vector, as in networks.
    pub fn statistics(&mut self, c: usize) -> (Tensor, Tensor) {
        let both = self.graph.tensor(Shape::vector(2 * c + 1), "statistics");
        let mut slice = |offset| self.graph.slice(both, offset, Shape::vector(c)).expect("lies within");
        (slice(0), slice(c + 1))
    }

    /// An output through which the loss goes.
    pub fn out(&mut self, tensor: Tensor) {
        self.outputs.push(tensor);
        self.functional(tensor);
    }

    /// An output that is compared between devices only.
    pub fn seen(&mut self, tensor: Tensor) {
        self.outputs.push(tensor);
    }

    /// A state whose final values are compared between devices.
    pub fn watch(&mut self, state: State) -> Output {
        self.watched.push(state);
        self.graph.state(state).into()
    }

    /// Adds a random linear functional of a tensor to the loss.
    fn functional(&mut self, tensor: Tensor) {
        let shape = self.graph.shape(tensor);
        let w = self.constant(Shape::matrix(shape.len(), 1), Draw::Normal(1.0));
        let flat = self.graph.tensor(Shape::vector(shape.len()), "flat");
        let map = self.graph.slice(flat, 0, shape).expect("of its length");
        let factor = FACTORS[self.terms.len() % 4];
        Linear::record_into(&mut self.graph, &[(factor, tensor)], map).expect("one shape");
        let dot = Dense::record(&mut self.graph, DOT, flat, w, None, None).expect("one weight an element");
        self.terms.push((FACTORS[(self.terms.len() + 1) % 4], dot));
    }

    /// The finished case.
    pub fn finish(mut self) -> Result<Built> {
        for x in std::mem::take(&mut self.deferred) {
            self.functional(x);
        }
        let mut built = Built {
            forward: Graph::new(),
            loss: None,
            gradients: Vec::new(),
            outputs: self.outputs,
            variables: self.variables,
            watched: self.watched,
            layout: self.layout,
            values: self.values,
            graph: self.graph,
        };
        if !built.variables.is_empty() {
            let loss = Linear::record(&mut built.graph, &self.terms, "loss")?;
            built.loss = Some(loss);
            built.forward = built.graph.clone();
            let wrt: Vec<Tensor> = built.variables.iter().map(|v| built.graph.state(v.state)).collect();
            built.gradients = built.graph.gradients(loss, &wrt)?;
        }
        Ok(built)
    }
}

/// A recorded case.
pub struct Built {
    graph: Graph,
    forward: Graph,
    /// The loss, if there are variables.
    pub loss: Option<Tensor>,
    /// Gradient of each variable.
    pub gradients: Vec<Tensor>,
    /// Outputs of the case.
    pub outputs: Vec<Tensor>,
    /// The variables.
    pub variables: Vec<Variable>,
    /// States whose final values matter.
    pub watched: Vec<State>,
    /// The states.
    pub layout: StoreLayout,
    /// Their first values.
    pub values: Vec<(State, Vec<f64>)>,
}

impl Built {
    /// Forward and backward; outputs and gradients can be read.
    pub fn program(&self) -> Program {
        Program::new("case", self.graph.clone(), &self.results())
    }

    /// The loss alone.
    pub fn loss_program(&self) -> Option<Program> {
        self.loss.map(|loss| Program::new("loss", self.forward.clone(), &[loss]))
    }

    /// Everything that is compared: outputs, then gradients.
    pub fn results(&self) -> Vec<Tensor> {
        self.outputs.iter().chain(&self.gradients).copied().collect()
    }

    /// A reference device with the first values in its store.
    pub fn reference<T: Real>(&self) -> Reference<T> {
        let mut device = Reference::new(&self.layout);
        for (state, values) in &self.values {
            for (slot, &value) in device.state_mut(*state).iter_mut().zip(values) {
                *slot = T::of(value);
            }
        }
        device
    }
}

/// One entry of the table.
pub struct Case {
    /// Name, for messages.
    pub name: &'static str,
    /// Ops that the case is there for; a test checks that its program runs them.
    pub covers: &'static [&'static str],
    /// Largest error of an f32 device, relative to a tensor's norm.
    pub tolerance: f64,
    /// Records the case.
    pub record: fn(&mut Setup) -> Result<()>,
}

/// Error of an f32 device that is due to rounding alone, relative to a tensor's norm.
const ROUNDING: f64 = 2e-5;

impl Case {
    const fn new(name: &'static str, covers: &'static [&'static str], record: fn(&mut Setup) -> Result<()>) -> Self {
        Self { name, covers, tolerance: ROUNDING, record }
    }

    /// Records the case and its gradients. `late` says whether the even variables' other uses come after the case's
    /// ops (whose gradient is then written first) and the odd ones' before, or the other way round.
    pub fn build(&self, late: bool) -> Built {
        let seed = self.name.bytes().fold(17, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let mut setup = Setup::new(seed, late);
        let built = (self.record)(&mut setup).and_then(|()| setup.finish());
        built.unwrap_or_else(|e| panic!("case `{}` cannot be recorded: {e}", self.name))
    }
}

const EPS: f64 = 1e-5;

const fn map(n: usize, h: usize, w: usize, c: usize) -> Shape {
    Shape::map(n, h, w, c)
}

fn normalised(y: Tensor, (mean, var): (Tensor, Tensor), affine: Option<(Tensor, Tensor)>) -> Normalised {
    Normalised { y, norm: Some(NormTensors { mean, var, affine, eps: EPS }) }
}

/// A map with statistics recorded for it, so that normalising it is differentiable.
fn measured(s: &mut Setup, y: Tensor, affine: bool) -> Normalised {
    let affine = affine.then(|| s.affine(s.graph.shape(y).c));
    let statistics = Statistics::record(&mut s.graph, y);
    normalised(y, statistics, affine)
}

/// Softmax of `rows` by `c` alphas, as a flat vector.
pub fn softmax(graph: &mut Graph, alphas: Tensor, rows: usize, c: usize) -> Result<Tensor> {
    Softmax::record(graph, alphas, &vec![c; rows])
}

fn mixing(s: &mut Setup, rows: usize, c: usize) -> Result<Tensor> {
    let alphas = s.var(Shape::vector(rows * c), Draw::Normal(1.0));
    softmax(&mut s.graph, alphas, rows, c)
}

/// Dense convolution with everything optional.
fn dense(s: &mut Setup, x: Shape, c: usize, op: Dense) -> Result<()> {
    let x = s.var(x, Draw::Away);
    let w = s.weight(op.kernel * op.kernel * s.graph.shape(x).c, c);
    let bias = op.bias.then(|| s.var(Shape::vector(c), Draw::Normal(1.0)));
    let statistics = op.statistics.then(|| s.statistics(c));
    let y = Dense::record(&mut s.graph, op, x, w, bias, statistics)?;
    s.out(y);
    for t in statistics.into_iter().flat_map(|(m, v)| [m, v]) {
        s.seen(t);
    }
    Ok(())
}

fn convolution(kernel: usize, stride: usize, pad: usize) -> Dense {
    Dense { kernel, stride, pad, relu: false, bias: false, statistics: false }
}

/// One separable branch.
fn branch(
    s: &mut Setup,
    x: Normalised,
    c: usize,
    geometry: (usize, usize, usize),
    statistics: bool,
) -> Result<BranchInput> {
    let c_in = s.graph.shape(x.y).c;
    let (depthwise, pointwise) = (s.weight(geometry.0 * geometry.0, c_in), s.weight(c_in, c));
    let statistics = statistics.then(|| s.statistics(c));
    Ok(BranchInput { x, depthwise, pointwise, geometry, statistics })
}

fn separable(s: &mut Setup, x: Shape, c: usize, geometry: (usize, usize, usize), statistics: bool) -> Result<()> {
    let x = s.var(x, Draw::Away);
    let branch = branch(s, Normalised::plain(x), c, geometry, statistics)?;
    let y = Separable::record(&mut s.graph, &[branch])?[0];
    s.out(y);
    for t in branch.statistics.into_iter().flat_map(|(m, v)| [m, v]) {
        s.seen(t);
    }
    Ok(())
}

/// Both halves of a separable convolution; the second reads the first's map through its normalisation.
fn two_halves(s: &mut Setup, x: Shape, kernel: usize, stride: usize, affine: bool) -> Result<()> {
    let c = x.c;
    let x = s.var(x, Draw::Away);
    let first = branch(s, Normalised::plain(x), c, (kernel, 1, stride), true)?;
    let y = Separable::record(&mut s.graph, &[first])?[0];
    let affine = affine.then(|| s.affine(c));
    let h = normalised(y, first.statistics.expect("asked for"), affine);
    let second = branch(s, h, c, (kernel, 1, 1), true)?;
    let z = Separable::record(&mut s.graph, &[second])?[0];
    let out = normalised(z, second.statistics.expect("asked for"), None);
    let out = Mixture::normalise(&mut s.graph, out, "normalised")?;
    s.out(out);
    Ok(())
}

fn pool(s: &mut Setup, x: Shape, op: Pool, how: Draw) -> Result<()> {
    let c = x.c;
    let x = s.var(x, how);
    let kinds = usize::from(op.max) + usize::from(op.average);
    let places: Vec<_> = (0..if op.statistics { kinds } else { 0 }).map(|_| s.statistics(c)).collect();
    for pooled in Pool::record(&mut s.graph, op, x, &places)? {
        s.out(pooled.y);
        for t in pooled.statistics.into_iter().flat_map(|(m, v)| [m, v]) {
            s.seen(t);
        }
    }
    Ok(())
}

/// A convolution at inference of `c` channels out of a constant map, with a residual if asked for.
fn folded(
    s: &mut Setup,
    x: Shape,
    c: usize,
    (depthwise, kernel, stride): (bool, usize, usize),
    rest: bool,
) -> Result<()> {
    let activation = if rest { Activation::Identity } else { Activation::Relu6 };
    let op = Folded { depthwise, kernel, stride, padding: Padding::Same, activation, residual: rest };
    folded_as(s, x, c, op)
}

fn folded_as(s: &mut Setup, x: Shape, c: usize, op: Folded) -> Result<()> {
    let Folded { depthwise, kernel, residual: rest, .. } = op;
    let each = if depthwise { 1 } else { x.c };
    let residual = rest.then(|| s.constant(op.output(x, c), Draw::Normal(1.0)));
    let x = s.constant(x, Draw::Normal(2.0));
    let w = s.constant(Shape::matrix(kernel * kernel * each, c), Draw::Normal(1.0));
    let bias = s.constant(Shape::vector(c), Draw::Normal(2.0));
    let y = Folded::record(&mut s.graph, op, [x, w, bias], residual)?;
    s.seen(y);
    Ok(())
}

const fn window(kernel: usize, stride: usize, pad: usize, max: bool, average: bool, statistics: bool) -> Pool {
    Pool { kernel, stride, pad, max, average, statistics }
}

fn reduce(s: &mut Setup, x: Shape, halves: &[(usize, usize)], statistics: bool) -> Result<Vec<(Tensor, ReduceInput)>> {
    let c_in = x.c;
    let x = s.var(x, Draw::Away);
    let edge = |&(even, odd): &(usize, usize)| ReduceInput {
        even: s.weight(c_in, even),
        odd: s.weight(c_in, odd),
        statistics: statistics.then(|| s.statistics(even + odd)),
    };
    let edges: Vec<ReduceInput> = halves.iter().map(edge).collect();
    let maps = Reduce::record(&mut s.graph, x, &edges)?;
    Ok(maps.into_iter().zip(edges).collect())
}

fn reduce_alone(s: &mut Setup, x: Shape, halves: &[(usize, usize)], statistics: bool) -> Result<()> {
    for (y, edge) in reduce(s, x, halves, statistics)? {
        s.out(y);
        for t in edge.statistics.into_iter().flat_map(|(m, v)| [m, v]) {
            s.seen(t);
        }
    }
    Ok(())
}

fn depthwise(s: &mut Setup, x: Shape, kernel: usize, dilation: usize, stride: usize) -> Result<()> {
    let c = x.c;
    let x = s.var(x, Draw::Away);
    let w = s.weight(kernel * kernel, c);
    let y = Depthwise::record(&mut s.graph, Depthwise { kernel, dilation, stride }, x, w);
    s.out(y);
    Ok(())
}

fn batch_norm(s: &mut Setup, x: Shape, affine: bool) -> Result<()> {
    let c = x.c;
    let x = s.var(x, Draw::Away);
    let affine = affine.then(|| s.affine(c));
    let [y, mean, var] = BatchNorm::record(&mut s.graph, x, affine, EPS);
    s.out(y);
    s.seen(mean);
    s.seen(var);
    Ok(())
}

fn cross_entropy(s: &mut Setup, n: usize, classes: usize, smoothing: f64, padding: &[usize]) -> Result<()> {
    let logits = s.var(map(n, 1, 1, classes), Draw::Normal(2.0));
    let labels = s.constant(Shape::vector(n), Draw::Below(classes));
    let last = s.values.last_mut().expect("just declared");
    for &row in padding {
        last.1[row] = -1.0;
    }
    let (loss, counts) = CrossEntropy::record(&mut s.graph, CrossEntropy { smoothing }, logits, labels)?;
    s.out(loss);
    s.seen(counts);
    Ok(())
}

/// All primitives of one edge on one state, mixed; `reduction` halves the map.
fn edge(s: &mut Setup, x: Shape, reduction: bool) -> Result<()> {
    let (c, stride) = (x.c, if reduction { 2 } else { 1 });
    let x = s.var(x, Draw::Away);
    let weights = mixing(s, 1, 8)?;
    let plain = Normalised::plain(x);
    let places = [s.statistics(c), s.statistics(c)];
    let pools = Pool::record(&mut s.graph, window(3, stride, 1, true, true, true), x, &places)?;
    let mut maps: Vec<Normalised> = pools.iter().zip(places).map(|(p, at)| normalised(p.y, at, None)).collect();
    if reduction {
        let at = s.statistics(c);
        let edge = ReduceInput { even: s.weight(c, c / 2), odd: s.weight(c, c - c / 2), statistics: Some(at) };
        maps.push(normalised(Reduce::record(&mut s.graph, x, &[edge])?[0], at, None));
    } else {
        maps.push(plain);
    }
    let mut first = Vec::new();
    for geometry in [(3, 1, stride), (5, 1, stride), (3, 2, stride), (5, 2, stride)] {
        first.push(branch(s, plain, c, geometry, true)?);
    }
    let written = Separable::record(&mut s.graph, &first)?;
    let read = |i: usize| normalised(written[i], first[i].statistics.expect("asked for"), None);
    let second = [branch(s, read(0), c, (3, 1, 1), true)?, branch(s, read(1), c, (5, 1, 1), true)?];
    let halves = Separable::record(&mut s.graph, &second)?;
    for (y, input) in halves.into_iter().zip(second) {
        maps.push(normalised(y, input.statistics.expect("asked for"), None));
    }
    maps.extend([read(2), read(3)]);
    let sources: Vec<SourceInput> =
        maps.iter().enumerate().map(|(i, &map)| SourceInput { map, weight: Some(i + 1), mask: None }).collect();
    let node = s.graph.tensor(s.graph.shape(maps[0].y), "node");
    Mixture::record(&mut s.graph, &sources, Some(weights), None, node)?;
    s.out(node);
    Ok(())
}

fn vector(s: &mut Setup, len: usize, how: Draw) -> Tensor {
    s.constant(Shape::vector(len), how)
}

fn sgd(s: &mut Setup, len: usize, clip: f64, gradient: Draw) -> Result<()> {
    let g = vector(s, len, gradient);
    let lr = vector(s, 1, Draw::Constant(0.025));
    let states = [(len, Draw::Normal(1.0)), (len, Draw::Normal(0.5)), (1, Draw::Constant(0.0))];
    let norm = GlobalNorm::record(&mut s.graph, g, "norm");
    let outputs = states
        .map(|(len, how)| {
            let state = s.state(Shape::vector(len), how);
            s.watch(state)
        })
        .to_vec();
    s.graph.push(Sgd { momentum: 0.9, decay: 3e-4, clip }, vec![g, norm, lr], outputs);
    Ok(())
}

fn adam(s: &mut Setup, len: usize, gradient: Draw) -> Result<()> {
    let g = vector(s, len, gradient);
    let lr = vector(s, 1, Draw::Constant(3e-4));
    let norm = GlobalNorm::record(&mut s.graph, g, "norm");
    let outputs = [
        (len, Draw::Normal(1.0)),
        (len, Draw::Normal(0.1)),
        (len, Draw::Positive),
        (1, Draw::Constant(2.0)),
        (1, Draw::Constant(0.0)),
    ]
    .map(|(len, how)| {
        let state = s.state(Shape::vector(len), how);
        s.watch(state)
    })
    .to_vec();
    s.graph.push(Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 }, vec![g, norm, lr], outputs);
    Ok(())
}

fn augment(s: &mut Setup, shape: Shape, pad: usize, flip: bool, cutout: usize) -> Result<()> {
    let pixels = s.constant(shape, Draw::Below(256));
    let (index, epoch) = (vector(s, shape.n, Draw::Below(50_000)), vector(s, 1, Draw::Constant(3.0)));
    let (mean, std) = (vec![0.49, 0.48, 0.45, 0.5], vec![0.25, 0.24, 0.26, 0.3]);
    let op = Augment { pad, flip, cutout, mean, std, seed: 11 };
    let out = Augment::record(&mut s.graph, op, [pixels, index, epoch]);
    s.seen(out);
    Ok(())
}

/// The table.
pub const CASES: &[Case] = &[
    // Dense convolutions.
    Case::new("dense: pointwise with ReLU and statistics", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 5, 7, 8), 16, Dense::RELU_POINTWISE)
    }),
    Case::new("dense: stem of a batch of one", &["dense", "dense_backward"], |s| {
        dense(s, map(1, 5, 6, 3), 10, Dense { statistics: true, ..convolution(3, 1, 1) })
    }),
    Case::new("dense: stride 2 at odd sizes", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 7, 5, 3), 5, Dense { relu: true, ..convolution(3, 2, 1) })
    }),
    Case::new("dense: stride that does not divide the size", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 8, 6, 2), 3, convolution(3, 2, 0))
    }),
    Case::new("dense: 2x2 with bias", &["dense", "dense_backward"], |s| {
        dense(s, map(2, 2, 3, 5), 7, Dense { relu: true, bias: true, ..convolution(2, 1, 0) })
    }),
    Case::new("dense: linear layer", &["dense", "dense_backward"], |s| {
        dense(s, map(5, 1, 1, 36), 10, Dense { bias: true, ..convolution(1, 1, 0) })
    }),
    Case::new("dense: one channel to one", &["dense", "dense_backward"], |s| {
        dense(s, map(1, 3, 3, 1), 1, Dense { statistics: true, ..convolution(3, 1, 1) })
    }),
    Case::new("dense: bias alone has a gradient", &["dense", "dense_backward"], |s| {
        let x = s.constant(map(3, 2, 1, 4), Draw::Normal(1.0));
        let w = s.constant(Shape::matrix(4, 5), Draw::Normal(1.0));
        let bias = s.var(Shape::vector(5), Draw::Normal(1.0));
        let y = Dense::record(&mut s.graph, convolution(1, 1, 0), x, w, Some(bias), None)?;
        s.out(y);
        Ok(())
    }),
    Case::new("dense: slice of channels, flat weights", &["dense", "dense_backward"], |s| {
        let x = s.wide(map(2, 3, 3, 5), Draw::Away);
        let [w, bias] = s.flat(&[Shape::matrix(5, 6), Shape::vector(6)])[..] else { unreachable!() };
        let op = Dense { relu: true, bias: true, ..convolution(1, 1, 0) };
        let y = Dense::record(&mut s.graph, op, x, w, Some(bias), None)?;
        let narrow = s.graph.channels(y, 1, 3)?;
        s.out(narrow);
        s.out(y);
        Ok(())
    }),
    Case::new("dense: behind it an affine normalisation", &["dense", "dense_backward", "mixture"], |s| {
        let x = s.var(map(2, 4, 5, 3), Draw::Away);
        let (w, at) = (s.weight(27, 5), s.statistics(5));
        let op = Dense { relu: true, ..convolution(3, 1, 1) };
        let y = Dense::record(&mut s.graph, op, x, w, None, Some(at))?;
        let affine = s.affine(5);
        let z = Mixture::normalise(&mut s.graph, normalised(y, at, Some(affine)), "normalised")?;
        s.out(z);
        Ok(())
    }),
    Case::new("dense: its map is read by two normalisations and as it is", &["dense", "affine", "mixture"], |s| {
        let x = s.var(map(2, 3, 4, 3), Draw::Away);
        let (w, at) = (s.weight(3, 4), s.statistics(4));
        let y = Dense::record(&mut s.graph, Dense::RELU_POINTWISE, x, w, None, Some(at))?;
        s.out(y);
        for _ in 0..2 {
            let affine = s.affine(4);
            let z = Mixture::normalise(&mut s.graph, normalised(y, at, Some(affine)), "normalised")?;
            s.out(z);
        }
        Ok(())
    }),
    // Separable convolutions.
    Case::new("separable: 3x3 at odd sizes", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 5, 7, 5), 5, (3, 1, 1), true)
    }),
    Case::new("separable: 5x5 of stride 2 at odd sizes", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 7, 5, 8), 8, (5, 1, 2), true)
    }),
    Case::new("separable: 3x3 of stride 2 at even sizes", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 6, 8, 3), 10, (3, 1, 2), true)
    }),
    Case::new("separable: dilated 3x3 of stride 2", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 7, 6, 3), 3, (3, 2, 2), true)
    }),
    Case::new("separable: dilated 5x5 wider than the map", &["separable", "separable_backward"], |s| {
        separable(s, map(1, 3, 4, 10), 10, (5, 2, 1), true)
    }),
    Case::new("separable: one channel, one image", &["separable", "separable_backward"], |s| {
        separable(s, map(1, 4, 3, 1), 1, (3, 1, 1), false)
    }),
    Case::new("separable: 36 channels to 16", &["separable", "separable_backward"], |s| {
        separable(s, map(2, 3, 3, 36), 16, (3, 1, 1), true)
    }),
    Case::new("separable: 16 channels to 36", &["separable", "separable_backward"], |s| {
        separable(s, map(1, 4, 2, 16), 36, (3, 2, 1), false)
    }),
    Case::new("separable: one pixel", &["separable", "separable_backward"], |s| {
        separable(s, map(3, 1, 1, 5), 8, (5, 2, 2), true)
    }),
    Case::new("separable: slice of channels, flat weights", &["separable", "separable_backward"], |s| {
        let x = s.wide(map(2, 5, 4, 5), Draw::Away);
        let [depthwise, pointwise] = s.flat(&[Shape::matrix(9, 5), Shape::matrix(5, 6)])[..] else { unreachable!() };
        let x = Normalised::plain(x);
        let input = BranchInput { x, depthwise, pointwise, geometry: (3, 1, 1), statistics: None };
        let y = Separable::record(&mut s.graph, &[input])?[0];
        let narrow = s.graph.channels(y, 3, 2)?;
        s.out(narrow);
        Ok(())
    }),
    Case::new("separable: branches that share a map", &["separable", "separable_backward"], |s| {
        let x = Normalised::plain(s.var(map(2, 6, 5, 5), Draw::Away));
        let mut branches = Vec::new();
        for geometry in [(3, 1, 1), (5, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2)] {
            branches.push(branch(s, x, 5, geometry, geometry.0 == 3)?);
        }
        let maps = Separable::record(&mut s.graph, &branches)?;
        for y in maps {
            s.out(y);
        }
        Ok(())
    }),
    Case::new("separable: branches of maps of different sizes", &["separable", "separable_backward"], |s| {
        let (x, y) = (s.var(map(2, 4, 4, 3), Draw::Away), s.var(map(2, 3, 5, 8), Draw::Away));
        let first = branch(s, Normalised::plain(x), 5, (3, 1, 1), true)?;
        let second = branch(s, Normalised::plain(y), 2, (5, 1, 2), false)?;
        for y in Separable::record(&mut s.graph, &[first, second])? {
            s.out(y);
        }
        Ok(())
    }),
    Case::new("separable: two halves", &["separable", "separable_backward", "mixture_backward"], |s| {
        two_halves(s, map(2, 5, 5, 5), 3, 1, false)
    }),
    Case::new("separable: two halves, stride 2, affine", &["separable", "separable_backward"], |s| {
        two_halves(s, map(2, 7, 6, 4), 5, 2, true)
    }),
    Case::new("separable: two branches read one normalised map", &["separable", "separable_backward"], |s| {
        let y = s.var(map(2, 4, 5, 4), Draw::Away);
        let h = measured(s, y, true);
        let branches = [branch(s, h, 4, (3, 1, 1), false)?, branch(s, h, 3, (3, 2, 2), true)?];
        for z in Separable::record(&mut s.graph, &branches)? {
            s.out(z);
        }
        Ok(())
    }),
    Case::new("separable: map with one path into two masked nodes", &["separable", "separable_backward"], |s| {
        let x = Normalised::plain(s.var(map(3, 4, 4, 3), Draw::Away));
        let input = branch(s, x, 4, (3, 1, 1), true)?;
        let y = Separable::record(&mut s.graph, &[input])?[0];
        let mask = s.constant(Shape::matrix(2, 3), Draw::Constant(0.0));
        s.set(&[1.25, 0.0, 1.25, 0.0, 1.25, 1.25]);
        let affine = s.affine(4);
        let map = normalised(y, input.statistics.expect("asked for"), Some(affine));
        let node = s.graph.tensor(s.graph.shape(y), "node");
        let source = SourceInput { map, weight: None, mask: Some(1) };
        Mixture::record(&mut s.graph, &[source], None, Some(mask), node)?;
        s.out(node);
        Ok(())
    }),
    // Mixtures.
    Case::new("mixture: weights, one of them unused", &["mixture", "mixture_backward", "softmax_backward"], |s| {
        let weights = mixing(s, 2, 4)?;
        let shape = map(2, 3, 5, 5);
        let maps = [s.var(shape, Draw::Away), s.var(shape, Draw::Away), s.var(shape, Draw::Away)];
        let sources = [
            SourceInput { map: measured(s, maps[0], false), weight: Some(1), mask: None },
            SourceInput { map: measured(s, maps[1], true), weight: Some(2), mask: None },
            SourceInput { map: Normalised::plain(maps[2]), weight: Some(3), mask: None },
            SourceInput { map: Normalised::plain(maps[0]), weight: Some(5), mask: None },
            SourceInput { map: measured(s, maps[1], false), weight: Some(6), mask: None },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, Some(weights), None, node)?;
        s.out(node);
        Ok(())
    }),
    Case::new("mixture: drop path", &["mixture", "mixture_backward", "drop_mask"], |s| {
        let shape = map(5, 2, 3, 3);
        let inputs = [vector(s, 1, Draw::Constant(0.5)), vector(s, 1, Draw::Constant(7.0))];
        let mask = DropMask::record(&mut s.graph, DropMask { seed: 5 }, 2, 5, inputs);
        let maps = [s.var(shape, Draw::Away), s.var(shape, Draw::Away), s.var(shape, Draw::Away)];
        let sources = [
            SourceInput { map: measured(s, maps[0], true), weight: None, mask: Some(1) },
            SourceInput { map: Normalised::plain(maps[1]), weight: None, mask: Some(0) },
            SourceInput { map: Normalised::plain(maps[2]), weight: None, mask: None },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, None, Some(mask), node)?;
        s.out(node);
        s.seen(mask);
        Ok(())
    }),
    Case::new("mixture: mask and weight together", &["mixture", "mixture_backward"], |s| {
        let (shape, weights) = (map(3, 2, 2, 4), mixing(s, 1, 3)?);
        let mask = s.constant(Shape::matrix(1, 3), Draw::Constant(0.0));
        s.set(&[2.0, 0.0, 2.0]);
        let maps = [s.var(shape, Draw::Away), s.var(shape, Draw::Away)];
        let sources = [
            SourceInput { map: measured(s, maps[0], true), weight: Some(2), mask: Some(0) },
            SourceInput { map: Normalised::plain(maps[1]), weight: Some(0), mask: Some(0) },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, Some(weights), Some(mask), node)?;
        s.out(node);
        Ok(())
    }),
    Case::new("mixture: nodes written side by side, read by each other", &["mixture", "mixture_backward"], |s| {
        let (shape, weights) = (map(2, 3, 3, 3), mixing(s, 3, 2)?);
        let x = s.var(shape, Draw::Away);
        let concat = s.graph.tensor(shape.with_channels(9), "output");
        let mut states = vec![x];
        for node in 0..3 {
            let own = s.graph.slice(weights, 2 * node, Shape::vector(2))?;
            let out = s.graph.channels(concat, 3 * node, 3)?;
            let last = states[node];
            let sources = [
                SourceInput { map: measured(s, last, false), weight: Some(1), mask: None },
                SourceInput { map: Normalised::plain(last), weight: Some(0), mask: None },
                SourceInput { map: Normalised::plain(x), weight: None, mask: None },
            ];
            Mixture::record(&mut s.graph, &sources, Some(own), None, out)?;
            states.push(out);
        }
        let w = s.weight(9, 4);
        let y = Dense::record(&mut s.graph, convolution(1, 1, 0), concat, w, None, None)?;
        s.out(y);
        Ok(())
    }),
    Case::new("mixture: sources are slices of one map", &["mixture", "mixture_backward"], |s| {
        let wide = s.var(map(2, 3, 2, 9), Draw::Away);
        let shape = map(2, 3, 2, 3);
        let mut sources = Vec::new();
        for start in [0, 4, 5, 4] {
            let y = s.graph.channels(wide, start, 3)?;
            let map = if start == 4 { measured(s, y, true) } else { Normalised::plain(y) };
            sources.push(SourceInput { map, weight: None, mask: None });
        }
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, None, None, node)?;
        s.out(node);
        Ok(())
    }),
    Case::new("mixture: reads a concatenation whose slices are also read", &["mixture", "mixture_backward"], |s| {
        let shape = map(2, 2, 3, 3);
        let (a, b) = (s.var(shape, Draw::Away), s.var(shape, Draw::Away));
        let concat = s.graph.tensor(shape.with_channels(6), "output");
        let (left, right) = (s.graph.channels(concat, 0, 3)?, s.graph.channels(concat, 3, 3)?);
        Linear::record_into(&mut s.graph, &[(0.5, a), (1.5, b)], left)?;
        Linear::record_into(&mut s.graph, &[(1.0, b)], right)?;
        let whole = measured(s, concat, false);
        let z = Mixture::normalise(&mut s.graph, whole, "normalised")?;
        s.out(z);
        let again = s.graph.channels(concat, 3, 3)?;
        let half = measured(s, again, true);
        let z = Mixture::normalise(&mut s.graph, half, "normalised")?;
        s.out(z);
        s.out(right);
        Ok(())
    }),
    Case::new("mixture: batch norm with running statistics", &["mixture"], |s| {
        // Evaluation reads lasting statistics: a forward only, since the gradient of that form is never taken.
        let y = s.constant(map(2, 3, 3, 10), Draw::Normal(1.0));
        let (mean, var) = (vector(s, 10, Draw::Normal(1.0)), vector(s, 10, Draw::Positive));
        let affine = (vector(s, 10, Draw::Positive), vector(s, 10, Draw::Normal(1.0)));
        let z = Mixture::normalise(&mut s.graph, normalised(y, (mean, var), Some(affine)), "normalised")?;
        s.seen(z);
        Ok(())
    }),
    Case::new("edge: all primitives", &["mixture", "separable", "pool", "pool_backward", "softmax"], |s| {
        edge(s, map(2, 5, 4, 4), false)
    }),
    Case::new("edge: all primitives, reduction at odd sizes", &["mixture", "reduce", "pool", "softmax"], |s| {
        edge(s, map(2, 7, 5, 4), true)
    }),
    // Pools.
    Case::new("pool: maximum and average", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 5, 7, 5), window(3, 1, 1, true, true, true), Draw::Normal(1.0))
    }),
    Case::new("pool: stride 2 at odd sizes", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 7, 5, 10), window(3, 2, 1, true, true, true), Draw::Normal(1.0))
    }),
    Case::new("pool: stride 2 at even sizes, maximum alone", &["pool", "pool_backward"], |s| {
        pool(s, map(1, 6, 4, 3), window(3, 2, 1, true, false, true), Draw::Normal(1.0))
    }),
    Case::new("pool: average 5x5 of stride 3 without padding", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 8, 9, 3), window(5, 3, 0, false, true, false), Draw::Normal(1.0))
    }),
    Case::new("pool: window wider than the map", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 1, 2, 36), window(3, 1, 1, true, true, false), Draw::Normal(1.0))
    }),
    Case::new("pool: ties", &["pool", "pool_backward"], |s| {
        pool(s, map(2, 6, 5, 8), window(3, 1, 1, true, true, true), Draw::Ties)
    }),
    Case::new("pool: ties at stride 2", &["pool", "pool_backward"], |s| {
        pool(s, map(1, 5, 6, 16), window(3, 2, 1, true, false, false), Draw::Ties)
    }),
    Case::new("pool: everything tied", &["pool", "pool_backward"], |s| {
        let x = s.var(map(1, 4, 4, 3), Draw::Ties);
        s.variables.last_mut().expect("just declared").smooth = false;
        let zero = Linear::record(&mut s.graph, &[(1.0, x), (-1.0, x)], "zero")?;
        let y = Pool::record(&mut s.graph, window(3, 1, 1, true, false, false), zero, &[])?[0].y;
        s.out(y);
        Ok(())
    }),
    Case::new("pool: slice of channels, masked paths, skip beside it", &["pool", "pool_backward"], |s| {
        let shape = map(3, 4, 3, 5);
        let x = s.wide(shape, Draw::Normal(1.0));
        let mask = s.constant(Shape::matrix(3, 3), Draw::Positive);
        let pools = Pool::record(&mut s.graph, window(3, 1, 1, true, true, false), x, &[])?;
        let average = measured(s, pools[1].y, false);
        let sources = [
            SourceInput { map: Normalised::plain(pools[0].y), weight: None, mask: Some(2) },
            SourceInput { map: Normalised::plain(x), weight: None, mask: Some(0) },
            SourceInput { map: average, weight: None, mask: Some(1) },
            SourceInput { map: Normalised::plain(pools[1].y), weight: None, mask: None },
        ];
        let node = s.graph.tensor(shape, "node");
        Mixture::record(&mut s.graph, &sources, None, Some(mask), node)?;
        s.out(node);
        s.out(pools[0].y);
        Ok(())
    }),
    Case::new("global pool", &["global_pool", "global_pool_backward"], |s| {
        let x = s.wide(map(3, 3, 5, 10), Draw::Normal(1.0));
        let y = GlobalPool::record(&mut s.graph, x);
        s.out(y);
        Ok(())
    }),
    // Factorized reduce.
    Case::new("reduce: one edge at even sizes", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(2, 4, 6, 8), &[(5, 5)], true)
    }),
    Case::new("reduce: three edges at odd sizes", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(2, 5, 7, 5), &[(4, 4), (4, 4), (4, 4)], true)
    }),
    Case::new("reduce: halves of two and three channels", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(1, 3, 4, 3), &[(2, 3)], false)
    }),
    Case::new("reduce: one pixel", &["reduce", "reduce_backward"], |s| {
        reduce_alone(s, map(2, 1, 1, 10), &[(1, 1)], false)
    }),
    Case::new("reduce: normalised, two of three edges used", &["reduce", "reduce_backward", "mixture"], |s| {
        let edges = reduce(s, map(2, 5, 6, 6), &[(3, 3), (3, 3), (3, 3)], true)?;
        for (y, edge) in &edges[1..] {
            let affine = s.affine(6);
            let at = edge.statistics.expect("asked for");
            let z = Mixture::normalise(&mut s.graph, normalised(*y, at, Some(affine)), "normalised")?;
            s.out(z);
        }
        Ok(())
    }),
    Case::new("reduce: slice of channels, flat weights", &["reduce", "reduce_backward"], |s| {
        let x = s.wide(map(2, 4, 3, 4), Draw::Away);
        let [even, odd] = s.flat(&[Shape::matrix(4, 2), Shape::matrix(4, 2)])[..] else { unreachable!() };
        let y = Reduce::record(&mut s.graph, x, &[ReduceInput { even, odd, statistics: None }])?[0];
        s.out(y);
        Ok(())
    }),
    // Elementary ops.
    Case::new("relu", &["relu", "relu_backward"], |s| {
        let x = s.wide(map(2, 3, 3, 5), Draw::Away);
        let y = Relu::record(&mut s.graph, x);
        s.out(y);
        Ok(())
    }),
    Case::new("depthwise: stride 2 at odd sizes", &["depthwise", "depthwise_backward"], |s| {
        depthwise(s, map(2, 5, 7, 5), 3, 1, 2)
    }),
    Case::new("depthwise: dilated 5x5 of stride 2", &["depthwise", "depthwise_backward"], |s| {
        depthwise(s, map(1, 6, 5, 8), 5, 2, 2)
    }),
    Case::new("batch norm", &["batch_norm", "batch_norm_backward", "statistics"], |s| {
        let x = s.var(map(2, 3, 3, 3), Draw::Away);
        let (mean, var) = Statistics::record(&mut s.graph, x);
        s.seen(mean);
        s.seen(var);
        let [y, ..] = BatchNorm::record(&mut s.graph, x, None, EPS);
        s.out(y);
        Ok(())
    }),
    Case::new("batch norm: affine", &["batch_norm", "batch_norm_backward"], |s| batch_norm(s, map(1, 5, 5, 10), true)),
    Case::new("batch norm: large mean", &["batch_norm", "batch_norm_backward"], |s| {
        // E[x^2] - E[x]^2 would lose every digit of this variance in f32.
        let x = s.var(map(2, 4, 4, 3), Draw::Away);
        let shift = s.constant(map(2, 4, 4, 3), Draw::Constant(64.0));
        let x = Linear::record(&mut s.graph, &[(0.5, x), (1.0, shift)], "shifted")?;
        let [y, _, var] = BatchNorm::record(&mut s.graph, x, None, EPS);
        s.out(y);
        s.seen(var);
        let at = s.statistics(3);
        let w = s.constant(Shape::matrix(3, 3), Draw::Constant(0.0));
        s.set(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let y = Dense::record(&mut s.graph, Dense::RELU_POINTWISE, x, w, None, Some(at))?;
        let z = Mixture::normalise(&mut s.graph, normalised(y, at, None), "normalised")?;
        s.out(z);
        s.seen(at.1);
        Ok(())
    })
    .within(2e-4),
    Case::new("scale", &["scale", "scale_backward"], |s| {
        let x = s.var(map(2, 3, 3, 5), Draw::Normal(1.0));
        let w = s.var(Shape::vector(4), Draw::Normal(1.0));
        let (y, z) = (Scale::record(&mut s.graph, x, w, 3), Scale::record(&mut s.graph, x, w, 0));
        s.out(y);
        s.out(z);
        Ok(())
    }),
    Case::new("linear: one tensor twice, into slices", &["linear"], |s| {
        let shape = map(2, 3, 2, 5);
        let (x, y) = (s.var(shape, Draw::Normal(1.0)), s.wide(shape, Draw::Normal(1.0)));
        let concat = s.graph.tensor(shape.with_channels(10), "output");
        let (left, right) = (s.graph.channels(concat, 0, 5)?, s.graph.channels(concat, 5, 5)?);
        Linear::record_into(&mut s.graph, &[(0.5, x), (-2.0, y), (0.25, x)], right)?;
        Linear::record_into(&mut s.graph, &[(1.5, y)], left)?;
        s.out(concat);
        Ok(())
    }),
    Case::new("linear: a strict part of a map is used", &["linear", "fill"], |s| {
        let (x, y) = (s.var(map(2, 2, 2, 7), Draw::Normal(1.0)), s.var(map(2, 2, 2, 7), Draw::Normal(1.0)));
        let sum = Linear::record(&mut s.graph, &[(1.0, x), (0.5, y)], "sum")?;
        let part = s.graph.channels(sum, 2, 3)?;
        s.out(part);
        let overlapping = s.graph.channels(sum, 1, 3)?;
        s.out(overlapping);
        Ok(())
    }),
    Case::new("linear: rows of a matrix", &["linear"], |s| {
        let matrix = s.var(Shape::matrix(6, 4), Draw::Normal(1.0));
        let rows = s.graph.slice(matrix, 8, Shape::matrix(2, 4))?;
        s.out(rows);
        let more = s.graph.slice(matrix, 12, Shape::matrix(2, 4))?;
        s.out(more);
        Ok(())
    }),
    Case::new("linear: columns of a matrix in a flat vector", &["linear"], |s| {
        let matrix = s.flat(&[Shape::matrix(5, 4)])[0];
        for (start, c) in [(0, 2), (1, 3)] {
            let columns = s.graph.channels(matrix, start, c)?;
            s.out(columns);
        }
        Ok(())
    }),
    Case::new("softmax", &["softmax", "softmax_backward"], |s| {
        let p = mixing(s, 14, 8)?;
        s.out(p);
        Ok(())
    }),
    Case::new("softmax: of large numbers", &["softmax", "softmax_backward"], |s| {
        let alphas = s.var(Shape::matrix(2, 5), Draw::Normal(100.0));
        let p = softmax(&mut s.graph, alphas, 2, 5)?;
        let half = s.graph.slice(p, 5, Shape::vector(5))?;
        s.out(half);
        Ok(())
    }),
    // Losses.
    Case::new("cross entropy", &["cross_entropy", "cross_entropy_backward"], |s| cross_entropy(s, 5, 10, 0.0, &[])),
    Case::new("cross entropy: smoothing, padding rows", &["cross_entropy", "cross_entropy_backward"], |s| {
        cross_entropy(s, 6, 7, 0.1, &[0, 5])
    }),
    Case::new("cross entropy: one image, one class", &["cross_entropy", "cross_entropy_backward"], |s| {
        cross_entropy(s, 1, 1, 0.1, &[])
    }),
    Case::new("cross entropy: padding alone", &["cross_entropy", "cross_entropy_backward"], |s| {
        cross_entropy(s, 2, 3, 0.0, &[0, 1])
    }),
    // Ops without gradient: their values are checked in `values`.
    Case::new("accumulate", &["accumulate"], |s| {
        let (loss, counts) = (vector(s, 1, Draw::Normal(1.0)), vector(s, 3, Draw::Below(9)));
        let sums = s.state(Shape::vector(4), Draw::Normal(10.0));
        let out = s.watch(sums);
        s.graph.push(Accumulate, vec![loss, counts], vec![out]);
        Ok(())
    }),
    Case::new("global norm over several blocks", &["global_norm"], |s| {
        let x = vector(s, 10_001, Draw::Normal(1.0));
        let norm = GlobalNorm::record(&mut s.graph, x, "norm");
        s.seen(norm);
        Ok(())
    }),
    Case::new("sgd: clipped", &["sgd", "global_norm"], |s| sgd(s, 101, 5.0, Draw::Normal(1.0))),
    Case::new("sgd: not clipped", &["sgd"], |s| sgd(s, 5000, 1e9, Draw::Normal(1.0))),
    Case::new("sgd: gradient not finite", &["sgd"], |s| sgd(s, 13, 5.0, Draw::Constant(f64::INFINITY))),
    Case::new("adam", &["adam"], |s| adam(s, 112, Draw::Normal(0.1))),
    Case::new("adam: gradient not finite", &["adam"], |s| adam(s, 9, Draw::Constant(f64::NAN))),
    Case::new("running update", &["running_update"], |s| {
        let (batch, guard) = (vector(s, 16, Draw::Normal(1.0)), vector(s, 1, Draw::Constant(2.0)));
        let running = s.state(Shape::vector(16), Draw::Positive);
        let out = s.watch(running).tensor;
        let segment = |offset, len, factor| Segment { offset, len, factor };
        let segments = vec![segment(0, 5, 1.0), segment(5, 5, 18.0 / 17.0), segment(11, 5, 1.0)];
        RunningUpdate::record(&mut s.graph, RunningUpdate { momentum: 0.1, segments }, batch, guard, out);
        Ok(())
    }),
    Case::new("running update: guard not finite", &["running_update"], |s| {
        let (batch, guard) = (vector(s, 4, Draw::Normal(1.0)), vector(s, 1, Draw::Constant(f64::NAN)));
        let running = s.state(Shape::vector(4), Draw::Positive);
        let out = s.watch(running).tensor;
        let segments = vec![Segment { offset: 0, len: 4, factor: 1.0 }];
        RunningUpdate::record(&mut s.graph, RunningUpdate { momentum: 0.1, segments }, batch, guard, out);
        Ok(())
    }),
    Case::new("second order: unrolled step", &["unroll"], |s| {
        let inputs = [67, 67, 67, 1].map(|len| vector(s, len, Draw::Normal(0.5)));
        let out = Unroll::record(&mut s.graph, Unroll { momentum: 0.9, decay: 3e-4 }, inputs);
        s.seen(out);
        Ok(())
    }),
    Case::new("second order: perturbed weights", &["perturb"], |s| {
        let (w, d) = (vector(s, 67, Draw::Normal(0.5)), vector(s, 67, Draw::Normal(0.5)));
        let norm = GlobalNorm::record(&mut s.graph, d, "norm");
        for radius in [0.01, -0.01] {
            let out = Perturb::record(&mut s.graph, Perturb { radius }, [w, d, norm]);
            s.seen(out);
        }
        Ok(())
    }),
    Case::new("second order: Hessian term", &["hessian_term"], |s| {
        let inputs = [35, 35, 35].map(|len| vector(s, len, Draw::Normal(0.5)));
        let scalars = [vector(s, 1, Draw::Positive), vector(s, 1, Draw::Constant(0.025))];
        let all = [inputs[0], inputs[1], inputs[2], scalars[0], scalars[1]];
        let (hessian, total) = HessianTerm::record(&mut s.graph, HessianTerm { radius: 0.01 }, all);
        s.seen(hessian);
        s.seen(total);
        Ok(())
    }),
    Case::new("augment: crop, flip, cutout", &["augment"], |s| augment(s, map(9, 6, 8, 3), 2, true, 3)),
    Case::new("augment: normalisation alone", &["augment"], |s| augment(s, map(2, 5, 5, 1), 0, false, 0)),
    Case::new("augment: hole of even side", &["augment"], |s| augment(s, map(5, 4, 4, 4), 0, true, 4)),
    Case::new("folded: stem, odd channels", &["folded"], |s| folded(s, map(2, 9, 8, 3), 5, (false, 3, 2), false)),
    Case::new("folded: expansion", &["folded"], |s| folded(s, map(3, 5, 4, 7), 24, (false, 1, 1), false)),
    Case::new("folded: projection with residual", &["folded"], |s| folded(s, map(2, 6, 6, 18), 6, (false, 1, 1), true)),
    Case::new("folded: pointwise of stride 2", &["folded"], |s| folded(s, map(1, 5, 6, 4), 8, (false, 1, 2), true)),
    Case::new("folded: dense of stride 1 in bands", &["folded"], |s| {
        folded(s, map(1, 40, 48, 6), 33, (false, 3, 1), true)
    }),
    Case::new("folded: centred 7x7, even map, ReLU", &["folded"], |s| {
        let (padding, activation) = (Padding::Centred, Activation::Relu);
        let op = Folded { depthwise: false, kernel: 7, stride: 2, padding, activation, residual: true };
        folded_as(s, map(2, 14, 12, 3), 24, op)
    }),
    Case::new("folded: depthwise 3x3, even map", &["folded"], |s| {
        folded(s, map(2, 8, 10, 16), 16, (true, 3, 2), false)
    }),
    Case::new("folded: depthwise 5x5, odd map", &["folded"], |s| folded(s, map(2, 11, 7, 19), 19, (true, 5, 2), false)),
    Case::new("folded: depthwise in bands", &["folded"], |s| folded(s, map(1, 50, 31, 40), 40, (true, 5, 1), true)),
    Case::new("folded: slice of channels", &["folded"], |s| {
        let wide = s.constant(map(2, 4, 4, 9), Draw::Normal(1.0));
        let x = s.graph.channels(wide, 2, 6)?;
        let w = s.constant(Shape::matrix(9, 6), Draw::Normal(1.0));
        let bias = s.constant(Shape::vector(6), Draw::Normal(1.0));
        let (depthwise, activation) = (true, Activation::Relu6);
        let op = Folded { depthwise, kernel: 3, stride: 1, padding: Padding::Same, activation, residual: false };
        let y = Folded::record(&mut s.graph, op, [x, w, bias], None)?;
        s.seen(y);
        Ok(())
    }),
    Case::new("drop mask", &["drop_mask"], |s| {
        let inputs = [vector(s, 1, Draw::Constant(0.25)), vector(s, 1, Draw::Constant(9.0))];
        let mask = DropMask::record(&mut s.graph, DropMask { seed: 3 }, 5, 33, inputs);
        s.seen(mask);
        Ok(())
    }),
    Case::new("fill: slice of channels", &["fill", "linear"], |s| {
        let shape = map(2, 2, 3, 5);
        let out = s.graph.tensor(shape, "output");
        let (left, right) = (s.graph.channels(out, 0, 2)?, s.graph.channels(out, 2, 3)?);
        s.graph.push(Fill { value: 0.375 }, vec![], vec![left.into()]);
        let x = s.constant(shape.with_channels(3), Draw::Normal(1.0));
        Linear::record_into(&mut s.graph, &[(2.0, x)], right)?;
        s.seen(out);
        Ok(())
    }),
    Case::new("outputs that add to what is there", &["fill", "linear", "relu", "global_pool"], |s| {
        let shape = map(2, 3, 3, 5);
        let x = s.constant(shape, Draw::Away);
        let adding = |tensor| Output { tensor, accumulate: true };
        let out = s.graph.tensor(shape, "output");
        s.graph.push(Fill { value: 0.5 }, vec![], vec![out.into()]);
        s.graph.push(Linear { coefs: vec![2.0] }, vec![x], vec![adding(out)]);
        s.graph.push(Relu, vec![x], vec![adding(out)]);
        s.seen(out);
        let mean = GlobalPool::record(&mut s.graph, x);
        s.graph.push(GlobalPool, vec![out], vec![adding(mean)]);
        s.seen(mean);
        Ok(())
    }),
    Case::new("transport: falling eps", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (9, Held::Costs), [4.0, 0.1, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: stored kernels, one stopping early", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (40, Held::Kernel), [1.0, 0.2, 0.5, -1.0, 30.0, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: sums beyond the range of the present potentials", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (3, Held::Kernel), [0.004, 0.004, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: missed marginals", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Alternating, (8, Held::Kernel), [2.0, 0.3, 0.5, -1.0, 1e6, 0.7, 0.0, 0.0])
    }),
    Case::new("transport: the schedule of GeomLoss", TRANSPORT, |s| {
        transport(s, RAGGED, Rule::Annealed, (20, Held::Costs), [9.0, 0.05, 0.25, -1.0, 1e6, 0.0, 5.0, 0.0])
    }),
    Case::new("transport: blocks of rows spread over threads", TRANSPORT, |s| {
        let sizes = [(531, 520, false), (7, 9, false)];
        transport(s, &sizes, Rule::Alternating, (8, Held::Kernel), [2.0, 0.3, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Alternating, (9, Held::Nothing), [4.0, 0.1, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix, sums beyond the range of the present potentials", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Alternating, (3, Held::Nothing), [0.004, 0.004, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix, missed marginals", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Alternating, (8, Held::Nothing), [2.0, 0.3, 0.5, -1.0, 1e6, 0.7, 0.0, 0.0])
    }),
    Case::new("transport: without a matrix, the schedule of GeomLoss", MATRIX_FREE, |s| {
        transport(s, RAGGED, Rule::Annealed, (20, Held::Nothing), [9.0, 0.05, 0.25, -1.0, 1e6, 0.0, 5.0, 0.0])
    }),
    Case::new("transport: without a matrix, more rows and columns than a tile", MATRIX_FREE, |s| {
        let sizes = [(40, 4200, false), (7, 9, false), (531, 130, false), (140, 140, true)];
        transport(s, &sizes, Rule::Alternating, (4, Held::Nothing), [2.0, 0.3, 0.5, -1.0, 1e6, 0.0, 0.0, 0.0])
    }),
];

/// What a solver keeps in memory.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    Costs,
    Kernel,
    Nothing,
}

/// A solver of some problems `(n, m, symmetric)` with random points, labels and weights; `schedule` is the row of each
/// problem. Everything that it computes is compared, the costs included.
fn transport(
    s: &mut Setup,
    problems: &[(usize, usize, bool)],
    rule: Rule,
    (iterations, held): (usize, Held),
    schedule: [f64; SCHEDULE],
) -> Result<()> {
    const D: usize = 5;
    let free = held == Held::Nothing;
    let (mut table, mut rows) = (if free { Table::matrix_free() } else { Table::default() }, 0);
    let mut weights: Vec<f64> = Vec::new();
    for (number, &(n, m, symmetric)) in problems.iter().enumerate() {
        let y = if symmetric { rows } else { rows + n };
        table.push((n, rows), (m, y), symmetric)?;
        rows = y + m;
        for (side, len) in [n, m].into_iter().take(if symmetric { 1 } else { 2 }).enumerate() {
            let drawn = draw(number as u64, side as u64, len, Draw::Positive);
            let sum: f64 = drawn.iter().sum();
            weights.extend(drawn.iter().map(|w| f64::from((w / sum) as f32)));
            weights.resize(weights.len().next_multiple_of(16), 0.0);
        }
    }
    let table = std::sync::Arc::new(table);
    let points = s.constant(Shape::matrix(rows, D), Draw::Normal(0.5));
    let labels = s.constant(Shape::vector(rows), Draw::Below(3));
    let w = s.constant(Shape::matrix(3, 3), Draw::Positive);
    let cost = if free { None } else { Some(s.state(Shape::vector(table.costs), Draw::Constant(0.0))) };
    let weight = s.state(Shape::vector(table.potentials), Draw::Constant(0.0));
    s.set(&weights);
    let plan = s.state(Shape::matrix(problems.len(), SCHEDULE), Draw::Constant(0.0));
    s.set(&schedule.repeat(problems.len()));
    let potentials = s.state(Shape::vector(table.potentials), Draw::Constant(0.0));
    let status = s.state(Shape::matrix(problems.len(), STATUS), Draw::Constant(0.0));
    for state in cost.into_iter().chain([potentials, status]) {
        s.watch(state);
    }
    let [weights, schedule, potentials, status] = [weight, plan, potentials, status].map(|x| s.graph.state(x));
    let (point_scale, label_scale) = (0.5, 0.25);
    let (cost, source, free_labels) = match cost {
        Some(cost) => {
            let cost = s.graph.state(cost);
            let op = PairCost { table: table.clone(), point_scale, label_scale };
            PairCost::record(&mut s.graph, op, points, Some((labels, w)), cost)?;
            (cost, Source::Stored, None)
        }
        // Labels are left out in one of the cases.
        None => (points, Source::Points { point_scale, label_scale }, (iterations != 3).then_some((labels, w))),
    };
    let tensors = SinkhornTensors { cost, labels: free_labels, weights, schedule, potentials, status };
    let op = Sinkhorn { table: table.clone(), iterations, rule, kernel: held == Held::Kernel, source };
    Sinkhorn::record(&mut s.graph, op, tensors)?;
    let rows = Certificate::record(&mut s.graph, Certificate { table: table.clone(), source }, tensors)?;
    s.seen(rows);
    let rows = CostExtent::record(&mut s.graph, CostExtent { table, source }, cost, free_labels)?;
    s.seen(rows);
    Ok(())
}

/// Sizes around whole vectors and blocks of rows.
const RAGGED: &[(usize, usize, bool)] =
    &[(1, 1, false), (5, 33, false), (64, 16, false), (70, 129, false), (20, 20, true), (200, 3, false)];
const MATRIX_FREE: &[&str] = &["sinkhorn", "transport_certificate", "cost_extent"];
const TRANSPORT: &[&str] = &["pair_cost", "sinkhorn", "transport_certificate", "cost_extent"];

impl Case {
    const fn within(self, tolerance: f64) -> Self {
        Self { tolerance, ..self }
    }
}

/// Names of the ops that a case's program runs.
fn ops_of(case: &Case) -> HashSet<&'static str> {
    case.build(false).program().nodes().iter().map(|n| n.op.name()).collect()
}

#[test]
fn every_op_has_a_case() {
    let covered: HashSet<&str> = CASES.iter().flat_map(|c| c.covers).copied().collect();
    let run: HashSet<&str> = CASES.iter().flat_map(|c| ops_of(c).into_iter()).collect();
    for name in Op::NAMES {
        assert!(covered.contains(name), "op `{name}` is named by no case: add one to tests/cases.rs");
        assert!(run.contains(name), "op `{name}` is run by no case");
    }
}

#[test]
fn every_case_runs_the_ops_that_it_names() {
    let mut names = HashSet::new();
    for case in CASES {
        assert!(names.insert(case.name), "two cases are called `{}`", case.name);
        let run = ops_of(case);
        for op in case.covers {
            assert!(Op::NAMES.contains(op), "case `{}` names `{op}`, which is no op", case.name);
            assert!(run.contains(op), "case `{}` names `{op}` but does not run it", case.name);
        }
    }
}

#[test]
fn every_family_with_a_gradient_has_its_backward_checked() {
    for name in Op::NAMES.iter().filter(|n| n.ends_with("_backward")) {
        let checked = |c: &Case| ops_of(c).contains(name) && c.build(false).variables.iter().any(|v| v.smooth);
        assert!(CASES.iter().any(checked), "no case checks `{name}` against finite differences");
    }
}

#[test]
fn shape_errors_name_op_and_shapes() {
    let mut g = Graph::new();
    let x = g.tensor(map(2, 4, 4, 6), "x");
    let w = g.tensor(Shape::matrix(5, 3), "w");
    let vector = g.tensor(Shape::vector(5), "v");
    let taps = g.tensor(Shape::matrix(9, 6), "taps");
    let wide = g.tensor(Shape::matrix(54, 3), "wide");
    let square = g.tensor(Shape::matrix(6, 6), "square");
    let other = g.tensor(map(3, 4, 4, 6), "other");
    let six = g.tensor(Shape::vector(6), "six");
    let activation = Activation::Identity;
    let depthwise =
        Folded { depthwise: true, kernel: 3, stride: 2, padding: Padding::Same, activation, residual: false };
    let separable = |y, pointwise| BranchInput {
        x: Normalised::plain(y),
        depthwise: taps,
        pointwise,
        geometry: (3, 1, 1),
        statistics: None,
    };
    let errors: Vec<(Error, &str, &[&str])> = vec![
        (Dense::record(&mut g, Dense::RELU_POINTWISE, x, w, None, None).unwrap_err(), "dense", &["1x1x5x3", "2x4x4x6"]),
        (
            Dense::record(&mut g, convolution(5, 1, 0), x, taps, None, None).unwrap_err(),
            "dense",
            &["1x1x9x6", "2x4x4x6"],
        ),
        (Separable::record(&mut g, &[separable(x, w)]).unwrap_err(), "separable", &["1x1x9x6", "1x1x5x3", "2x4x4x6"]),
        (
            Reduce::record(&mut g, x, &[ReduceInput { even: w, odd: w, statistics: None }]).unwrap_err(),
            "reduce",
            &["1x1x5x3", "2x4x4x6"],
        ),
        (Pool::record(&mut g, window(5, 1, 0, true, false, false), x, &[]).unwrap_err(), "pool", &["5", "2x4x4x6"]),
        (
            Pool::record(&mut g, window(3, 1, 1, true, true, false), x, &[(vector, vector)]).unwrap_err(),
            "pool",
            &["2x4x4x6"],
        ),
        (
            Dense::record(&mut g, convolution(3, 1, 0), x, wide, None, Some((vector, vector))).unwrap_err(),
            "dense",
            &["1x1x1x5", "3 channels"],
        ),
        (
            Separable::record(&mut g, &[separable(x, square), separable(other, square)]).unwrap_err(),
            "separable",
            &["2 and 3 images"],
        ),
        (
            Reduce::record(&mut g, x, &[ReduceInput { even: square, odd: square, statistics: Some((vector, vector)) }])
                .unwrap_err(),
            "reduce",
            &["1x1x1x5", "12 channels"],
        ),
        (
            Pool::record(&mut g, window(3, 1, 1, true, false, false), x, &[(vector, vector)]).unwrap_err(),
            "pool",
            &["1x1x1x5", "6 channels"],
        ),
        (Softmax::record(&mut g, vector, &[2, 2]).unwrap_err(), "softmax", &["[2, 2]", "5 alphas"]),
        (
            Mixture::normalise(&mut g, normalised(x, (vector, vector), None), "z").unwrap_err(),
            "mixture",
            &["1x1x1x5", "6"],
        ),
        (
            Mixture::record(&mut g, &[SourceInput::new(Normalised::plain(x))], None, None, w).unwrap_err(),
            "mixture",
            &["2x4x4x6", "1x1x5x3"],
        ),
        (
            Mixture::record(
                &mut g,
                &[SourceInput { map: Normalised::plain(x), weight: Some(5), mask: None }],
                Some(vector),
                None,
                x,
            )
            .unwrap_err(),
            "mixture",
            &["5"],
        ),
        (
            Mixture::record(
                &mut g,
                &[SourceInput { map: Normalised::plain(x), weight: None, mask: Some(0) }],
                None,
                Some(w),
                x,
            )
            .unwrap_err(),
            "mixture",
            &["2 images"],
        ),
        (
            CrossEntropy::record(&mut g, CrossEntropy { smoothing: 0.0 }, x, vector).unwrap_err(),
            "cross_entropy",
            &["5", "2x4x4x6"],
        ),
        (
            Folded::record(&mut g, depthwise, [x, wide, vector], None).unwrap_err(),
            "folded",
            &["1x1x54x3", "1x1x1x5", "2x4x4x6"],
        ),
        (
            Folded::record(&mut g, depthwise, [x, taps, six], Some(w)).unwrap_err(),
            "folded",
            &["residual 1x1x5x3", "2x2x2x6"],
        ),
        (Linear::record(&mut g, &[(1.0, x), (1.0, w)], "sum").unwrap_err(), "linear", &["1x1x5x3", "2x4x4x6"]),
        (g.channels(x, 4, 3).unwrap_err(), "channels", &["4..7", "2x4x4x6"]),
        (g.slice(vector, 3, Shape::matrix(1, 3)).unwrap_err(), "slice", &["3..6", "1x1x1x5"]),
        (g.gradients(x, &[w]).unwrap_err(), "gradients", &["2x4x4x6"]),
    ];
    for (error, name, parts) in errors {
        let Error::Shape { op, .. } = &error else { panic!("{name}: {error} is no shape error") };
        assert_eq!(*op, name);
        let message = error.to_string();
        for part in parts.iter().chain(&[name]) {
            assert!(message.contains(part), "{name}: `{message}` does not say `{part}`");
        }
    }
}
