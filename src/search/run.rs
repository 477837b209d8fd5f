//! A whole search: data, programs, epochs, checkpoints, genotype.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::schedule::cosine;
use super::step::{self, InputPipeline, Order, SearchRecipe, SearchStates, WeightOptimiser};
use crate::checkpoint::{Checkpoint, Meta, Network};
use crate::config::SearchConfig;
use crate::data::{Dataset, Geometry, Images, Loader, Normalisation, normalisation, permutation, stratified_split};
use crate::device::cpu::{Cpu, Executable};
use crate::error::{Error, Result};
use crate::graph::plan::check_memory;
use crate::graph::{Program, StoreLayout};
use crate::network::genotype::softmax;
use crate::network::{Genotype, SearchSpace, Supernet};
use crate::ops::optimiser::Adam;
use crate::run::{self, Control, RunFolder, Score};

/// Purposes of the data orders, for the counter-based generator.
const PURPOSE_WEIGHT_ORDER: u32 = 32;
const PURPOSE_ALPHA_ORDER: u32 = 33;

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
    /// Bytes of arena and state.
    pub peak_bytes: usize,
    /// Bytes of the arena alone.
    pub arena_bytes: usize,
    /// Ops of a forward.
    pub launches_forward: usize,
    /// Ops of a whole step.
    pub launches_step: usize,
    /// Floating-point operations of a whole step.
    pub flops_step: f64,
    /// Least bytes that a whole step moves.
    pub bytes_step: f64,
}

/// The network, its states and its programs for one configuration.
pub(crate) struct Setup {
    pub network: Supernet,
    pub layout: StoreLayout,
    pub states: SearchStates,
    pub architecture: Program,
    pub weight: Program,
    pub evaluation: Program,
}

impl Setup {
    pub fn new(
        config: &SearchConfig,
        classes: usize,
        size: Geometry,
        batch: usize,
        norm: Normalisation,
    ) -> Result<Self> {
        let network = Supernet::new(SearchSpace::darts(config.channels, config.layers)?, size, classes);
        let mut layout = StoreLayout::new();
        let states = SearchStates::declare(&mut layout, &network, batch);
        let input = InputPipeline {
            pad: config.crop_padding,
            flip: config.flip,
            cutout: config.cutout,
            normalisation: norm,
            seed: config.seed,
        };
        let optimiser = WeightOptimiser { momentum: config.momentum, decay: config.weight_decay, clip: config.clip };
        let adam = Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: config.alpha_weight_decay };
        let recipe = SearchRecipe { order: config.order, optimiser, adam, input: input.clone() };
        let architecture = step::architecture_step(&network, &states, &recipe)?.program("architecture step", false);
        let weight = step::weight_step(&network, &states, &recipe)?.program("weight step", false);
        let evaluation = step::evaluation(&network, &states, &input)?.program("evaluation", false);
        let limit = config.memory_limit.map(|mib| mib << 20);
        check_memory(&[&architecture, &weight, &evaluation], &layout, limit)?;
        Ok(Self { network, layout, states, architecture, weight, evaluation })
    }

    /// Fills weights, statistics and alphas as a search starts.
    pub fn initialise(&self, cpu: &mut Cpu, seed: u64) {
        let s = &self.states;
        cpu.state_mut(s.model.weights).copy_from_slice(&self.network.layout.initial_weights(seed));
        cpu.state_mut(s.model.running).copy_from_slice(&self.network.layout.initial_running());
        cpu.state_mut(s.alphas).copy_from_slice(&self.network.initial_alphas(seed));
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

/// What the configuration needs, for images of a size and a number of classes.
///
/// # Errors
/// [`Error::Usage`] or [`Error::Shape`] if the configuration makes no network.
pub fn plan(config: &SearchConfig, classes: usize, size: Geometry) -> Result<PlanReport> {
    config.check()?;
    let setup = Setup::new(config, classes, size, config.batch, plain_normalisation(size.channels))?;
    let programs = [&setup.architecture, &setup.weight, &setup.evaluation];
    let step = [setup.architecture.cost(), setup.weight.cost()].into_iter().sum::<crate::ops::Cost>();
    Ok(PlanReport {
        parameters: setup.network.layout.weights_len(),
        macs_per_image: macs(&setup.evaluation, config.batch),
        peak_bytes: check_memory(&programs, &setup.layout, None)?,
        arena_bytes: programs.iter().map(|p| p.arena_bytes()).max().unwrap_or(0),
        launches_forward: setup.evaluation.cost().launches,
        launches_step: step.launches,
        flops_step: step.flops,
        bytes_step: step.bytes,
    })
}

/// The halves of the training data and the batches drawn from them.
struct Halves {
    images: Arc<Images>,
    weight: Vec<u32>,
    alpha: Vec<u32>,
    batch: usize,
    seed: u64,
}

impl Halves {
    fn new(dataset: &Dataset, config: &SearchConfig, control: &mut Control<'_>) -> Result<Self> {
        let labels = &dataset.train.labels;
        let (weight, alpha) = stratified_split(labels, dataset.classes.len(), config.weight_share, config.seed);
        let least = weight.len().min(alpha.len());
        if least < 2 {
            return Err(Error::usage(format!(
                "{}: {} training images leave a half with {least}; a search needs at least two in each",
                config.data,
                labels.len()
            )));
        }
        let batch = config.batch.min(least);
        if batch < config.batch {
            let text =
                format!("the smaller half has {least} images: the batch shrinks from {} to {batch}", config.batch);
            control.observer.note(&text);
        }
        let narrow = |indices: Vec<usize>| indices.into_iter().map(|i| i as u32).collect();
        let images = Arc::new(dataset.train.clone());
        Ok(Self { images, weight: narrow(weight), alpha: narrow(alpha), batch, seed: config.seed })
    }

    fn steps(&self) -> usize {
        self.weight.len() / self.batch
    }

    /// Order of the weight half in an epoch.
    fn weight_order(&self, epoch: usize) -> Vec<u32> {
        let order = permutation(self.weight.len(), self.seed, PURPOSE_WEIGHT_ORDER, epoch as u64);
        order.into_iter().map(|i| self.weight[i as usize]).collect()
    }

    /// Order of the alpha half for an epoch's steps: passes over the half, each in an order of its own, a pass's
    /// remainder dropped, going on across epochs.
    fn alpha_order(&self, epoch: usize) -> Vec<u32> {
        let a_pass = self.alpha.len() / self.batch;
        let mut order = Vec::with_capacity(self.steps() * self.batch);
        let mut pass: Option<(usize, Vec<u32>)> = None;
        for step in 0..self.steps() {
            let number = epoch * self.steps() + step;
            let wanted = number / a_pass;
            if pass.as_ref().is_none_or(|p| p.0 != wanted) {
                pass = Some((wanted, permutation(self.alpha.len(), self.seed, PURPOSE_ALPHA_ORDER, wanted as u64)));
            }
            let indices = &pass.as_ref().expect("set just now").1;
            let start = number % a_pass * self.batch;
            order.extend(indices[start..start + self.batch].iter().map(|&i| self.alpha[i as usize]));
        }
        order
    }
}

/// A search in progress.
struct Search<'a> {
    config: &'a SearchConfig,
    setup: Setup,
    cpu: Cpu,
    architecture: Executable,
    weight: Executable,
    evaluation: Executable,
    halves: Halves,
    folder: RunFolder,
    meta: Meta,
    epoch: usize,
    step: usize,
    before: f64,
    start: Instant,
}

