//! `supernet search`.

use clap::Args;
use supernet::config::{SCRATCH, SearchConfig};
use supernet::network::Primitive;
use supernet::search::race::Round;
use supernet::search::run::SearchReport;
use supernet::search::{race, search};
use supernet::transport::Ranked;
use supernet::{Error, Result};

use super::folder::{self, FolderFlags};
use super::output::{self, Lines, duration, mib, percent};
use super::settings::SearchFlags;

const AFTER_HELP: &str = "\
Examples:
  supernet search --data builtin:fashion --channels 8 --layers 5 --epochs 10 --out runs/search
  supernet search --data folder:photos --size 32x32 --order second --seed 1 --out runs/photos
  supernet search --data folder:photos --channels 8 --layers 5 --epochs 5 --warm-start auto --zoo zoo --out runs/warm
  supernet search --out runs/search --resume";

/// Search cells for a dataset: trains a supernet by bilevel optimisation and derives a genotype.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    folder: FolderFlags,
    #[command(flatten)]
    settings: SearchFlags,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let threads = |settings: &SearchConfig| settings.threads;
    let report = folder::run(&arguments.folder, &arguments.settings, threads, |settings, resume, control| {
        if settings.data.list().len() > 1 {
            return Err(Error::usage("a search has one dataset; `supernet pretrain` takes several"));
        }
        match settings.race {
            0 => search(settings, &arguments.folder.out, resume, control),
            _ => race(settings, &arguments.folder.out, control),
        }
    })?;
    output::print(json, &report, lines)
}

pub fn lines(report: &SearchReport) -> Lines {
    let cell = |pairs: &[(Primitive, usize)]| {
        let pairs: Vec<String> = pairs.iter().map(|(primitive, state)| format!("{primitive}({state})")).collect();
        pairs.chunks(2).map(|node| node.join(" + ")).collect::<Vec<_>>().join(", ")
    };
    let nearest = |lines: Lines, r: &Ranked| {
        let sure = r.nearest.map_or(String::new(), |share| format!(", nearest in {:.0} % of draws", 100.0 * share));
        lines.add("distance", format!("{:.4} to {}{sure}", r.distance, r.name))
    };
    let lines = Lines::default()
        .add("validation accuracy", percent(report.validation_accuracy))
        .add("validation loss", format!("{:.4}", report.validation_loss))
        .add("normal cell", cell(&report.genotype.normal))
        .add("reduction cell", cell(&report.genotype.reduce))
        .add("epochs", report.epochs)
        .add("time", duration(report.seconds))
        .add("time of a step", format!("{:.1} ms", 1e3 * report.seconds_per_step))
        .add("memory of the engine", mib(report.peak_bytes))
        .add_some("memory of the process", report.peak_rss_bytes.map(mib))
        .add("started from", if report.source == SCRATCH { "nothing" } else { &report.source });
    let round = |lines: Lines, round: &Round| {
        let losses: Vec<String> = round.losses.iter().map(|(name, loss)| format!("{name} {loss:.4}")).collect();
        lines.add(format!("race, epoch {}", round.epochs), losses.join(", "))
    };
    let lines = report.race.iter().flat_map(|race| &race.rounds).fold(lines, round);
    report.ranking.iter().fold(lines, nearest).add("run folder", &report.out)
}
