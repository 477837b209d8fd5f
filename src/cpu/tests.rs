//! The tuned ops against their reference implementations in f64, for every level and number of threads.

use super::micro::Level;
use crate::device::cpu::Cpu;
use crate::device::reference::Reference;
use crate::graph::{Graph, Program, Shape, State, StoreLayout, Tensor};
use crate::ops::dense::Dense;
use crate::ops::elementwise::Linear;
use crate::ops::loss::CrossEntropy;
use crate::ops::mixture::{Mixture, SourceInput};
use crate::ops::norm::{NormTensors, Normalised, Statistics};
use crate::ops::pool::{GlobalPool, Pool};
use crate::ops::reduce::{Reduce, ReduceInput};
use crate::ops::separable::{BranchInput, Separable};

/// A program being built, with states of random values as its inputs.
struct Case {
    graph: Graph,
    layout: StoreLayout,
    states: Vec<(State, Vec<f32>)>,
    results: Vec<Tensor>,
    seed: u64,
}

impl Case {
    fn new(seed: u64) -> Self {
        let (graph, layout) = (Graph::new(), StoreLayout::new());
        Self { graph, layout, states: Vec::new(), results: Vec::new(), seed: seed.wrapping_mul(0x9e37_79b9) + 1 }
    }

    /// Uniform in `0..n`.
    fn below(&mut self, n: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.seed >> 33) as usize) % n
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn uniform(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }

    fn state_of(&mut self, shape: Shape, f: impl Fn(f32) -> f32) -> Tensor {
        let state = self.layout.add(format!("state {}", self.states.len()), shape);
        let values = (0..shape.len()).map(|_| f(self.uniform())).collect();
        self.states.push((state, values));
        self.graph.state(state)
    }

    fn input(&mut self, shape: Shape) -> Tensor {
        self.state_of(shape, |u| u)
    }

    /// A channel slice of a wider map.
    fn slice(&mut self, shape: Shape) -> Tensor {
        let wide = self.input(shape.with_channels(shape.c + 5));
        self.graph.channels(wide, 3, shape.c).unwrap()
    }

    fn vector(&mut self, c: usize) -> Tensor {
        self.graph.tensor(Shape::vector(c), "vector")
    }

    fn statistics(&mut self, c: usize) -> (Tensor, Tensor) {
        let (mean, var) = (self.vector(c), self.vector(c));
        self.results.extend([mean, var]);
        (mean, var)
    }

    fn normalised(&mut self, y: Tensor, affine: bool) -> Normalised {
        let c = self.graph.shape(y).c;
        let mean = self.input(Shape::vector(c));
        let var = self.state_of(Shape::vector(c), |u| 0.6 + 0.5 * u);
        let affine = affine.then(|| (self.input(Shape::vector(c)), self.input(Shape::vector(c))));
        Normalised { y, norm: Some(NormTensors { mean, var, affine, eps: 1e-5 }) }
    }

    /// A scalar that depends on every channel of the maps in its own way.
    fn loss(&mut self, maps: &[Tensor]) -> Tensor {
        let dense = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
        let mut logits = Vec::new();
        for &map in maps {
            // Means alone would give every pixel of an image the same gradient. No ReLU: rounding decides its kinks.
            let pooled = GlobalPool::record(&mut self.graph, map);
            let w = self.input(Shape::matrix(self.graph.shape(map).c, 4));
            logits.push(Dense::record(&mut self.graph, dense, pooled, w, None, None).unwrap());
            let windows = Dense { kernel: 3, stride: 2, pad: 1, bias: true, ..dense };
            let w = self.input(Shape::matrix(9 * self.graph.shape(map).c, 4));
            let bias = self.input(Shape::vector(4));
            let other = Dense::record(&mut self.graph, windows, map, w, Some(bias), None).unwrap();
            logits.push(GlobalPool::record(&mut self.graph, other));
        }
        let terms: Vec<_> = logits.iter().map(|&l| (1.0, l)).collect();
        let sum = Linear::record(&mut self.graph, &terms, "logits").unwrap();
        let n = self.graph.shape(sum).n;
        let labels = self.state_of(Shape::vector(n), |u| if u > 0.0 { 1.0 } else { 3.0 });
        CrossEntropy::record(&mut self.graph, CrossEntropy { smoothing: 0.1 }, sum, labels).unwrap().0
    }

    /// A map, whole or a slice of channels of a wider one.
    fn map(&mut self) -> Tensor {
        let c = self.pick(&CHANNELS);
        let shape = Shape::map(self.pick(&[1, 2, 5, 18]), 3 + self.below(8), 3 + self.below(8), c);
        if self.below(2) == 0 { self.slice(shape) } else { self.input(shape) }
    }

    fn gradients(&mut self, loss: Tensor, wrt: &[Tensor]) {
        let gradients = self.graph.gradients(loss, wrt).unwrap();
        self.results.extend(gradients);
    }

    /// Runs everywhere and compares.
    fn check(self, what: &str) {
        let program = Program::new(what, self.graph, &self.results);
        let mut reference = Reference::<f64>::new(&self.layout);
        for (state, values) in &self.states {
            reference.state_mut(*state).iter_mut().zip(values).for_each(|(s, &v)| *s = f64::from(v));
        }
        reference.run(&program);
        let expected: Vec<_> = self.results.iter().map(|&t| reference.read(&program, t)).collect();
        for level in Level::available() {
            let mut bits: Option<Vec<Vec<u32>>> = None;
            for threads in [1, 2, 3] {
                let mut cpu = Cpu::with_level(&self.layout, threads, level).unwrap();
                for (state, values) in &self.states {
                    cpu.state_mut(*state).copy_from_slice(values);
                }
                let exe = cpu.prepare(program.clone()).unwrap();
                cpu.poison();
                cpu.run(&exe);
                let actual: Vec<_> = self.results.iter().map(|&t| cpu.read(&exe, t)).collect();
                for ((e, a), &t) in expected.iter().zip(&actual).zip(&self.results) {
                    let top = e.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
                    for (i, (e, &a)) in e.iter().zip(a).enumerate() {
                        let name = &program.graph().info(t).name;
                        let error = (e - f64::from(a)).abs();
                        assert!(error <= 3e-5 * top, "{what}: {level:?}, {threads} threads: {name}[{i}] {a} not {e}");
                    }
                }
                let own: Vec<Vec<u32>> = actual.iter().map(|v| v.iter().map(|x| x.to_bits()).collect()).collect();
                assert!(bits.get_or_insert_with(|| own.clone()) == &own, "{what}: threads change bits");
            }
        }
    }
}

