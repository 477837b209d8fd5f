//! `supernet data`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use supernet::data::{Description, LoadOptions, Spec, contact_sheet, describe, load};
use supernet::{Error, Result};

use super::output::{self, Lines};
use super::parse;

const AFTER_HELP: &str = "\
SPEC is builtin:NAME (fashion, mnist, animal, scripts, textures, emoji), or one of these and a path:
  idx:         folder of IDX files, plain or .gz, named as MNIST's
  folder:      class folders of PNG or JPEG files, with or without train/ and test/
  cifar:       folder of CIFAR binary files
  npz:         NumPy archive of images and labels
  meta-album:  folder with labels.csv and images/

Examples:
  supernet data builtin:fashion
  supernet data folder:photos --size 32x32 --contact-sheet photos.png
  supernet data idx:mnist --json";

/// Describe a dataset: images of each class, sizes, statistics, a contact sheet.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Dataset.
    #[arg(value_name = "SPEC", value_parser = parse::spec)]
    spec: String,
    /// Height and width to which images are brought; as stored where it is not given.
    #[arg(long, value_name = "HxW", value_parser = parse::size)]
    size: Option<(usize, usize)>,
    /// Write a PNG with a row of training images for each class.
    #[arg(long, value_name = "FILE.png")]
    contact_sheet: Option<PathBuf>,
    /// Images of a row of the contact sheet.
    #[arg(long, value_name = "N", default_value_t = 12)]
    images_per_class: u16,
}

#[derive(Serialize)]
struct Report {
    data: String,
    #[serde(flatten)]
    description: Description,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact_sheet: Option<String>,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let spec: Spec = arguments.spec.parse()?;
    let cache = supernet::files::cache_folder();
    let dataset = load(&spec, &LoadOptions { size: arguments.size, cache, ..LoadOptions::default() })?;
    if let Some(path) = &arguments.contact_sheet {
        if path.is_dir() {
            return Err(Error::usage(format!("--contact-sheet {}: is a folder; name a file", path.display())));
        }
        contact_sheet(&dataset, path, usize::from(arguments.images_per_class))?;
    }
    let report = Report {
        data: arguments.spec.clone(),
        description: describe(&dataset),
        contact_sheet: arguments.contact_sheet.as_ref().map(|path| path.display().to_string()),
    };
    output::print(json, &report, lines)
}

fn lines(report: &Report) -> Lines {
    let description = &report.description;
    let floats = |values: &[f32]| values.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(" ");
    let lines = Lines::default()
        .add("dataset", &report.data)
        .add("identity", &description.identity)
        .add("images", description.geometry)
        .add("training images", description.train_images)
        .add("test images", description.test_images)
        .add("mean", floats(&description.normalisation.mean))
        .add("deviation", floats(&description.normalisation.std))
        .add("classes", description.classes.len());
    let lines = description.classes.iter().fold(lines, |lines, class| {
        lines.add(format!("  {}", class.name), format!("{} training, {} test", class.train, class.test))
    });
    let lines = description.notes.iter().fold(lines, |lines, note| lines.add("note", note));
    lines.add_some("contact sheet", report.contact_sheet.as_ref())
}
