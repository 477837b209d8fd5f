//! A guard against negative transfer: the nearest sources, the supernet of many datasets and a start from nothing each
//! search for a few epochs; by successive halving on the validation loss (Jamieson and Talwalkar 2016) the better half goes
//! on, until one is left and finishes the search.
//!
//! Every candidate is a whole run of the same schedule in a folder of its own, stopped at the end of an epoch and resumed
//! later, so what a race finds is exactly what the winner alone would have found.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::choose::{AUTO, Choice, MULTI, choose};
use super::run::SearchReport;
use super::session::search;
use crate::checkpoint::Checkpoint;
use crate::config::{SCRATCH, SearchConfig};
use crate::error::{Error, Result};
use crate::network::SearchSpace;
use crate::run::{self, Control, Observer, RunFolder};
use crate::zoo::Zoo;

/// Files of the winner that become those of the race.
const FILES: [&str; 5] = ["checkpoint.safetensors", "metrics.jsonl", "genotype.json", "transfer.json", "choice.json"];

/// A round: who ran until which epoch, and who went on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Epochs that every candidate had finished.
    pub epochs: usize,
    /// Candidates with their validation loss, the best first.
    pub losses: Vec<(String, f64)>,
    /// How many went on.
    pub kept: usize,
}

/// How a race went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RaceReport {
    /// The rounds.
    pub rounds: Vec<Round>,
    /// Who finished the search.
    pub winner: String,
}

/// Passes everything on, and asks for a stop at the end of an epoch, or when the user does.
struct Until<'a> {
    observer: &'a mut dyn Observer,
    name: &'a str,
    pause: &'a AtomicBool,
    outer: &'a AtomicBool,
    epochs_left: usize,
}

impl Observer for Until<'_> {
    fn begin(&mut self, what: &str, epochs: usize, steps: usize, first_epoch: usize) {
        self.observer.begin(&format!("{what} from {}", self.name), epochs, steps, first_epoch);
    }

    fn step(&mut self, epoch: usize, step: usize) {
        if self.outer.load(Ordering::Relaxed) {
            self.pause.store(true, Ordering::Relaxed);
        }
        self.observer.step(epoch, step);
    }

    fn epoch(&mut self, record: &Value) {
        self.observer.epoch(record);
        self.epochs_left = self.epochs_left.saturating_sub(1);
        if self.epochs_left == 0 {
            self.pause.store(true, Ordering::Relaxed);
        }
    }

    fn note(&mut self, text: &str) {
        self.observer.note(text);
    }
}

/// The names to race: the `race` nearest sources, the supernet of many datasets if there is one, and nothing.
fn field(config: &SearchConfig, control: &mut Control<'_>) -> Result<(Choice, Vec<String>)> {
    let [spec] = config.data.list() else {
        return Err(Error::usage("--race chooses the start of a search on one dataset"));
    };
    let target = run::load_dataset(spec, config.size, None, config.train_images, config.seed)?;
    let (zoo, space) = (Zoo::new(&config.zoo), SearchSpace::darts(config.channels, config.layers)?);
    let on = (config.device, run::threads(config.threads));
    let choice = choose(AUTO, &zoo, &space, &target, on, &[], control)?;
    let mut names: Vec<String> = choice.ranking.iter().take(config.race).map(|r| r.name.clone()).collect();
    // A zoo without such an entry races without it.
    match choose(MULTI, &zoo, &space, &target, on, &[], control) {
        Ok(multi) => names.push(multi.source),
        Err(Error::Usage(_)) => {}
        Err(error) => return Err(error),
    }
    names.push(SCRATCH.into());
    Ok((choice, names))
}

/// Epochs that a candidate has finished, and its validation loss after `epochs` of them.
fn finished(folder: &Path, epochs: usize) -> Result<(usize, Option<f64>)> {
    let (checkpoint, metrics) = (folder.join("checkpoint.safetensors"), folder.join("metrics.jsonl"));
    if !checkpoint.exists() || !metrics.exists() {
        return Ok((0, None));
    }
    let done = Checkpoint::load(&checkpoint)?.meta.epoch;
    let text = fs::read_to_string(&metrics).map_err(Error::io(&metrics, "read"))?;
    let record = text.lines().nth(epochs - 1).map(serde_json::from_str::<Value>).transpose();
    let record = record.map_err(|e| Error::input(&metrics, format!("line {epochs} is damaged: {e}")))?;
    Ok((done, record.and_then(|r| r["validation_loss"].as_f64())))
}