/// Runs a search into a run folder, or continues one.
///
/// # Errors
/// [`Error::Usage`] or [`Error::Input`] for bad settings, data or checkpoints, [`Error::Memory`] if it does not fit,
/// [`Error::NonFinite`] if it diverges, [`Error::Interrupted`] after a stop, [`Error::Io`] if the folder fails.
pub fn search(config: &SearchConfig, out: &Path, resume: bool, control: &mut Control<'_>) -> Result<SearchReport> {
    config.check()?;
    let dataset = run::load_dataset(&config.data, config.size, None, config.train_images, config.seed)?;
    dataset.notes.iter().for_each(|note| control.observer.note(note));
    let halves = Halves::new(&dataset, config, control)?;
    let norm = normalisation(&dataset.train);
    let size = dataset.train.geometry;
    let mut setup = Setup::new(config, dataset.classes.len(), size, halves.batch, norm.clone())?;
    let mib = |bytes: usize| bytes as f64 / (1024.0 * 1024.0);
    let peak = check_memory(&[&setup.architecture, &setup.weight, &setup.evaluation], &setup.layout, None)?;
    control.observer.note(&format!("predicted peak memory of the engine: {:.1} MiB", mib(peak)));
    let mut cpu = Cpu::new(&setup.layout, run::threads(config.threads))?;
    let mut prepare = |program: &mut Program| {
        let taken = std::mem::replace(program, Program::new("", crate::graph::Graph::new(), &[]));
        cpu.prepare(taken)
    };
    let architecture = prepare(&mut setup.architecture)?;
    let weight = prepare(&mut setup.weight)?;
    let evaluation = prepare(&mut setup.evaluation)?;
    let settings = SearchConfig { threads: 0, memory_limit: None, checkpoint_steps: 0, ..config.clone() };
    let meta = Meta {
        format: 0,
        version: String::new(),
        network: Network::Supernet(setup.network.space.clone()),
        size,
        classes: dataset.classes.clone(),
        dataset: dataset.name.clone(),
        identity: dataset.identity.clone(),
        normalisation: norm,
        seed: config.seed,
        epoch: 0,
        step: 0,
        seconds: 0.0,
        config: serde_json::to_value(&settings).expect("settings are plain data"),
    };
    let folder = RunFolder::create(out)?;
    setup.initialise(&mut cpu, config.seed);
    let start = Instant::now();
    let mut search = Search {
        config,
        setup,
        cpu,
        architecture,
        weight,
        evaluation,
        halves,
        folder,
        meta,
        epoch: 0,
        step: 0,
        before: 0.0,
        start,
    };
    if resume {
        search.restore()?;
    }
    search.folder.trim_metrics(search.epoch)?;
    search.run(control)
}

