//! A whole training of a derived network, and the evaluation of a checkpoint.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::inherit::inherit;
use super::step::{self, TrainRecipe, TrainStates};
use crate::checkpoint::{Checkpoint, Meta, Network, Source};
use crate::config::{TrainConfig, check_extent};
use crate::data::{Geometry, Images, Loader, Normalisation, normalisation, permutation};
use crate::device::{Device, DeviceSpec, Executable, Precision, needs};
use crate::error::{Error, Result};
use crate::graph::{Program, State, StoreLayout};
use crate::network::{Derived, DerivedConfig, Genotype};
use crate::run::{self, Control, RunFolder, Score};
use crate::search::run::{PlanReport, macs};
use crate::search::schedule::cosine;
use crate::search::step::{InputPipeline, WeightOptimiser};

/// Purpose of the data order, for the counter-based generator.
const PURPOSE_ORDER: u32 = 34;

/// What a training gave and took.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    /// Accuracy on the test part after the last epoch.
    pub test_accuracy: f64,
    /// Loss there.
    pub test_loss: f64,
    /// Weights without the auxiliary head.
    pub parameters: usize,
    /// Multiply-adds of one image.
    pub macs_per_image: f64,
    /// Epochs.
    pub epochs: usize,
    /// Seconds over all runs that contributed.
    pub seconds: f64,
    /// Bytes that the engine allocated.
    pub peak_bytes: usize,
    /// High-water mark of the process.
    pub peak_rss_bytes: Option<usize>,
    /// The run folder.
    pub out: String,
}

/// Result of evaluating a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EvaluateReport {
    /// Share of hits on the test part.
    pub accuracy: f64,
    /// Share of hits among the first five.
    pub top5: f64,
    /// Mean loss.
    pub loss: f64,
    /// Images.
    pub images: usize,
}

/// The network, its states and its programs for one configuration.
pub(crate) struct Setup {
    pub network: Derived,
    pub layout: StoreLayout,
    pub states: TrainStates,
    pub train: Program,
    pub evaluation: Program,
    /// Bytes that the engine will allocate.
    pub peak_bytes: usize,
}

impl Setup {
    pub fn new(
        config: &TrainConfig,
        classes: usize,
        size: Geometry,
        batch: usize,
        norm: Normalisation,
    ) -> Result<Self> {
        check_extent(batch, size, config.channels)?;
        let derived = DerivedConfig {
            genotype: Genotype::load(&config.genotype)?,
            channels: config.channels,
            layers: config.layers,
            auxiliary: config.auxiliary > 0.0,
        };
        let network = Derived::new(derived, size, classes);
        let mut layout = StoreLayout::new();
        let states = TrainStates::declare(&mut layout, &network, batch);
        let input = InputPipeline {
            pad: config.crop_padding,
            flip: config.flip,
            cutout: config.cutout,
            normalisation: norm,
            seed: config.seed,
        };
        let recipe = TrainRecipe {
            optimiser: WeightOptimiser { momentum: config.momentum, decay: config.weight_decay, clip: config.clip },
            input: input.clone(),
            smoothing: config.label_smoothing,
            auxiliary: config.auxiliary,
            drop_path: config.drop_path > 0.0,
        };
        let train = step::train_step(&network, &states, &recipe)?.program("training step", false);
        let evaluation = step::evaluation(&network, &states, &input)?.program("evaluation", false);
        let limit = config.memory_limit.map(|mib| mib << 20);
        let peak_bytes = needs::check((config.device, config.precision), &[&train, &evaluation], &layout, limit)?;
        Ok(Self { network, layout, states, train, evaluation, peak_bytes })
    }

    /// The states that a training does not start from zero, with their values.
    pub fn initial(&self, seed: u64) -> [(State, Vec<f32>); 2] {
        let (model, layout) = (&self.states.model, &self.network.layout);
        [(model.weights, layout.initial_weights(seed)), (model.running, layout.initial_running())]
    }
}

