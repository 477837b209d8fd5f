//! Validated settings of a search and of a training. They are what a run folder's `config.toml` holds; unknown keys are
//! refused. Defaults are DARTS' (Liu et al. 2019), scaled only where a flag says so.

use serde::{Deserialize, Serialize};

use crate::data::Geometry;
use crate::device::{DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::search::step::Order;

/// One dataset specification or several, written as a string or a list of strings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Specs {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Specs {
    /// All of them.
    pub fn list(&self) -> &[String] {
        match self {
            Self::One(spec) => std::slice::from_ref(spec),
            Self::Many(specs) => specs,
        }
    }
}

impl From<&str> for Specs {
    fn from(spec: &str) -> Self {
        Self::One(spec.into())
    }
}

/// How a pretraining goes through several datasets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mixing {
    /// Batches of all datasets interleaved in every epoch.
    Joint,
    /// One dataset after the other, each with a schedule and optimisers of its own.
    Sequential,
}

/// What becomes of the alphas in a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlphaTransfer {
    /// They start as the source left them.
    Keep,
    /// They are scaled by `temper`, which flattens the choice.
    Temper,
    /// They are drawn anew: weights alone are transferred.
    Reset,
}

/// What becomes of the weights in a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightTransfer {
    /// They start as the source left them, but for the head.
    Keep,
    /// They are drawn anew: alphas alone are transferred.
    Reset,
}

/// The `warm_start` of a search that starts from nothing.
pub const SCRATCH: &str = "none";

/// Settings of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchConfig {
    /// Dataset specifications, such as `builtin:fashion`: one of a search, one or more of a pretraining.
    pub data: Specs,
    /// How several datasets follow each other.
    pub mixing: Mixing,
    /// Height and width to which images are brought; None: as stored.
    pub size: Option<(usize, usize)>,
    /// Channels of the first cell.
    pub channels: usize,
    /// Cells.
    pub layers: usize,
    /// Epochs; of a sequential pretraining, for each dataset.
    pub epochs: usize,
    /// Images of a batch, for weights and alphas each.
    pub batch: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Use only this many training images, stratified.
    pub train_images: Option<usize>,
    /// Share of the training images that trains the weights; the rest trains the alphas.
    pub weight_share: f64,
    /// First or second order.
    pub order: Order,
    /// What computes. The processor goes unsaid, as in the settings of runs that knew no other.
    #[serde(skip_serializing_if = "DeviceSpec::is_cpu")]
    pub device: DeviceSpec,
    /// How the device stores feature maps. f32 goes unsaid, as in the settings of runs that knew no other.
    #[serde(skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
    /// Threads; 0: all cores.
    pub threads: usize,
    /// Largest memory that the engine may take, in MiB.
    pub memory_limit: Option<usize>,
    /// Learning rate of the weights, first epoch.
    pub learning_rate: f64,
    /// Learning rate of the weights, towards which it is annealed.
    pub learning_rate_min: f64,
    /// Momentum.
    pub momentum: f64,
    /// Weight decay of the weights.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Learning rate of the alphas.
    pub alpha_learning_rate: f64,
    /// Weight decay of the alphas.
    pub alpha_weight_decay: f64,
    /// Padding of the random crop.
    pub crop_padding: usize,
    /// Random horizontal flips.
    pub flip: bool,
    /// Side of cutout's hole; 0: none.
    pub cutout: usize,
    /// Steps between checkpoints; 0: at the end of epochs only.
    pub checkpoint_steps: usize,
    /// The zoo entry to start from: its name, `auto` (the nearest), `multi` (that of the most datasets) or `none`.
    pub warm_start: String,
    /// How many nearest sources race, beside the supernet of many datasets and a start from nothing; 0: no race.
    pub race: usize,
    /// Epochs of the first round of a race; each further one doubles them.
    pub race_epochs: usize,
    /// Folder of the zoo.
    pub zoo: String,
    /// What becomes of the source's weights.
    pub transfer_weights: WeightTransfer,
    /// What becomes of the source's alphas.
    pub transfer_alphas: AlphaTransfer,
    /// Factor of the alphas where they are tempered.
    pub temper: f64,
    /// Epochs after a transfer in which only the new head learns.
    pub head_warm_up: usize,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            data: "builtin:fashion".into(),
            mixing: Mixing::Joint,
            size: None,
            channels: 16,
            layers: 8,
            epochs: 50,
            batch: 64,
            seed: 0,
            train_images: None,
            weight_share: 0.5,
            order: Order::First,
            device: DeviceSpec::Cpu,
            precision: Precision::F32,
            threads: 0,
            memory_limit: None,
            learning_rate: 0.025,
            learning_rate_min: 0.001,
            momentum: 0.9,
            weight_decay: 3e-4,
            clip: 5.0,
            alpha_learning_rate: 3e-4,
            alpha_weight_decay: 1e-3,
            crop_padding: 4,
            flip: true,
            cutout: 0,
            checkpoint_steps: 0,
            warm_start: SCRATCH.into(),
            race: 0,
            race_epochs: 2,
            zoo: "zoo".into(),
            transfer_weights: WeightTransfer::Keep,
            transfer_alphas: AlphaTransfer::Keep,
            temper: 0.5,
            head_warm_up: 0,
        }
    }
}

