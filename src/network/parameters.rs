//! The parameters of a network: names, shapes and places in the flat vectors, and a [`Pass`] that records a forward with
//! them. Names are those of the published PyTorch code, which is how fixtures, exports and transfers find them.

use crate::error::Result;
use crate::graph::{Graph, Shape, State, Tensor};
use crate::ops::norm::{NormTensors, Normalised};
use crate::ops::running::Segment;
use crate::random::{philox4x32_10, uniform};

/// What a parameter is, which decides how it is drawn and how it looks in PyTorch's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Depthwise kernel `[k * k, c]`; PyTorch `[c, 1, k, k]`.
    Depthwise {
        /// Kernel size.
        kernel: usize,
    },
    /// Dense kernel `[k * k * c_in, c_out]`; PyTorch `[c_out, c_in, k, k]`.
    Dense {
        /// Kernel size.
        kernel: usize,
    },
    /// Linear layer `[c_in, c_out]`; PyTorch `[c_out, c_in]`.
    Linear,
    /// Bias of a linear layer with this fan-in.
    Bias {
        /// Inputs of the layer.
        fan_in: usize,
    },
    /// Scale of a normalisation, ones at first.
    Gamma,
    /// Shift of a normalisation, zeros at first.
    Beta,
}

/// One named parameter.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// PyTorch's name.
    pub name: String,
    /// Extent in the engine's layout.
    pub shape: Shape,
    /// First element in the flat vector.
    pub offset: usize,
    /// What it is.
    pub kind: Kind,
}

impl Parameter {
    /// Extent in PyTorch's layout.
    pub fn torch_shape(&self) -> Vec<usize> {
        match self.kind {
            Kind::Depthwise { kernel } => vec![self.shape.c, 1, kernel, kernel],
            Kind::Dense { kernel } => vec![self.shape.c, self.shape.w / (kernel * kernel), kernel, kernel],
            Kind::Linear => vec![self.shape.c, self.shape.w],
            Kind::Bias { .. } | Kind::Gamma | Kind::Beta => vec![self.shape.c],
        }
    }

    /// Position in PyTorch's layout of element `i` of the engine's.
    pub fn torch_index(&self, i: usize) -> usize {
        let (row, c) = (i / self.shape.c, i % self.shape.c);
        match self.kind {
            Kind::Depthwise { kernel } => c * kernel * kernel + row,
            Kind::Dense { kernel } => {
                let taps = kernel * kernel;
                let c_in = self.shape.w / taps;
                (c * c_in + row % c_in) * taps + row / c_in
            }
            Kind::Linear => c * self.shape.w + row,
            Kind::Bias { .. } | Kind::Gamma | Kind::Beta => i,
        }
    }

    /// Initial value of element `i`: PyTorch's default, uniform within `1 / sqrt(fan in)`.
    fn initial(&self, seed: u64, purpose: u32, number: u32, i: usize) -> f32 {
        let fan_in = match self.kind {
            Kind::Gamma => return 1.0,
            Kind::Beta => return 0.0,
            Kind::Bias { fan_in } => fan_in,
            Kind::Depthwise { kernel } => kernel * kernel,
            Kind::Dense { .. } | Kind::Linear => self.shape.w,
        };
        let bits = philox4x32_10([i as u32, number, purpose, 0], [seed as u32, (seed >> 32) as u32])[0];
        (2.0 * uniform(bits) - 1.0) / (fan_in as f32).sqrt()
    }
}

/// The running statistics of one normalisation, at the same place in the batch and the running vector.
#[derive(Clone, Debug)]
pub struct Statistic {
    /// PyTorch's names of the layers that share them (`stem.1`, without `.running_mean`): the batch norms behind the
    /// pools of one state see the same map on every edge, so they are kept once.
    pub names: Vec<String>,
    /// Channels.
    pub channels: usize,
    /// First element of the means; the variances follow.
    pub offset: usize,
}

/// Handle of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight(usize);

impl Weight {
    /// Its place among [`Layout::parameters`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// Handle of running statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running(usize);

/// All parameters and running statistics of a network.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    parameters: Vec<Parameter>,
    statistics: Vec<Statistic>,
    weights: usize,
    running: usize,
}

/// Purpose of the draws that fill fresh weights, for the counter-based generator.
const PURPOSE_WEIGHTS: u32 = 16;

impl Layout {
    /// Adds a parameter behind the others.
    pub fn weight(&mut self, name: impl Into<String>, shape: Shape, kind: Kind) -> Weight {
        self.parameters.push(Parameter { name: name.into(), shape, offset: self.weights, kind });
        self.weights += shape.len();
        Weight(self.parameters.len() - 1)
    }

