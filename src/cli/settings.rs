//! Settings of a run: defaults, then `--config`, then flags; with `--resume`, those of the run folder, which flags may
//! repeat but not change.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};
use supernet::config::{SearchConfig, TrainConfig};
use supernet::files::write_atomically;
use supernet::{Error, Result};

use super::args::{RunArgs, SearchArgs, TrainArgs};

/// Settings that flags can override.
pub trait Settings: Serialize + DeserializeOwned + Default + Clone + PartialEq {
    /// The command's flags.
    type Args;

    /// The flags that all runs have.
    fn run(args: &Self::Args) -> &RunArgs;

    /// Puts the given flags in the place of what stands there.
    fn apply(&mut self, args: &Self::Args);

    /// Settings that a resumed run may change, because they change no result.
    fn neutral(self) -> Self;
}

/// Sets each field whose flag is given.
macro_rules! override_fields {
    ($to:ident, $from:expr, [$($field:ident),*]) => {
        $(if let Some(value) = $from.$field.clone() {
            $to.$field = value.into();
        })*
    };
}

macro_rules! override_run_fields {
    ($to:ident, $run:expr) => {
        override_fields!(
            $to,
            $run,
            [
                data,
                channels,
                layers,
                epochs,
                batch,
                seed,
                threads,
                learning_rate,
                momentum,
                weight_decay,
                clip,
                crop_padding,
                flip,
                cutout,
                checkpoint_steps
            ]
        );
        $to.size = $run.size.or($to.size);
        $to.train_images = $run.train_images.or($to.train_images);
        $to.memory_limit = $run.memory_limit.or($to.memory_limit);
    };
}

impl Settings for SearchConfig {
    type Args = SearchArgs;

    fn run(args: &SearchArgs) -> &RunArgs {
        &args.run
    }

    fn apply(&mut self, args: &SearchArgs) {
        override_run_fields!(self, args.run);
        override_fields!(self, args, [order, weight_share, learning_rate_min, alpha_learning_rate, alpha_weight_decay]);
    }

    fn neutral(self) -> Self {
        Self { threads: 0, memory_limit: None, checkpoint_steps: 0, ..self }
    }
}

impl Settings for TrainConfig {
    type Args = TrainArgs;

    fn run(args: &TrainArgs) -> &RunArgs {
        &args.run
    }

    fn apply(&mut self, args: &TrainArgs) {
        override_run_fields!(self, args.run);
        override_fields!(self, args, [genotype, auxiliary, drop_path, label_smoothing]);
    }

    fn neutral(self) -> Self {
        Self { threads: 0, memory_limit: None, checkpoint_steps: 0, ..self }
    }
}

fn read<S: Settings>(path: &Path) -> Result<S> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read the settings"))?;
    toml::from_str(&text).map_err(|e| Error::input(path, format!("has unusable settings: {}", e.message())))
}

/// The settings of a run, checked against its folder; the effective ones are written there as `config.toml`.
pub fn effective<S: Settings>(args: &S::Args, check: impl Fn(&S) -> Result<()>) -> Result<S> {
    let run = S::run(args);
    let (kept, checkpoint) = (run.out.join("config.toml"), run.out.join("checkpoint.safetensors"));
    let resumable = run.resume && kept.exists();
    let base: S = match (&run.config, resumable) {
        (_, true) => read(&kept)?,
        (Some(path), false) => read(path)?,
        (None, false) => S::default(),
    };
    let mut settings = base.clone();
    settings.apply(args);
    check(&settings)?;
    if run.resume && !checkpoint.exists() {
        let message = "is not there, so there is nothing to resume; run without --resume";
        return Err(Error::input(&checkpoint, message));
    }
    if resumable {
        refuse_changes(&kept, &base, &settings)?;
    } else if checkpoint.exists() {
        let message = "exists: continue that run with --resume, or choose another --out";
        return Err(Error::input(&checkpoint, message));
    }
    std::fs::create_dir_all(&run.out).map_err(Error::io(&run.out, "create the run folder"))?;
    let text = toml::to_string(&settings).map_err(|e| Error::usage(format!("settings cannot be written: {e}")))?;
    write_atomically(&kept, text.as_bytes())?;
    Ok(settings)
}

fn refuse_changes<S: Settings>(path: &Path, before: &S, now: &S) -> Result<()> {
    let value = |s: &S| serde_json::to_value(s.clone().neutral()).unwrap_or_default();
    let (before, now) = (value(before), value(now));
    let changed = before.as_object().into_iter().flatten().find(|(key, old)| now[key.as_str()] != **old);
    match changed {
        None => Ok(()),
        Some((key, old)) => Err(Error::input(
            path,
            format!(
                "was begun with {key} = {old}, the flags say {}; a resumed run cannot change it",
                now[key.as_str()]
            ),
        )),
    }
}
