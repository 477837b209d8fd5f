//! `supernet experiment`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use supernet::Result;
use supernet::bench::report::Table;
use supernet::config::AlphaTransfer;
use supernet::device::DeviceSpec;
use supernet::experiment::protocol::{Experiment, Protocol, Shard};
use supernet::experiment::report::{Report, Row};
use supernet::experiment::statistics::Summary;
use supernet::run::Control;

use super::output::{self, duration, percent};
use super::progress::Progress;
use super::{folder, interrupt, parse};

const AFTER_HELP: &str = "\
Examples:
  supernet experiment --out runs/experiment
  supernet experiment --out runs/experiment --stage search --shard 2/4
  supernet experiment --out runs/experiment --stage report --json > experiment.json

What has finished is kept, one folder a job: the same command goes on where it stood. To spread an experiment over
machines, run --stage pretrain on each with its --shard, bring the folders together, run --stage rank once, then
--stage search on each, and --stage report.";

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Everything.
    All,
    /// Supernets of one dataset and of all but one, and the network of each dataset.
    Pretrain,
    /// Zoos and distances.
    Rank,
    /// Searches and trainings.
    Search,
    /// The table of what has finished.
    Report,
}

/// Compare transfer with what it is to replace: every dataset in turn is the target that nothing has seen, with several
/// seeds; searches from nothing, from each source, from all of them, and a fine-tuned network.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Folder of the experiment.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Dataset; give at least three [default: the built-in ones].
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    data: Vec<String>,
    /// What to do.
    #[arg(long, value_enum, default_value = "all")]
    stage: Stage,
    /// Run only this part of the jobs of a stage.
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = parse::shard)]
    shard: Shard,
    /// Height and width to which images are brought.
    #[arg(long, value_name = "HxW", default_value = "16x16", value_parser = parse::size)]
    size: (usize, usize),
    /// Channels of the supernets' first cell.
    #[arg(long, value_name = "C", default_value_t = 8)]
    channels: usize,
    /// Cells of supernets and networks.
    #[arg(long, value_name = "L", default_value_t = 5)]
    layers: usize,
    /// Images of a batch.
    #[arg(long, value_name = "B", default_value_t = 32)]
    batch: usize,
    /// Searches of each target and arm.
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u64,
    /// Epochs of each search.
    #[arg(long, value_name = "E", default_value_t = 20)]
    epochs: usize,
    /// Epochs of the pretraining of one dataset.
    #[arg(long, value_name = "E", default_value_t = 30)]
    pretraining_epochs: usize,
    /// Epochs of the pretraining of all datasets but one.
    #[arg(long, value_name = "E", default_value_t = 15)]
    joint_epochs: usize,
    /// Epochs of each final training.
    #[arg(long, value_name = "E", default_value_t = 20)]
    training_epochs: usize,
    /// Channels of the first cell of the trained networks.
    #[arg(long, value_name = "C", default_value_t = 12)]
    training_channels: usize,
    /// Start the final training from the weights of the search instead of fresh ones.
    #[arg(long)]
    inherit: bool,
    /// Learning rate of the alphas.
    #[arg(long, value_name = "RATE", default_value_t = 3e-3, allow_negative_numbers = true)]
    alpha_learning_rate: f64,
    /// What becomes of the source's alphas.
    #[arg(long, value_name = "keep|temper|reset", default_value = "keep", value_parser = parse::alphas)]
    transfer_alphas: AlphaTransfer,
    /// Epochs after a transfer in which only the new head learns.
    #[arg(long, value_name = "E", default_value_t = 0)]
    head_warm_up: usize,
    /// Padding of the random crop in pixels; 0 for no crop.
    #[arg(long, value_name = "N", default_value_t = 2)]
    crop_padding: usize,
    /// Random horizontal flips.
    #[arg(long)]
    flip: bool,
    /// What computes: cpu, wgpu or cuda, the latter two with :N where there are several.
    #[arg(long, value_name = "DEVICE", value_parser = parse::device, default_value = "cpu")]
    device: DeviceSpec,
    /// Threads; 0 for all cores. Results do not depend on it.
    #[arg(long, value_name = "T", default_value_t = 0)]
    threads: u16,
}

/// The datasets that come with the program.
const BUILTIN: [&str; 6] = ["fashion", "mnist", "animal", "scripts", "textures", "emoji"];

impl Arguments {
    fn protocol(&self) -> Protocol {
        let builtin = || BUILTIN.iter().map(|name| format!("builtin:{name}")).collect();
        Protocol {
            data: if self.data.is_empty() { builtin() } else { self.data.clone() },
            size: self.size,
            space: (self.channels, self.layers),
            batch: self.batch,
            seeds: self.seeds,
            epochs: self.epochs,
            pretraining_epochs: self.pretraining_epochs,
            joint_epochs: self.joint_epochs,
            training_epochs: self.training_epochs,
            training_channels: if self.inherit { self.channels } else { self.training_channels },
            inherit: self.inherit,
            alpha_learning_rate: self.alpha_learning_rate,
            transfer_alphas: self.transfer_alphas,
            head_warm_up: self.head_warm_up,
            crop_padding: self.crop_padding,
            flip: self.flip,
        }
    }
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let threads = usize::from(arguments.threads);
    folder::limit_threads(threads)?;
    let experiment = Experiment::open(arguments.protocol(), &arguments.out, (arguments.device, threads))?;
    let stop = interrupt::catch()?;
    let mut progress = Progress::new();
    let mut control = Control { observer: &mut progress, stop: &stop };
    let wanted = |stage: Stage| arguments.stage == stage || arguments.stage == Stage::All;
    if wanted(Stage::Pretrain) {
        experiment.pretrain(arguments.shard, &mut control)?;
    }
    if wanted(Stage::Rank) {
        experiment.rank(&mut control)?;
    }
    if wanted(Stage::Search) {
        experiment.run(arguments.shard, &mut control)?;
    }
    drop(progress);
    match wanted(Stage::Report) {
        true => output::print_text(json, &experiment.report()?, text),
        false => Ok(()),
    }
}

