//! The programs of a search for one configuration, and what they need.

use serde::Serialize;

use super::race::RaceReport;
use super::step::{self, InputPipeline, SearchRecipe, SearchStates, WeightOptimiser};
use crate::config::{SearchConfig, check_extent};
use crate::data::{Geometry, Normalisation};
use crate::device::{DeviceSpec, Precision, needs};
use crate::error::Result;
use crate::graph::{Program, State, StoreLayout};
use crate::network::{Genotype, SearchSpace, Supernet};
use crate::ops::optimiser::Adam;
use crate::transport::Ranked;

/// What a search found and took.
#[derive(Clone, Debug, Serialize)]
pub struct SearchReport {
    /// The cells.
    pub genotype: Genotype,
    /// Accuracy of the supernet on the alpha half, after the last epoch.
    pub validation_accuracy: f64,
    /// Its loss there.
    pub validation_loss: f64,
    /// Epochs.
    pub epochs: usize,
    /// Seconds over all runs that contributed.
    pub seconds: f64,
    /// Mean seconds of a step (both halves) in this process.
    pub seconds_per_step: f64,
    /// Bytes that the engine allocated.
    pub peak_bytes: usize,
    /// High-water mark of the process.
    pub peak_rss_bytes: Option<usize>,
    /// Zoo entry from which the search started, or `none`.
    pub source: String,
    /// Sources of the zoo in the order of their distance, where the nearest was asked for.
    pub ranking: Vec<Ranked>,
    /// Tensors that were copied, adapted and drawn anew by the transfer; None without one.
    pub transfer: Option<[usize; 3]>,
    /// How the race went, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub race: Option<RaceReport>,
    /// The run folder.
    pub out: String,
}

/// What a configuration needs, without running it.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    /// Weights (without an auxiliary head).
    pub parameters: usize,
    /// Multiply-adds of one image's forward.
    pub macs_per_image: f64,
    /// Bytes of arena and state on the device.
    pub peak_bytes: usize,
    /// Bytes of the arena alone.
    pub arena_bytes: usize,
    /// Launches of a forward: ops on the processor, launches on a GPU.
    pub launches_forward: usize,
    /// Launches of a whole step.
    pub launches_step: usize,
    /// Floating-point operations of a whole step.
    pub flops_step: f64,
    /// Least bytes that a whole step moves.
    pub bytes_step: f64,
}

/// What one dataset has of a network: its states and its programs.
pub(crate) struct TaskPrograms {
    pub states: SearchStates,
    pub architecture: Program,
    pub weight: Program,
    pub evaluation: Program,
    /// The warm-up of the head, where one is asked for.
    pub head: Option<Program>,
}

impl TaskPrograms {
    fn new(network: &Supernet, states: SearchStates, recipe: &SearchRecipe, head: bool) -> Result<Self> {
        Ok(Self {
            states,
            architecture: step::architecture_step(network, &states, recipe)?.program("architecture step", false),
            weight: step::weight_step(network, &states, recipe)?.program("weight step", false),
            evaluation: step::evaluation(network, &states, &recipe.input)?.program("evaluation", false),
            head: match head {
                true => Some(step::head_step(network, &states, recipe)?.program("head step", false)),
                false => None,
            },
        })
    }

    fn programs(&self) -> impl Iterator<Item = &Program> {
        [&self.architecture, &self.weight, &self.evaluation].into_iter().chain(&self.head)
    }
}

/// The network and what each dataset has of it, for one configuration.
pub(crate) struct Setup {
    pub network: Supernet,
    pub layout: StoreLayout,
    pub tasks: Vec<TaskPrograms>,
    /// Bytes that the engine will allocate.
    pub peak_bytes: usize,
}

