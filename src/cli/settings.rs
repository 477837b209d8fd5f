//! Settings of a run, laid over each other: defaults, the file of `--config`, flags.

use std::path::Path;

use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use supernet::config::{SearchConfig, TrainConfig};
use supernet::device::{DeviceSpec, Precision};
use supernet::network::Genotype;
use supernet::search::step::Order;
use supernet::{Error, Result};
use toml::{Table, Value};

use super::parse;

/// Flags that all runs share. Names are those of the settings; what is not given is left out.
#[derive(Args, Serialize)]
pub struct CommonFlags {
    /// Height and width to which images are brought; as stored where it is not given.
    #[arg(long, value_name = "HxW", value_parser = parse::size)]
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<(usize, usize)>,
    /// Channels of the first cell.
    #[arg(long, value_name = "C")]
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<u32>,
    /// Cells.
    #[arg(long, value_name = "L")]
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<u32>,
    /// Epochs.
    #[arg(long, value_name = "E")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u32>,
    /// Images of a batch.
    #[arg(long, value_name = "B")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<u32>,
    /// Seed of everything random.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Use only this many training images, stratified.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    train_images: Option<u32>,
    /// What computes: cpu, wgpu or cuda, the latter two with :N where there are several [default: cpu]
    #[arg(long, value_name = "DEVICE", value_parser = parse::device)]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceSpec>,
    /// How feature maps are stored and matrices multiplied: f32; f16 maps (on wgpu); tf32 products (on cuda); bf16 maps and tf32
    /// products (on cuda). All other arithmetic is f32 [default: f32]
    #[arg(long, value_name = "PRECISION", value_parser = parse::precision)]
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<Precision>,
    /// Threads; 0 for all cores. Results do not depend on it.
    #[arg(long, value_name = "T")]
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<u16>,
    /// Refuse to run if the engine needs more memory.
    #[arg(long, value_name = "MiB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<u32>,
    /// Learning rate of the weights in the first epoch.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    /// Momentum of the weights.
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    /// Weight decay of the weights.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    /// Largest gradient norm.
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<f64>,
    /// Padding of the random crop in pixels; 0 for no crop.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    crop_padding: Option<u16>,
    /// Random horizontal flips.
    #[arg(long, value_name = "true|false")]
    #[serde(skip_serializing_if = "Option::is_none")]
    flip: Option<bool>,
    /// Side of cutout's hole in pixels; 0 for none.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cutout: Option<u16>,
    /// Steps between checkpoints; 0 for the ends of epochs only.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_steps: Option<u32>,
}

/// Flags of a search.
#[derive(Args, Serialize)]
pub struct SearchFlags {
    /// Dataset: builtin:NAME, or idx:, folder:, cifar:, npz:, meta-album: and a path.
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    #[serde(flatten)]
    bilevel: BilevelFlags,
    /// What to start from: the name of a zoo entry, auto (the nearest by dataset distance), multi (pretrained on the most
    /// datasets) or none.
    #[arg(long, value_name = "NAME|auto|multi|none")]
    #[serde(skip_serializing_if = "Option::is_none")]
    warm_start: Option<String>,
    /// Race this many nearest sources of the zoo, the supernet of many datasets and a start from nothing for a few epochs,
    /// and go on with the best; 0 for no race.
    #[arg(long, value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    race: Option<usize>,
    /// Epochs of the first round of a race; each further one doubles them.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    race_epochs: Option<usize>,
    /// Folder of the zoo.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    zoo: Option<String>,
    /// What becomes of the source's weights: keep or reset.
    #[arg(long, value_name = "keep|reset", value_parser = ["keep", "reset"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer_weights: Option<String>,
    /// What becomes of the source's alphas: keep, temper (scale them by --temper) or reset.
    #[arg(long, value_name = "keep|temper|reset", value_parser = ["keep", "temper", "reset"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer_alphas: Option<String>,
    /// Factor of the alphas where they are tempered.
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    temper: Option<f64>,
    /// Epochs after a transfer in which only the new head learns.
    #[arg(long, value_name = "E")]
    #[serde(skip_serializing_if = "Option::is_none")]
    head_warm_up: Option<u32>,
}

