//! `supernet zoo`: the folder of pretrained supernets.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use supernet::checkpoint::Checkpoint;
use supernet::data::Geometry;
use supernet::embedding::Embedder;
use supernet::zoo::embed::{CoresetOptions, Made, add_coresets, sources};
use supernet::zoo::{Entry, Zoo};
use supernet::{Error, Result};

use super::embed::{Choice, EmbedderFlags};
use super::output::{self, Lines, duration, grouped};
use super::parse;
use super::progress::Progress;

const AFTER_HELP: &str = "\
Examples:
  supernet zoo list --zoo zoo
  supernet zoo add runs/mnist/checkpoint.safetensors --name mnist --licence MIT --zoo zoo
  supernet zoo embed --embedder zoo --trunk mnist
  supernet zoo show mnist --json";

/// List, add, show, verify or remove pretrained supernets.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Folder of the zoo.
    #[arg(long, value_name = "DIR", default_value = "zoo", global = true)]
    zoo: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// All entries.
    List,
    /// Make an entry of the checkpoint of a search or a pretraining.
    Add {
        /// Checkpoint of a supernet.
        checkpoint: PathBuf,
        /// Name of the entry.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Licence of the datasets, which the weights carry on.
        #[arg(long, value_name = "TEXT", default_value = "unknown")]
        licence: String,
        /// Replace an entry of that name.
        #[arg(long)]
        replace: bool,
        /// Embedder of the coresets by which distances to the entry need none of its images; repeatable.
        #[arg(long, value_name = "NAME", value_parser = parse::embedder, default_value = "pixels")]
        embedder: Vec<Choice>,
        /// Do without coresets: the datasets need not be there.
        #[arg(long, conflicts_with = "embedder")]
        no_coreset: bool,
        #[command(flatten)]
        coresets: CoresetFlags,
    },
    /// Compute the coresets of all entries with an embedder, in place of those that it made before.
    Embed {
        /// Name of the embedder: pixels, zoo, efficientnet-lite0 or resnet18.
        #[arg(long, value_name = "NAME", value_parser = parse::embedder, default_value = "pixels")]
        embedder: Choice,
        #[command(flatten)]
        coresets: CoresetFlags,
    },
    /// Everything known of an entry.
    Show {
        /// Its name.
        name: String,
    },
    /// Check every entry: checksums, and that no tensor is missing.
    Verify,
    /// Delete an entry's file.
    Remove {
        /// Its name.
        name: String,
    },
}

/// How coresets are made.
#[derive(Args)]
struct CoresetFlags {
    #[command(flatten)]
    embedder: EmbedderFlags,
    /// Points that an entry keeps of each of its datasets; at least one a class.
    #[arg(long, value_name = "N", default_value_t = 512)]
    coreset_points: u32,
    /// Images of each dataset that make the statistics of its classes.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    coreset_images: u32,
    /// Seed of the choice of images.
    #[arg(long, value_name = "S", default_value_t = 0)]
    coreset_seed: u64,
}

impl CoresetFlags {
    fn options(&self) -> CoresetOptions {
        let (points, images) = (self.coreset_points as usize, self.coreset_images as usize);
        CoresetOptions { points, images, seed: self.coreset_seed }
    }
}

/// Embeds the sources of an entry; `path` is its file, for messages.
fn embed(entry: &mut Entry, path: &Path, embedders: &mut [Embedder], options: CoresetOptions) -> Result<Vec<Made>> {
    let (datasets, cache, mut progress) = (sources(entry, path)?, supernet::files::cache_folder(), Progress::new());
    let mut made = Vec::new();
    for embedder in embedders {
        made.extend(add_coresets(entry, &datasets, embedder, options, (cache.as_deref(), &mut progress))?);
    }
    Ok(made)
}

/// An entry whose coresets were made.
#[derive(Serialize)]
struct Embedded {
    name: String,
    coresets: Vec<Made>,
}

/// An entry in short.
#[derive(Serialize)]
struct Item {
    name: String,
    dataset: String,
    path: String,
    channels: usize,
    layers: usize,
    size: Geometry,
    epochs: usize,
    seconds: f64,
    licence: String,
    bytes: u64,
}

