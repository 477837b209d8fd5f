//! `supernet train`.

use clap::Args;
use supernet::Result;
use supernet::config::TrainConfig;
use supernet::train::run::{TrainReport, train};

use super::folder::{self, FolderFlags};
use super::output::{self, Lines, duration, grouped, mib, millions, percent};
use super::settings::TrainFlags;

const AFTER_HELP: &str = "\
Examples:
  supernet train --genotype runs/search/genotype.json --data builtin:fashion --channels 16 --layers 8 \\
    --epochs 20 --out runs/train
  supernet train --genotype DARTS_V2 --data cifar:cifar-10-batches-bin --out runs/cifar
  supernet train --out runs/train --resume";

/// Train the network of a genotype from scratch and test it.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    folder: FolderFlags,
    #[command(flatten)]
    settings: TrainFlags,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let threads = |settings: &TrainConfig| settings.threads;
    let report = folder::run(&arguments.folder, &arguments.settings, threads, |settings, resume, control| {
        train(settings, &arguments.folder.out, resume, control)
    })?;
    output::print(json, &report, lines)
}

fn lines(report: &TrainReport) -> Lines {
    Lines::default()
        .add("test accuracy", percent(report.test_accuracy))
        .add("test loss", format!("{:.4}", report.test_loss))
        .add("parameters", grouped(report.parameters))
        .add("multiply-adds an image", millions(report.macs_per_image))
        .add("epochs", report.epochs)
        .add("time", duration(report.seconds))
        .add("memory of the engine", mib(report.peak_bytes))
        .add_some("memory of the process", report.peak_rss_bytes.map(mib))
        .add("run folder", &report.out)
}