/// What the configuration needs, for images of a size and a number of classes.
///
/// # Errors
/// [`Error::Usage`], [`Error::Input`] or [`Error::Shape`] if the configuration makes no network.
pub fn plan(config: &TrainConfig, classes: usize, size: Geometry) -> Result<PlanReport> {
    // The device need not be in this build.
    TrainConfig { device: DeviceSpec::Cpu, precision: Precision::F32, ..config.clone() }.check()?;
    config.precision.check(config.device)?;
    let norm = Normalisation { mean: vec![0.5; size.channels], std: vec![0.25; size.channels] };
    let setup = Setup::new(config, classes, size, config.batch, norm)?;
    let programs = [&setup.train, &setup.evaluation];
    let step = setup.train.cost();
    let memory = needs::memory((config.device, config.precision), &programs, &setup.layout)?;
    memory.check(config.memory_limit.map(|mib| mib << 20))?;
    let launches = |program: &Program| needs::launches((config.device, config.precision), program, &setup.layout);
    Ok(PlanReport {
        parameters: setup.network.parameters(),
        macs_per_image: macs(&setup.evaluation, config.batch),
        peak_bytes: memory.all,
        arena_bytes: memory.arena,
        launches_forward: launches(&setup.evaluation)?,
        launches_step: launches(&setup.train)?,
        flops_step: step.flops,
        bytes_step: step.bytes,
    })
}

/// A training in progress.
struct Training<'a> {
    config: &'a TrainConfig,
    network: Derived,
    states: TrainStates,
    device: Device,
    train: Executable,
    evaluation: Executable,
    images: Arc<Images>,
    test: Arc<Images>,
    batch: usize,
    macs_per_image: f64,
    folder: RunFolder,
    meta: Meta,
    epoch: usize,
    step: usize,
    before: f64,
    start: Instant,
}

/// Trains the network of a genotype into a run folder, or continues a training.
///
/// # Errors
/// As [`crate::search::search`].
pub fn train(config: &TrainConfig, out: &Path, resume: bool, control: &mut Control<'_>) -> Result<TrainReport> {
    config.check()?;
    let genotype = Genotype::load(&config.genotype)?;
    let dataset = run::load_dataset(&config.data, config.size, None, config.train_images, config.seed)?;
    dataset.notes.iter().for_each(|note| control.observer.note(note));
    let batch = config.batch.min(dataset.train.len());
    if batch < config.batch {
        let text = format!("there are {batch} training images: the batch shrinks from {} to {batch}", config.batch);
        control.observer.note(&text);
    }
    let norm = normalisation(&dataset.train);
    let size = dataset.train.geometry;
    let setup = Setup::new(config, dataset.classes.len(), size, batch, norm.clone())?;
    let initial = setup.initial(config.seed);
    let Setup { network, layout, states, train, evaluation, peak_bytes } = setup;
    let mib = peak_bytes as f64 / (1024.0 * 1024.0);
    control.observer.note(&format!("predicted peak memory of the engine: {mib:.1} MiB"));
    let macs_per_image = macs(&evaluation, batch);
    let parameters = network.parameters();
    control.observer.note(&format!("{parameters} parameters, {:.1} M multiply-adds an image", macs_per_image / 1e6));
    let mut device = Device::open(&config.device, &layout, run::threads(config.threads), config.precision)?;
    control.observer.note(&format!("device: {}", device.name()));
    if let Some(products) = device.products() {
        control.observer.note(&format!("products: {products}"));
    }
    let train = device.prepare(train)?;
    let evaluation = device.prepare(evaluation)?;
    for (state, values) in initial {
        device.write(state, &values)?;
    }
    let mut inherited = None;
    if !config.inherit.is_empty() && !resume {
        let start = inherit(Path::new(&config.inherit), &network, config.seed)?;
        device.write(states.model.weights, &start.weights)?;
        device.write(states.model.running, &start.running)?;
        let [copied, adapted, new] = start.report.counts;
        control.observer.note(&format!(
            "weights of {}: {copied} tensors copied, {adapted} adapted, {new} new (transfer.json names each)",
            config.inherit
        ));
        inherited = Some(start.report);
    }
    // The genotype itself is part of the network's description; where it was read from does not matter.
    let settings = TrainConfig {
        genotype: String::new(),
        device: DeviceSpec::default(),
        threads: 0,
        memory_limit: None,
        checkpoint_steps: 0,
        ..config.clone()
    };
    let meta = Meta {
        format: 0,
        version: String::new(),
        network: Network::Derived {
            genotype,
            channels: config.channels,
            layers: config.layers,
            auxiliary: config.auxiliary > 0.0,
        },
        size,
        sources: vec![Source::new(&dataset, norm)],
        seed: config.seed,
        epoch: 0,
        step: 0,
        seconds: 0.0,
        config: serde_json::to_value(&settings).expect("settings are plain data"),
    };
    let folder = RunFolder::create(out)?;
    if let Some(report) = &inherited {
        folder.write_json("transfer.json", report)?;
    }
    let mut training = Training {
        config,
        network,
        states,
        device,
        train,
        evaluation,
        images: Arc::new(dataset.train),
        test: Arc::new(dataset.test),
        batch,
        macs_per_image,
        folder,
        meta,
        epoch: 0,
        step: 0,
        before: 0.0,
        start: Instant::now(),
    };
    if resume {
        training.restore()?;
    }
    training.folder.trim_metrics(training.epoch)?;
    training.run(control)
}