    /// Adds running statistics.
    pub fn statistic(&mut self, name: impl Into<String>, channels: usize) -> Running {
        self.statistics.push(Statistic { names: vec![name.into()], channels, offset: self.running });
        self.running += 2 * channels;
        Running(self.statistics.len() - 1)
    }

    /// Adds another layer to shared statistics.
    pub fn share(&mut self, running: Running, name: impl Into<String>) {
        self.statistics[running.0].names.push(name.into());
    }

    /// All parameters, in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// All running statistics, in order.
    pub fn statistics(&self) -> &[Statistic] {
        &self.statistics
    }

    /// Elements of the flat weights.
    pub fn weights_len(&self) -> usize {
        self.weights
    }

    /// Elements of the flat statistics.
    pub fn running_len(&self) -> usize {
        self.running
    }

    /// Freshly drawn weights.
    pub fn initial_weights(&self, seed: u64) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.weights);
        for (number, p) in self.parameters.iter().enumerate() {
            weights.extend((0..p.shape.len()).map(|i| p.initial(seed, PURPOSE_WEIGHTS, number as u32, i)));
        }
        weights
    }

    /// Fresh running statistics: means 0, variances 1.
    pub fn initial_running(&self) -> Vec<f32> {
        let mut running = vec![0.0; self.running];
        for s in &self.statistics {
            running[s.offset + s.channels..s.offset + 2 * s.channels].fill(1.0);
        }
        running
    }
}

/// Where the statistics of normalisations come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Statistics of the batch, written into the pass's vector.
    Train,
    /// The running statistics.
    Evaluate,
}

/// A forward being recorded: the graph, the weights in use, and the statistics.
pub struct Pass<'a> {
    /// The graph.
    pub graph: &'a mut Graph,
    /// Train or evaluate.
    pub mode: Mode,
    layout: &'a Layout,
    weights: Tensor,
    statistics: Tensor,
    segments: Vec<Segment>,
}

/// Added to variances throughout DARTS.
pub const EPS: f64 = 1e-5;

impl<'a> Pass<'a> {
    /// A training pass with the given flat weights.
    pub fn train(graph: &'a mut Graph, layout: &'a Layout, weights: Tensor) -> Self {
        let statistics = graph.tensor(Shape::vector(layout.running_len()), "batch statistics");
        Self { graph, mode: Mode::Train, layout, weights, statistics, segments: Vec::new() }
    }

    /// An evaluation pass with the given flat weights and running statistics.
    pub fn evaluate(graph: &'a mut Graph, layout: &'a Layout, weights: Tensor, running: State) -> Self {
        let statistics = graph.state(running);
        Self { graph, mode: Mode::Evaluate, layout, weights, statistics, segments: Vec::new() }
    }

    /// The tensor of a parameter.
    pub fn weight(&mut self, weight: Weight) -> Result<Tensor> {
        let p = &self.layout.parameters[weight.0];
        self.graph.slice(self.weights, p.offset, p.shape)
    }

    fn pair(&mut self, running: Running) -> Result<(Tensor, Tensor)> {
        let s = &self.layout.statistics[running.0];
        let shape = Shape::vector(s.channels);
        let mean = self.graph.slice(self.statistics, s.offset, shape)?;
        Ok((mean, self.graph.slice(self.statistics, s.offset + s.channels, shape)?))
    }

    /// Where the op that writes a map puts its statistics: nowhere in evaluation. `rows` are the map's.
    pub fn written(&mut self, running: Running, rows: usize) -> Result<Option<(Tensor, Tensor)>> {
        if self.mode == Mode::Evaluate {
            return Ok(None);
        }
        let s = &self.layout.statistics[running.0];
        let (offset, len) = (s.offset, s.channels);
        // One row has no unbiased variance; PyTorch refuses such a batch, here the biased one stands.
        let unbiased = if rows > 1 { rows as f64 / (rows - 1) as f64 } else { 1.0 };
        self.segments.push(Segment { offset, len, factor: 1.0 });
        self.segments.push(Segment { offset: offset + len, len, factor: unbiased });
        self.pair(running).map(Some)
    }

    /// A map under its normalisation.
    pub fn normalised(&mut self, y: Tensor, running: Running, affine: Option<(Weight, Weight)>) -> Result<Normalised> {
        let (mean, var) = self.pair(running)?;
        let affine = match affine {
            Some((gamma, beta)) => Some((self.weight(gamma)?, self.weight(beta)?)),
            None => None,
        };
        Ok(Normalised { y, norm: Some(NormTensors { mean, var, affine, eps: EPS }) })
    }

    /// The batch statistics of a finished training pass, with the update that folds them into the running ones.
    pub fn finish(mut self) -> (Tensor, Vec<Segment>) {
        self.segments.sort_by_key(|s| s.offset);
        (self.statistics, self.segments)
    }
}