/// `12.3 ± 0.4`, of shares in percent.
fn share(s: &Summary) -> String {
    format!("{:.2} ± {:.2}", 100.0 * s.mean, 100.0 * s.deviation)
}

/// A difference of shares in points, with its interval.
fn difference(s: &Summary) -> String {
    let interval = s.interval.map_or(String::new(), |[a, b]| format!(" [{:+.2}, {:+.2}]", 100.0 * a, 100.0 * b));
    format!("{:+.2}{interval}", 100.0 * s.mean)
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".into())
}

fn overall(report: &Report) -> Table {
    let mut table = Table::new(&[
        "arm",
        "test accuracy",
        "gain over scratch [95 %]",
        "over targets [95 %]",
        "targets gained",
        "epochs to scratch's best",
        "sooner",
        "never there",
        "regret",
    ]);
    for row in &report.rows {
        table.row(vec![
            row.policy.name().into(),
            share(&row.test_accuracy),
            difference(&row.gain),
            difference(&row.gain_over_targets),
            format!("{} of {}", row.positive, row.targets.len()),
            or_dash(row.epochs.map(|e| format!("{:.1}", e.mean))),
            or_dash(row.speedup.map(|s| format!("{s:.1} x"))),
            or_dash(row.epochs.map(|_| row.never.len().to_string())),
            or_dash(row.regret.map(|r| format!("{:.2}", 100.0 * r.mean))),
        ]);
    }
    table
}

fn by_target(report: &Report) -> Table {
    let names: Vec<&str> = report.relations.iter().map(|r| r.target.as_str()).collect();
    let mut table = Table::new(&[&["arm"], &names[..]].concat());
    let cells = |row: &Row| row.targets.iter().map(|t| share(&t.test_accuracy)).collect::<Vec<_>>();
    let epochs =
        |row: &Row| row.targets.iter().map(|t| or_dash(t.epochs.map(|e| format!("{:.1}", e.mean)))).collect::<Vec<_>>();
    for row in &report.rows {
        table.row([vec![format!("{}, test accuracy", row.policy.name())], cells(row)].concat());
    }
    for row in report.rows.iter().filter(|row| row.epochs.is_some()) {
        table.row([vec![format!("{}, epochs", row.policy.name())], epochs(row)].concat());
    }
    table
}

fn text(report: &Report) -> String {
    let [finished, all] = report.finished;
    let seeds = report.seeds.len();
    if report.rows.is_empty() {
        return format!("{finished} of {all} jobs have finished, but no seed is complete yet: there is no table\n");
    }
    let mut out = format!("{finished} of {all} jobs have finished; the tables are of {seeds} complete seeds\n\n");
    out += &overall(report).to_string();
    out += "\nIn percent and points, mean and deviation. Gains are paired by target and seed: over all pairs, and over\n\
            targets. Epochs: until the three-epoch mean of the validation accuracy was what that of the search from\n\
            nothing with the same seed ever was; a search that never got there counts with its whole budget. A random\n\
            source is the mean over all. Regret: how much better the best source would have been, known afterwards.\n\n";
    out += &by_target(report).to_string();
    let mut table =
        Table::new(&["target", "sources, the nearest first: distance, gain, epochs", "rho gain", "rho epochs"]);
    for r in &report.relations {
        let each = r.sources.iter().zip(r.gains.iter().zip(&r.epochs));
        let each = each.map(|(s, (g, e))| format!("{} {:.1} {:+.2} {e:.1}", s.name, s.distance, 100.0 * g));
        let rho = |value: Option<f64>| or_dash(value.map(|v| format!("{v:+.2}")));
        let sources = each.collect::<Vec<_>>().join("; ");
        table.row(vec![r.target.clone(), sources, rho(r.with_gain), rho(r.with_epochs)]);
    }
    out += &format!("\n{table}");
    let rho = |s: &Option<Summary>| or_dash(s.map(|s| format!("{:+.2} ± {:.2}", s.mean, s.deviation)));
    out += &format!(
        "Rank correlation of distance with gain {} (-1: the nearer the better), with epochs {} (+1: the nearer the \
         sooner).\n",
        rho(&report.with_gain),
        rho(&report.with_epochs)
    );
    let total: f64 = report.pretraining.iter().map(|p| p.seconds).sum();
    let joint: f64 = report.pretraining.iter().filter(|p| p.name.starts_with("without-")).map(|p| p.seconds).sum();
    out += &format!(
        "Pretraining took {}, of it {} for the supernets of many datasets; mean final validation accuracy {}.\n",
        duration(total),
        duration(joint),
        percent(
            report.pretraining.iter().map(|p| p.validation_accuracy).sum::<f64>() / report.pretraining.len() as f64
        )
    );
    out
}
