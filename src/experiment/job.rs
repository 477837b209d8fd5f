//! One piece of a comparison: a search or a training in a folder of its own. A piece that has finished is read back, one
//! that was interrupted is resumed.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{SearchConfig, TrainConfig};
use crate::device::DeviceSpec;
use crate::error::{Error, Result};
use crate::run::{Control, RunFolder};
use crate::search::choose::Choice;
use crate::search::run::SearchReport;
use crate::search::search;
use crate::train::run::train;

/// File of a finished piece.
const RESULT: &str = "result.json";

/// What is kept of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Searched {
    /// Zoo entry that it started from, or `none`.
    pub source: String,
    /// Validation accuracy after each epoch.
    pub accuracies: Vec<f64>,
    /// Seconds of each epoch, its validation included.
    pub epoch_seconds: Vec<f64>,
    /// Seconds of the search.
    pub seconds: f64,
    /// The cells, a file that a training takes.
    pub genotype: String,
}

/// What is kept of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Test accuracy after the last epoch.
    pub test_accuracy: f64,
    /// Weights of the network.
    pub parameters: usize,
    /// Seconds of the training.
    pub seconds: f64,
}

/// The settings with which a piece was run, beside its result: another comparison in the same folder is not mixed in.
#[derive(Serialize, Deserialize)]
struct Kept<C, R> {
    config: C,
    result: R,
}

/// The result of a piece: read back if it is there, else made.
fn once<C, R>(folder: &Path, config: &C, make: impl FnOnce(bool) -> Result<R>) -> Result<R>
where
    C: Clone + PartialEq + Serialize + serde::de::DeserializeOwned,
    R: Clone + Serialize + serde::de::DeserializeOwned,
{
    let files = RunFolder::create(folder)?;
    if let Some(kept) = files.read_json::<Kept<C, R>>(RESULT)? {
        if kept.config != *config {
            let message = "holds the result of other settings; use another --out, or remove that folder";
            return Err(Error::usage(format!("{}: {message}", folder.display())));
        }
        return Ok(kept.result);
    }
    let result = make(files.checkpoint().exists())?;
    files.write_json(RESULT, &Kept { config: config.clone(), result: result.clone() })?;
    Ok(result)
}

/// What is kept of a search that has finished in `folder`.
///
/// # Errors
/// As [`RunFolder::read_json`].
pub fn kept_search(folder: &Path) -> Result<Option<Searched>> {
    kept::<SearchConfig, Searched>(folder)
}

/// What is kept of a training that has finished in `folder`.
///
/// # Errors
/// As [`RunFolder::read_json`].
pub fn kept_training(folder: &Path) -> Result<Option<Trained>> {
    kept::<TrainConfig, Trained>(folder)
}

fn kept<C: serde::de::DeserializeOwned, R: serde::de::DeserializeOwned>(folder: &Path) -> Result<Option<R>> {
    if !folder.exists() {
        return Ok(None);
    }
    Ok(RunFolder::create(folder)?.read_json::<Kept<C, R>>(RESULT)?.map(|kept| kept.result))
}

/// Runs a search into `folder`, or goes on with it.
///
/// # Errors
/// As [`search`], and [`Error::Usage`] if the folder holds the result of other settings.
pub fn searched(config: &SearchConfig, folder: &Path, control: &mut Control<'_>) -> Result<Searched> {
    // Where a piece was computed is no part of what it is.
    let settings = SearchConfig { device: DeviceSpec::default(), threads: 0, ..config.clone() };
    once(folder, &settings, |resume| {
        let report: SearchReport = search(config, folder, resume, control)?;
        let files = RunFolder::create(folder)?;
        let records = files.records()?;
        let of = |key: &str| records.iter().map(|record| record[key].as_f64().unwrap_or(f64::NAN)).collect();
        let (accuracies, epoch_seconds) = (of("validation_accuracy"), of("seconds"));
        let genotype = folder.join("genotype.json").display().to_string();
        Ok(Searched { source: report.source, accuracies, epoch_seconds, seconds: report.seconds, genotype })
    })
}

/// The choice that a search in `folder` made, if it made one.
///
/// # Errors
/// As [`RunFolder::read_json`].
pub fn choice(folder: &Path) -> Result<Option<Choice>> {
    RunFolder::create(folder)?.read_json("choice.json")
}

/// Runs a training into `folder`, or goes on with it.
///
/// # Errors
/// As [`train`], and [`Error::Usage`] if the folder holds the result of other settings.
pub fn trained(config: &TrainConfig, folder: &Path, control: &mut Control<'_>) -> Result<Trained> {
    let settings = TrainConfig { device: DeviceSpec::default(), threads: 0, ..config.clone() };
    once(folder, &settings, |resume| {
        let report = train(config, folder, resume, control)?;
        let (test_accuracy, parameters, seconds) = (report.test_accuracy, report.parameters, report.seconds);
        Ok(Trained { test_accuracy, parameters, seconds })
    })
}
