//! Times whole steps on synthetic images, with the very programs that a search or a training runs, and says where the
//! time goes.

use std::time::Instant;

use serde::Serialize;

use super::ceiling::Ceilings;
use super::gpu;
use super::measure::Times;
use super::report::{Measured, Report};
use crate::config::{SearchConfig, TrainConfig};
use crate::data::{Batch, Geometry, Normalisation};
use crate::device::cpu::OpTime;
use crate::device::paged::Gpu;
use crate::device::{Device, DeviceSpec, Executable, Precision};
use crate::error::{Error, Result};
use crate::graph::{Program, State};
use crate::machine::Machine;
use crate::ops::Cost;
use crate::random::Stream;
use crate::run;
use crate::search::step::{BatchStates, ModelStates, Order};

/// Purpose of the synthetic pixels, for the counter-based generator.
const PURPOSE_PIXELS: u32 = 64;
/// Replays over which a profile is the mean.
const REPEATS: usize = 3;

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
    /// Median seconds until a step was started on a GPU, which may then still be under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_seconds: Option<f64>,
    /// How matrices are multiplied, where that hangs on the precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<String>,
    /// Threads used.
    pub threads: usize,
    /// Images that pass forward and backward to train weights, a second.
    pub images_per_second: f64,
    /// Floating-point operations of a step.
    pub flops: f64,
    /// Least bytes that a step moves, op by op.
    pub bytes: f64,
    /// Launches of a step on the GPU; on the processor those that it would be on one, none merged.
    pub launches: usize,
    /// Billions of operations a second.
    pub gflops: f64,
    /// What the machine can do, if a profile was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceilings: Option<Ceilings>,
    /// Where the time of one step goes, by kind of op, the slowest first. On a GPU without merging: a merged launch is of
    /// several ops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Vec<OpShare>>,
    /// Where the time goes on a GPU, by kernel as merged, the slowest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Vec<KernelShare>>,
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

/// All launches of one kernel in one step.
#[derive(Clone, Debug, Serialize)]
pub struct KernelShare {
    /// Its entry point.
    pub kernel: &'static str,
    /// Launches.
    pub launches: usize,
    /// Time of all of them.
    pub milliseconds: f64,
    /// Share of the time of all kernels.
    pub time_share: f64,
}