/// Settings of the training of a derived network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// `DARTS_V1`, `DARTS_V2`, or the path of a `genotype.json`.
    pub genotype: String,
    /// Dataset specification.
    pub data: String,
    /// Height and width to which images are brought; None: as stored.
    pub size: Option<(usize, usize)>,
    /// Channels of the first cell.
    pub channels: usize,
    /// Cells.
    pub layers: usize,
    /// Epochs.
    pub epochs: usize,
    /// Images of a batch.
    pub batch: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Use only this many training images, stratified.
    pub train_images: Option<usize>,
    /// What computes. The processor goes unsaid, as in the settings of runs that knew no other.
    #[serde(skip_serializing_if = "DeviceSpec::is_cpu")]
    pub device: DeviceSpec,
    /// How the device stores feature maps. f32 goes unsaid, as in the settings of runs that knew no other.
    #[serde(skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
    /// Threads; 0: all cores.
    pub threads: usize,
    /// Largest memory that the engine may take, in MiB.
    pub memory_limit: Option<usize>,
    /// Learning rate, annealed to zero.
    pub learning_rate: f64,
    /// Momentum.
    pub momentum: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Weight of the auxiliary head's loss; 0: no auxiliary head.
    pub auxiliary: f64,
    /// Probability of cutting a path in the last epoch; it grows linearly from zero.
    pub drop_path: f64,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// Padding of the random crop.
    pub crop_padding: usize,
    /// Random horizontal flips.
    pub flip: bool,
    /// Side of cutout's hole; 0: none.
    pub cutout: usize,
    /// Steps between checkpoints; 0: at the end of epochs only.
    pub checkpoint_steps: usize,
    /// Checkpoint or zoo entry whose weights the training starts from; empty: fresh ones.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub inherit: String,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            genotype: "DARTS_V2".into(),
            data: "builtin:fashion".into(),
            size: None,
            channels: 36,
            layers: 20,
            epochs: 600,
            batch: 96,
            seed: 0,
            train_images: None,
            device: DeviceSpec::Cpu,
            precision: Precision::F32,
            threads: 0,
            memory_limit: None,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 3e-4,
            clip: 5.0,
            auxiliary: 0.4,
            drop_path: 0.2,
            label_smoothing: 0.0,
            crop_padding: 4,
            flip: true,
            cutout: 16,
            checkpoint_steps: 0,
            inherit: String::new(),
        }
    }
}

/// Name, value, what it must be, and whether it is so.
type Rule = (&'static str, String, &'static str, bool);

/// Reports the first rule that is broken.
fn check(rules: &[Rule]) -> Result<()> {
    match rules.iter().find(|r| !r.3) {
        Some((name, value, rule, _)) => Err(Error::usage(format!("{name} is {value}; it must be {rule}"))),
        None => Ok(()),
    }
}

/// A rate-like number: finite and not negative.
fn rate(name: &'static str, value: f64) -> Rule {
    (name, value.to_string(), "a finite number of at least 0", value.is_finite() && value >= 0.0)
}

