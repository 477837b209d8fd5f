//! What searches and trainings share: the run folder, its metrics file, progress, interruption, and reports.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::data::{Batch, Dataset, Images, LoadOptions, Spec};
use crate::device::{Device, Executable};
use crate::error::{Error, Result};
use crate::files::{cache_folder, write_atomically};
use crate::search::step::{BatchStates, ModelStates};

/// Who watches a run.
pub trait Observer {
    /// A run of `epochs` epochs starts, or continues in `first_epoch`.
    fn begin(&mut self, what: &str, epochs: usize, steps_per_epoch: usize, first_epoch: usize);
    /// A step is done.
    fn step(&mut self, epoch: usize, step: usize);
    /// An epoch is done; the record is the line of `metrics.jsonl`.
    fn epoch(&mut self, record: &Value);
    /// Something that the user should know.
    fn note(&mut self, text: &str);
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {
    fn begin(&mut self, _: &str, _: usize, _: usize, _: usize) {}
    fn step(&mut self, _: usize, _: usize) {}
    fn epoch(&mut self, _: &Value) {}
    fn note(&mut self, _: &str) {}
}

/// How a run is watched and stopped.
pub struct Control<'a> {
    /// Receives progress.
    pub observer: &'a mut dyn Observer,
    /// Raised to stop at the next step, after a checkpoint.
    pub stop: &'a AtomicBool,
}

impl Control<'_> {
    /// Whether a stop was asked for.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The files of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes the folder.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io(path, "create the run folder"))?;
        Ok(Self { path: path.to_path_buf() })
    }

    /// `checkpoint.safetensors`.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Writes a JSON file.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).expect("reports are plain data") + "\n";
        write_atomically(&self.path.join(name), text.as_bytes())
    }

    /// Reads what [`RunFolder::write_json`] wrote; None if there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] if it is not what was written.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::input(&path, format!("is damaged: {e}")))
    }

    /// The lines of `metrics.jsonl`, an epoch each.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] naming a damaged line.
    pub fn records(&self) -> Result<Vec<Value>> {
        let path = self.metrics();
        let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let parse = |(number, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| Error::input(&path, format!("line {} is damaged: {e}", number + 1)))
        };
        text.lines().enumerate().map(parse).collect()
    }

    /// Appends one line to `metrics.jsonl`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn append_metrics(&self, record: &Value) -> Result<()> {
        let path = self.metrics();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut f| f.write_all(format!("{record}\n").as_bytes())).map_err(Error::io(&path, "append to"))
    }

    /// Drops the lines of epochs from `epoch` on, which a resumed run writes again.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn trim_metrics(&self, epoch: usize) -> Result<()> {
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "read")(e)),
        };
        let keep = |line: &&str| {
            let record: Option<Value> = serde_json::from_str(line).ok();
            record.and_then(|r| r["epoch"].as_u64()).is_some_and(|e| (e as usize) < epoch)
        };
        let kept: String = text.lines().filter(keep).map(|line| format!("{line}\n")).collect();
        write_atomically(&path, kept.as_bytes())
    }
}

/// Loads a dataset for a run, with at most `limit` training images.
///
/// # Errors
/// Those of [`crate::data::load`], and [`Error::Usage`] if there are fewer images than classes need.
pub fn load_dataset(
    spec: &str,
    size: Option<(usize, usize)>,
    channels: Option<usize>,
    limit: Option<usize>,
    seed: u64,
) -> Result<Dataset> {
    let spec: Spec = spec.parse()?;
    let options = LoadOptions { size, channels, cache: cache_folder(), ..LoadOptions::default() };
    let mut dataset = crate::data::load(&spec, &options)?;
    if let Some(limit) = limit {
        let classes = dataset.classes.len();
        if limit < 2 * classes {
            return Err(Error::usage(format!(
                "--train-images {limit} leaves fewer than two images for each of the {classes} classes of {spec}; use \
                 at least {}",
                2 * classes
            )));
        }
        let chosen = crate::data::stratified_subset(&dataset.train.labels, classes, limit, seed);
        dataset.train = dataset.train.subset(&chosen);
    }
    Ok(dataset)
}

/// Copies a batch into its states; rows beyond the valid ones become padding.
///
/// # Errors
/// Those of [`Device::write`].
pub fn stage(device: &mut Device, states: &BatchStates, batch: &Batch) -> Result<()> {
    device.write(states.pixels, &batch.pixels)?;
    device.write(states.index, &batch.indices)?;
    device.write_with(states.labels, |labels| {
        labels.copy_from_slice(&batch.labels);
        labels[batch.rows..].fill(-1.0);
        Ok(())
    })
}