impl Training<'_> {
    fn restore(&mut self) -> Result<()> {
        let path = self.folder.checkpoint();
        let checkpoint = Checkpoint::load(&path)?;
        run::check_same_run(&path, &checkpoint, &self.meta)?;
        let (model, layout) = (self.states.model, &self.network.layout);
        self.device.write(model.weights, &checkpoint.get_weights(&path, "", layout)?)?;
        self.device.write(model.velocity, &checkpoint.get_weights(&path, "momentum/", layout)?)?;
        self.device.write(model.running, &checkpoint.get_running(&path, "", layout)?)?;
        self.device.write(model.train_sums, checkpoint.get(&path, "sums/training", 4)?)?;
        self.epoch = checkpoint.meta.epoch;
        self.step = checkpoint.meta.step;
        self.before = checkpoint.meta.seconds;
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let seconds = run::elapsed(self.start, self.before);
        let meta = Meta { epoch: self.epoch, step: self.step, seconds, ..self.meta.clone() };
        let (model, layout) = (self.states.model, &self.network.layout);
        let mut checkpoint = Checkpoint::new(meta);
        checkpoint.put_weights("", layout, &self.device.read(model.weights)?);
        checkpoint.put_weights("momentum/", layout, &self.device.read(model.velocity)?);
        checkpoint.put_running("", layout, &self.device.read(model.running)?);
        checkpoint.put("sums/training", &self.device.read(model.train_sums)?);
        checkpoint.save(&self.folder.checkpoint())
    }

    fn run(mut self, control: &mut Control<'_>) -> Result<TrainReport> {
        let epochs = self.config.epochs;
        control.observer.begin("training", epochs, self.steps(), self.epoch);
        let mut score = None;
        while self.epoch < epochs {
            let start = Instant::now();
            let images = (self.steps() - self.step) * self.batch;
            self.epoch_steps(control)?;
            let training_seconds = start.elapsed().as_secs_f64();
            let tested = self.test()?;
            score = Some(tested);
            let record = self.finish_epoch(tested, images, (training_seconds, start))?;
            control.observer.epoch(&record);
        }
        let score = match score {
            Some(score) => score,
            None => self.test()?,
        };
        Ok(TrainReport {
            test_accuracy: score.accuracy,
            test_loss: score.loss,
            parameters: self.network.parameters(),
            macs_per_image: self.macs_per_image,
            epochs,
            seconds: run::elapsed(self.start, self.before),
            peak_bytes: self.device.peak_bytes(),
            peak_rss_bytes: run::peak_rss_bytes(),
            out: self.folder.checkpoint().parent().unwrap_or(Path::new(".")).display().to_string(),
        })
    }

    fn steps(&self) -> usize {
        self.images.len() / self.batch
    }

    fn learning_rate(&self) -> f64 {
        cosine(self.config.learning_rate, 0.0, self.epoch, self.config.epochs)
    }

    fn epoch_steps(&mut self, control: &mut Control<'_>) -> Result<()> {
        let s = self.states;
        self.device.write(s.model.rate, &[self.learning_rate() as f32])?;
        self.device.write(s.model.epoch, &[self.epoch as f32])?;
        let drop_path = self.config.drop_path * self.epoch as f64 / self.config.epochs as f64;
        self.device.write(s.drop_path, &[drop_path as f32])?;
        if self.step == 0 {
            self.device.fill(s.model.train_sums, 0.0)?;
        }
        let order = permutation(self.images.len(), self.config.seed, PURPOSE_ORDER, self.epoch as u64);
        let order = order[self.step * self.batch..].to_vec();
        let mut loader = Loader::new(self.images.clone(), order, self.batch, 3);
        while self.step < self.steps() {
            let Some(batch) = loader.next() else { break };
            run::stage(&mut self.device, &s.model.train, &batch)?;
            self.device.write(s.step, &[(self.epoch * self.steps() + self.step) as f32])?;
            self.device.run(&self.train)?;
            let at = (self.epoch, self.step);
            run::check_finite(&mut self.device, &self.train, &s.model, at, &self.folder.checkpoint())?;
            loader.recycle(batch);
            self.step += 1;
            control.observer.step(self.epoch, self.step);
            if control.stopping() {
                self.save()?;
                return Err(Error::Interrupted { checkpoint: self.folder.checkpoint() });
            }
            let every = self.config.checkpoint_steps;
            if every > 0 && self.step.is_multiple_of(every) && self.step < self.steps() {
                self.save()?;
            }
        }
        Ok(())
    }

    fn test(&mut self) -> Result<Score> {
        let order = (0..self.test.len() as u32).collect();
        let s = self.states;
        run::evaluate(&mut self.device, &self.evaluation, &s.test, s.test_sums, (&self.test, order))
    }

    fn finish_epoch(&mut self, test: Score, images: usize, (seconds, start): (f64, Instant)) -> Result<Value> {
        let training = Score::from_sums(&self.device.read(self.states.model.train_sums)?);
        let record = json!({
            "epoch": self.epoch,
            "training_loss": training.loss,
            "training_accuracy": training.accuracy,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "learning_rate": self.learning_rate(),
            "drop_path": self.config.drop_path * self.epoch as f64 / self.config.epochs as f64,
            "images": self.steps() * self.batch,
            "seconds": start.elapsed().as_secs_f64(),
            "images_per_second": images as f64 / seconds,
        });
        self.folder.append_metrics(&record)?;
        self.epoch += 1;
        self.step = 0;
        self.save()?;
        Ok(record)
    }
}

