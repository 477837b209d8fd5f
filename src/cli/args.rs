//! Arguments as the user writes them. Flags that are settings of a run are optional here: what is not given comes from
//! `--config` or from the defaults.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use supernet::data::Geometry;
use supernet::search::step::Order;

/// Neural architecture search on a kernel engine of its own: search cells for an image dataset, train the network that
/// they make, export it.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Search cells on a dataset by bilevel optimisation of a supernet
    #[command(after_help = "Examples:
  supernet search --data builtin:fashion --channels 8 --layers 5 --epochs 10 --out runs/fashion
  supernet search --data folder:photos --size 32x32 --order second --out runs/photos
  supernet search --resume --out runs/fashion")]
    Search(SearchArgs),
    /// Train the network of a genotype and report its test accuracy
    #[command(after_help = "Examples:
  supernet train --genotype runs/fashion/genotype.json --data builtin:fashion --channels 16 --layers 8 \\
      --epochs 30 --out runs/fashion-net
  supernet train --genotype DARTS_V2 --data cifar:cifar-10-batches-bin --out runs/v2")]
    Train(TrainArgs),
    /// Evaluate a trained network on the test part of a dataset
    #[command(after_help = "Examples:
  supernet evaluate --checkpoint runs/fashion-net/checkpoint.safetensors --data builtin:fashion --json")]
    Evaluate(EvaluateArgs),
    /// Write a trained network as ONNX
    #[command(after_help = "Examples:
  supernet export --checkpoint runs/fashion-net/checkpoint.safetensors --out fashion.onnx")]
    Export(ExportArgs),
    /// List the devices that this build can run on
    #[command(after_help = "Examples:
  supernet devices
  supernet devices --json")]
    Devices(JsonArgs),
    /// Describe a dataset: counts per class, sizes, a contact sheet
    #[command(after_help = "Examples:
  supernet data builtin:emoji --contact-sheet emoji.png
  supernet data folder:photos --size 32x32 --json

A SPEC is builtin:NAME (fashion, mnist, animal, scripts, textures, emoji), or idx:, folder:, cifar:, npz: or
meta-album: followed by a path.")]
    Data(DataArgs),
    /// Memory, operations, parameters and launches of a configuration, without running it
    #[command(after_help = "Examples:
  supernet plan --channels 16 --layers 8 --classes 10 --size 32x32x3 --batch 64
  supernet plan --genotype DARTS_V2 --channels 36 --layers 20 --classes 10 --size 32x32x3 --batch 96 --json")]
    Plan(PlanArgs),
    /// Time whole search steps on synthetic images, with the very programs that `search` runs
    #[command(after_help = "Examples:
  supernet step --channels 16 --layers 8 --batch 64 --size 32x32x3 --threads 2
  supernet step --channels 8 --layers 5 --batch 32 --size 32x32x3 --order second --steps 5 --json")]
    Step(StepArgs),
}

/// First or second order.
#[derive(Clone, Copy, ValueEnum)]
pub enum OrderArg {
    First,
    Second,
}

impl From<OrderArg> for Order {
    fn from(order: OrderArg) -> Self {
        match order {
            OrderArg::First => Self::First,
            OrderArg::Second => Self::Second,
        }
    }
}

fn sides(text: &str, count: usize, form: &str) -> Result<Vec<usize>, String> {
    let parsed: Option<Vec<usize>> = text.split('x').map(|part| part.parse().ok()).collect();
    match parsed {
        Some(sides) if sides.len() == count && sides.iter().all(|&s| s > 0 && s <= 1 << 15) => Ok(sides),
        _ => Err(format!("`{text}` is no size; write {form}, each from 1 to 32768")),
    }
}

fn size(text: &str) -> Result<(usize, usize), String> {
    sides(text, 2, "HEIGHTxWIDTH such as 32x32").map(|s| (s[0], s[1]))
}

fn geometry(text: &str) -> Result<Geometry, String> {
    let sides = sides(text, 3, "HEIGHTxWIDTHxCHANNELS such as 32x32x3")?;
    if sides[2] > 4 {
        return Err(format!("`{text}` has {} channels; images have 1 to 4", sides[2]));
    }
    Ok(Geometry { height: sides[0], width: sides[1], channels: sides[2] })
}