/// The programs of a step, ready to run.
pub struct Workload {
    device: Device,
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
        let precision = |p: Precision| if p.is_full() { String::new() } else { format!("/{p}") };
        match &self.recipe {
            Recipe::Search(c) => {
                let order = if c.order == Order::First { "first" } else { "second" };
                let precision = precision(c.precision);
                format!("search/c{}/l{}/b{}/{size}/{order}{precision}", c.channels, c.layers, c.batch)
            }
            Recipe::Training(c) => {
                let TrainConfig { genotype, channels, layers, batch, auxiliary, drop_path, .. } = c;
                let cells = genotype.rsplit('/').next().unwrap_or(genotype);
                let precision = precision(c.precision);
                format!(
                    "training/{cells}/c{channels}/l{layers}/b{batch}/{size}/aux{auxiliary}/drop{drop_path}{precision}"
                )
            }
        }
    }

    /// What computes, and the threads of the processor.
    fn on(&self) -> (DeviceSpec, usize) {
        let (device, threads) = match &self.recipe {
            Recipe::Search(config) => (config.device, config.threads),
            Recipe::Training(config) => (config.device, config.threads),
        };
        (device, run::threads(threads))
    }

    /// Records and prepares the programs of the step, with drawn weights and staged images.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::Shape`] if the settings make no network, [`Error::Memory`] if it does not fit, and those
    /// of [`Device::open`].
    pub fn prepare(&self) -> Result<Workload> {
        let (classes, size, (spec, threads)) = (self.classes, self.size, self.on());
        let norm = Normalisation { mean: vec![0.5; size.channels], std: vec![0.25; size.channels] };
        match &self.recipe {
            Recipe::Search(config) => {
                config.check()?;
                let mut setup = crate::search::run::Setup::new(config, &[(classes, norm)], size, config.batch)?;
                let mut device = Device::open(&spec, &setup.layout, threads, config.precision)?;
                for (state, values) in setup.initial(config.seed) {
                    device.write(state, &values)?;
                }
                let task = setup.tasks.remove(0);
                let s = task.states;
                device.write(s.model.rate, &[config.learning_rate as f32])?;
                device.write(s.alpha_rate, &[config.alpha_learning_rate as f32])?;
                stage(&mut device, &[s.model.train, s.valid], classes, config.seed)?;
                Workload::new(device, vec![task.architecture, task.weight], &s.model)
            }
            Recipe::Training(config) => {
                config.check()?;
                let setup = crate::train::run::Setup::new(config, classes, size, config.batch, norm)?;
                let mut device = Device::open(&spec, &setup.layout, threads, config.precision)?;
                for (state, values) in setup.initial(config.seed) {
                    device.write(state, &values)?;
                }
                let s = setup.states;
                device.write(s.model.rate, &[config.learning_rate as f32])?;
                device.write(s.drop_path, &[config.drop_path as f32])?;
                stage(&mut device, &[s.model.train], classes, config.seed)?;
                Workload::new(device, vec![setup.train], &s.model)
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
        let (spec, threads) = self.on();
        let mut work = self.prepare()?;
        let (mut seconds, mut host) = (Vec::with_capacity(self.steps), Vec::with_capacity(self.steps));
        for step in 0..self.warmup + self.steps {
            let start = Instant::now();
            work.step()?;
            let started = start.elapsed().as_secs_f64();
            work.device.wait(work.flag)?;
            if step >= self.warmup {
                seconds.push(start.elapsed().as_secs_f64());
                host.push(started);
            }
        }
        if work.device.read(work.flag)?[0] != 0.0 {
            return Err(Error::NonFinite(
                "a gradient of the timed steps was not finite; the times mean nothing".into(),
            ));
        }
        let peak_rss_bytes = run::peak_rss_bytes();
        let times = Times::of(&seconds);
        let peak_bytes = work.device.peak_bytes();
        let (mut ceilings, mut profile, mut kernels) = (None, None, None);
        if self.profile {
            let measured = match spec {
                DeviceSpec::Cpu => Ceilings::measure(threads, false)?,
                _ => gpu::ceilings(spec, false)?,
            };
            profile = Some(work.profile(&measured)?);
            kernels = work.kernels()?;
            ceilings = Some(measured);
        }
        let details = StepDetails {
            milliseconds: times.milliseconds,
            milliseconds_min: times.milliseconds_min,
            steps: self.steps,
            peak_bytes,
            peak_rss_bytes,
            host_seconds: (!spec.is_cpu()).then(|| Times::of(&host).seconds()),
            products: work.device.products(),
            threads,
            images_per_second: self.batch() as f64 / times.seconds(),
            flops: work.cost.flops,
            bytes: work.cost.bytes,
            launches: work.launches(),
            gflops: work.cost.flops / times.seconds() * 1e-9,
            ceilings,
            profile,
            kernels,
        };
        let machine = Machine::with(&work.device, threads);
        let cases = vec![Measured { name: self.name(), times }];
        Ok(Report { bench: "step", machine, quick: false, cases, changes: None, details })
    }
}

/// Fills batches with random pixels.
fn stage(device: &mut Device, parts: &[BatchStates], classes: usize, seed: u64) -> Result<()> {
    for (number, states) in parts.iter().enumerate() {
        let stream = Stream::new(seed, PURPOSE_PIXELS + number as u32);
        let rows = states.labels.shape.len();
        let pixels = (0..states.pixels.shape.len()).map(|i| (stream.block(0, i as u32)[0] >> 24) as f32).collect();
        let labels = (0..rows).map(|i| (i % classes) as f32).collect();
        let indices = (0..rows).map(|i| i as f32).collect();
        run::stage(device, states, &Batch { pixels, labels, indices, rows })?;
    }
    Ok(())
}

impl Workload {
    fn new(mut device: Device, programs: Vec<Program>, states: &ModelStates) -> Result<Self> {
        let cost = programs.iter().map(Program::cost).sum();
        let programs = programs.into_iter().map(|program| device.prepare(program)).collect::<Result<_>>()?;
        Ok(Self { device, programs, flag: states.flag, cost })
    }

    /// Runs one step; on a GPU it may still be under way afterwards.
    ///
    /// # Errors
    /// Those of [`Device::run`].
    pub fn step(&mut self) -> Result<()> {
        self.programs.iter().try_for_each(|program| self.device.run(program))
    }

    fn launches(&self) -> usize {
        match &self.device {
            Device::Cpu(_) => self.cost.launches,
            Device::Gpu(gpu) => self.programs.iter().map(|exe| gpu.launches(exe)).sum(),
        }
    }

    /// Time of each kernel of a GPU, the slowest first.
    fn kernels(&mut self) -> Result<Option<Vec<KernelShare>>> {
        let Device::Gpu(gpu) = &mut self.device else { return Ok(None) };
        let mut shares: Vec<KernelShare> = Vec::new();
        for exe in &self.programs {
            for time in gpu.profile(exe, REPEATS)? {
                let at = shares.iter().position(|s| s.kernel == time.kernel).unwrap_or_else(|| {
                    let kernel = time.kernel;
                    shares.push(KernelShare { kernel, launches: 0, milliseconds: 0.0, time_share: 0.0 });
                    shares.len() - 1
                });
                shares[at].launches += time.launches;
                shares[at].milliseconds += time.seconds * 1e3;
            }
        }
        let total: f64 = shares.iter().map(|s| s.milliseconds).sum();
        shares.iter_mut().for_each(|s| s.time_share = s.milliseconds / total.max(f64::MIN_POSITIVE));
        shares.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Ok(Some(shares))
    }

    /// Time, work and floor of each kind of op, the slowest first.
    fn profile(&mut self, ceilings: &Ceilings) -> Result<Vec<OpShare>> {
        let mut kinds: Vec<(OpShare, Cost)> = Vec::new();
        for exe in &self.programs {
            let times = match &mut self.device {
                Device::Cpu(cpu) => cpu.profile(exe, REPEATS),
                Device::Gpu(gpu) => op_times(gpu.as_mut(), exe)?,
            };
            for (op, seconds, count) in times {
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
        Ok(shares)
    }
}

/// Mean seconds and number of the ops of each kind.
fn op_times(gpu: &mut dyn Gpu, exe: &Executable) -> Result<Vec<OpTime>> {
    let replays = gpu.op_times(exe, REPEATS)?.replays;
    let mut times: Vec<OpTime> = Vec::new();
    for (index, node) in exe.program().nodes().iter().enumerate() {
        let op = node.op.name();
        let seconds = replays.iter().map(|ops| ops[index]).sum::<f64>() / REPEATS as f64;
        match times.iter_mut().find(|time| time.0 == op) {
            Some(time) => *time = (op, time.1 + seconds, time.2 + 1),
            None => times.push((op, seconds, 1)),
        }
    }
    Ok(times)
}
