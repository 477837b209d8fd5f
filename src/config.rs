//! Validated settings of a search and of a training. They are what a run folder's `config.toml` holds; unknown keys are
//! refused. Defaults are DARTS' (Liu et al. 2019), scaled only where a flag says so.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::search::step::Order;

/// Settings of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchConfig {
    /// Dataset specification, such as `builtin:fashion`.
    pub data: String,
    /// Height and width to which images are brought; None: as stored.
    pub size: Option<(usize, usize)>,
    /// Channels of the first cell.
    pub channels: usize,
    /// Cells.
    pub layers: usize,
    /// Epochs.
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
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            data: "builtin:fashion".into(),
            size: None,
            channels: 16,
            layers: 8,
            epochs: 50,
            batch: 64,
            seed: 0,
            train_images: None,
            weight_share: 0.5,
            order: Order::First,
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
        }
    }
}

/// Checks a list of (name, value, what it must be, whether it is so).
fn check(rules: &[(&str, String, &str, bool)]) -> Result<()> {
    match rules.iter().find(|r| !r.3) {
        Some((name, value, rule, _)) => Err(Error::usage(format!("{name} is {value}; it must be {rule}"))),
        None => Ok(()),
    }
}

/// A rate-like number: finite and not negative.
fn rate(name: &'static str, value: f64) -> (&'static str, String, &'static str, bool) {
    (name, value.to_string(), "a finite number of at least 0", value.is_finite() && value >= 0.0)
}

/// A count that must not be zero.
fn count(name: &'static str, value: usize) -> (&'static str, String, &'static str, bool) {
    (name, value.to_string(), "at least 1", value > 0)
}

impl SearchConfig {
    /// Checks every value that can be wrong on its own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the key, the value and the rule.
    pub fn check(&self) -> Result<()> {
        let share = self.weight_share;
        check(&[
            (
                "channels",
                self.channels.to_string(),
                "even and at least 2",
                self.channels >= 2 && self.channels.is_multiple_of(2),
            ),
            count("layers", self.layers),
            count("epochs", self.epochs),
            ("batch", self.batch.to_string(), "at least 2 (batch norm needs more than one image)", self.batch >= 2),
            ("size", format!("{:?}", self.size), "at least 1x1", self.size.is_none_or(|(h, w)| h > 0 && w > 0)),
            ("weight_share", share.to_string(), "between 0 and 1", share.is_finite() && share > 0.0 && share < 1.0),
            rate("learning_rate", self.learning_rate),
            rate("learning_rate_min", self.learning_rate_min),
            ("momentum", self.momentum.to_string(), "in 0..1", (0.0..1.0).contains(&self.momentum)),
            rate("weight_decay", self.weight_decay),
            ("clip", self.clip.to_string(), "positive", self.clip > 0.0),
            rate("alpha_learning_rate", self.alpha_learning_rate),
            rate("alpha_weight_decay", self.alpha_weight_decay),
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
        check(&[
            (
                "channels",
                self.channels.to_string(),
                "even and at least 2",
                self.channels >= 2 && self.channels.is_multiple_of(2),
            ),
            count("layers", self.layers),
            count("epochs", self.epochs),
            ("batch", self.batch.to_string(), "at least 2 (batch norm needs more than one image)", self.batch >= 2),
            ("size", format!("{:?}", self.size), "at least 1x1", self.size.is_none_or(|(h, w)| h > 0 && w > 0)),
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
