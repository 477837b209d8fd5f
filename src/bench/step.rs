//! Times whole steps on synthetic images, with the very programs that a search or a training runs, and says where the
//! time goes.

use std::time::Instant;

use serde::Serialize;

use super::ceiling::Ceilings;
use super::loader::put;
use super::measure::Times;
use super::report::{Measured, Report};
use crate::config::{SearchConfig, TrainConfig};
use crate::data::{Batch, Geometry, Normalisation};
use crate::device::Executable;
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::graph::{Program, State};
use crate::machine::Machine;
use crate::ops::Cost;
use crate::random::Stream;
use crate::run;
use crate::search::step::{BatchStates, ModelStates, Order};

/// Purpose of the synthetic pixels, for the counter-based generator.
const PURPOSE_PIXELS: u32 = 64;

/// Whose step is timed.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// Architecture and weight half of a search, clip and both optimisers.
    Search(SearchConfig),
    /// One step of the training of a derived network.
    Training(TrainConfig),
}

/// What is timed.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Whose step.
    pub recipe: Recipe,
    /// Classes.
    pub classes: usize,
    /// Extent of the images.
    pub size: Geometry,
    /// Steps before the timed ones.
    pub warmup: usize,
    /// Steps to time.
    pub steps: usize,
    /// Say where the time goes.
    pub profile: bool,
}

/// What only a step's result has.
#[derive(Clone, Debug, Serialize)]
pub struct StepDetails {
    /// Median.
    pub milliseconds: f64,
    /// Fastest.
    pub milliseconds_min: f64,
    /// Steps timed.
    pub steps: usize,
    /// Bytes that the engine allocated.
    pub peak_bytes: usize,
    /// High-water mark of the process.
    pub peak_rss_bytes: Option<usize>,
    /// Threads used.
    pub threads: usize,
    /// Images that pass forward and backward to train weights, a second.
    pub images_per_second: f64,
    /// Floating-point operations of a step.
    pub flops: f64,
    /// Least bytes that a step moves, op by op.
    pub bytes: f64,
    /// Launches of a step on a GPU.
    pub launches: usize,
    /// Billions of operations a second.
    pub gflops: f64,
    /// What the machine can do, if a profile was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceilings: Option<Ceilings>,
    /// Where the time of one step goes, by kind of op, the slowest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Vec<OpShare>>,
}

/// Result of a step.
pub type StepReport = Report<Measured, StepDetails>;

/// All ops of one kind in one step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OpShare {
    /// The kind.
    pub op: &'static str,
    /// Ops of the kind.
    pub count: usize,
    /// Time of all of them.
    pub milliseconds: f64,
    /// Share of the time of all ops.
    pub time_share: f64,
    /// Billions of operations a second.
    pub gflops: f64,
    /// Billions of bytes a second, of those that must be moved.
    pub gigabytes_per_second: f64,
    /// Time at the ceiling, op by op.
    pub floor_milliseconds: f64,
    /// Share of the ceiling: 1 is the ceiling.
    pub ceiling_share: f64,
}

/// The programs of a step, ready to run.
pub struct Workload {
    cpu: Cpu,
    programs: Vec<Executable>,
    /// Raised when a gradient was not finite.
    flag: State,
    cost: Cost,
}

impl Subject {
    /// Images of a batch.
    pub fn batch(&self) -> usize {
        match &self.recipe {
            Recipe::Search(config) => config.batch,
            Recipe::Training(config) => config.batch,
        }
    }

    /// What is timed, as a name under which results are compared.
    pub fn name(&self) -> String {
        let size = self.size;
        match &self.recipe {
            Recipe::Search(c) => {
                let order = if c.order == Order::First { "first" } else { "second" };
                format!("search/c{}/l{}/b{}/{size}/{order}", c.channels, c.layers, c.batch)
            }
            Recipe::Training(c) => {
                let TrainConfig { genotype, channels, layers, batch, auxiliary, drop_path, .. } = c;
                let cells = genotype.rsplit('/').next().unwrap_or(genotype);
                format!("training/{cells}/c{channels}/l{layers}/b{batch}/{size}/aux{auxiliary}/drop{drop_path}")
            }
        }
    }

    fn threads(&self) -> usize {
        run::threads(match &self.recipe {
            Recipe::Search(config) => config.threads,
            Recipe::Training(config) => config.threads,
        })
    }

    /// Records and prepares the programs of the step, with drawn weights and staged images.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::Shape`] if the settings make no network, [`Error::Memory`] if it does not fit.
    pub fn prepare(&self) -> Result<Workload> {
        let (classes, size, threads) = (self.classes, self.size, self.threads());
        let norm = Normalisation { mean: vec![0.5; size.channels], std: vec![0.25; size.channels] };
        match &self.recipe {
            Recipe::Search(config) => {
                config.check()?;
                let mut setup = crate::search::run::Setup::new(config, &[(classes, norm)], size, config.batch)?;
                let mut cpu = Cpu::new(&setup.layout, threads)?;
                for (state, values) in setup.initial(config.seed) {
                    cpu.state_mut(state).copy_from_slice(&values);
                }
                let task = setup.tasks.remove(0);
                let s = task.states;
                cpu.state_mut(s.model.rate)[0] = config.learning_rate as f32;
                cpu.state_mut(s.alpha_rate)[0] = config.alpha_learning_rate as f32;
                stage(&mut cpu, &[s.model.train, s.valid], classes, config.seed);
                Workload::new(cpu, vec![task.architecture, task.weight], &s.model)
            }
            Recipe::Training(config) => {
                config.check()?;
                let setup = crate::train::run::Setup::new(config, classes, size, config.batch, norm)?;
                let mut cpu = Cpu::new(&setup.layout, threads)?;
                for (state, values) in setup.initial(config.seed) {
                    cpu.state_mut(state).copy_from_slice(&values);
                }
                let s = setup.states;
                cpu.state_mut(s.model.rate)[0] = config.learning_rate as f32;
                cpu.state_mut(s.drop_path)[0] = config.drop_path as f32;
                stage(&mut cpu, &[s.model.train], classes, config.seed);
                Workload::new(cpu, vec![setup.train], &s.model)
            }
        }
    }

