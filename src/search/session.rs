//! A whole search: data, epochs, checkpoints, genotype. It may start from a zoo entry, and may go through several
//! datasets that share the trunk and the alphas (a pretraining): each has a head, a normalisation and running statistics
//! of its own.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::choose::{AUTO, Choice, MULTI, choose};
use super::halves::Halves;
use super::run::{SearchReport, Setup, TaskPrograms};
use super::schedule::cosine;
use super::step::{Order, SearchStates};
use super::transfer::{TransferReport, transfer};
use crate::checkpoint::{Checkpoint, Meta, Network, Source, head_prefix};
use crate::config::{Mixing, SCRATCH, SearchConfig};
use crate::data::{Batch, Dataset, Loader, normalisation, permutation};
use crate::device::{Device, DeviceSpec, Executable};
use crate::error::{Error, Result};
use crate::graph::State;
use crate::network::genotype::softmax;
use crate::network::{Genotype, Supernet};
use crate::run::{self, Control, RunFolder, Score};
use crate::zoo::Zoo;

/// Purpose of the order in which datasets take turns, for the counter-based generator.
const PURPOSE_TURNS: u32 = 34;

/// A dataset in a search.
struct Task {
    halves: Halves,
    states: SearchStates,
    architecture: Executable,
    weight: Executable,
    evaluation: Executable,
    /// The warm-up of the head, where one is asked for.
    head: Option<Executable>,
}

impl Task {
    fn new(device: &mut Device, programs: TaskPrograms, halves: Halves) -> Result<Self> {
        Ok(Self {
            halves,
            states: programs.states,
            architecture: device.prepare(programs.architecture)?,
            weight: device.prepare(programs.weight)?,
            evaluation: device.prepare(programs.evaluation)?,
            head: programs.head.map(|program| device.prepare(program)).transpose()?,
        })
    }
}

/// A search in progress.
struct Search<'a> {
    config: &'a SearchConfig,
    network: Supernet,
    device: Device,
    tasks: Vec<Task>,
    folder: RunFolder,
    meta: Meta,
    choice: Option<Choice>,
    transfer: Option<TransferReport>,
    epoch: usize,
    step: usize,
    before: f64,
    start: Instant,
}

/// Loads the datasets of a search, all at one size. Where there are several they have three channels, grey ones
/// replicated, for they share the stem.
fn load(config: &SearchConfig, control: &mut Control<'_>) -> Result<Vec<Dataset>> {
    let specs = config.data.list();
    let channels = (specs.len() > 1).then_some(3);
    let mut datasets: Vec<Dataset> = Vec::new();
    for spec in specs {
        let dataset = run::load_dataset(spec, config.size, channels, config.train_images, config.seed)?;
        dataset.notes.iter().for_each(|note| control.observer.note(note));
        if let Some(first) = datasets.first()
            && first.train.geometry != dataset.train.geometry
        {
            return Err(Error::usage(format!(
                "{spec} has images {}, {} has {}; give the size to which all are brought (--size HxW)",
                dataset.train.geometry, specs[0], first.train.geometry
            )));
        }
        if datasets.iter().any(|d| d.identity == dataset.identity) {
            return Err(Error::usage(format!("{spec} is given twice; each dataset has a head of its own")));
        }
        datasets.push(dataset);
    }
    Ok(datasets)
}

