//! `supernet embed`, and the flags that choose an embedder.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use supernet::data::Geometry;
use supernet::device::DeviceSpec;
use supernet::embedding::{Embedder, Profile, Sample, Signature, write};
use supernet::run::{self, Observer};
use supernet::zoo::{self, Zoo};
use supernet::{Error, Result};

use super::output::{self, Lines, grouped};
use super::progress::Progress;
use super::{folder, parse};

const AFTER_HELP: &str = "\
Points are kept in the cache folder (SUPERNET_CACHE) and computed once. Only training images are embedded.

Embedders:
  pixels             the images themselves, brought to one size
  zoo                the trunk of a zoo entry (--trunk)
  efficientnet-lite0 ImageNet features; scripts/convert_efficientnet.py makes the file of weights
  resnet18           torchvision's, as the released scripts of supernet transfer use it; the weights are yours:
                     safetensors.torch.save_file(model.state_dict(), 'resnet18.safetensors')

Examples:
  supernet embed builtin:fashion --out fashion.npy
  supernet embed builtin:emoji --embedder zoo --trunk digits --zoo zoo --out emoji.safetensors
  supernet embed folder:photos --size 96x96 --embedder efficientnet-lite0 --out photos.safetensors --json";

/// Turn the training images of a dataset into points.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Dataset.
    #[arg(value_name = "SPEC", value_parser = parse::spec)]
    spec: String,
    /// Name of the embedder: pixels, zoo, efficientnet-lite0 or resnet18.
    #[arg(long, value_name = "NAME", value_parser = parse::embedder, default_value = "pixels")]
    embedder: Choice,
    #[command(flatten)]
    flags: EmbedderFlags,
    /// Folder of the zoo.
    #[arg(long, value_name = "DIR", default_value = "zoo")]
    zoo: PathBuf,
    /// Height and width to which the dataset's images are brought first; as stored where it is not given.
    #[arg(long, value_name = "HxW", value_parser = parse::size)]
    size: Option<(usize, usize)>,
    /// At most so many images, stratified.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_samples: u32,
    /// Seed of the choice of images.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// File of points and labels: .safetensors, or .npy with a second file .labels.npy.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The embedders by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Pixels,
    Zoo,
    EfficientNetLite0,
    ResNet18,
}

const LITE0: &str = "efficientnet-lite0";
const RESNET18: &str = "resnet18";

/// Where the weights of an embedder lie unless a file is named.
fn cached_weights(embedder: &str) -> Option<PathBuf> {
    supernet::files::cache_folder().map(|folder| folder.join(format!("{embedder}.safetensors")))
}

/// What embedders need.
#[derive(Args)]
pub struct EmbedderFlags {
    /// How pixels enter: normalised, or paper (0 to 255, as the released scripts do; pixels and resnet18 only).
    #[arg(long, value_name = "P", value_parser = parse::profile, default_value = "normalised")]
    profile: Profile,
    /// Weights of efficientnet-lite0 or resnet18; NAME.safetensors in the cache folder where it is not given.
    #[arg(long, value_name = "FILE")]
    embedder_weights: Option<PathBuf>,
    /// Size and channels to which pixels brings images; 12x12x3 where it is not given.
    #[arg(long, value_name = "HxWxC", value_parser = parse::geometry)]
    embedder_size: Option<Geometry>,
    /// Zoo entry whose trunk is the embedder `zoo` [default: that of the most datasets].
    #[arg(long, value_name = "ENTRY")]
    trunk: Option<String>,
    /// What computes: cpu, wgpu or cuda, the latter two with :N where there are several.
    #[arg(long, value_name = "DEVICE", value_parser = parse::device, default_value = "cpu")]
    device: DeviceSpec,
    /// Threads; 0 for all cores.
    #[arg(long, value_name = "T", default_value_t = 0)]
    threads: u16,
}

impl EmbedderFlags {
    /// Makes an embedder; refuses flags that it would ignore.
    pub fn embedder(&self, choice: Choice, folder: &Zoo) -> Result<Embedder> {
        let on = (self.device, self.threads());
        match choice {
            Choice::Pixels => Ok(Embedder::pixels(self.embedder_size.unwrap_or(Embedder::PIXELS), self.profile)),
            Choice::Zoo => {
                let name = match &self.trunk {
                    Some(name) => name.clone(),
                    None => folder.broadest()?.ok_or_else(|| {
                        Error::usage(
                            "embedder zoo needs a supernet of several datasets, and the zoo has none; name the entry \
                             whose trunk it shall be (--trunk ENTRY, see `supernet zoo list`)",
                        )
                    })?,
                };
                let name = name.as_str();
                zoo::embed::trunk(&folder.load(name)?, &folder.file(name), self.profile, on)
            }
            Choice::EfficientNetLite0 => {
                let path = self.weights(LITE0, "make them with scripts/convert_efficientnet.py")?;
                Embedder::efficientnet_lite0(&path, self.profile, on)
            }
            Choice::ResNet18 => {
                let path = self.weights(RESNET18, "save torchvision's state_dict with safetensors.torch.save_file")?;
                Embedder::resnet18(&path, self.profile, on)
            }
        }
    }