    /// Times the steps.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::Shape`] if the settings make no network, [`Error::Memory`] if it does not fit,
    /// [`Error::NonFinite`] if the steps diverge.
    pub fn time(&self) -> Result<StepReport> {
        if self.steps == 0 {
            return Err(Error::usage("--steps is 0; at least one step must be timed"));
        }
        let threads = self.threads();
        let mut work = self.prepare()?;
        let mut seconds = Vec::with_capacity(self.steps);
        for step in 0..self.warmup + self.steps {
            let start = Instant::now();
            work.step();
            if step >= self.warmup {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        if work.cpu.state(work.flag)[0] != 0.0 {
            return Err(Error::NonFinite(
                "a gradient of the timed steps was not finite; the times mean nothing".into(),
            ));
        }
        let peak_rss_bytes = run::peak_rss_bytes();
        let times = Times::of(&seconds);
        let (mut ceilings, mut profile) = (None, None);
        if self.profile {
            let measured = Ceilings::measure(threads, false)?;
            profile = Some(work.profile(&measured));
            ceilings = Some(measured);
        }
        let details = StepDetails {
            milliseconds: times.milliseconds,
            milliseconds_min: times.milliseconds_min,
            steps: self.steps,
            peak_bytes: work.cpu.peak_bytes(),
            peak_rss_bytes,
            threads,
            images_per_second: self.batch() as f64 / times.seconds(),
            flops: work.cost.flops,
            bytes: work.cost.bytes,
            launches: work.cost.launches,
            gflops: work.cost.flops / times.seconds() * 1e-9,
            ceilings,
            profile,
        };
        let machine = Machine::here(threads);
        let cases = vec![Measured { name: self.name(), times }];
        Ok(Report { bench: "step", machine, quick: false, cases, changes: None, details })
    }
}

/// Fills batches with random pixels.
fn stage(cpu: &mut Cpu, parts: &[BatchStates], classes: usize, seed: u64) {
    for (number, states) in parts.iter().enumerate() {
        let stream = Stream::new(seed, PURPOSE_PIXELS + number as u32);
        let rows = states.labels.shape.len();
        let pixels = (0..states.pixels.shape.len()).map(|i| (stream.block(0, i as u32)[0] >> 24) as f32).collect();
        let labels = (0..rows).map(|i| (i % classes) as f32).collect();
        let indices = (0..rows).map(|i| i as f32).collect();
        put(cpu, states, &Batch { pixels, labels, indices, rows });
    }
}

impl Workload {
    fn new(mut cpu: Cpu, programs: Vec<Program>, states: &ModelStates) -> Result<Self> {
        let cost = programs.iter().map(Program::cost).sum();
        let programs = programs.into_iter().map(|program| cpu.prepare(program)).collect::<Result<_>>()?;
        Ok(Self { cpu, programs, flag: states.flag, cost })
    }

    /// Runs one step.
    pub fn step(&mut self) {
        for program in &self.programs {
            self.cpu.run(program);
        }
    }

    /// Time, work and floor of each kind of op, the slowest first.
    fn profile(&mut self, ceilings: &Ceilings) -> Vec<OpShare> {
        const REPEATS: usize = 3;
        let mut kinds: Vec<(OpShare, Cost)> = Vec::new();
        for exe in &self.programs {
            for (op, seconds, count) in self.cpu.profile(exe, REPEATS) {
                let at = kinds.iter().position(|k| k.0.op == op).unwrap_or_else(|| {
                    kinds.push((OpShare { op, ..OpShare::default() }, Cost::default()));
                    kinds.len() - 1
                });
                let (share, cost) = &mut kinds[at];
                share.milliseconds += seconds * 1e3;
                share.count += count;
                let program = exe.program();
                for own in program.nodes().iter().filter(|n| n.op.name() == op).map(|n| n.cost(program.graph())) {
                    share.floor_milliseconds += ceilings.floor_seconds(own) * 1e3;
                    *cost = [*cost, own].into_iter().sum();
                }
            }
        }
        let total: f64 = kinds.iter().map(|k| k.0.milliseconds).sum();
        let mut shares: Vec<OpShare> = kinds
            .into_iter()
            .map(|(mut share, cost)| {
                let seconds = (share.milliseconds * 1e-3).max(f64::MIN_POSITIVE);
                share.time_share = share.milliseconds / total.max(f64::MIN_POSITIVE);
                share.gflops = cost.flops / seconds * 1e-9;
                share.gigabytes_per_second = cost.bytes / seconds * 1e-9;
                share.ceiling_share = share.floor_milliseconds * 1e-3 / seconds;
                share
            })
            .collect();
        shares.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        shares
    }
}
