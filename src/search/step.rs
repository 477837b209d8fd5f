//! The programs of a search: architecture step (first or second order), weight step, evaluation. One store serves all.
//!
//! Order of DARTS: the alphas move first, on a validation batch, then the weights on a training batch. Running
//! statistics move once in each of the two forwards, never in the extra passes of the second order.

use std::ops::Range;

use crate::data::{Geometry, Normalisation};
use crate::error::Result;
use crate::graph::{Graph, Program, Shape, State, StoreLayout, Tensor};
use crate::network::parameters::Pass;
use crate::network::{Layout, Supernet};
use crate::ops::augment::Augment;
use crate::ops::elementwise::Linear;
use crate::ops::loss::{Accumulate, CrossEntropy};
use crate::ops::optimiser::{Adam, GlobalNorm, Sgd};
use crate::ops::running::RunningUpdate;
use crate::ops::second_order::{HessianTerm, Perturb, Unroll};

/// Approximation of the architecture gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// At the present weights.
    First,
    /// At the weights after one virtual step.
    Second,
}

/// A staged batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchStates {
    /// `[n, h, w, c]`, 0..255.
    pub pixels: State,
    /// `[n]`, below zero for padding rows.
    pub labels: State,
    /// `[n]`, index of each image in its dataset, the key of its augmentation.
    pub index: State,
}

impl BatchStates {
    /// Declares a batch of `n` images.
    pub fn declare(layout: &mut StoreLayout, name: &str, n: usize, size: Geometry) -> Self {
        let pixels = Shape::map(n, size.height, size.width, size.channels);
        Self {
            pixels: layout.add(format!("{name} pixels"), pixels),
            labels: layout.add(format!("{name} labels"), Shape::vector(n)),
            index: layout.add(format!("{name} index"), Shape::vector(n)),
        }
    }
}

/// Weights with their optimiser, statistics and counters: what every training has.
#[derive(Clone, Copy, Debug)]
pub struct ModelStates {
    /// Flat weights.
    pub weights: State,
    /// Momentum of the weights.
    pub velocity: State,
    /// Flat running statistics.
    pub running: State,
    /// Learning rate of the weights.
    pub rate: State,
    /// The epoch, for augmentation.
    pub epoch: State,
    /// Training batch.
    pub train: BatchStates,
    /// Sums of the training batches of the epoch: loss, top-1, top-5, rows.
    pub train_sums: State,
    /// Raised when a gradient was not finite.
    pub flag: State,
}

impl ModelStates {
    /// Declares the states of a network for batches of `n`.
    pub fn declare(layout: &mut StoreLayout, network: &Layout, n: usize, size: Geometry) -> Self {
        let weights = Shape::vector(network.weights_len());
        Self {
            weights: layout.add("weights", weights),
            velocity: layout.add("velocity", weights),
            running: layout.add("running", Shape::vector(network.running_len())),
            rate: layout.add("learning rate", Shape::vector(1)),
            epoch: layout.add("epoch", Shape::vector(1)),
            train: BatchStates::declare(layout, "training", n, size),
            train_sums: layout.add("training sums", Shape::vector(4)),
            flag: layout.add("non-finite flag", Shape::vector(1)),
        }
    }
}

/// Hyperparameters of the weights' optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightOptimiser {
    /// Momentum.
    pub momentum: f64,
    /// Coupled weight decay.
    pub decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
}

/// How images reach the network.
#[derive(Clone, Debug)]
pub struct InputPipeline {
    /// Pixels of padding of the random crop; 0 for none.
    pub pad: usize,
    /// Random flips.
    pub flip: bool,
    /// Side of cutout's hole; 0 for none.
    pub cutout: usize,
    /// Statistics of the training part.
    pub normalisation: Normalisation,
    /// Seed of the augmentation.
    pub seed: u64,
}

impl InputPipeline {
    /// Records augmentation (or, without `augment`, normalisation alone) of a staged batch.
    pub fn record(&self, graph: &mut Graph, batch: &BatchStates, epoch: State, augment: bool) -> Tensor {
        let op = Augment {
            pad: if augment { self.pad } else { 0 },
            flip: augment && self.flip,
            cutout: if augment { self.cutout } else { 0 },
            mean: self.normalisation.mean.clone(),
            std: self.normalisation.std.clone(),
            seed: self.seed,
        };
        let inputs = [graph.state(batch.pixels), graph.state(batch.index), graph.state(epoch)];
        Augment::record(graph, op, inputs)
    }
}