const CHANNELS: [usize; 7] = [3, 8, 10, 16, 24, 36, 64];

fn separable(seed: u64) {
    let mut case = Case::new(seed);
    let (x, out) = (case.map(), case.pick(&CHANNELS));
    let c = case.graph.shape(x).c;
    let stride = 1 + case.below(2);
    let (mut branches, mut wrt) = (Vec::new(), vec![x]);
    let affine = case.below(2) == 0;
    let normal = case.normalised(x, affine);
    let affine = normal.norm.and_then(|n| n.affine);
    wrt.extend(affine.into_iter().flat_map(|a| [a.0, a.1]));
    for i in 0..1 + case.below(5) {
        let (kernel, dilation) = case.pick(&[(3, 1), (5, 1), (3, 2), (5, 2), (7, 1)]);
        let depthwise = case.input(Shape::matrix(kernel * kernel, c));
        let pointwise = case.input(Shape::matrix(c, out));
        let map = if i % 3 == 2 { normal } else { Normalised::plain(x) };
        let statistics = (case.below(3) > 0).then(|| case.statistics(out));
        wrt.extend([depthwise, pointwise]);
        branches.push(BranchInput { x: map, depthwise, pointwise, geometry: (kernel, dilation, stride), statistics });
    }
    let maps = Separable::record(&mut case.graph, &branches).unwrap();
    case.results.extend(&maps);
    if case.below(4) == 0 {
        wrt.retain(|&t| t == x);
    }
    let loss = case.loss(&maps);
    case.gradients(loss, &wrt);
    case.check(&format!("separable {seed}"));
}