/// What every training run is told.
#[derive(Args)]
pub struct RunArgs {
    /// Dataset: builtin:NAME, or idx:, folder:, cifar:, npz:, meta-album: and a path
    #[arg(long, value_name = "SPEC")]
    pub data: Option<String>,
    /// Height and width to which images are brought [default: as stored]
    #[arg(long, value_name = "HxW", value_parser = size)]
    pub size: Option<(usize, usize)>,
    /// Channels of the first cell
    #[arg(long)]
    pub channels: Option<usize>,
    /// Cells
    #[arg(long)]
    pub layers: Option<usize>,
    /// Epochs
    #[arg(long)]
    pub epochs: Option<usize>,
    /// Images of a batch
    #[arg(long)]
    pub batch: Option<usize>,
    /// Seed of everything random
    #[arg(long)]
    pub seed: Option<u64>,
    /// Use only this many training images, stratified
    #[arg(long, value_name = "N")]
    pub train_images: Option<usize>,
    /// Threads; 0 for all cores
    #[arg(long)]
    pub threads: Option<usize>,
    /// Refuse to start if the engine would take more
    #[arg(long, value_name = "MIB")]
    pub memory_limit: Option<usize>,
    /// Learning rate of the weights
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Momentum of the weights
    #[arg(long)]
    pub momentum: Option<f64>,
    /// Weight decay of the weights
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Largest gradient norm
    #[arg(long)]
    pub clip: Option<f64>,
    /// Padding of the random crop
    #[arg(long)]
    pub crop_padding: Option<usize>,
    /// Random horizontal flips
    #[arg(long, value_name = "BOOL")]
    pub flip: Option<bool>,
    /// Side of cutout's hole; 0 for none
    #[arg(long)]
    pub cutout: Option<usize>,
    /// Steps between checkpoints; 0 for the end of epochs only
    #[arg(long, value_name = "STEPS")]
    pub checkpoint_steps: Option<usize>,
    /// Settings in TOML, overridden by flags
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run folder: checkpoint, metrics, config
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue from the checkpoint in the run folder
    #[arg(long)]
    pub resume: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct SearchArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Approximation of the architecture gradient
    #[arg(long)]
    pub order: Option<OrderArg>,
    /// Share of the training images that trains the weights; the rest trains the alphas
    #[arg(long, value_name = "SHARE")]
    pub weight_share: Option<f64>,
    /// Learning rate towards which the weights' is annealed
    #[arg(long)]
    pub learning_rate_min: Option<f64>,
    /// Learning rate of the alphas
    #[arg(long)]
    pub alpha_learning_rate: Option<f64>,
    /// Weight decay of the alphas
    #[arg(long)]
    pub alpha_weight_decay: Option<f64>,
}

#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// genotype.json of a search, or DARTS_V1, DARTS_V2
    #[arg(long, value_name = "FILE")]
    pub genotype: Option<String>,
    /// Weight of the auxiliary head's loss; 0 for no auxiliary head
    #[arg(long, value_name = "W")]
    pub auxiliary: Option<f64>,
    /// Probability of cutting a path in the last epoch
    #[arg(long, value_name = "P")]
    pub drop_path: Option<f64>,
    /// Label smoothing
    #[arg(long)]
    pub label_smoothing: Option<f64>,
}

#[derive(Args)]
pub struct EvaluateArgs {
    /// checkpoint.safetensors of a training
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// Dataset whose test part is used
    #[arg(long, value_name = "SPEC")]
    pub data: String,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ExportArgs {
    /// checkpoint.safetensors of a training
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// ONNX file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct JsonArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct DataArgs {
    /// Dataset
    pub spec: String,
    /// Height and width to which images are brought [default: as stored]
    #[arg(long, value_name = "HxW", value_parser = size)]
    pub size: Option<(usize, usize)>,
    /// Write a picture with some images of each class
    #[arg(long, value_name = "FILE.png")]
    pub contact_sheet: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct PlanArgs {
    /// Channels of the first cell
    #[arg(long, default_value_t = 16)]
    pub channels: usize,
    /// Cells
    #[arg(long, default_value_t = 8)]
    pub layers: usize,
    /// Classes
    #[arg(long, default_value_t = 10)]
    pub classes: usize,
    /// Extent of the images
    #[arg(long, value_name = "HxWxC", default_value = "32x32x3", value_parser = geometry)]
    pub size: Geometry,
    /// Images of a batch
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Approximation of the architecture gradient
    #[arg(long, default_value = "first")]
    pub order: OrderArg,
    /// Plan the derived network of a genotype instead of the supernet
    #[arg(long, value_name = "FILE")]
    pub genotype: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct StepArgs {
    /// Channels of the first cell
    #[arg(long, default_value_t = 16)]
    pub channels: usize,
    /// Cells
    #[arg(long, default_value_t = 8)]
    pub layers: usize,
    /// Classes
    #[arg(long, default_value_t = 10)]
    pub classes: usize,
    /// Extent of the images
    #[arg(long, value_name = "HxWxC", default_value = "32x32x3", value_parser = geometry)]
    pub size: Geometry,
    /// Images of a batch
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Approximation of the architecture gradient
    #[arg(long, default_value = "first")]
    pub order: OrderArg,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Steps before the timed ones
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Steps timed
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_or_refused_with_the_form() {
        assert_eq!(size("28x32"), Ok((28, 32)));
        assert_eq!(geometry("9x7x1").unwrap().to_string(), "9x7x1");
        for bad in ["", "32", "32x", "0x4", "-1x3", "1x2x3", "99999x1"] {
            assert!(size(bad).unwrap_err().contains("HEIGHTxWIDTH"), "{bad}");
        }
        assert!(geometry("8x8x5").unwrap_err().contains("1 to 4"));
    }
}
