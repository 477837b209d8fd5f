//! Values against formulas written down a second time: convolutions and pools on padded images, optimisers as PyTorch
//! documents them, counts and sums by hand. What the reference implementations share among themselves (windows, tap
//! order, statistics) is checked here; gradients are checked in `gradients`.

mod augment;
mod maps;
mod vectors;

use supernet::device::reference::Reference;
use supernet::graph::{Output, Program, Shape, State, Tensor};

use super::cases::{Draw, Setup, draw};

/// A graph being recorded with its states, then a device on which it runs any number of times.
struct Bench {
    setup: Setup,
    results: Vec<Tensor>,
}

struct Running {
    device: Reference<f64>,
    program: Program,
}

impl Bench {
    fn new() -> Self {
        Self { setup: Setup::new(7, false), results: Vec::new() }
    }

    /// A state with given values.
    fn state(&mut self, shape: Shape, values: &[f64]) -> State {
        let state = self.setup.state(shape, Draw::Constant(0.0));
        self.setup.set(values);
        state
    }

    fn input(&mut self, shape: Shape, values: &[f64]) -> Tensor {
        let state = self.state(shape, values);
        self.setup.graph.state(state)
    }

    fn vector(&mut self, values: &[f64]) -> Tensor {
        self.input(Shape::vector(values.len()), values)
    }

    fn in_place(&mut self, states: &[State]) -> Vec<Output> {
        states.iter().map(|&s| self.setup.graph.state(s).into()).collect()
    }

    fn start(self) -> Running {
        let mut setup = self.setup;
        for &t in &self.results {
            setup.seen(t);
        }
        let built = setup.finish().expect("nothing to differentiate");
        Running { device: built.reference(), program: built.program() }
    }

    /// Runs once and reads a tensor.
    fn value(mut self, tensor: Tensor) -> Vec<f64> {
        self.results.push(tensor);
        let mut running = self.start();
        running.run();
        running.read(tensor)
    }
}

impl Running {
    fn run(&mut self) {
        self.device.run(&self.program);
    }

    fn read(&mut self, tensor: Tensor) -> Vec<f64> {
        self.device.read(&self.program, tensor)
    }

    fn state(&self, state: State) -> Vec<f64> {
        self.device.state(state).to_vec()
    }
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "element {i}: {a}, not {b}");
    }
}

fn numbers(number: u64, len: usize) -> Vec<f64> {
    draw(3, number, len, Draw::Normal(1.0))
}

/// A map as nested lists `[n][c][y][x]` with `pad` cells of `border` around each image.
fn padded(x: &[f64], s: Shape, pad: [usize; 2], border: f64) -> Vec<Vec<Vec<Vec<f64>>>> {
    let [before, after] = pad;
    let mut all = vec![vec![vec![vec![border; s.w + before + after]; s.h + before + after]; s.c]; s.n];
    for (i, &value) in x.iter().enumerate() {
        let (c, pixel) = (i % s.c, i / s.c);
        let (n, y, col) = (pixel / (s.h * s.w), pixel / s.w % s.h, pixel % s.w);
        all[n][c][before + y][before + col] = value;
    }
    all
}
