//! Records what a case measures: the op in question as a search records it, its inputs as states with drawn values, and,
//! for gradient ops, a loss behind it.
//!
//! The loss is a random linear functional of the outputs, so every element has a gradient of its own; its ops carry the
//! prefix `probe.` in the names of their tensors and are never timed.

use std::ops::Range;

use super::cases::Timed;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Program, Shape, State, StoreLayout, Tensor};
use crate::ops::Cost;
use crate::ops::dense::Dense;
use crate::ops::elementwise::Linear;
use crate::ops::norm::{NormTensors, Normalised};
use crate::ops::pool::Pool;
use crate::random::{Stream, normal, uniform};

/// Prefix of the names of the loss's tensors.
pub(super) const PROBE: &str = "probe.";
/// Purpose of the draws, for the counter-based generator.
const PURPOSE: u32 = 96;
/// Added to variances by batch norm.
const EPS: f64 = 1e-5;

/// How the values of a state are drawn. All are f32, so that every device starts from the same numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// Standard normal times a factor.
    Normal(f32),
    /// Within 0.5..1.5.
    Positive,
    /// Whole numbers within 0..n.
    Below(u32),
    /// All the same.
    Constant(f32),
    /// The same row again and again.
    Rows(&'static [f32]),
}

impl Draw {
    /// Fills `out` with the values of state number `number`.
    pub fn fill(self, number: u32, mut out: impl FnMut(usize, f32), len: usize) {
        let stream = Stream::new(7, PURPOSE);
        for i in 0..len {
            let value = match self {
                Self::Constant(value) => value,
                Self::Rows(row) => row[i % row.len()],
                _ => {
                    let [a, b, ..] = stream.block(number.into(), i as u32);
                    match self {
                        Self::Normal(factor) => factor * normal(a, b).0 as f32,
                        Self::Positive => 0.5 + uniform(a),
                        Self::Below(n) => (n as f32 * uniform(a)).floor(),
                        Self::Constant(value) => value,
                        Self::Rows(row) => row[i % row.len()],
                    }
                }
            };
            out(i, value);
        }
    }
}

/// A case being recorded.
#[derive(Default)]
pub struct Recorder {
    /// The graph.
    pub graph: Graph,
    layout: StoreLayout,
    draws: Vec<(State, Draw)>,
    variables: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Whether maps before normalisations are to be such as devices store in halves.
    halves: bool,
}

impl Recorder {
    /// An empty one, of a case that is run in this precision.
    pub fn new(precision: Precision) -> Self {
        Self { halves: precision.has_halves(), ..Self::default() }
    }

    /// A state with drawn values, without gradient.
    pub fn constant(&mut self, shape: Shape, draw: Draw) -> Tensor {
        let state = self.layout.add(format!("state {}", self.draws.len()), shape);
        self.draws.push((state, draw));
        self.graph.state(state)
    }

    /// A state whose gradient is asked for.
    pub fn variable(&mut self, shape: Shape, draw: Draw) -> Tensor {
        let tensor = self.constant(shape, draw);
        self.variables.push(tensor);
        tensor
    }

    /// Weights of a given shape, scaled so that maps keep their magnitude.
    pub fn weight(&mut self, rows: usize, c: usize) -> Tensor {
        self.variable(Shape::matrix(rows, c), Draw::Normal((rows as f32).sqrt().recip()))
    }

    /// A map whose gradient is asked for.
    pub fn map(&mut self, shape: Shape) -> Tensor {
        self.variable(shape, Draw::Normal(1.0))
    }

    /// Where mean and variance of `c` channels go.
    pub fn statistics(&mut self, c: usize) -> (Tensor, Tensor) {
        (self.graph.tensor(Shape::vector(c), "mean"), self.graph.tensor(Shape::vector(c), "variance"))
    }

    /// A map under statistics that were measured with it.
    pub fn normalised(&mut self, y: Tensor, (mean, var): (Tensor, Tensor)) -> Normalised {
        Normalised { y, norm: Some(NormTensors { mean, var, affine: None, eps: EPS }) }
    }

    /// A map as a normalisation finds it. States are never stored in halves, so where maps are to be, it is the average pool
    /// of what was drawn.
    ///
    /// # Errors
    /// None: the window fits every map.
    pub fn before_normalisation(&mut self, y: Tensor) -> Result<Tensor> {
        if !self.halves {
            return Ok(y);
        }
        let op = Pool { kernel: 3, stride: 1, pad: 1, max: false, average: true, statistics: false };
        Ok(Pool::record(&mut self.graph, op, y, &[])?.first().map_or(y, |pooled| pooled.y))
    }

