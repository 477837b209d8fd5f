//! Measuring on GPUs, by the device's own clock: its ceilings, and single ops of a program.

use std::time::Instant;

use super::ceiling::{Bandwidth, COPIES, Ceilings, EMPTY_OPS, QUICK_LARGEST};
use super::measure::{Effort, Times};
use super::recorder::Built;
use crate::device::needs::On;
use crate::device::paged::Gpu;
use crate::device::{Device, DeviceSpec, Executable, Precision};
use crate::error::Result;
use crate::graph::{Graph, Output, Program, Shape, State, StoreLayout};
use crate::ops::elementwise::{Fill, Linear};

/// What a GPU can do at best: copies at several sizes, and what a launch costs.
///
/// # Errors
/// Those of [`Device::open`], [`Device::prepare`] and [`Gpu::profile`].
pub fn ceilings(spec: DeviceSpec, quick: bool) -> Result<Ceilings> {
    let sizes = COPIES.map(|bytes| if quick { bytes.min(QUICK_LARGEST) } else { bytes });
    let copy = sizes.into_iter().map(|bytes| copy(spec, bytes, Effort::new(quick))).collect::<Result<_>>()?;
    let (op_nanoseconds, replay_nanoseconds) = dispatch(spec, quick)?;
    Ok(Ceilings { gflops_one: None, gflops: None, copy_one: Vec::new(), copy, op_nanoseconds, replay_nanoseconds })
}

/// A program with its device; None on the processor.
fn prepared(
    (spec, precision): On,
    layout: &StoreLayout,
    program: Program,
) -> Result<Option<(Box<dyn Gpu>, Executable)>> {
    match Device::open(&spec, layout, 1, precision)? {
        Device::Cpu(_) => Ok(None),
        Device::Gpu(mut gpu) => {
            let exe = gpu.prepare(program)?;
            Ok(Some((gpu, exe)))
        }
    }
}

/// Rate of copying one half of a working set onto the other.
fn copy(spec: DeviceSpec, bytes: usize, effort: Effort) -> Result<Bandwidth> {
    let (mut layout, mut graph) = (StoreLayout::new(), Graph::new());
    let shape = Shape::vector(bytes / 2 / size_of::<f32>());
    let [from, to] = ["source", "destination"].map(|name| layout.add(name, shape));
    let [from, to] = [from, to].map(|state| graph.state(state));
    Linear::record_into(&mut graph, &[(1.0, from)], to)?;
    let Some((mut gpu, exe)) = prepared((spec, Precision::F32), &layout, Program::new("copy", graph, &[]))? else {
        return Ok(Bandwidth { bytes, gigabytes_per_second: 0.0 });
    };
    let times = sample(effort, || Ok(gpu.profile(&exe, 1)?.iter().map(|kernel| kernel.seconds).sum()))?;
    // The fastest, not the median: a ceiling is what was reached at all.
    let seconds = (times.milliseconds_min * 1e-3).max(f64::MIN_POSITIVE);
    Ok(Bandwidth { bytes, gigabytes_per_second: bytes as f64 / seconds * 1e-9 })
}

/// Nanoseconds of an empty launch in a program, and of replaying one alone, by the clock of the host.
fn dispatch(spec: DeviceSpec, quick: bool) -> Result<(f64, f64)> {
    let replays = if quick { 5 } else { 100 };
    let time = |ops: usize| -> Result<(f64, usize)> {
        let mut layout = StoreLayout::new();
        let state = layout.add("one number", Shape::vector(1));
        let mut graph = Graph::new();
        let out = graph.state(state);
        for _ in 0..ops {
            graph.push(Fill { value: 0.0 }, vec![], vec![Output::from(out)]);
        }
        let program = Program::new("empty ops", graph, &[out]);
        let Some((mut gpu, exe)) = prepared((spec, Precision::F32), &layout, program)? else { return Ok((0.0, 1)) };
        let times = sample(Effort::new(quick), || {
            let start = Instant::now();
            for _ in 0..replays {
                gpu.run(&exe)?;
            }
            gpu.read(state)?;
            Ok(start.elapsed().as_secs_f64() / f64::from(replays))
        })?;
        Ok((times.milliseconds * 1e6, gpu.launches(&exe)))
    };
    let ((many, launches), (single, _)) = (time(EMPTY_OPS)?, time(1)?);
    Ok(((many - single).max(0.0) / (launches.max(2) - 1) as f64, single))
}

/// Samples what tells its own seconds; the first call warms up.
fn sample(effort: Effort, mut run: impl FnMut() -> Result<f64>) -> Result<Times> {
    run()?;
    let (mut seconds, start) = (Vec::new(), Instant::now());
    while seconds.len() < effort.samples_min || (seconds.len() < effort.samples_max && start.elapsed() < effort.budget)
    {
        seconds.push(run()?);
    }
    Ok(Times::of(&seconds))
}

/// Time and launches of the timed ops of a case. The ops before them run in every sample, so that their inputs are as in a
/// run.
///
/// # Errors
/// Those of [`Device::open`], [`Device::prepare`] and [`Gpu::op_times`].
pub fn time(built: &Built, on: On, quick: bool) -> Result<(Times, usize)> {
    let Some((mut gpu, exe)) = prepared(on, &built.layout, built.program.clone())? else {
        return Ok((Times::default(), 0));
    };
    for (state, values) in drawn(built) {
        gpu.write(state, &values)?;
    }
    let effort = Effort::new(quick);
    let first = gpu.op_times(&exe, 2)?;
    let once: f64 = first.replays.iter().flatten().sum::<f64>() / 2.0;
    let fitting = (effort.budget.as_secs_f64() / once.max(1e-9)) as usize;
    let replays = gpu.op_times(&exe, fitting.clamp(effort.samples_min, effort.samples_max))?.replays;
    let timed = |seconds: &Vec<f64>| built.ops.iter().flat_map(|ops| &seconds[ops.clone()]).sum::<f64>();
    let seconds: Vec<f64> = replays.iter().map(timed).collect();
    let launches = built.ops.iter().flat_map(|ops| &first.launches[ops.clone()]).sum();
    Ok((Times::of(&seconds), launches))
}

/// The drawn values, state by state.
pub(super) fn drawn(built: &Built) -> Vec<(State, Vec<f32>)> {
    let mut all: Vec<(State, Vec<f32>)> = Vec::new();
    built.draw(|state, i, value| {
        if i == 0 {
            all.push((state, Vec::with_capacity(state.shape.len())));
        }
        if let Some((_, values)) = all.last_mut() {
            values.push(value);
        }
    });
    all
}
