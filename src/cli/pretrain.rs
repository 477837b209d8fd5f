//! `supernet pretrain`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use supernet::checkpoint::Checkpoint;
use supernet::config::SearchConfig;
use supernet::embedding::{Embedder, Profile};
use supernet::run::Observer;
use supernet::search::run::SearchReport;
use supernet::search::search;
use supernet::zoo::embed::{self, CoresetOptions};
use supernet::zoo::{self, Entry, Zoo};
use supernet::{Error, Result};

use super::folder::{self, FolderFlags};
use super::progress::Progress;
use super::settings::PretrainFlags;
use super::{output, search as search_command};

const AFTER_HELP: &str = "\
Examples:
  supernet pretrain --data builtin:mnist --channels 8 --layers 5 --epochs 20 --out runs/mnist --zoo zoo --name mnist
  supernet pretrain --data builtin:mnist --data builtin:emoji --size 28x28 --out runs/two --zoo zoo --name two";

/// Pretrain a supernet on one dataset or on several, and add it to a zoo.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    folder: FolderFlags,
    #[command(flatten)]
    settings: PretrainFlags,
    /// Folder of the zoo.
    #[arg(long, value_name = "DIR", default_value = "zoo")]
    zoo: PathBuf,
    /// Name of the new entry.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Licence of the datasets, which the weights carry on.
    #[arg(long, value_name = "TEXT", default_value = "unknown")]
    licence: String,
    /// Replace an entry of that name.
    #[arg(long)]
    replace: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    search: SearchReport,
    name: String,
    path: String,
}

/// Puts coresets of pixels in, which cost little; others are made by `supernet zoo embed`.
fn add_coresets(entry: &mut Entry, path: &Path) -> Result<()> {
    let (datasets, cache, mut progress) =
        (embed::sources(entry, path)?, supernet::files::cache_folder(), Progress::new());
    let mut embedder = Embedder::pixels(Embedder::PIXELS, Profile::default());
    let around: (_, &mut dyn Observer) = (cache.as_deref(), &mut progress);
    embed::add_coresets(entry, &datasets, &mut embedder, CoresetOptions::default(), around).map(|_| ())
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    // Known before hours of training, not after.
    zoo::check_name(&arguments.name)?;
    let zoo = Zoo::new(&arguments.zoo);
    let path = zoo.file(&arguments.name);
    if path.exists() && !arguments.replace {
        return Err(Error::usage(format!("{} exists; choose another --name or give --replace", path.display())));
    }
    let (out, threads) = (&arguments.folder.out, |settings: &SearchConfig| settings.threads);
    let report = folder::run(&arguments.folder, &arguments.settings, threads, |settings, resume, control| {
        search(settings, out, resume, control)
    })?;
    let file = out.join("checkpoint.safetensors");
    let mut entry = Entry::from_checkpoint(&Checkpoint::load(&file)?, &file, &arguments.name, &arguments.licence)?;
    if let Err(error) = add_coresets(&mut entry, &file) {
        // The training is worth more than its coreset, which can be made at any time.
        Progress::new().note(&format!("{error}; the entry has no coreset, `supernet zoo embed` makes it"));
    }
    let path = zoo.add(&entry, arguments.replace)?.display().to_string();
    let report = Report { search: report, name: arguments.name.clone(), path };
    output::print(json, &report, |r| search_command::lines(&r.search).add("zoo entry", &r.path))
}