/// Runs a candidate until it has finished so many epochs. The report comes with the last one.
fn advance(
    config: &SearchConfig,
    folder: &Path,
    epochs: usize,
    control: &mut Control<'_>,
) -> Result<(f64, Option<SearchReport>)> {
    let last = epochs >= config.epochs;
    if let (done, Some(loss)) = finished(folder, epochs)?
        && done >= epochs
        && !last
    {
        return Ok((loss, None));
    }
    let (done, _) = finished(folder, epochs)?;
    let pause = AtomicBool::new(false);
    let outer = control.stop;
    let epochs_left = if last { usize::MAX } else { epochs - done };
    let name = &config.warm_start;
    let mut until = Until { observer: control.observer, name, pause: &pause, outer, epochs_left };
    let resume = folder.join("checkpoint.safetensors").exists();
    let report = match search(config, folder, resume, &mut Control { observer: &mut until, stop: &pause }) {
        Ok(report) => Some(report),
        Err(Error::Interrupted { .. }) if !outer.load(Ordering::Relaxed) => None,
        Err(error) => return Err(error),
    };
    match finished(folder, epochs)?.1 {
        Some(loss) => Ok((loss, report)),
        None => Err(Error::input(folder.join("metrics.jsonl"), format!("has no validation loss of epoch {epochs}"))),
    }
}

/// Races and finishes a search; everything is resumed where it stands. The winner's files become those of `out`.
///
/// # Errors
/// As [`search`], and [`Error::Usage`] if the zoo has nothing to race.
pub fn race(config: &SearchConfig, out: &Path, control: &mut Control<'_>) -> Result<SearchReport> {
    config.check()?;
    let (choice, mut names) = field(config, control)?;
    let of = |name: &str| SearchConfig { warm_start: name.into(), race: 0, ..config.clone() };
    let folder = |name: &str| out.join("race").join(name);
    let (mut rounds, mut epochs) = (Vec::new(), config.race_epochs.min(config.epochs));
    while names.len() > 1 {
        let mut losses = Vec::new();
        for name in &names {
            losses.push((name.clone(), advance(&of(name), &folder(name), epochs, control)?.0));
        }
        // A loss that is not a number loses.
        losses.sort_by(|a, b| a.1.total_cmp(&b.1));
        let kept = if epochs >= config.epochs { 1 } else { names.len().div_ceil(2).min(names.len() - 1) };
        let shown: Vec<String> = losses.iter().map(|(name, loss)| format!("{name} {loss:.4}")).collect();
        control.observer.note(&format!("race after {epochs} epochs: {}; {kept} go on", shown.join(", ")));
        names = losses.iter().take(kept).map(|(name, _)| name.clone()).collect();
        rounds.push(Round { epochs, losses, kept });
        epochs = (2 * epochs).min(config.epochs);
    }
    let winner = names.remove(0);
    let (_, report) = advance(&of(&winner), &folder(&winner), config.epochs, control)?;
    let mut report = report.ok_or_else(|| Error::usage("the race was stopped; continue it with --resume"))?;
    let (to, from) = (RunFolder::create(out)?, folder(&winner));
    let race = RaceReport { rounds, winner };
    to.write_json("race.json", &race)?;
    // The checkpoint comes last: with it the race counts as run.
    for name in FILES.iter().rev().filter(|name| from.join(name).exists()) {
        let bytes = fs::read(from.join(name)).map_err(Error::io(from.join(name), "read"))?;
        crate::files::write_atomically(&out.join(name), &bytes)?;
    }
    report.ranking = choice.ranking;
    report.race = Some(race);
    report.out = out.display().to_string();
    Ok(report)
}