/// The derived network of a checkpoint with its weights and statistics.
pub struct Trained {
    /// The network, without auxiliary head.
    pub network: Derived,
    /// Flat weights.
    pub weights: Vec<f32>,
    /// Flat running statistics.
    pub running: Vec<f32>,
    /// Description of the training.
    pub meta: Meta,
}

/// Reads a derived network from a checkpoint of a training.
///
/// # Errors
/// [`Error::Input`] if the file is damaged or holds a supernet.
pub fn load(path: &Path) -> Result<Trained> {
    let checkpoint = Checkpoint::load(path)?;
    let Network::Derived { genotype, channels, layers, .. } = checkpoint.meta.network.clone() else {
        let message = "holds a supernet; give the checkpoint of a training (`supernet train`)";
        return Err(Error::input(path, message));
    };
    genotype.check().map_err(|message| Error::input(path, format!("holds an unsound genotype: {message}")))?;
    let config = DerivedConfig { genotype, channels, layers, auxiliary: false };
    let network = Derived::new(config, checkpoint.meta.size, checkpoint.meta.sources[0].classes.len());
    let weights = checkpoint.get_weights(path, "", &network.layout)?;
    let running = checkpoint.get_running(path, "", &network.layout)?;
    Ok(Trained { network, weights, running, meta: checkpoint.meta })
}

/// Images of an evaluation's batch.
const EVALUATION_BATCH: usize = 64;

/// Evaluates the network of a checkpoint on the test part of a dataset, with the normalisation it was trained with.
///
/// # Errors
/// [`Error::Input`] for a bad checkpoint or dataset, [`Error::Usage`] if the classes differ.
pub fn evaluate(checkpoint: &Path, data: &str, (device, threads): (DeviceSpec, usize)) -> Result<EvaluateReport> {
    let Trained { network, weights, running, meta } = load(checkpoint)?;
    let size = Some((meta.size.height, meta.size.width));
    let channels = Some(meta.size.channels).filter(|c| [1, 3].contains(c));
    let dataset = run::load_dataset(data, size, channels, None, 0)?;
    let source = &meta.sources[0];
    if dataset.classes != source.classes {
        return Err(Error::usage(format!(
            "{data} has classes {:?}, the checkpoint was trained for {:?}",
            dataset.classes, source.classes
        )));
    }
    let mut layout = StoreLayout::new();
    let states = TrainStates::declare(&mut layout, &network, EVALUATION_BATCH);
    let input =
        InputPipeline { pad: 0, flip: false, cutout: 0, normalisation: source.normalisation.clone(), seed: meta.seed };
    let program = step::evaluation(&network, &states, &input)?.program("evaluation", false);
    let mut device = Device::open(&device, &layout, run::threads(threads), Precision::F32)?;
    let exe = device.prepare(program)?;
    device.write(states.model.weights, &weights)?;
    device.write(states.model.running, &running)?;
    let order = (0..dataset.test.len() as u32).collect();
    let score = run::evaluate(&mut device, &exe, &states.test, states.test_sums, (&Arc::new(dataset.test), order))?;
    Ok(EvaluateReport { accuracy: score.accuracy, top5: score.top5, loss: score.loss, images: score.images })
}
