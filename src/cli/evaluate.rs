//! `supernet evaluate`.

use std::path::PathBuf;

use clap::Args;
use supernet::Result;
use supernet::device::DeviceSpec;
use supernet::train::run::evaluate;

use super::output::{self, Lines, percent};
use super::{folder, parse};

const AFTER_HELP: &str = "\
Examples:
  supernet evaluate --checkpoint runs/train/checkpoint.safetensors --data builtin:fashion
  supernet evaluate --checkpoint runs/train/checkpoint.safetensors --data folder:photos --json";

/// Test a trained network on the test part of a dataset.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Checkpoint of a training.
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// Dataset with the classes that the network was trained for.
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    data: String,
    /// What computes: cpu, wgpu or cuda, the latter two with :N where there are several.
    #[arg(long, value_name = "DEVICE", value_parser = parse::device, default_value = "cpu")]
    device: DeviceSpec,
    /// Threads; 0 for all cores.
    #[arg(long, value_name = "T", default_value_t = 0)]
    threads: u16,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let threads = usize::from(arguments.threads);
    folder::limit_threads(threads)?;
    let report = evaluate(&arguments.checkpoint, &arguments.data, (arguments.device, threads))?;
    output::print(json, &report, |report| {
        Lines::default()
            .add("accuracy", percent(report.accuracy))
            .add("accuracy of the first five", percent(report.top5))
            .add("loss", format!("{:.4}", report.loss))
            .add("images", report.images)
    })
}