/// What a search and a training share. The upper bounds are far beyond any use; with [`check_extent`] they keep sums and
/// products of extents within 64 bits.
fn geometry(
    (channels, layers, epochs, batch): (usize, usize, usize, usize),
    size: Option<(usize, usize)>,
) -> [Rule; 5] {
    let side = |n: usize| (1..=4096).contains(&n);
    [
        (
            "channels",
            channels.to_string(),
            "even and from 2 to 65536",
            (2..=65536).contains(&channels) && channels.is_multiple_of(2),
        ),
        ("layers", layers.to_string(), "from 1 to 1024", (1..=1024).contains(&layers)),
        ("epochs", epochs.to_string(), "from 1 to 1000000", (1..=1_000_000).contains(&epochs)),
        (
            "batch",
            batch.to_string(),
            "from 2 (batch norm needs more than one image) to 65536",
            (2..=65536).contains(&batch),
        ),
        ("size", format!("{size:?}"), "from 1x1 to 4096x4096", size.is_none_or(|(h, w)| side(h) && side(w))),
    ]
}

/// Elements of the largest map that is planned at all.
const MAX_ELEMENTS: u128 = 1 << 40;

/// Refuses maps so large that planning them makes no sense.
///
/// # Errors
/// [`Error::Usage`] with the extents.
pub fn check_extent(batch: usize, size: Geometry, channels: usize) -> Result<()> {
    let elements: u128 = [batch, size.height, size.width, channels].into_iter().map(|n| n as u128).product();
    if elements > MAX_ELEMENTS {
        return Err(Error::usage(format!(
            "batch {batch} of images {size} with {channels} channels: a single map would hold {elements} elements, more \
             than any machine holds; use a smaller --batch, --size or --channels"
        )));
    }
    Ok(())
}

impl SearchConfig {
    /// Checks every value that can be wrong on its own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key, the value and the rule.
    pub fn check(&self) -> Result<()> {
        let share = self.weight_share;
        self.device.check()?;
        self.precision.check(self.device)?;
        check(&geometry((self.channels, self.layers, self.epochs, self.batch), self.size))?;
        check(&[
            ("weight_share", share.to_string(), "between 0 and 1", share.is_finite() && share > 0.0 && share < 1.0),
            rate("learning_rate", self.learning_rate),
            rate("learning_rate_min", self.learning_rate_min),
            ("momentum", self.momentum.to_string(), "in 0..1", (0.0..1.0).contains(&self.momentum)),
            rate("weight_decay", self.weight_decay),
            ("clip", self.clip.to_string(), "positive", self.clip > 0.0),
            rate("alpha_learning_rate", self.alpha_learning_rate),
            rate("alpha_weight_decay", self.alpha_weight_decay),
            (
                "temper",
                self.temper.to_string(),
                "a finite number above 0",
                self.temper.is_finite() && self.temper > 0.0,
            ),
            ("head_warm_up", self.head_warm_up.to_string(), "fewer than the epochs", self.head_warm_up < self.epochs),
            ("race_epochs", self.race_epochs.to_string(), "at least 1", self.race_epochs > 0),
            ("data", format!("{:?}", self.data.list()), "at least one dataset", !self.data.list().is_empty()),
        ])
    }
}

impl TrainConfig {
    /// Checks every value that can be wrong on its own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key, the value and the rule.
    pub fn check(&self) -> Result<()> {
        let smoothing = self.label_smoothing;
        self.device.check()?;
        self.precision.check(self.device)?;
        check(&geometry((self.channels, self.layers, self.epochs, self.batch), self.size))?;
        check(&[
            rate("learning_rate", self.learning_rate),
            ("momentum", self.momentum.to_string(), "in 0..1", (0.0..1.0).contains(&self.momentum)),
            rate("weight_decay", self.weight_decay),
            ("clip", self.clip.to_string(), "positive", self.clip > 0.0),
            rate("auxiliary", self.auxiliary),
            ("drop_path", self.drop_path.to_string(), "in 0..1", (0.0..1.0).contains(&self.drop_path)),
            ("label_smoothing", smoothing.to_string(), "in 0..1", (0.0..1.0).contains(&smoothing)),
        ])
    }
}