/// Mean loss, top-1 and top-5 accuracy of an epoch's sums.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Score {
    /// Mean loss.
    pub loss: f64,
    /// Share of hits.
    pub accuracy: f64,
    /// Share of hits among the first five.
    pub top5: f64,
    /// Images.
    pub images: usize,
}

impl Score {
    /// From `[loss * rows, top-1 hits, top-5 hits, rows]`.
    pub fn from_sums(sums: &[f32]) -> Self {
        let rows = f64::from(sums[3]).max(1.0);
        let share = |i: usize| f64::from(sums[i]) / rows;
        Self { loss: share(0), accuracy: share(1), top5: share(2), images: sums[3] as usize }
    }
}

/// Evaluates images with a prepared evaluation program.
///
/// # Errors
/// Those of the device.
pub fn evaluate(
    device: &mut Device,
    exe: &Executable,
    states: &BatchStates,
    sums: crate::graph::State,
    (images, order): (&Arc<Images>, Vec<u32>),
) -> Result<Score> {
    let mut total = [0.0f64; 4];
    let mut loader = crate::data::Loader::padded(images.clone(), order, states.labels.shape.len(), 2);
    while let Some(batch) = loader.next() {
        stage(device, states, &batch)?;
        device.fill(sums, 0.0)?;
        device.run(exe)?;
        total.iter_mut().zip(device.read(sums)?.iter()).for_each(|(t, &s)| *t += f64::from(s));
        loader.recycle(batch);
    }
    device.fill(sums, 0.0)?;
    let rows = total[3].max(1.0);
    let share = |i: usize| total[i] / rows;
    Ok(Score { loss: share(0), accuracy: share(1), top5: share(2), images: total[3] as usize })
}

/// Stops a run whose gradient was not finite, naming the step, the tensor and the last sound checkpoint.
///
/// # Errors
/// [`Error::NonFinite`] if the flag is raised, and those of the device.
pub fn check_finite(
    device: &mut Device,
    exe: &Executable,
    states: &ModelStates,
    (epoch, step): (usize, usize),
    checkpoint: &Path,
) -> Result<()> {
    if !device.flag(states.flag)? {
        return Ok(());
    }
    let what = device.find_non_finite(exe)?.unwrap_or_else(|| "the norm of a gradient overflowed".into());
    let saved = if checkpoint.exists() {
        format!("the last sound state is {}", checkpoint.display())
    } else {
        "there is no checkpoint yet".into()
    };
    Err(Error::NonFinite(format!(
        "epoch {epoch}, step {step}: {what}; {saved}. Lower the learning rate, or look for broken images with \
         `supernet data`"
    )))
}

/// Threads to use: all cores for 0.
pub fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// The process's high-water mark in bytes (VmHWM), where the system tells it.
pub fn peak_rss_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib * 1024)
}

/// Checks that a checkpoint belongs to this run.
///
/// # Errors
/// [`Error::Input`] naming the first thing that differs.
pub fn check_same_run(path: &Path, found: &Checkpoint, wanted: &crate::checkpoint::Meta) -> Result<()> {
    let (a, b) = (&found.meta, wanted);
    let mismatch = |what: &str, theirs: String, ours: String| {
        Err(Error::input(path, format!("was written for {what} {theirs}, this run has {ours}; use another --out")))
    };
    if a.network != b.network {
        return mismatch("a network", format!("{:?}", a.network), format!("{:?}", b.network));
    }
    if a.size != b.size {
        return mismatch("images of", a.size.to_string(), b.size.to_string());
    }
    if a.sources != b.sources {
        let shown = |meta: &crate::checkpoint::Meta| {
            let each = meta.sources.iter().map(|s| format!("{} ({})", s.dataset, s.identity));
            each.collect::<Vec<_>>().join(", ")
        };
        return mismatch("dataset", shown(a), shown(b));
    }
    if a.config != b.config {
        return mismatch("settings", a.config.to_string(), b.config.to_string());
    }
    Ok(())
}

/// Seconds since a start, plus those of the runs before.
pub fn elapsed(start: Instant, before: f64) -> f64 {
    before + start.elapsed().as_secs_f64()
}