    /// The file of weights of an embedder. `how` to make it.
    fn weights(&self, embedder: &str, how: &str) -> Result<PathBuf> {
        let place = self.embedder_weights.clone().or_else(|| cached_weights(embedder));
        place.clone().filter(|path| path.exists()).ok_or_else(|| {
            let place = place.map_or_else(|| "the cache folder".into(), |p| p.display().to_string());
            Error::usage(format!(
                "there are no weights of {embedder} at {place}; {how}, or name the file (--embedder-weights FILE)"
            ))
        })
    }

    /// Refuses flags that none of the chosen embedders uses.
    pub fn check(&self, choices: &[Choice]) -> Result<()> {
        let unused = [
            (
                self.embedder_weights.is_some(),
                "--embedder-weights",
                &[Choice::EfficientNetLite0, Choice::ResNet18][..],
                "efficientnet-lite0 or resnet18",
            ),
            (self.embedder_size.is_some(), "--embedder-size", &[Choice::Pixels], "pixels"),
            (self.trunk.is_some(), "--trunk", &[Choice::Zoo], "zoo"),
        ];
        match unused.iter().find(|(given, _, of, _)| *given && !of.iter().any(|choice| choices.contains(choice))) {
            Some((_, flag, _, names)) => Err(Error::usage(format!("{flag} is for --embedder {names}"))),
            None => Ok(()),
        }
    }

    /// Makes the embedder of a choice, or, where there is none, the one that saw the most images: efficientnet-lite0 if
    /// its weights are at hand, else the trunk of the zoo's supernet of most datasets, else pixels.
    pub fn pick(&self, choice: Option<Choice>, zoo: &Zoo) -> Result<(Choice, Embedder)> {
        if let Some(choice) = choice {
            return Ok((choice, self.embedder(choice, zoo)?));
        }
        let asked = self.embedder_size.is_some() || self.profile == Profile::Paper;
        if !asked && (self.embedder_weights.is_some() || cached_weights(LITE0).is_some_and(|path| path.exists())) {
            return Ok((Choice::EfficientNetLite0, self.embedder(Choice::EfficientNetLite0, zoo)?));
        }
        if !asked && (self.trunk.is_some() || zoo.broadest()?.is_some()) {
            return Ok((Choice::Zoo, self.embedder(Choice::Zoo, zoo)?));
        }
        Ok((Choice::Pixels, self.embedder(Choice::Pixels, zoo)?))
    }

    /// The device of the engine.
    pub fn device(&self) -> DeviceSpec {
        self.device
    }

    /// Threads of the engine.
    pub fn threads(&self) -> usize {
        run::threads(usize::from(self.threads))
    }

    /// Starts the threads that convert images.
    pub fn limit_threads(&self) -> Result<()> {
        folder::limit_threads(usize::from(self.threads))
    }
}

#[derive(Serialize)]
struct Report {
    data: String,
    n: usize,
    dim: usize,
    classes: usize,
    #[serde(flatten)]
    signature: Signature,
    cached: bool,
    files: Vec<String>,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let Arguments { spec, embedder, flags, out, .. } = arguments;
    flags.check(&[*embedder])?;
    out.as_deref().map_or(Ok(()), write::check)?;
    flags.limit_threads()?;
    let mut embedder = flags.embedder(*embedder, &Zoo::new(&arguments.zoo))?;
    let dataset = run::load_dataset(spec, arguments.size, None, None, 0)?;
    let mut progress = Progress::new();
    dataset.notes.iter().for_each(|note| progress.note(note));
    let sample = Sample { max: arguments.max_samples as usize, seed: arguments.seed };
    let cache = supernet::files::cache_folder();
    let (embedded, cached) = embedder.embed(&dataset, sample, cache.as_deref(), &mut progress)?;
    let files = out.as_deref().map_or(Ok(Vec::new()), |out| write::write(out, &embedded))?;
    drop(progress);
    let report = Report {
        data: spec.clone(),
        n: embedded.len(),
        dim: embedded.dim,
        classes: embedded.classes.len(),
        signature: embedded.signature,
        cached,
        files: files.iter().map(|file| file.display().to_string()).collect(),
    };
    output::print(json, &report, |report| {
        let lines = Lines::default()
            .add("dataset", &report.data)
            .add("embedder", &report.signature)
            .add("points", grouped(report.n))
            .add("elements of a point", grouped(report.dim))
            .add("classes", report.classes)
            .add("cache", if report.cached { "hit" } else { "miss" });
        report.files.iter().fold(lines, |lines, file| lines.add("file", file))
    })
}