/// The states that only a search has.
#[derive(Clone, Copy, Debug)]
pub struct SearchStates {
    /// What every training has.
    pub model: ModelStates,
    /// Flat alphas, normal then reduction.
    pub alphas: State,
    /// Adam's first moment.
    pub first_moment: State,
    /// Adam's second moment.
    pub second_moment: State,
    /// Adam's count of steps.
    pub adam_steps: State,
    /// Learning rate of the alphas.
    pub alpha_rate: State,
    /// Validation batch.
    pub valid: BatchStates,
    /// Sums of the validation batches.
    pub valid_sums: State,
    /// The head, and with it the dataset, that these states serve.
    pub head: usize,
}

impl SearchStates {
    /// Declares the states of a search with batches of `n` for the first head.
    pub fn declare(layout: &mut StoreLayout, network: &Supernet, n: usize) -> Self {
        let model = ModelStates::declare(layout, &network.layout, n, network.size);
        let alphas = Shape::vector(network.space.alphas_len());
        Self {
            model,
            alphas: layout.add("alphas", alphas),
            first_moment: layout.add("alpha first moment", alphas),
            second_moment: layout.add("alpha second moment", alphas),
            adam_steps: layout.add("alpha steps", Shape::vector(1)),
            alpha_rate: layout.add("alpha learning rate", Shape::vector(1)),
            valid: BatchStates::declare(layout, "validation", n, network.size),
            valid_sums: layout.add("validation sums", Shape::vector(4)),
            head: 0,
        }
    }

    /// Declares what another head has to itself: running statistics (those of mixed datasets would fit none of them)
    /// and sums. Everything else is shared.
    pub fn for_head(&self, layout: &mut StoreLayout, head: usize) -> Self {
        let running = layout.add(format!("running {head}"), self.model.running.shape);
        let train_sums = layout.add(format!("training sums {head}"), Shape::vector(4));
        let valid_sums = layout.add(format!("validation sums {head}"), Shape::vector(4));
        Self { model: ModelStates { running, train_sums, ..self.model }, valid_sums, head, ..*self }
    }
}

/// A search step's recipe.
#[derive(Clone, Debug)]
pub struct SearchRecipe {
    /// Approximation of the architecture gradient.
    pub order: Order,
    /// Optimiser of the weights.
    pub optimiser: WeightOptimiser,
    /// Optimiser of the alphas.
    pub adam: Adam,
    /// Images.
    pub input: InputPipeline,
}

/// One forward to the loss; returns (loss, counts, logits).
fn forward(
    network: &Supernet,
    pass: &mut Pass<'_>,
    images: Tensor,
    labels: State,
    (alphas, head): (Tensor, usize),
) -> Result<(Tensor, Tensor, Tensor)> {
    let logits = network.forward(pass, images, alphas, head)?;
    let labels = pass.graph.state(labels);
    let (loss, counts) = CrossEntropy::record(pass.graph, CrossEntropy { smoothing: 0.0 }, logits, labels)?;
    Ok((loss, counts, logits))
}

/// Tensors of a recorded step that tests and messages look at.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Logits of the (last) forward.
    pub logits: Option<Tensor>,
    /// Loss of the (last) forward.
    pub loss: Option<Tensor>,
    /// Gradient that the optimiser gets (before clip and decay).
    pub gradient: Option<Tensor>,
    /// Its norm.
    pub norm: Option<Tensor>,
    /// Second order: the gradient at the virtual weights.
    pub direct: Option<Tensor>,
    /// Second order: the finite-difference term, before its factor.
    pub hessian: Option<Tensor>,
}

/// A recorded graph with what to look at; becomes a program once the caller has said what must stay readable.
pub struct Step {
    /// The graph.
    pub graph: Graph,
    /// Its interesting tensors.
    pub watched: Watched,
}

impl Step {
    /// The program. With `readable`, all watched tensors can be read after a replay.
    pub fn program(self, name: &str, readable: bool) -> Program {
        let w = &self.watched;
        let all = [w.logits, w.loss, w.gradient, w.norm, w.direct, w.hessian];
        let results: Vec<Tensor> = if readable { all.into_iter().flatten().collect() } else { Vec::new() };
        Program::new(name, self.graph, &results)
    }
}

/// Records the architecture step: alphas by Adam on the validation batch.
///
/// # Errors
/// [`crate::Error::Shape`] if network and batch disagree.
pub fn architecture_step(network: &Supernet, states: &SearchStates, recipe: &SearchRecipe) -> Result<Step> {
    architecture_step_with_radius(network, states, recipe, 0.01)
}