fn item(zoo: &Zoo, path: &Path) -> Result<Item> {
    let entry = Entry::load(path)?;
    let meta = &entry.meta;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
    if stem.as_deref() != Some(&meta.name) {
        return Err(Error::input(
            path,
            format!("holds the entry `{}`; rename it to {}", meta.name, zoo.file(&meta.name).display()),
        ));
    }
    Ok(Item {
        name: meta.name.clone(),
        dataset: meta.sources.iter().map(|s| s.dataset.as_str()).collect::<Vec<_>>().join("+"),
        path: path.display().to_string(),
        channels: meta.space.channels,
        layers: meta.space.layers,
        size: meta.size,
        epochs: meta.record.epochs,
        seconds: meta.record.seconds,
        licence: meta.licence.clone(),
        bytes: std::fs::metadata(path).map_err(Error::io(path, "read"))?.len(),
    })
}

fn describe(lines: Lines, item: &Item) -> Lines {
    let Item { name, dataset, channels, layers, size, epochs, .. } = item;
    lines.add(
        name,
        format!(
            "{dataset}, {size}, channels {channels}, layers {layers}, {epochs} epochs, {} bytes",
            grouped(item.bytes as usize)
        ),
    )
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let zoo = Zoo::new(&arguments.zoo);
    match &arguments.action {
        Action::List | Action::Verify => {
            let items: Vec<Item> = zoo.files()?.iter().map(|path| item(&zoo, path)).collect::<Result<_>>()?;
            output::print(json, &items, |items| items.iter().fold(Lines::default(), describe))
        }
        Action::Add { checkpoint, name, licence, replace, embedder, no_coreset, coresets } => {
            // Known before minutes of embedding, not after.
            zoo.check_free(name, *replace)?;
            let mut entry = Entry::from_checkpoint(&Checkpoint::load(checkpoint)?, checkpoint, name, licence)?;
            let chosen = if *no_coreset { &[][..] } else { embedder };
            coresets.embedder.check(chosen)?;
            if !chosen.is_empty() {
                coresets.embedder.limit_threads()?;
                let each = chosen.iter().map(|&choice| coresets.embedder.embedder(choice, &zoo));
                let mut embedders = each.collect::<Result<Vec<_>>>()?;
                embed(&mut entry, checkpoint, &mut embedders, coresets.options()).map_err(|error| match error {
                    Error::Input { path, message } => {
                        Error::Input { path, message: format!("{message}; --no-coreset does without") }
                    }
                    other => other,
                })?;
            }
            let added = item(&zoo, &zoo.add(&entry, *replace)?)?;
            output::print(json, &added, |added| describe(Lines::default(), added))
        }
        Action::Embed { embedder, coresets } => {
            coresets.embedder.check(&[*embedder])?;
            coresets.embedder.limit_threads()?;
            let mut embedder = [coresets.embedder.embedder(*embedder, &zoo)?];
            let mut report = Vec::new();
            for path in zoo.files()? {
                let mut entry = Entry::load(&path)?;
                let made = embed(&mut entry, &path, &mut embedder, coresets.options())?;
                entry.save(&path)?;
                report.push(Embedded { name: entry.meta.name, coresets: made });
            }
            output::print(json, &report, |report| {
                let each = report.iter().flat_map(|entry| entry.coresets.iter().map(move |made| (entry, made)));
                each.fold(Lines::default(), |lines, (entry, made)| {
                    let Made { dataset, embedder, points, cached } = made;
                    let from = if *cached { ", from the cache" } else { "" };
                    lines.add(&entry.name, format!("{points} points of {dataset} by {embedder}{from}"))
                })
            })
        }
        Action::Show { name } => {
            let entry = zoo.load(name)?;
            output::print(json, &entry.meta, |meta| {
                let lines = Lines::default()
                    .add("name", &meta.name)
                    .add("licence", &meta.licence)
                    .add("images", meta.size)
                    .add("channels", meta.space.channels)
                    .add("layers", meta.space.layers)
                    .add("epochs", meta.record.epochs)
                    .add("time", duration(meta.record.seconds));
                let lines = meta.sources.iter().fold(lines, |lines, s| {
                    let (classes, images) = (s.classes.len(), s.images);
                    lines.add("dataset", format!("{}, {classes} classes, {images} training images", s.dataset))
                });
                meta.coresets.iter().fold(lines, |lines, coreset| {
                    let dataset = meta.sources.get(coreset.source).map_or("", |source| &source.dataset);
                    lines.add("coreset", format!("{} points of {dataset} by {}", coreset.points, coreset.signature))
                })
            })
        }
        Action::Remove { name } => {
            let removed = zoo.remove(name)?.display().to_string();
            output::print(json, &serde_json::json!({ "removed": removed }), |_| {
                Lines::default().add("removed", &removed)
            })
        }
    }
}
