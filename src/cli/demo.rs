//! `supernet demo`.

use std::path::PathBuf;

use clap::Args;
use supernet::device::DeviceSpec;
use supernet::experiment::demo::{Demo, DemoReport, Side};
use supernet::run::{Control, Observer};
use supernet::zoo::Zoo;
use supernet::{Result, bench::report::Table};

use super::output::{self, duration, percent};
use super::progress::Progress;
use super::{folder, interrupt, parse};

const AFTER_HELP: &str = "\
Examples:
  supernet demo
  supernet demo --target builtin:fashion --epochs 8 --seed 1 --out runs/demo-1 --json";

/// Show supernet transfer on data that comes with the program: rank the zoo for a dataset that it has never seen, search
/// from the nearest source and from nothing, train both found networks.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// The new dataset.
    #[arg(long, value_name = "SPEC", default_value = "builtin:fashion", value_parser = parse::spec)]
    target: String,
    /// Folder of the zoo [default: the one that comes with the program].
    #[arg(long, value_name = "DIR")]
    zoo: Option<PathBuf>,
    /// Entry to start from: a name, auto (the nearest) or multi.
    #[arg(long, value_name = "NAME|auto|multi", default_value = "auto")]
    warm_start: String,
    /// Height and width to which images are brought.
    #[arg(long, value_name = "HxW", default_value = "28x28", value_parser = parse::size)]
    size: (usize, usize),
    /// Epochs of each search.
    #[arg(long, value_name = "E", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Epochs of each training.
    #[arg(long, value_name = "E", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    training_epochs: u32,
    /// Seed of everything random.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// What computes: cpu, wgpu or cuda, the latter two with :N where there are several.
    #[arg(long, value_name = "DEVICE", value_parser = parse::device, default_value = "cpu")]
    device: DeviceSpec,
    /// Threads; 0 for all cores.
    #[arg(long, value_name = "T", default_value_t = 0)]
    threads: u16,
    /// Folder of the runs; a demo that was stopped goes on there.
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let threads = usize::from(arguments.threads);
    folder::limit_threads(threads)?;
    let zoo = match &arguments.zoo {
        Some(folder) => Zoo::new(folder),
        None => Zoo::shipped()?,
    };
    let demo = Demo {
        target: arguments.target.clone(),
        zoo: zoo.path().display().to_string(),
        warm_start: arguments.warm_start.clone(),
        size: Some(arguments.size),
        space: Zoo::SHIPPED_SPACE,
        epochs: arguments.epochs as usize,
        training_epochs: arguments.training_epochs as usize,
        seed: arguments.seed,
        device: arguments.device,
        threads,
    };
    let stop = interrupt::catch()?;
    let mut progress = Progress::new();
    progress.note(&format!("zoo: {}", zoo.path().display()));
    let report = demo.run(&arguments.out, &mut Control { observer: &mut progress, stop: &stop })?;
    drop(progress);
    output::print_text(json, &report, text)
}

fn text(report: &DemoReport) -> String {
    let mut out = format!("\nHow far the zoo's sources lie from {} (nearest first):\n", report.target);
    let mut table = Table::new(&["source", "distance", "90 % interval", "nearest in draws", "floor"]);
    for r in &report.choice.ranking {
        table.row(vec![
            r.name.clone(),
            format!("{:.4}", r.distance),
            r.interval.map_or("-".into(), |[a, b]| format!("{a:.4} to {b:.4}")),
            r.nearest.map_or("-".into(), percent),
            r.floor.map_or("-".into(), |f| format!("{f:.4}")),
        ]);
    }
    out += &table.to_string();
    out += "A distance is the cost of moving one labelled dataset onto the other; the floor is the distance of two halves\n\
            of the source, so values near it mean `as near as two samples of the same data`. The draws weigh all points\n\
            anew: how often the same source stays the nearest.\n\n";
    out += &format!("Started from {}: {}.\n\n", report.choice.source, report.choice.reason);
    let mut table = Table::new(&["validation accuracy after epoch", "from the zoo", "from nothing"]);
    let (warm, scratch) = (&report.warm.search.accuracies, &report.scratch.search.accuracies);
    for (epoch, (w, s)) in warm.iter().zip(scratch).enumerate() {
        table.row(vec![(epoch + 1).to_string(), percent(*w), percent(*s)]);
    }
    let side = |name: &str, of: &dyn Fn(&Side) -> String| vec![name.into(), of(&report.warm), of(&report.scratch)];
    table.row(side("time of the search", &|s| duration(s.search.seconds)));
    table.row(side("test accuracy of the trained network", &|s| percent(s.training.test_accuracy)));
    table.row(side("its parameters", &|s| s.training.parameters.to_string()));
    table.row(side("time of its training", &|s| duration(s.training.seconds)));
    out += &table.to_string();
    out += &match report.epochs_to_reach {
        Some(epoch) => format!(
            "The search from the zoo was as good after epoch {epoch} as the one from nothing ever was (epoch {}).\n",
            report.best_scratch_epoch
        ),
        None => format!(
            "The search from the zoo never was as good as the one from nothing in epoch {}.\n",
            report.best_scratch_epoch
        ),
    };
    out + "Validation accuracy is that of the supernet on images which its weights have not seen; test accuracy that of\n\
           the derived network, trained from fresh weights. One seed shows how it works, not what is gained on average.\n"
}
