//! `supernet train`.

use clap::Args;
use supernet::config::TrainConfig;
use supernet::run::{Control, Observer};
use supernet::train::run::{TrainReport, train};
use supernet::{Error, Result};

use super::folder::{self, FolderFlags};
use super::interrupt;
use super::output::{self, Lines, duration, grouped, mib, millions, percent};
use super::progress::Progress;
use super::settings::{TrainFlags, Wanted};

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
    let wanted = Wanted::new::<TrainConfig>(arguments.folder.config.as_deref(), &arguments.settings)?;
    let prepared = folder::prepare::<TrainConfig>(&arguments.folder, &wanted)?;
    let (settings, resume) = (&prepared.settings, prepared.resume);
    limit_threads(settings.threads)?;
    let stop = interrupt::catch()?;
    let mut progress = Progress::new();
    if arguments.folder.resume && !resume {
        progress.note(folder::NO_CHECKPOINT);
    }
    let mut control = Control { observer: &mut progress, stop: &stop };
    let out = &arguments.folder.out;
    let report = train(settings, out, resume, &mut control).inspect_err(|error| {
        if !matches!(error, Error::Interrupted { .. } | Error::NonFinite(_)) {
            prepared.undo(out);
        }
    })?;
    drop(progress);
    output::print(json, &report, lines)
}

/// Gives the threads that decode images the same number as the engine's.
pub fn limit_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Error::usage(format!("--threads {threads}: cannot start them: {error}")))
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
