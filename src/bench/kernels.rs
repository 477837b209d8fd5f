//! Times every case that passes parity, beside the machine's ceilings.

use serde::Serialize;

use super::cases::Case;
use super::ceiling::Ceilings;
use super::gpu;
use super::measure::{self, Effort, Times};
use super::parity;
use super::recorder::Built;
use super::report::{KernelDetails, KernelReport, Measured, Report, Skipped};
use crate::device::cpu::Cpu;
use crate::device::{Device, DeviceSpec, Executable, Precision};
use crate::error::{Error, Result};
use crate::graph::StoreLayout;
use crate::machine::Machine;
use crate::ops::Cost;

/// What was found of one case.
#[derive(Clone, Debug, Serialize)]
pub struct KernelResult {
    /// Name and times; all zero if the case failed.
    #[serde(flatten)]
    pub measured: Measured,
    /// The op, or `layer`.
    pub op: &'static str,
    /// Whether the results agree with the reference.
    pub passed: bool,
    /// Largest error relative to the reference, at `parity_batch` images.
    pub parity_error: f64,
    /// Images of the parity run.
    pub parity_batch: usize,
    /// Launches of the op on the device; on the processor those that it would be on a GPU.
    pub launches: usize,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes if every input is read and every output written once, in f32 whatever they are stored in.
    pub bytes: f64,
    /// Operations a byte.
    pub intensity: f64,
    /// Billions of operations a second.
    pub gflops: f64,
    /// Billions of bytes a second, of those that must be moved.
    pub gigabytes_per_second: f64,
    /// Share of the roofline: 1 is the ceiling.
    pub roofline_share: f64,
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What is measured.
    pub device: DeviceSpec,
    /// Threads of the processor.
    pub threads: usize,
    /// Few and short samples.
    pub quick: bool,
    /// How maps are stored and matrices multiplied.
    pub precision: Precision,
    /// Largest error relative to the reference.
    pub tolerance: f64,
}

/// A case ready to be run any number of times.
pub struct Prepared {
    cpu: Cpu,
    exe: Executable,
    built: Built,
}

impl Prepared {
    /// Records a case at its full size, draws its values and runs what comes before the timed ops.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if it cannot be recorded, [`crate::Error::Memory`] if it does not fit.
    pub fn new(case: &Case, threads: usize) -> Result<Self> {
        let built = case.build(case.batch, Precision::F32)?;
        let mut cpu = Cpu::new(&built.layout, threads)?;
        let exe = cpu.prepare(built.program.clone())?;
        built.draw(|state, i, value| cpu.state_mut(state)[i] = value);
        // A whole run, not only what comes before: a layer's gradient ops need the loss as well.
        cpu.run(&exe);
        let mut prepared = Self { cpu, exe, built };
        prepared.restore();
        Ok(prepared)
    }

    /// Runs up to the first timed op again: memory of its inputs may have served later ops.
    fn restore(&mut self) {
        let first = self.built.ops[0].start;
        self.cpu.run_ops(&self.exe, std::slice::from_ref(&(0..first)), 1);
    }

    /// Runs the timed ops so many times within one replay, as a step runs them: the threads are woken once.
    pub fn run(&mut self, repeats: usize) {
        self.cpu.run_ops(&self.exe, &self.built.ops, repeats);
    }

    /// Least work of one run.
    pub fn cost(&self) -> Cost {
        self.built.cost
    }
}

/// Runs all cases; `look` is told the number and the name of each before it starts. What a GPU has no kernel or no room for
/// is left out.
///
/// # Errors
/// [`Error::Usage`] if the threads cannot be started or a GPU cannot measure or has not the precision, [`Error::Memory`] if a case does not fit into
/// the memory of the processor, [`Error::Device`] if the device fails.
pub fn run_all(cases: &[Case], settings: &Settings, mut look: impl FnMut(usize, &str)) -> Result<KernelReport> {
    let Settings { device: spec, threads, quick, precision, tolerance } = *settings;
    precision.check(spec)?;
    // Held throughout: opening a device again is cheap while one is open.
    let held = Device::open(&spec, &StoreLayout::new(), threads, precision)?;
    let ceilings = if spec.is_cpu() { Ceilings::measure(threads, quick)? } else { gpu::ceilings(spec, quick)? };
    let (mut results, mut skipped) = (Vec::with_capacity(cases.len()), Vec::new());
    for (number, case) in cases.iter().enumerate() {
        look(number, &case.name);
        match run(case, settings, &ceilings) {
            Ok(result) => results.push(result),
            Err(error @ Error::Memory(_)) if !spec.is_cpu() => {
                skipped.push(Skipped { name: case.name.clone(), reason: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    let failed = results.iter().filter(|r| !r.passed).map(|r| r.measured.name.clone()).collect();
    Ok(Report {
        bench: "kernels",
        machine: Machine::with(&held, threads),
        quick,
        cases: results,
        changes: None,
        details: KernelDetails { precision, products: held.products(), tolerance, ceilings, failed, skipped },
    })
}

/// Compares a case with the reference and, if it passes, times it.
///
/// # Errors
/// As [`Prepared::new`].
pub fn run(case: &Case, settings: &Settings, ceilings: &Ceilings) -> Result<KernelResult> {
    let precision = settings.precision;
    let found = parity::check(case, (settings.device, settings.threads), precision)?;
    let passed = found.error <= settings.tolerance;
    let (times, cost) = match settings.device {
        DeviceSpec::Cpu => {
            let mut prepared = Prepared::new(case, settings.threads)?;
            let sample = |prepared: &mut Prepared| measure::sample(Effort::new(settings.quick), |n| prepared.run(n));
            (if passed { sample(&mut prepared) } else { Times::default() }, prepared.cost())
        }
        spec => {
            let built = case.build(case.batch, precision)?;
            let measured =
                if passed { gpu::time(&built, (spec, precision), settings.quick)? } else { Default::default() };
            (measured.0, Cost { launches: measured.1, ..built.cost })
        }
    };
    let rate = |amount: f64| if passed { amount / times.seconds().max(f64::MIN_POSITIVE) * 1e-9 } else { 0.0 };
    // As the names of steps: times of two precisions are not those of one thing.
    let name = if precision.is_full() { case.name.clone() } else { format!("{}/{precision}", case.name) };
    Ok(KernelResult {
        measured: Measured { name, times },
        op: case.timed.op(),
        passed,
        parity_error: found.error,
        parity_batch: found.batch,
        launches: cost.launches,
        flops: cost.flops,
        bytes: cost.bytes,
        intensity: cost.flops / cost.bytes.max(1.0),
        gflops: rate(cost.flops),
        gigabytes_per_second: rate(cost.bytes),
        roofline_share: if passed { ceilings.share(cost, times.seconds()) } else { 0.0 },
    })
}