/// Flags of a pretraining.
#[derive(Args, Serialize)]
pub struct PretrainFlags {
    /// Dataset: builtin:NAME, or idx:, folder:, cifar:, npz:, meta-album: and a path. Give it once for each dataset.
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data: Vec<String>,
    /// How several datasets follow each other: joint (batches of all interleaved) or sequential.
    #[arg(long, value_name = "joint|sequential", value_parser = ["joint", "sequential"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    mixing: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    #[serde(flatten)]
    bilevel: BilevelFlags,
}

/// Flags of what a search and a pretraining share: two halves of the data, two optimisers.
#[derive(Args, Serialize)]
pub struct BilevelFlags {
    /// Architecture gradient: first (at the present weights) or second (after one virtual step).
    #[arg(long, value_name = "first|second", value_parser = parse::order)]
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Order>,
    /// Share of the training images that trains the weights; the rest trains the alphas.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_share: Option<f64>,
    /// Learning rate of the weights towards which it is annealed.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate_min: Option<f64>,
    /// Learning rate of the alphas.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha_learning_rate: Option<f64>,
    /// Weight decay of the alphas.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha_weight_decay: Option<f64>,
}

/// Flags of a training.
#[derive(Args, Serialize)]
pub struct TrainFlags {
    /// Cells to train: a file that search wrote, or DARTS_V1 or DARTS_V2.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    genotype: Option<String>,
    /// Dataset: builtin:NAME, or idx:, folder:, cifar:, npz:, meta-album: and a path.
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonFlags,
    /// Weight of the auxiliary head's loss; 0 for no auxiliary head.
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    auxiliary: Option<f64>,
    /// Probability of cutting a path, towards which it grows from zero.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_path: Option<f64>,
    /// Label smoothing.
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    label_smoothing: Option<f64>,
    /// Start from the weights in a file instead of fresh ones: a checkpoint or a zoo entry of the supernet in which the
    /// cells were found, or a checkpoint of the same network trained on other data.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    inherit: Option<String>,
}

/// Settings that a run folder keeps.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// The command that they belong to.
    const COMMAND: &'static str;
    /// Settings that a resumed run may change: its results do not depend on them (but for the rounding of another device),
    /// or the checkpoint itself tells.
    const FREE: &'static [&'static str];
    /// Refuses values that make no sense.
    fn check(&self) -> Result<()>;
    /// What computes.
    fn device(&mut self) -> &mut DeviceSpec;
}

impl Settings for SearchConfig {
    const COMMAND: &'static str = "search";
    const FREE: &'static [&'static str] = &["device", "threads", "memory_limit", "checkpoint_steps"];

    fn check(&self) -> Result<()> {
        self.check()
    }

    fn device(&mut self) -> &mut DeviceSpec {
        &mut self.device
    }
}

impl Settings for TrainConfig {
    const COMMAND: &'static str = "train";
    const FREE: &'static [&'static str] = &["device", "threads", "memory_limit", "checkpoint_steps", "genotype"];

    fn check(&self) -> Result<()> {
        self.check()?;
        Genotype::load(&self.genotype).map(|_| ())
    }

    fn device(&mut self) -> &mut DeviceSpec {
        &mut self.device
    }
}

/// What the user asked for in this call: the file of `--config` with the flags laid over it.
pub struct Wanted<'a> {
    file: Option<&'a Path>,
    flags: Table,
    both: Table,
}

impl<'a> Wanted<'a> {
    /// Reads the file and lays the flags over it. The file must hold settings of `S` only.
    pub fn new<S: Settings>(file: Option<&'a Path>, flags: &impl Serialize) -> Result<Self> {
        let flags = table(flags)?;
        let mut both = match file {
            Some(path) => read::<S>(path)?,
            None => Table::new(),
        };
        both.extend(flags.clone());
        Ok(Self { file, flags, both })
    }

