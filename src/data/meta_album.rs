//! Meta-Album folders: `labels.csv` with a row an image and the images themselves in `images/`.
//!
//! The columns are `FILE_NAME` and `CATEGORY` unless `info.json` renames them (`image_column_name`,
//! `category_column_name`); it may also say that the table is separated by tabs (`csv_with_tab`) or that the images
//! are not in a folder of their own (`images_in_sub_folder`). There is no test part.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use serde::Deserialize;

use super::csv;
use super::files::{self, MAX_CLASSES};
use super::listing::{Listing, Source};
use crate::error::{Error, Result};

/// The most bytes of `labels.csv` or `info.json`.
const MAX_TABLE: u64 = 256 << 20;

/// The keys of `info.json` that matter here; all have defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Info {
    image_column_name: String,
    category_column_name: String,
    csv_with_tab: bool,
    images_in_sub_folder: bool,
}

impl Default for Info {
    fn default() -> Self {
        Self {
            image_column_name: "FILE_NAME".into(),
            category_column_name: "CATEGORY".into(),
            csv_with_tab: false,
            images_in_sub_folder: true,
        }
    }
}

/// Lists the folder at `root`.
pub(super) fn list(root: &Path) -> Result<Listing> {
    files::expect_folder(root, "meta-album")?;
    let info = info(&root.join("info.json"))?;
    let table = root.join("labels.csv");
    let text = files::read_text(&table, MAX_TABLE)?;
    let separator = if info.csv_with_tab { '\t' } else { ',' };
    let mut records = csv::parse(&text, separator).map_err(|message| Error::input(&table, message))?.into_iter();
    let (_, header) =
        records.next().ok_or_else(|| Error::input(&table, "is empty; expected a line of column names"))?;
    let column = |name: &str| {
        header.iter().position(|column| column.trim() == name).ok_or_else(|| {
            Error::input(&table, format!("has no column `{name}`, only {header:?}; info.json can rename columns"))
        })
    };
    let (image_column, category_column) = (column(&info.image_column_name)?, column(&info.category_column_name)?);
    let images = if info.images_in_sub_folder { root.join("images") } else { root.to_path_buf() };

    let mut rows = Vec::new();
    let mut lines = HashMap::new();
    for (line, fields) in records {
        if fields.len() != header.len() {
            let (found, expected) = (fields.len(), header.len());
            return Err(Error::input(&table, format!("line {line} has {found} fields, the header {expected}")));
        }
        let (name, category) = (fields[image_column].trim(), fields[category_column].trim());
        if category.is_empty() {
            return Err(Error::input(&table, format!("line {line}: no category for `{name}`")));
        }
        let path = images.join(name);
        if name.is_empty() || Path::new(name).components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(Error::input(&table, format!("line {line}: `{name}` is not a path inside the dataset")));
        }
        if !path.is_file() {
            let folder = images.display();
            return Err(Error::input(&table, format!("line {line}: there is no file `{name}` in {folder}")));
        }
        if let Some(first) = lines.insert(path.clone(), line) {
            return Err(Error::input(&table, format!("line {line}: `{name}` is already on line {first}")));
        }
        rows.push((path, category.to_string()));
    }
    if rows.is_empty() {
        return Err(Error::input(&table, "lists no images: the dataset is empty"));
    }

    let mut labels: BTreeMap<&str, u32> = rows.iter().map(|(_, category)| (category.as_str(), 0)).collect();
    if labels.len() > MAX_CLASSES {
        return Err(Error::input(&table, format!("{} categories, above the limit of {MAX_CLASSES}", labels.len())));
    }
    labels.values_mut().zip(0..).for_each(|(label, rank)| *label = rank);
    let classes = labels.keys().map(|name| name.to_string()).collect();
    let train = rows.iter().map(|(path, category)| Source { path: path.clone(), label: labels[category.as_str()] });
    Ok(Listing { classes, train: train.collect(), test: None, notes: Vec::new() })
}

fn info(path: &Path) -> Result<Info> {
    if !path.exists() {
        return Ok(Info::default());
    }
    let text = files::read_text(path, MAX_TABLE)?;
    serde_json::from_str(&text).map_err(|error| Error::input(path, format!("is not the expected JSON: {error}")))
}