    /// A map under drawn statistics.
    ///
    /// # Errors
    /// As [`Self::before_normalisation`].
    pub fn drawn_normalised(&mut self, y: Tensor) -> Result<Normalised> {
        let y = self.before_normalisation(y)?;
        let c = Shape::vector(self.graph.shape(y).c);
        let statistics = (self.constant(c, Draw::Normal(0.1)), self.constant(c, Draw::Positive));
        Ok(self.normalised(y, statistics))
    }

    /// An output, through which the loss goes.
    pub fn output(&mut self, tensor: Tensor) {
        self.outputs.push(tensor);
    }

    /// The sum of all elements of the outputs, each times a number of its own.
    fn loss(&mut self) -> Result<Tensor> {
        self.graph.scope(PROBE);
        let mut terms = Vec::new();
        for output in self.outputs.clone() {
            let shape = self.graph.shape(output);
            let factors = self.constant(Shape::matrix(shape.len(), 1), Draw::Normal(1.0));
            let flat = self.graph.tensor(Shape::vector(shape.len()), "flat");
            let view = self.graph.slice(flat, 0, shape)?;
            Linear::record_into(&mut self.graph, &[(1.0, output)], view)?;
            let dot = Dense { kernel: 1, stride: 1, pad: 0, relu: false, bias: false, statistics: false };
            terms.push((1.0, Dense::record(&mut self.graph, dot, flat, factors, None, None)?));
        }
        let loss = Linear::record(&mut self.graph, &terms, "loss")?;
        self.graph.scope("");
        Ok(loss)
    }

    /// The finished case.
    ///
    /// # Errors
    /// [`Error::Shape`] if what was recorded has no gradient, or not the op that is to be timed.
    pub fn finish(mut self, name: &str, timed: Timed) -> Result<Built> {
        let mut results = self.outputs.clone();
        if timed.backward() {
            let loss = self.loss()?;
            let variables = self.variables.clone();
            results.extend(self.graph.gradients(loss, &variables)?);
        }
        if let Timed::Op(op) = timed {
            // What the op itself writes, and nothing that would need ops behind it.
            let nodes = self.graph.nodes().iter().filter(|n| n.op.name() == op && !probes(&self.graph, n));
            let heaviest = nodes.max_by(|a, b| a.cost(&self.graph).bytes.total_cmp(&b.cost(&self.graph).bytes));
            let node = heaviest.ok_or_else(|| missing(name, op))?;
            results = node.outputs.iter().map(|o| o.tensor).collect();
        }
        let mut program = Program::new(name, self.graph, &results);
        // An op is timed as a step has it, where nobody reads its maps but the next op.
        program.halved_results = self.halves;
        let chosen: Vec<usize> = match timed {
            Timed::Op(op) => {
                let writes = |i: &usize| {
                    let node = &program.nodes()[*i];
                    node.op.name() == op && node.outputs.iter().map(|o| o.tensor).eq(results.iter().copied())
                };
                (0..program.nodes().len()).filter(writes).collect()
            }
            Timed::Layer => {
                (0..program.nodes().len()).filter(|&i| !probes(program.graph(), &program.nodes()[i])).collect()
            }
        };
        if chosen.is_empty() {
            return Err(missing(name, timed.op()));
        }
        let cost = chosen.iter().map(|&i| program.nodes()[i].cost(program.graph())).sum();
        let ops = chosen.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[run.len() - 1] + 1).collect();
        Ok(Built { program, results, layout: self.layout, draws: self.draws, ops, cost })
    }
}

fn missing(name: &str, op: &'static str) -> Error {
    Error::Shape { op, message: format!("case `{name}` records no such op") }
}

/// Whether an op belongs to the loss.
fn probes(graph: &Graph, node: &Node) -> bool {
    let tensors = node.inputs.iter().copied().chain(node.outputs.iter().map(|o| o.tensor));
    tensors.into_iter().any(|t| graph.info(t).name.contains(PROBE))
}

/// A recorded case.
pub struct Built {
    /// The program: what comes before the timed ops, the ops, and the loss if there is one.
    pub program: Program,
    /// Tensors that are compared with the reference.
    pub results: Vec<Tensor>,
    /// The states.
    pub layout: StoreLayout,
    /// How their values are drawn.
    pub draws: Vec<(State, Draw)>,
    /// The ops to time.
    pub ops: Vec<Range<usize>>,
    /// Their cost.
    pub cost: Cost,
}

impl Built {
    /// Hands every drawn value to `put(state, element, value)`.
    pub fn draw(&self, mut put: impl FnMut(State, usize, f32)) {
        for (number, &(state, draw)) in self.draws.iter().enumerate() {
            draw.fill(number as u32, |i, value| put(state, i, value), state.shape.len());
        }
    }
}
