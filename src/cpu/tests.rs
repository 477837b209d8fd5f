//! The tuned ops against their reference implementations in f64, for every level and number of threads.

use super::micro::Level;
use crate::device::cpu::Cpu;
use crate::device::reference::Reference;
use crate::graph::{Graph, Program, Shape, State, StoreLayout, Tensor};
use crate::ops::norm::{NormTensors, Normalised};
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

    /// A scalar that depends on every element of the maps in its own way: half the sum of squares of their mixtures.
    fn loss(&mut self, maps: &[Tensor]) -> Tensor {
        use crate::ops::elementary::Scale;
        let _ = std::any::type_name::<Scale>();
        let mut logits = Vec::new();
        for &map in maps {
            let pooled = crate::ops::pool::GlobalPool::record(&mut self.graph, map);
            let shape = self.graph.shape(map);
            let w = self.input(Shape::matrix(shape.c, 4));
            let dense = crate::ops::dense::Dense {
                kernel: 1,
                stride: 1,
                pad: 0,
                relu: false,
                bias: false,
                statistics: false,
            };
            logits.push(crate::ops::dense::Dense::record(&mut self.graph, dense, pooled, w, None, None).unwrap());
        }
        let terms: Vec<_> = logits.iter().map(|&l| (1.0, l)).collect();
        let sum = crate::ops::elementwise::Linear::record(&mut self.graph, &terms, "logits").unwrap();
        let n = self.graph.shape(sum).n;
        let labels = self.state_of(Shape::vector(n), |u| if u > 0.0 { 1.0 } else { 3.0 });
        let op = crate::ops::loss::CrossEntropy { smoothing: 0.1 };
        crate::ops::loss::CrossEntropy::record(&mut self.graph, op, sum, labels).unwrap().0
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
    let (c, out) = (case.pick(&CHANNELS), case.pick(&CHANNELS));
    let (n, h, w) = (case.pick(&[1, 2, 5, 18]), 3 + case.below(8), 3 + case.below(8));
    let x = if case.below(2) == 0 { case.slice(Shape::map(n, h, w, c)) } else { case.input(Shape::map(n, h, w, c)) };
    let stride = 1 + case.below(2);
    let (mut branches, mut wrt) = (Vec::new(), vec![x]);
    let normal = case.normalised(x, case.seed % 3 == 0);
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
