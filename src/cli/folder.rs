//! The run folder before a run: made, probed, protected against being overwritten, and its `config.toml`.

use std::path::Path;

use clap::Args;
use serde::Serialize;
use supernet::files::write_atomically;
use supernet::run::{Control, Observer};
use supernet::{Error, Result};

use super::interrupt;
use super::progress::Progress;
use super::settings::{Settings, Wanted, to_toml};
use super::starting::StartingFlags;

/// Where a run is kept.
#[derive(Args)]
pub struct FolderFlags {
    /// Run folder: config.toml, metrics.jsonl, checkpoint.safetensors and, of a search, genotype.json.
    #[arg(long, value_name = "DIR")]
    pub out: std::path::PathBuf,
    /// Continue the run in the folder to the very result it would have had without the interruption.
    #[arg(long)]
    pub resume: bool,
    /// TOML file of settings; flags go before it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub starting: StartingFlags,
}

/// What a run says that is continued although it was stopped before its first checkpoint.
const NO_CHECKPOINT: &str = "there is no checkpoint yet; the run starts from its beginning";

/// A run that can start.
struct Prepared<S> {
    /// Its settings.
    settings: S,
    /// Whether there is a checkpoint to start from.
    resume: bool,
    /// Whether the folder was made for this run.
    created: bool,
}

impl<S> Prepared<S> {
    /// Takes back a folder made for a run that could not even start, so that a typing error leaves nothing behind.
    fn undo(&self, out: &Path) {
        if self.created && !out.join("checkpoint.safetensors").exists() && !out.join("metrics.jsonl").exists() {
            // What cannot be removed does no harm: the run's own error is the one to report.
            let _ = std::fs::remove_file(out.join("config.toml")).and_then(|()| std::fs::remove_dir(out));
        }
    }
}

/// Everything around a run: its settings, its folder, threads, Ctrl-C and progress. `body` gets the settings, and whether
/// there is a checkpoint to start from.
pub fn run<S: Settings, R>(
    flags: &FolderFlags,
    given: &impl Serialize,
    threads: fn(&S) -> usize,
    body: impl FnOnce(&S, bool, &mut Control<'_>) -> Result<R>,
) -> Result<R> {
    let wanted = Wanted::new::<S>(flags.config.as_deref(), given)?;
    let mut prepared = prepare::<S>(flags, &wanted)?;
    let device = prepared.settings.device();
    *device = flags.starting.of(*device);
    limit_threads(threads(&prepared.settings))?;
    let stop = interrupt::catch()?;
    let mut progress = Progress::new();
    if flags.resume && !prepared.resume {
        progress.note(NO_CHECKPOINT);
    }
    let mut control = Control { observer: &mut progress, stop: &stop };
    body(&prepared.settings, prepared.resume, &mut control).inspect_err(|error| {
        if !matches!(error, Error::Interrupted { .. } | Error::NonFinite(_)) {
            prepared.undo(&flags.out);
        }
    })
}

/// Gives the threads that decode images the same number as the engine's.
pub fn limit_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Error::usage(format!("--threads {threads}: cannot start them: {error}")))
}

/// Finds the settings of the run, and writes them into its folder.
fn prepare<S: Settings>(flags: &FolderFlags, wanted: &Wanted<'_>) -> Result<Prepared<S>> {
    let out = &flags.out;
    let (config, checkpoint) = (out.join("config.toml"), out.join("checkpoint.safetensors"));
    let started = checkpoint.exists();
    let settings: S = if flags.resume {
        if !config.exists() {
            return Err(Error::usage(format!(
                "--resume: {} holds no run (there is no config.toml); start it without --resume",
                out.display()
            )));
        }
        wanted.over_saved(&config)?
    } else {
        if started {
            return Err(Error::usage(format!(
                "--out {} already holds a checkpoint; continue that run with --resume, or use another folder",
                out.display()
            )));
        }
        wanted.over_defaults()?
    };
    let created = !out.exists();
    std::fs::create_dir_all(out).map_err(Error::io(out, "create the run folder"))?;
    remove_leftovers(out)?;
    write_atomically(&config, to_toml(&settings)?.as_bytes())?;
    Ok(Prepared { settings, resume: flags.resume && started, created })
}

/// Removes the partial files that a killed run may have left.
fn remove_leftovers(out: &Path) -> Result<()> {
    const FILES: [&str; 4] = ["config.toml", "metrics.jsonl", "checkpoint.safetensors", "genotype.json"];
    for entry in std::fs::read_dir(out).map_err(Error::io(out, "list"))? {
        let entry = entry.map_err(Error::io(out, "list"))?;
        let name = entry.file_name();
        let partial = name.to_str().and_then(|name| name.split_once(".partial-"));
        if partial.is_some_and(|(file, _)| FILES.contains(&file)) {
            std::fs::remove_file(entry.path()).map_err(Error::io(entry.path(), "remove"))?;
        }
    }
    Ok(())
}
