//! `supernet zoo`: the folder of pretrained supernets.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use supernet::checkpoint::Checkpoint;
use supernet::data::Geometry;
use supernet::zoo::{Entry, Zoo};
use supernet::{Error, Result};

use super::output::{self, Lines, duration, grouped};

const AFTER_HELP: &str = "\
Examples:
  supernet zoo list --zoo zoo
  supernet zoo add runs/mnist/checkpoint.safetensors --name mnist --licence MIT --zoo zoo
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

fn item(zoo: &Zoo, path: &std::path::Path) -> Result<Item> {
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
        Action::Add { checkpoint, name, licence, replace } => {
            let entry = Entry::from_checkpoint(&Checkpoint::load(checkpoint)?, checkpoint, name, licence)?;
            let added = item(&zoo, &zoo.add(&entry, *replace)?)?;
            output::print(json, &added, |added| describe(Lines::default(), added))
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
                meta.sources.iter().fold(lines, |lines, s| {
                    let (classes, images) = (s.classes.len(), s.images);
                    lines.add("dataset", format!("{}, {classes} classes, {images} training images", s.dataset))
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
