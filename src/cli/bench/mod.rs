//! `supernet bench`: one file a kind of bench.

mod kernels;
mod loader;
pub mod step;
mod transport;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use supernet::bench::chart::Chart;
use supernet::bench::compare::Earlier;
use supernet::device::{Device, DeviceSpec, Precision};
use supernet::files::write_atomically;
use supernet::graph::StoreLayout;
use supernet::machine::Machine;
use supernet::run::threads;
use supernet::{Error, Result};

use super::parse;
use super::starting::StartingFlags;

/// Measure kernels, whole steps, the image loader or transport.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    Kernels(kernels::Arguments),
    Step(step::Arguments),
    Loader(loader::Arguments),
    Transport(transport::Arguments),
}

/// Flags that all benches have.
#[derive(Args)]
pub struct Common {
    /// What is measured: cpu, wgpu or cuda, the latter two with :N where there are several.
    #[arg(long, value_name = "DEVICE", value_parser = parse::device, default_value = "cpu")]
    device: DeviceSpec,
    #[command(flatten)]
    starting: StartingFlags,
    /// Threads; 0 for all cores.
    #[arg(long, value_name = "T", default_value_t = 0)]
    threads: u16,
    /// An earlier result (`--json`) of the same bench on this machine: say what changed by more than the noise.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Write a picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Common {
    /// The device, and the threads of the processor.
    fn on(&self) -> (DeviceSpec, usize) {
        (self.starting.of(self.device), threads(self.threads.into()))
    }

    /// Refuses GPUs for what has nothing to do with them.
    fn processor_only(&self, bench: &str) -> Result<()> {
        match self.device {
            DeviceSpec::Cpu => Ok(()),
            device => Err(Error::usage(format!("--device {device}: bench {bench} measures the processor only"))),
        }
    }

    /// The result to compare with, read before anything is measured: a bad file should not cost minutes.
    fn earlier(&self, bench: &str) -> Result<Option<Earlier>> {
        self.earlier_on(bench, self.on().1)
    }

    /// The same for a bench that has a number of threads of its own.
    fn earlier_on(&self, bench: &str, threads: usize) -> Result<Option<Earlier>> {
        let load = |path: &PathBuf| {
            let device = Device::open(&self.device, &StoreLayout::new(), threads, Precision::F32)?;
            Earlier::load(path, bench, &Machine::with(&device, threads))
        };
        self.compare.as_ref().map(load).transpose()
    }
}

fn draw(path: Option<&Path>, chart: impl FnOnce() -> Chart) -> Result<()> {
    path.map_or(Ok(()), |path| write_atomically(path, chart().svg().as_bytes()))
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    match &arguments.bench {
        Bench::Kernels(arguments) => kernels::run(arguments, json),
        Bench::Step(arguments) => step::run(arguments, json),
        Bench::Loader(arguments) => loader::run(arguments, json),
        Bench::Transport(arguments) => transport::run(arguments, json),
    }
}