impl Setup {
    /// For datasets of so many classes, each under its own normalisation.
    pub fn new(
        config: &SearchConfig,
        datasets: &[(usize, Normalisation)],
        size: Geometry,
        batch: usize,
    ) -> Result<Self> {
        check_extent(batch, size, config.channels)?;
        let heads: Vec<usize> = datasets.iter().map(|d| d.0).collect();
        let network = Supernet::with_heads(SearchSpace::darts(config.channels, config.layers)?, size, &heads);
        let mut layout = StoreLayout::new();
        let first = SearchStates::declare(&mut layout, &network, batch);
        let optimiser = WeightOptimiser { momentum: config.momentum, decay: config.weight_decay, clip: config.clip };
        let adam = Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: config.alpha_weight_decay };
        let mut tasks = Vec::new();
        for (head, (_, normalisation)) in datasets.iter().enumerate() {
            let states = if head == 0 { first } else { first.for_head(&mut layout, head) };
            let input = InputPipeline {
                pad: config.crop_padding,
                flip: config.flip,
                cutout: config.cutout,
                normalisation: normalisation.clone(),
                seed: config.seed,
            };
            let recipe = SearchRecipe { order: config.order, optimiser, adam, input };
            tasks.push(TaskPrograms::new(&network, states, &recipe, config.head_warm_up > 0)?);
        }
        let limit = config.memory_limit.map(|mib| mib << 20);
        let programs: Vec<&Program> = tasks.iter().flat_map(TaskPrograms::programs).collect();
        let peak_bytes = needs::check((config.device, config.precision), &programs, &layout, limit)?;
        Ok(Self { network, layout, tasks, peak_bytes })
    }

    /// The states that a search does not start from zero, with their values.
    pub fn initial(&self, seed: u64) -> Vec<(State, Vec<f32>)> {
        let (s, layout) = (&self.tasks[0].states, &self.network.layout);
        let shared = [(s.model.weights, layout.initial_weights(seed)), (s.alphas, self.network.initial_alphas(seed))];
        let running = self.tasks.iter().map(|task| (task.states.model.running, layout.initial_running()));
        shared.into_iter().chain(running).collect()
    }
}

/// Multiply-adds of one image: the convolutions and linear layers of an evaluation.
pub(crate) fn macs(evaluation: &Program, batch: usize) -> f64 {
    let counted = |n: &&crate::graph::Node| matches!(n.op.name(), "dense" | "separable" | "reduce");
    let flops: f64 = evaluation.nodes().iter().filter(counted).map(|n| n.cost(evaluation.graph()).flops).sum();
    flops / 2.0 / batch as f64
}

fn plain_normalisation(channels: usize) -> Normalisation {
    Normalisation { mean: vec![0.5; channels], std: vec![0.25; channels] }
}

/// What the configuration needs on its device, which need not be there, for images of a size and a number of classes.
///
/// # Errors
/// [`crate::Error::Memory`] if it needs more than its limit or a tensor more than the device grants in one piece,
/// [`crate::Error::Usage`] or [`crate::Error::Shape`] if the configuration makes no network.
pub fn plan(config: &SearchConfig, classes: usize, size: Geometry) -> Result<PlanReport> {
    // The device need not be in this build.
    SearchConfig { device: DeviceSpec::Cpu, precision: Precision::F32, ..config.clone() }.check()?;
    config.precision.check(config.device)?;
    let setup = Setup::new(config, &[(classes, plain_normalisation(size.channels))], size, config.batch)?;
    let task = &setup.tasks[0];
    let step = [task.architecture.cost(), task.weight.cost()].into_iter().sum::<crate::ops::Cost>();
    let memory = needs::memory((config.device, config.precision), &task.programs().collect::<Vec<_>>(), &setup.layout)?;
    memory.check(config.memory_limit.map(|mib| mib << 20))?;
    let launches = |program: &Program| needs::launches((config.device, config.precision), program, &setup.layout);
    Ok(PlanReport {
        parameters: setup.network.layout.weights_len(),
        macs_per_image: macs(&task.evaluation, config.batch),
        peak_bytes: memory.all,
        arena_bytes: memory.arena,
        launches_forward: launches(&task.evaluation)?,
        launches_step: launches(&task.architecture)? + launches(&task.weight)?,
        flops_step: step.flops,
        bytes_step: step.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_halves_and_refuses_them_where_there_are_none() {
        let size = Geometry { height: 8, width: 8, channels: 3 };
        let small = SearchConfig { data: "x".into(), channels: 4, layers: 3, batch: 4, ..SearchConfig::default() };
        let of = |device, precision| plan(&SearchConfig { device, precision, ..small.clone() }, 3, size);
        let [whole, halves] = [Precision::F32, Precision::F16].map(|p| of(DeviceSpec::Wgpu(None), p).unwrap());
        assert!(halves.arena_bytes < whole.arena_bytes, "{} and {}", halves.arena_bytes, whole.arena_bytes);
        let message = of(DeviceSpec::Cpu, Precision::F16).unwrap_err().to_string();
        assert!(message.contains("precision f16"), "{message}");
    }
}
