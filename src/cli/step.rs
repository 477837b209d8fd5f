//! `supernet step`.

use clap::Args;
use supernet::Result;
use supernet::config::SearchConfig;
use supernet::data::Geometry;
use supernet::search::run::{StepReport, time_steps};
use supernet::search::step::Order;

use super::output::{self, Lines, mib};
use super::parse;

const AFTER_HELP: &str = "\
Examples:
  supernet step --channels 16 --layers 8 --batch 64 --size 32x32x3 --threads 2
  supernet step --channels 8 --layers 5 --order second --warmup 1 --steps 3 --json";

/// Time whole search steps on synthetic images, with the very programs that a search runs.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Channels of the first cell.
    #[arg(long, value_name = "C", default_value_t = 16)]
    channels: u32,
    /// Cells.
    #[arg(long, value_name = "L", default_value_t = 8)]
    layers: u32,
    /// Images of a batch.
    #[arg(long, value_name = "B", default_value_t = 64)]
    batch: u32,
    /// Height, width and channels of the images.
    #[arg(long, value_name = "HxWxC", default_value = "32x32x3", value_parser = parse::geometry)]
    size: Geometry,
    /// Classes.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=65536))]
    classes: u32,
    /// Architecture gradient: first or second.
    #[arg(long, value_name = "first|second", default_value = "first", value_parser = parse::order)]
    order: Order,
    /// Threads; 0 for all cores.
    #[arg(long, value_name = "T", default_value_t = 0)]
    threads: u16,
    /// Seed of weights and images.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Steps before the timed ones.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u32,
    /// Steps to time.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Refuse to run if the engine needs more memory.
    #[arg(long, value_name = "MiB")]
    memory_limit: Option<u32>,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let config = SearchConfig {
        channels: arguments.channels as usize,
        layers: arguments.layers as usize,
        batch: arguments.batch as usize,
        order: arguments.order,
        threads: usize::from(arguments.threads),
        seed: arguments.seed,
        memory_limit: arguments.memory_limit.map(|mib| mib as usize),
        ..SearchConfig::default()
    };
    let (warmup, steps) = (arguments.warmup as usize, arguments.steps as usize);
    let report = time_steps(&config, arguments.classes as usize, arguments.size, warmup, steps)?;
    output::print(json, &report, lines)
}

fn lines(report: &StepReport) -> Lines {
    let lines = Lines::default()
        .add("median", format!("{:.1} ms", report.milliseconds))
        .add("fastest", format!("{:.1} ms", report.milliseconds_min))
        .add("steps", report.steps)
        .add("threads", report.threads)
        .add("memory of the engine", mib(report.peak_bytes))
        .add_some("memory of the process", report.peak_rss_bytes.map(mib));
    report.profile.iter().fold(lines, |lines, (op, milliseconds, count)| {
        lines.add(format!("  {op}"), format!("{milliseconds:.2} ms in {count} launches"))
    })
}