/// Runs a search into a run folder, or continues one.
///
/// # Errors
/// [`Error::Usage`] or [`Error::Input`] for bad settings, data, zoo entries or checkpoints, [`Error::Memory`] if it does
/// not fit, [`Error::NonFinite`] if it diverges, [`Error::Interrupted`] after a stop, [`Error::Io`] if the folder fails.
pub fn search(config: &SearchConfig, out: &Path, resume: bool, control: &mut Control<'_>) -> Result<SearchReport> {
    config.check()?;
    let datasets = load(config, control)?;
    let split = |(d, spec): (&Dataset, &String)| Halves::new(d, spec, config);
    let mut halves: Vec<Halves> = datasets.iter().zip(config.data.list()).map(split).collect::<Result<_>>()?;
    Halves::agree(&mut halves, config, control);
    let sources: Vec<Source> = datasets.iter().map(|d| Source::new(d, normalisation(&d.train))).collect();
    let size = datasets[0].train.geometry;
    let heads: Vec<_> = sources.iter().map(|s| (s.classes.len(), s.normalisation.clone())).collect();
    let mut setup = Setup::new(config, &heads, size, halves[0].batch)?;
    let mib = setup.peak_bytes as f64 / (1024.0 * 1024.0);
    control.observer.note(&format!("predicted peak memory of the engine: {mib:.1} MiB"));
    let mut device = Device::open(&config.device, &setup.layout, run::threads(config.threads), config.precision)?;
    control.observer.note(&format!("device: {}", device.name()));
    if let Some(products) = device.products() {
        control.observer.note(&format!("products: {products}"));
    }
    for (state, values) in setup.initial(config.seed) {
        device.write(state, &values)?;
    }
    // A resumed run has everything in its checkpoint: the zoo may be gone by then.
    let (choice, transfer) = match resume {
        true => (None, None),
        false => match warm_start(config, &setup, &datasets, &mut device, control)? {
            Some((choice, report)) => (Some(choice), Some(report)),
            None => (None, None),
        },
    };
    let settings = SearchConfig {
        device: DeviceSpec::default(),
        threads: 0,
        memory_limit: None,
        checkpoint_steps: 0,
        ..config.clone()
    };
    let meta = Meta {
        format: 0,
        version: String::new(),
        network: Network::Supernet(setup.network.space.clone()),
        size,
        sources,
        seed: config.seed,
        epoch: 0,
        step: 0,
        seconds: 0.0,
        config: serde_json::to_value(&settings).expect("settings are plain data"),
    };
    let folder = RunFolder::create(out)?;
    let programs = std::mem::take(&mut setup.tasks).into_iter().zip(halves);
    let tasks = programs.map(|(p, h)| Task::new(&mut device, p, h)).collect::<Result<_>>()?;
    if let (Some(choice), Some(report)) = (&choice, &transfer) {
        folder.write_json("choice.json", choice)?;
        folder.write_json("transfer.json", report)?;
    }
    let (choice, transfer) = match resume {
        true => (folder.read_json("choice.json")?, folder.read_json("transfer.json")?),
        false => (choice, transfer),
    };
    let network = setup.network;
    let start = Instant::now();
    let mut search = Search {
        config,
        network,
        device,
        tasks,
        folder,
        meta,
        choice,
        transfer,
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

/// Puts what a zoo entry has into the states, and says which was chosen and what was taken.
fn warm_start(
    config: &SearchConfig,
    setup: &Setup,
    datasets: &[Dataset],
    device: &mut Device,
    control: &mut Control<'_>,
) -> Result<Option<(Choice, TransferReport)>> {
    if config.warm_start == SCRATCH {
        return Ok(None);
    }
    let zoo = Zoo::new(&config.zoo);
    let choice = match config.warm_start.as_str() {
        AUTO | MULTI => {
            let [target] = datasets else {
                return Err(Error::usage(format!(
                    "--warm-start {} chooses for one dataset; name an entry for a pretraining on several",
                    config.warm_start
                )));
            };
            let (space, on) = (&setup.network.space, (config.device, run::threads(config.threads)));
            choose(&config.warm_start, &zoo, space, target, on, &[], control)?
        }
        name => Choice::named(name),
    };
    let entry = zoo.load(&choice.source)?;
    let start = transfer(&entry, &zoo.file(&choice.source), &setup.network, config)?;
    let first = &setup.tasks[0].states;
    device.write(first.model.weights, &start.weights)?;
    device.write(first.alphas, &start.alphas)?;
    for task in &setup.tasks {
        device.write(task.states.model.running, &start.running)?;
    }
    let [copied, adapted, new] = start.report.counts;
    control.observer.note(&format!(
        "warm start from `{}`, {}: {copied} tensors copied, {adapted} adapted, {new} new (transfer.json names each)",
        choice.source, choice.reason
    ));
    Ok(Some((choice, start.report)))
}

impl Search<'_> {
    fn restore(&mut self) -> Result<()> {
        let path = self.folder.checkpoint();
        let checkpoint = Checkpoint::load(&path)?;
        run::check_same_run(&path, &checkpoint, &self.meta)?;
        let (s, layout) = (self.tasks[0].states, &self.network.layout);
        let device = &mut self.device;
        device.write(s.model.weights, &checkpoint.get_weights(&path, "", layout)?)?;
        device.write(s.model.velocity, &checkpoint.get_weights(&path, "momentum/", layout)?)?;
        for task in &self.tasks {
            let prefix = head_prefix(task.states.head);
            let running = checkpoint.get_running(&path, &prefix, layout)?;
            device.write(task.states.model.running, &running)?;
            for (name, state) in Self::sums(&task.states) {
                device.write(state, checkpoint.get(&path, &name, state.shape.len())?)?;
            }
        }
        for (name, state) in Self::vectors(&s) {
            device.write(state, checkpoint.get(&path, name, state.shape.len())?)?;
        }
        self.epoch = checkpoint.meta.epoch;
        self.step = checkpoint.meta.step;
        self.before = checkpoint.meta.seconds;
        Ok(())
    }

    /// States that are saved as plain vectors.
    fn vectors(s: &SearchStates) -> [(&'static str, State); 4] {
        [
            ("alphas", s.alphas),
            ("adam/first_moment", s.first_moment),
            ("adam/second_moment", s.second_moment),
            ("adam/steps", s.adam_steps),
        ]
    }

    /// Sums of a dataset's epoch, which are saved too.
    fn sums(s: &SearchStates) -> [(String, State); 2] {
        let prefix = head_prefix(s.head);
        [(format!("{prefix}sums/training"), s.model.train_sums), (format!("{prefix}sums/validation"), s.valid_sums)]
    }

    fn save(&mut self) -> Result<()> {
        let seconds = run::elapsed(self.start, self.before);
        let meta = Meta { epoch: self.epoch, step: self.step, seconds, ..self.meta.clone() };
        let (s, layout) = (self.tasks[0].states, &self.network.layout);
        let mut checkpoint = Checkpoint::new(meta);
        checkpoint.put_weights("", layout, &self.device.read(s.model.weights)?);
        checkpoint.put_weights("momentum/", layout, &self.device.read(s.model.velocity)?);
        for task in &self.tasks {
            let running = self.device.read(task.states.model.running)?;
            checkpoint.put_running(&head_prefix(task.states.head), layout, &running);
            for (name, state) in Self::sums(&task.states) {
                checkpoint.put(&name, &self.device.read(state)?);
            }
        }
        for (name, state) in Self::vectors(&s) {
            checkpoint.put(name, &self.device.read(state)?);
        }
        checkpoint.save(&self.folder.checkpoint())
    }

    /// Epochs of all datasets together.
    fn epochs(&self) -> usize {
        match self.config.mixing {
            Mixing::Joint => self.config.epochs,
            Mixing::Sequential => self.config.epochs * self.tasks.len(),
        }
    }

    /// Which dataset each step of an epoch serves.
    fn turns(&self, epoch: usize) -> Vec<usize> {
        match self.config.mixing {
            Mixing::Sequential => {
                let task = epoch / self.config.epochs;
                vec![task; self.tasks[task].halves.steps()]
            }
            Mixing::Joint => {
                let every = |(i, t): (usize, &Task)| std::iter::repeat_n(i, t.halves.steps());
                let all: Vec<usize> = self.tasks.iter().enumerate().flat_map(every).collect();
                let order = permutation(all.len(), self.config.seed, PURPOSE_TURNS, epoch as u64);
                order.into_iter().map(|i| all[i as usize]).collect()
            }
        }
    }

    fn run(mut self, control: &mut Control<'_>) -> Result<SearchReport> {
        let epochs = self.epochs();
        control.observer.begin("search", epochs, self.turns(self.epoch.min(epochs - 1)).len(), self.epoch);
        let (mut step_seconds, mut steps_done) = (0.0, 0usize);
        let mut last = None;
        while self.epoch < epochs {
            let epoch_start = Instant::now();
            let turns = self.turns(self.epoch);
            let first_step = self.step;
            self.epoch_steps(control, &turns, &mut step_seconds, &mut steps_done)?;
            let record = self.finish_epoch(epoch_start, &turns, first_step)?;
            last = Some((record["validation_loss"].clone(), record["validation_accuracy"].clone()));
            control.observer.epoch(&record);
        }
        let genotype = self.genotype()?;
        let (loss, accuracy) = match last.and_then(|(l, a)| Some((l.as_f64()?, a.as_f64()?))) {
            Some(found) => found,
            None => {
                let turns = self.turns(epochs - 1);
                let scores = self.validate(&turns)?;
                (mean(&scores, |s| s.loss), mean(&scores, |s| s.accuracy))
            }
        };
        Ok(SearchReport {
            genotype,
            validation_accuracy: accuracy,
            validation_loss: loss,
            epochs,
            seconds: run::elapsed(self.start, self.before),
            seconds_per_step: step_seconds / steps_done.max(1) as f64,
            peak_bytes: self.device.peak_bytes(),
            peak_rss_bytes: run::peak_rss_bytes(),
            source: self.choice.as_ref().map_or(SCRATCH.into(), |c| c.source.clone()),
            ranking: self.choice.map(|c| c.ranking).unwrap_or_default(),
            transfer: self.transfer.map(|report| report.counts),
            race: None,
            out: self.folder.checkpoint().parent().unwrap_or(Path::new(".")).display().to_string(),
        })
    }

    /// Epoch within the schedule: each dataset of a sequential pretraining has the whole schedule.
    fn scheduled_epoch(&self) -> usize {
        self.epoch % self.config.epochs
    }

    fn learning_rate(&self) -> f64 {
        cosine(self.config.learning_rate, self.config.learning_rate_min, self.scheduled_epoch(), self.config.epochs)
    }

    /// What the steps of an epoch need on the device.
    fn begin_epoch(&mut self) -> Result<()> {
        let s = self.tasks[0].states;
        let rate = self.learning_rate() as f32;
        let scheduled = self.scheduled_epoch();
        self.device.write(s.model.rate, &[rate])?;
        self.device.write(s.alpha_rate, &[self.config.alpha_learning_rate as f32])?;
        self.device.write(s.model.epoch, &[self.epoch as f32])?;
        if self.step > 0 {
            return Ok(());
        }
        for task in &self.tasks {
            self.device.fill(task.states.model.train_sums, 0.0)?;
            self.device.fill(task.states.valid_sums, 0.0)?;
        }
        if self.epoch > 0 && scheduled == 0 {
            // The next dataset of a sequence: fresh optimisers, and statistics that start from the last one's.
            for state in [s.model.velocity, s.first_moment, s.second_moment, s.adam_steps] {
                self.device.fill(state, 0.0)?;
            }
            let (before, next) = (self.epoch / self.config.epochs - 1, self.epoch / self.config.epochs);
            let running = self.device.read(self.tasks[before].states.model.running)?.into_owned();
            self.device.write(self.tasks[next].states.model.running, &running)?;
        }
        Ok(())
    }

    fn epoch_steps(
        &mut self,
        control: &mut Control<'_>,
        turns: &[usize],
        seconds: &mut f64,
        done: &mut usize,
    ) -> Result<()> {
        self.begin_epoch()?;
        let warming = self.scheduled_epoch() < self.config.head_warm_up;
        let (epoch, at) = (self.epoch, self.step);
        let mut loaders: Vec<Option<[Loader; 2]>> = (0..self.tasks.len())
            .map(|t| turns[at..].contains(&t).then(|| self.loaders(t, turns[..at].iter().filter(|&&u| u == t).count())))
            .collect();
        while self.step < turns.len() {
            let t = turns[self.step];
            let [weight, alpha] = loaders[t].as_mut().expect("a dataset whose turn comes has loaders");
            let (Some(train), Some(valid)) = (weight.next(), alpha.next()) else { break };
            let start = Instant::now();
            self.step_once(t, (&train, &valid), warming, epoch)?;
            *seconds += start.elapsed().as_secs_f64();
            *done += 1;
            weight.recycle(train);
            alpha.recycle(valid);
            self.step += 1;
            control.observer.step(epoch, self.step);
            let last = self.step == turns.len();
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

    /// The loaders of both halves of a dataset, behind the `done` steps that it has had in this epoch.
    fn loaders(&self, task: usize, done: usize) -> [Loader; 2] {
        let halves = &self.tasks[task].halves;
        let rest = |order: Vec<u32>| {
            let rest = order[done * halves.batch..].to_vec();
            Loader::new(halves.images.clone(), rest, halves.batch, 3)
        };
        [rest(halves.weight_order(self.epoch)), rest(halves.alpha_order(self.epoch))]
    }

    /// One step of a dataset: alphas and weights, or the head alone while it warms up.
    fn step_once(&mut self, task: usize, (train, valid): (&Batch, &Batch), warming: bool, epoch: usize) -> Result<()> {
        let task = &self.tasks[task];
        let s = &task.states;
        run::stage(&mut self.device, &s.model.train, train)?;
        let programs = match (&task.head, warming) {
            (Some(head), true) => vec![head],
            _ => {
                run::stage(&mut self.device, &s.valid, valid)?;
                vec![&task.architecture, &task.weight]
            }
        };
        let saved = self.folder.checkpoint();
        for program in programs {
            self.device.run(program)?;
            run::check_finite(&mut self.device, program, &s.model, (epoch, self.step), &saved)?;
        }
        Ok(())
    }

    /// Scores of the datasets that had a turn, each on its alpha half.
    fn validate(&mut self, turns: &[usize]) -> Result<Vec<(usize, Score)>> {
        let mut scores = Vec::new();
        for (t, task) in self.tasks.iter().enumerate().filter(|(t, _)| turns.contains(t)) {
            let (s, order) = (task.states, task.halves.alpha.clone());
            let images = (&task.halves.images, order);
            let score = run::evaluate(&mut self.device, &task.evaluation, &s.valid, s.valid_sums, images)?;
            scores.push((t, score));
        }
        Ok(scores)
    }

    fn genotype(&mut self) -> Result<Genotype> {
        let alphas = self.device.read(self.tasks[0].states.alphas)?;
        Ok(Genotype::derive(&self.network.space, &alphas))
    }

    /// Validates, writes the epoch's record, the genotype and the checkpoint.
    fn finish_epoch(&mut self, start: Instant, turns: &[usize], first_step: usize) -> Result<Value> {
        let mut sums = |sums: fn(&SearchStates) -> State| -> Result<Vec<(usize, Score)>> {
            let tasks = self.tasks.iter().enumerate().filter(|(t, _)| turns.contains(t));
            tasks.map(|(t, task)| Ok((t, Score::from_sums(&self.device.read(sums(&task.states))?)))).collect()
        };
        let (training, architecture) = (sums(|s| s.model.train_sums)?, sums(|s| s.valid_sums)?);
        let seconds_training = start.elapsed().as_secs_f64();
        let validation = self.validate(turns)?;
        let genotype = self.genotype()?;
        let (skips, parameter_free) = genotype.shares();
        let alphas = self.device.read(self.tasks[0].states.alphas)?.into_owned();
        let passes = match self.config.order {
            Order::First => 2,
            Order::Second => 5,
        };
        let batch = self.tasks[0].halves.batch;
        let mut record = json!({
            "epoch": self.epoch,
            "training_loss": mean(&training, |s| s.loss),
            "training_accuracy": mean(&training, |s| s.accuracy),
            "architecture_loss": mean(&architecture, |s| s.loss),
            "architecture_accuracy": mean(&architecture, |s| s.accuracy),
            "validation_loss": mean(&validation, |s| s.loss),
            "validation_accuracy": mean(&validation, |s| s.accuracy),
            "validation_top5": mean(&validation, |s| s.top5),
            "learning_rate": self.learning_rate(),
            "alpha_learning_rate": self.config.alpha_learning_rate,
            "alpha_entropy": self.entropy(&alphas),
            "skip_share": skips,
            "parameter_free_share": parameter_free,
            "alphas": alphas,
            "genotype": genotype,
            "passes_a_step": passes,
            "images": 2 * turns.len() * batch,
            "seconds": start.elapsed().as_secs_f64(),
            "images_per_second": (2 * (turns.len() - first_step) * batch) as f64 / seconds_training,
        });
        if self.tasks.len() > 1 {
            let one = |(t, score): &(usize, Score)| {
                let dataset = &self.meta.sources[*t].dataset;
                json!({"dataset": dataset, "validation_loss": score.loss, "validation_accuracy": score.accuracy})
            };
            record["datasets"] = validation.iter().map(one).collect();
        }
        self.folder.write_json("genotype.json", &genotype)?;
        self.folder.append_metrics(&record)?;
        self.epoch += 1;
        self.step = 0;
        self.save()?;
        Ok(record)
    }

    /// Mean entropy in nats of the edges' mixing weights, normal and reduction cells.
    fn entropy(&self, alphas: &[f32]) -> [f64; 2] {
        let space = &self.network.space;
        let (offsets, len) = space.alpha_offsets();
        let edge = |table: &[f32], e: usize| -> f64 {
            let end = offsets.get(e + 1).copied().unwrap_or(len);
            softmax(&table[offsets[e]..end]).iter().map(|p| -p * p.max(1e-300).ln()).sum()
        };
        let table = |t: &[f32]| (0..offsets.len()).map(|e| edge(t, e)).sum::<f64>() / offsets.len() as f64;
        [table(&alphas[..len]), table(&alphas[len..])]
    }
}

/// Mean over datasets, each counted once whatever its size.
fn mean(scores: &[(usize, Score)], value: fn(&Score) -> f64) -> f64 {
    scores.iter().map(|(_, s)| value(s)).sum::<f64>() / scores.len().max(1) as f64
}