    /// The settings of a new run.
    pub fn over_defaults<S: Settings>(&self) -> Result<S> {
        let settings: S = self.typed()?;
        settings.check().map_err(|error| self.located(error))?;
        Ok(settings)
    }

    /// The settings of a run that is continued: those of its folder, which the call must not contradict.
    pub fn over_saved<S: Settings>(&self, path: &Path) -> Result<S> {
        let mut saved = read::<S>(path)?;
        let old = table(&settings::<S>(path, saved.clone())?)?;
        let new = table(&self.typed::<S>()?)?;
        for key in self.both.keys().filter(|key| !S::FREE.contains(&key.as_str())) {
            let shown = |table: &Table| table.get(key).map_or("its default".into(), Value::to_string);
            if old.get(key) != new.get(key) {
                return Err(Error::usage(format!(
                    "{} {} contradicts {}, where {key} is {}; a run is continued with the settings it was started with",
                    self.name(key),
                    shown(&new),
                    path.display(),
                    shown(&old)
                )));
            }
        }
        saved.extend(self.both.clone().into_iter().filter(|(key, _)| S::FREE.contains(&key.as_str())));
        let settings = settings::<S>(path, saved)?;
        settings.check()?;
        Ok(settings)
    }

    /// Whether a setting was given.
    pub fn has(&self, key: &str) -> bool {
        self.both.contains_key(key)
    }

    fn typed<S: Settings>(&self) -> Result<S> {
        settings(self.file.unwrap_or(Path::new("flags")), self.both.clone())
    }

    /// How the user wrote a setting.
    fn name(&self, key: &str) -> String {
        match self.file {
            Some(file) if !self.flags.contains_key(key) => format!("{}: {key}", file.display()),
            _ => flag(key),
        }
    }

    /// Puts the user's name of a setting in the place of the key with which a message of the checks starts.
    fn located(&self, error: Error) -> Error {
        match error {
            Error::Usage(message) => match message.split_once(' ') {
                Some((key, rest)) if self.has(key) => Error::usage(format!("{} {rest}", self.name(key))),
                _ => Error::usage(message),
            },
            other => other,
        }
    }
}

fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

fn table(value: &impl Serialize) -> Result<Table> {
    Table::try_from(value).map_err(|error| Error::usage(format!("a setting cannot be written as TOML: {error}")))
}

/// Reads a file of settings and checks its keys and types.
fn read<S: Settings>(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read the settings"))?;
    toml::from_str::<S>(&text).map_err(|error| refuse::<S>(path, &error))?;
    toml::from_str(&text).map_err(|error| refuse::<S>(path, &error))
}

fn settings<S: Settings>(path: &Path, table: Table) -> Result<S> {
    table.try_into().map_err(|error| refuse::<S>(path, &error))
}

fn refuse<S: Settings>(path: &Path, error: &toml::de::Error) -> Error {
    let what = error.to_string();
    Error::input(path, format!("does not hold settings of `supernet {}`: {}", S::COMMAND, what.trim_end()))
}

/// The text of a run folder's `config.toml`.
pub fn to_toml<S: Settings>(settings: &S) -> Result<String> {
    let text = toml::to_string(settings)
        .map_err(|error| Error::usage(format!("a setting cannot be written as TOML: {error}")))?;
    Ok(format!("# Settings of `supernet {}` {}.\n{text}", S::COMMAND, env!("CARGO_PKG_VERSION")))
}

/// Adds the defaults to the help of a command whose flags are settings.
pub fn with_defaults(command: clap::Command, defaults: &impl Serialize) -> clap::Command {
    let defaults = Table::try_from(defaults).unwrap_or_default();
    command.mut_args(|argument| match defaults.get(argument.get_id().as_str()) {
        Some(value) => {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            argument.help(format!("{} [default: {value}]", help.trim_end_matches('.')))
        }
        None => argument,
    })
}