/// As [`architecture_step`], with another radius of the finite difference (0.01 in DARTS).
///
/// # Errors
/// [`crate::Error::Shape`] if network and batch disagree.
pub fn architecture_step_with_radius(
    network: &Supernet,
    states: &SearchStates,
    recipe: &SearchRecipe,
    radius: f64,
) -> Result<Step> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let model = &states.model;
    let (weights, alphas) = (g.state(model.weights), g.state(states.alphas));
    let mut watched = Watched::default();
    let unrolled = match recipe.order {
        Order::First => None,
        Order::Second => {
            let images = recipe.input.record(g, &model.train, model.epoch, true);
            let mut pass = Pass::train(g, &network.layout, weights);
            let (loss, ..) = forward(network, &mut pass, images, model.train.labels, (alphas, states.head))?;
            let gradient = g.gradients(loss, &[weights])?[0];
            let op = Unroll { momentum: recipe.optimiser.momentum, decay: recipe.optimiser.decay };
            let inputs = [weights, g.state(model.velocity), gradient, g.state(model.rate)];
            Some((images, Unroll::record(g, op, inputs)))
        }
    };
    let at = unrolled.map_or(weights, |(_, w)| w);
    let images = recipe.input.record(g, &states.valid, model.epoch, true);
    let mut pass = Pass::train(g, &network.layout, at);
    let (loss, counts, logits) = forward(network, &mut pass, images, states.valid.labels, (alphas, states.head))?;
    let (statistics, segments) = pass.finish();
    let gradient = match unrolled {
        None => g.gradients(loss, &[alphas])?[0],
        Some((train_images, _)) => {
            let both = g.gradients(loss, &[alphas, at])?;
            let (direct, d) = (both[0], both[1]);
            let norm = GlobalNorm::record(g, d, "norm of the validation gradient");
            let mut side = |radius: f64| -> Result<Tensor> {
                let moved = Perturb::record(g, Perturb { radius }, [weights, d, norm]);
                let mut pass = Pass::train(g, &network.layout, moved);
                let (loss, ..) = forward(network, &mut pass, train_images, model.train.labels, (alphas, states.head))?;
                Ok(g.gradients(loss, &[alphas])?[0])
            };
            let (plus, minus) = (side(radius)?, side(-radius)?);
            let rate = g.state(model.rate);
            let (hessian, total) = HessianTerm::record(g, HessianTerm { radius }, [direct, plus, minus, norm, rate]);
            watched.direct = Some(direct);
            watched.hessian = Some(hessian);
            total
        }
    };
    let norm = GlobalNorm::record(g, gradient, "norm of the alpha gradient");
    let in_place = [states.alphas, states.first_moment, states.second_moment, states.adam_steps, model.flag];
    let outputs = in_place.map(|s| g.state(s).into()).to_vec();
    let rate = g.state(states.alpha_rate);
    g.push(recipe.adam, vec![gradient, norm, rate], outputs);
    let running = g.state(model.running);
    RunningUpdate::record(g, RunningUpdate { momentum: 0.1, segments }, statistics, norm, running);
    let sums = g.state(states.valid_sums);
    g.push(Accumulate, vec![loss, counts], vec![sums.into()]);
    watched.logits = Some(logits);
    watched.loss = Some(loss);
    watched.gradient = Some(gradient);
    watched.norm = Some(norm);
    Ok(Step { graph, watched })
}

/// Records SGD on a vector, or on a part of it.
fn descend(
    g: &mut Graph,
    states: &ModelStates,
    optimiser: &WeightOptimiser,
    (gradient, norm): (Tensor, Tensor),
    (weights, velocity): (Tensor, Tensor),
) {
    let WeightOptimiser { momentum, decay, clip } = *optimiser;
    let (rate, flag) = (g.state(states.rate), g.state(states.flag));
    let outputs = vec![weights.into(), velocity.into(), flag.into()];
    g.push(Sgd { momentum, decay, clip }, vec![gradient, norm, rate], outputs);
}

/// Records the end of a weight step: gradient, norm, SGD on the given parts of the weights, running statistics, sums.
pub(crate) fn weight_update(
    g: &mut Graph,
    states: &ModelStates,
    (optimiser, parts): (&WeightOptimiser, &[Range<usize>]),
    (loss, counts): (Tensor, Tensor),
    (statistics, segments): (Tensor, Vec<crate::ops::running::Segment>),
) -> Result<(Tensor, Tensor)> {
    let weights = g.state(states.weights);
    let gradient = g.gradients(loss, &[weights])?[0];
    let norm = GlobalNorm::record(g, gradient, "norm of the weight gradient");
    for part in parts {
        let shape = Shape::vector(part.len());
        let mut own = |vector: Tensor| g.slice(vector, part.start, shape);
        let (gradient, weights) = (own(gradient)?, own(weights)?);
        let velocity = g.state(states.velocity);
        let velocity = g.slice(velocity, part.start, shape)?;
        descend(g, states, optimiser, (gradient, norm), (weights, velocity));
    }
    let running = g.state(states.running);
    RunningUpdate::record(g, RunningUpdate { momentum: 0.1, segments }, statistics, norm, running);
    let sums = g.state(states.train_sums);
    g.push(Accumulate, vec![loss, counts], vec![sums.into()]);
    Ok((gradient, norm))
}

