//! What a case records into, and what becomes of it: [`Setup`] declares states with drawn values and collects the loss,
//! [`Built`] has the finished graph with its gradients, [`Case`] is one entry of the table.

use supernet::Result;
use supernet::device::reference::Reference;
use supernet::graph::{Graph, Output, Program, Shape, State, StoreLayout, Tensor};
use supernet::ops::Real;
use supernet::ops::dense::Dense;
use supernet::ops::elementwise::Linear;
use supernet::random::{Stream, normal, uniform};

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
    pub(super) values: Vec<(State, Vec<f64>)>,
    pub(super) variables: Vec<Variable>,
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
#[derive(Clone, Copy)]
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
    pub(super) const fn new(
        name: &'static str,
        covers: &'static [&'static str],
        record: fn(&mut Setup) -> Result<()>,
    ) -> Self {
        Self { name, covers, tolerance: ROUNDING, record }
    }

    /// The same case with another tolerance.
    pub(super) const fn within(self, tolerance: f64) -> Self {
        Self { tolerance, ..self }
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