#[test]
fn separable_agrees_with_the_reference() {
    (0..40).for_each(separable);
}

fn dense(seed: u64) {
    let mut case = Case::new(seed);
    let (x, out) = (case.map(), case.pick(&CHANNELS));
    let (kernel, stride, pad) = case.pick(&[(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0)]);
    let op = Dense { kernel, stride, pad, relu: case.below(2) == 0, bias: false, statistics: false };
    let c = case.graph.shape(x).c;
    let w = case.input(Shape::matrix(kernel * kernel * c, out));
    let bias = (case.below(2) == 0).then(|| case.input(Shape::vector(out)));
    let statistics = (case.below(2) == 0).then(|| case.statistics(out));
    let y = Dense::record(&mut case.graph, op, x, w, bias, statistics).unwrap();
    case.results.push(y);
    let loss = case.loss(&[y]);
    let wrt: Vec<_> = [x, w].into_iter().chain(bias).collect();
    case.gradients(loss, &wrt);
    case.check(&format!("dense {seed}"));
}

#[test]
fn dense_agrees_with_the_reference() {
    (0..40).for_each(dense);
}

/// Everything that reads one state of a reduction cell: pools with statistics, factorized reduce, and the mixture with
/// weights and, in some cases, masks.
fn cell(seed: u64) {
    let mut case = Case::new(seed);
    let x = case.map();
    let Shape { n, c, .. } = case.graph.shape(x);
    let (stride, edges) = (2, 1 + case.below(3));
    let (mut maps, mut wrt) = (Vec::new(), vec![x]);
    let statistics = [case.statistics(c), case.statistics(c)];
    let pool = Pool { kernel: 3, stride, pad: 1, max: true, average: true, statistics: true };
    for pooled in Pool::record(&mut case.graph, pool, x, &statistics).unwrap() {
        let (mean, var) = pooled.statistics.unwrap();
        maps.push(Normalised { y: pooled.y, norm: Some(NormTensors { mean, var, affine: None, eps: 1e-5 }) });
    }
    let even = c / 2;
    let mut inputs = Vec::new();
    for _ in 0..edges {
        let (even, odd) = (case.input(Shape::matrix(c, even)), case.input(Shape::matrix(c, c - even)));
        inputs.push(ReduceInput { even, odd, statistics: Some(case.statistics(c)) });
        wrt.extend([even, odd]);
    }
    for (y, input) in Reduce::record(&mut case.graph, x, &inputs).unwrap().into_iter().zip(&inputs) {
        let (mean, var) = input.statistics.unwrap();
        let affine = (case.below(2) == 0).then(|| (case.input(Shape::vector(c)), case.input(Shape::vector(c))));
        wrt.extend(affine.into_iter().flat_map(|a| [a.0, a.1]));
        maps.push(Normalised { y, norm: Some(NormTensors { mean, var, affine, eps: 1e-5 }) });
        maps.push(Normalised::plain(y));
    }
    let weights = case.state_of(Shape::vector(maps.len()), |u| 0.6 + 0.5 * u);
    wrt.push(weights);
    let mask = (case.below(2) == 0).then(|| case.state_of(Shape::matrix(2, n), |u| if u > 0.0 { 0.0 } else { 1.25 }));
    let sources: Vec<_> = maps
        .iter()
        .enumerate()
        .map(|(i, &map)| SourceInput {
            map,
            weight: (i != 1).then_some(i),
            mask: mask.and((i % 3 != 2).then_some(i % 2)),
        })
        .collect();
    let shape = case.graph.shape(maps[0].y);
    let wide = case.graph.tensor(shape.with_channels(2 * c), "cell");
    for half in 0..2 {
        let out = case.graph.channels(wide, half * c, c).unwrap();
        Mixture::record(&mut case.graph, &sources, Some(weights), mask, out).unwrap();
    }
    let (mean, var) = Statistics::record(&mut case.graph, wide);
    case.results.extend([wide, mean, var]);
    let loss = case.loss(&[wide]);
    case.gradients(loss, &wrt);
    case.check(&format!("cell {seed}"));
}

#[test]
fn reduction_cells_agree_with_the_reference() {
    (0..40).for_each(cell);
}
