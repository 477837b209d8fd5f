//! The programs that train and evaluate a derived network: DARTS' evaluation stage, with drop path, auxiliary head and
//! label smoothing.

use crate::error::Result;
use crate::graph::{Graph, Shape, State, StoreLayout};
use crate::network::Derived;
use crate::network::parameters::Pass;
use crate::ops::augment::DropMask;
use crate::ops::elementwise::Linear;
use crate::ops::loss::{Accumulate, CrossEntropy};
use crate::search::step::{BatchStates, InputPipeline, ModelStates, Step, Watched, WeightOptimiser, weight_update};

/// The states of a training.
#[derive(Clone, Copy, Debug)]
pub struct TrainStates {
    /// What every training has.
    pub model: ModelStates,
    /// Probability of cutting a path.
    pub drop_path: State,
    /// Number of the step, the key of drop path.
    pub step: State,
    /// Batch under evaluation.
    pub test: BatchStates,
    /// Sums of the batches evaluated.
    pub test_sums: State,
}

impl TrainStates {
    /// Declares the states for batches of `n`.
    pub fn declare(layout: &mut StoreLayout, network: &Derived, n: usize) -> Self {
        Self {
            model: ModelStates::declare(layout, &network.layout, n, network.size),
            drop_path: layout.add("drop path", Shape::vector(1)),
            step: layout.add("step", Shape::vector(1)),
            test: BatchStates::declare(layout, "test", n, network.size),
            test_sums: layout.add("test sums", Shape::vector(4)),
        }
    }
}

/// A training step's recipe.
#[derive(Clone, Debug)]
pub struct TrainRecipe {
    /// Optimiser of the weights.
    pub optimiser: WeightOptimiser,
    /// Images.
    pub input: InputPipeline,
    /// Label smoothing.
    pub smoothing: f64,
    /// Weight of the auxiliary head's loss.
    pub auxiliary: f64,
    /// Whether drop path is recorded at all.
    pub drop_path: bool,
}

/// Records one training step.
///
/// # Errors
/// [`crate::Error::Shape`] if network and batch disagree.
pub fn train_step(network: &Derived, states: &TrainStates, recipe: &TrainRecipe) -> Result<Step> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let model = &states.model;
    let weights = g.state(model.weights);
    let images = recipe.input.record(g, &model.train, model.epoch, true);
    let labels = g.state(model.train.labels);
    let mask = (recipe.drop_path && network.droppable() > 0).then(|| {
        let inputs = [g.state(states.drop_path), g.state(states.step)];
        let op = DropMask { seed: recipe.input.seed };
        DropMask::record(g, op, network.droppable(), model.train.pixels.shape.n, inputs)
    });
    let mut pass = Pass::train(g, &network.layout, weights);
    let (logits, side) = network.forward(&mut pass, images, mask)?;
    let statistics = pass.finish();
    let op = CrossEntropy { smoothing: recipe.smoothing };
    let (own, counts) = CrossEntropy::record(g, op, logits, labels)?;
    let loss = match side {
        Some(side) => {
            let (side_loss, _) = CrossEntropy::record(g, op, side, labels)?;
            Linear::record(g, &[(1.0, own), (recipe.auxiliary, side_loss)], "total loss")?
        }
        None => own,
    };
    let all = 0..network.layout.weights_len();
    let (gradient, norm) = weight_update(g, model, (&recipe.optimiser, &[all]), (loss, counts), statistics)?;
    let watched = Watched {
        logits: Some(logits),
        loss: Some(loss),
        gradient: Some(gradient),
        norm: Some(norm),
        ..Watched::default()
    };
    Ok(Step { graph, watched })
}

/// Records the evaluation of one staged batch with running statistics.
///
/// # Errors
/// [`crate::Error::Shape`] if network and batch disagree.
pub fn evaluation(network: &Derived, states: &TrainStates, input: &InputPipeline) -> Result<Step> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let model = &states.model;
    let weights = g.state(model.weights);
    let images = input.record(g, &states.test, model.epoch, false);
    let labels = g.state(states.test.labels);
    let mut pass = Pass::evaluate(g, &network.layout, weights, model.running);
    let (logits, _) = network.forward(&mut pass, images, None)?;
    let (loss, counts) = CrossEntropy::record(g, CrossEntropy { smoothing: 0.0 }, logits, labels)?;
    let sums = g.state(states.test_sums);
    g.push(Accumulate, vec![loss, counts], vec![sums.into()]);
    let watched = Watched { logits: Some(logits), loss: Some(loss), ..Watched::default() };
    Ok(Step { graph, watched })
}