/// Records the weight step: weights by SGD on the training batch.
///
/// # Errors
/// [`crate::Error::Shape`] if network and batch disagree.
pub fn weight_step(network: &Supernet, states: &SearchStates, recipe: &SearchRecipe) -> Result<Step> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let model = &states.model;
    let (weights, alphas) = (g.state(model.weights), g.state(states.alphas));
    let images = recipe.input.record(g, &model.train, model.epoch, true);
    let mut pass = Pass::train(g, &network.layout, weights);
    let (loss, counts, logits) = forward(network, &mut pass, images, model.train.labels, (alphas, states.head))?;
    let statistics = pass.finish();
    // The other datasets' heads rest: they feel neither momentum nor decay.
    let (trunk, head) = (network.trunk(), network.head(states.head));
    let parts = match trunk.end == head.start {
        true => std::iter::once(trunk.start..head.end).collect(),
        false => vec![trunk, head],
    };
    let (gradient, norm) = weight_update(g, model, (&recipe.optimiser, &parts), (loss, counts), statistics)?;
    let watched = Watched {
        logits: Some(logits),
        loss: Some(loss),
        gradient: Some(gradient),
        norm: Some(norm),
        ..Watched::default()
    };
    Ok(Step { graph, watched })
}

/// Records a step of the warm-up after a transfer: a new head learns on the training batch while trunk and alphas rest.
/// The running statistics follow the new images.
///
/// # Errors
/// [`crate::Error::Shape`] if network and batch disagree.
pub fn head_step(network: &Supernet, states: &SearchStates, recipe: &SearchRecipe) -> Result<Step> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let model = &states.model;
    let (weights, alphas) = (g.state(model.weights), g.state(states.alphas));
    let range = network.head(states.head);
    let own = g.slice(weights, range.start, Shape::vector(range.len()))?;
    let copy = Linear::record(g, &[(1.0, own)], "weights of the head")?;
    let images = recipe.input.record(g, &model.train, model.epoch, true);
    let mut pass = Pass::train(g, &network.layout, weights);
    let logits = network.forward_detached(&mut pass, images, alphas, (states.head, copy))?;
    let (statistics, segments) = pass.finish();
    let labels = g.state(model.train.labels);
    let (loss, counts) = CrossEntropy::record(g, CrossEntropy { smoothing: 0.0 }, logits, labels)?;
    let gradient = g.gradients(loss, &[copy])?[0];
    let norm = GlobalNorm::record(g, gradient, "norm of the head's gradient");
    let velocity = g.state(model.velocity);
    let velocity = g.slice(velocity, range.start, Shape::vector(range.len()))?;
    descend(g, model, &recipe.optimiser, (gradient, norm), (own, velocity));
    let running = g.state(model.running);
    RunningUpdate::record(g, RunningUpdate { momentum: 0.1, segments }, statistics, norm, running);
    let sums = g.state(model.train_sums);
    g.push(Accumulate, vec![loss, counts], vec![sums.into()]);
    let watched = Watched {
        logits: Some(logits),
        loss: Some(loss),
        gradient: Some(gradient),
        norm: Some(norm),
        ..Watched::default()
    };
    Ok(Step { graph, watched })
}

/// Records the evaluation of one staged batch with running statistics; sums go to the batch's own sums.
///
/// # Errors
/// [`crate::Error::Shape`] if network and batch disagree.
pub fn evaluation(network: &Supernet, states: &SearchStates, input: &InputPipeline) -> Result<Step> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let model = &states.model;
    let (weights, alphas) = (g.state(model.weights), g.state(states.alphas));
    let images = input.record(g, &states.valid, model.epoch, false);
    let mut pass = Pass::evaluate(g, &network.layout, weights, model.running);
    let (loss, counts, logits) = forward(network, &mut pass, images, states.valid.labels, (alphas, states.head))?;
    let sums = g.state(states.valid_sums);
    g.push(Accumulate, vec![loss, counts], vec![sums.into()]);
    let watched = Watched { logits: Some(logits), loss: Some(loss), ..Watched::default() };
    Ok(Step { graph, watched })
}