impl Search<'_> {
    fn restore(&mut self) -> Result<()> {
        let path = self.folder.checkpoint();
        let checkpoint = Checkpoint::load(&path)?;
        run::check_same_run(&path, &checkpoint, &self.meta)?;
        let (s, layout) = (self.setup.states, &self.setup.network.layout);
        let cpu = &mut self.cpu;
        cpu.state_mut(s.model.weights).copy_from_slice(&checkpoint.get_weights(&path, "", layout)?);
        cpu.state_mut(s.model.velocity).copy_from_slice(&checkpoint.get_weights(&path, "momentum/", layout)?);
        cpu.state_mut(s.model.running).copy_from_slice(&checkpoint.get_running(&path, "", layout)?);
        for (name, state) in Self::vectors(&s) {
            cpu.state_mut(state).copy_from_slice(checkpoint.get(&path, name, state.shape.len())?);
        }
        self.epoch = checkpoint.meta.epoch;
        self.step = checkpoint.meta.step;
        self.before = checkpoint.meta.seconds;
        Ok(())
    }

    /// States that are saved as plain vectors.
    fn vectors(s: &SearchStates) -> [(&'static str, crate::graph::State); 6] {
        [
            ("alphas", s.alphas),
            ("adam/first_moment", s.first_moment),
            ("adam/second_moment", s.second_moment),
            ("adam/steps", s.adam_steps),
            ("sums/training", s.model.train_sums),
            ("sums/validation", s.valid_sums),
        ]
    }

    fn save(&mut self) -> Result<()> {
        let seconds = run::elapsed(self.start, self.before);
        let meta = Meta { epoch: self.epoch, step: self.step, seconds, ..self.meta.clone() };
        let (s, layout) = (self.setup.states, &self.setup.network.layout);
        let mut checkpoint = Checkpoint::new(meta);
        checkpoint.put_weights("", layout, self.cpu.state(s.model.weights));
        checkpoint.put_weights("momentum/", layout, self.cpu.state(s.model.velocity));
        checkpoint.put_running("", layout, self.cpu.state(s.model.running));
        for (name, state) in Self::vectors(&s) {
            checkpoint.put(name, self.cpu.state(state));
        }
        checkpoint.save(&self.folder.checkpoint())
    }

    fn run(mut self, control: &mut Control<'_>) -> Result<SearchReport> {
        let (epochs, steps) = (self.config.epochs, self.halves.steps());
        control.observer.begin("search", epochs, steps, self.epoch);
        let (mut step_seconds, mut steps_done) = (0.0, 0usize);
        let mut last = None;
        while self.epoch < epochs {
            let epoch_start = Instant::now();
            let first_step = self.step;
            self.epoch_steps(control, &mut step_seconds, &mut steps_done)?;
            let record = self.finish_epoch(epoch_start, steps - first_step)?;
            last = Some((record["validation_loss"].clone(), record["validation_accuracy"].clone()));
            control.observer.epoch(&record);
        }
        let genotype = self.genotype();
        let (loss, accuracy) = match last.and_then(|(l, a)| Some((l.as_f64()?, a.as_f64()?))) {
            Some(found) => found,
            None => {
                let score = self.validate();
                (score.loss, score.accuracy)
            }
        };
        Ok(SearchReport {
            genotype,
            validation_accuracy: accuracy,
            validation_loss: loss,
            epochs,
            seconds: run::elapsed(self.start, self.before),
            seconds_per_step: step_seconds / steps_done.max(1) as f64,
            peak_bytes: self.cpu.peak_bytes(),
            peak_rss_bytes: run::peak_rss_bytes(),
            out: self.folder.checkpoint().parent().unwrap_or(Path::new(".")).display().to_string(),
        })
    }

    fn learning_rate(&self) -> f64 {
        cosine(self.config.learning_rate, self.config.learning_rate_min, self.epoch, self.config.epochs)
    }

    fn epoch_steps(&mut self, control: &mut Control<'_>, seconds: &mut f64, done: &mut usize) -> Result<()> {
        let s = self.setup.states;
        self.cpu.state_mut(s.model.rate)[0] = self.learning_rate() as f32;
        self.cpu.state_mut(s.alpha_rate)[0] = self.config.alpha_learning_rate as f32;
        self.cpu.state_mut(s.model.epoch)[0] = self.epoch as f32;
        if self.step == 0 {
            self.cpu.state_mut(s.model.train_sums).fill(0.0);
            self.cpu.state_mut(s.valid_sums).fill(0.0);
        }
        let batch = self.halves.batch;
        let rest = |order: Vec<u32>| order[self.step * batch..].to_vec();
        let images = &self.halves.images;
        let mut weight = Loader::new(images.clone(), rest(self.halves.weight_order(self.epoch)), batch, 3);
        let mut alpha = Loader::new(images.clone(), rest(self.halves.alpha_order(self.epoch)), batch, 3);
        while self.step < self.halves.steps() {
            let (Some(train), Some(valid)) = (weight.next(), alpha.next()) else { break };
            let start = Instant::now();
            run::stage(&mut self.cpu, &s.model.train, &train);
            run::stage(&mut self.cpu, &s.valid, &valid);
            let at = (self.epoch, self.step);
            let saved = self.folder.checkpoint();
            self.cpu.run(&self.architecture);
            run::check_finite(&mut self.cpu, &self.architecture, &s.model, at, &saved)?;
            self.cpu.run(&self.weight);
            run::check_finite(&mut self.cpu, &self.weight, &s.model, at, &saved)?;
            *seconds += start.elapsed().as_secs_f64();
            *done += 1;
            weight.recycle(train);
            alpha.recycle(valid);
            self.step += 1;
            control.observer.step(self.epoch, self.step);
            let last = self.step == self.halves.steps();
            if control.stopping() {
                self.save()?;
                return Err(Error::Interrupted { checkpoint: self.folder.checkpoint() });
            }
            if self.config.checkpoint_steps > 0 && self.step.is_multiple_of(self.config.checkpoint_steps) && !last {
                self.save()?;
            }
        }
        Ok(())
    }

    fn validate(&mut self) -> Score {
        let s = self.setup.states;
        let order = self.halves.alpha.clone();
        run::evaluate(&mut self.cpu, &self.evaluation, &s.valid, s.valid_sums, (&self.halves.images, order))
    }

    fn genotype(&self) -> Genotype {
        Genotype::derive(&self.setup.network.space, self.cpu.state(self.setup.states.alphas))
    }

    /// Validates, writes the epoch's record, the genotype and the checkpoint.
    fn finish_epoch(&mut self, start: Instant, steps: usize) -> Result<Value> {
        let s = self.setup.states;
        let training = Score::from_sums(self.cpu.state(s.model.train_sums));
        let architecture = Score::from_sums(self.cpu.state(s.valid_sums));
        let seconds_training = start.elapsed().as_secs_f64();
        let validation = self.validate();
        let genotype = self.genotype();
        let (skips, parameter_free) = genotype.shares();
        let alphas = self.cpu.state(s.alphas).to_vec();
        let passes = match self.config.order {
            Order::First => 2,
            Order::Second => 5,
        };
        let record = json!({
            "epoch": self.epoch,
            "training_loss": training.loss,
            "training_accuracy": training.accuracy,
            "architecture_loss": architecture.loss,
            "architecture_accuracy": architecture.accuracy,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "validation_top5": validation.top5,
            "learning_rate": self.learning_rate(),
            "alpha_learning_rate": self.config.alpha_learning_rate,
            "alpha_entropy": self.entropy(&alphas),
            "skip_share": skips,
            "parameter_free_share": parameter_free,
            "alphas": alphas,
            "genotype": genotype,
            "passes_a_step": passes,
            "images": 2 * self.halves.steps() * self.halves.batch,
            "seconds": start.elapsed().as_secs_f64(),
            "images_per_second": (2 * steps * self.halves.batch) as f64 / seconds_training,
        });
        self.folder.write_json("genotype.json", &genotype)?;
        self.folder.append_metrics(&record)?;
        self.epoch += 1;
        self.step = 0;
        self.save()?;
        Ok(record)
    }

    /// Mean entropy in nats of the edges' mixing weights, normal and reduction cells.
    fn entropy(&self, alphas: &[f32]) -> [f64; 2] {
        let space = &self.setup.network.space;
        let (offsets, len) = space.alpha_offsets();
        let edge = |table: &[f32], e: usize| -> f64 {
            let end = offsets.get(e + 1).copied().unwrap_or(len);
            softmax(&table[offsets[e]..end]).iter().map(|p| -p * p.max(1e-300).ln()).sum()
        };
        let table = |t: &[f32]| (0..offsets.len()).map(|e| edge(t, e)).sum::<f64>() / offsets.len() as f64;
        [table(&alphas[..len]), table(&alphas[len..])]
    }
}
