//! Times what brings images to the engine: staging batches on the loader's thread, staging and augmenting them on one
//! core, and loading a folder of images, decoded and from the cache of decoded images.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::measure::{self, Effort, Times};
use super::report::{Measured, Report};
use crate::data::{Batch, Geometry, Images, Loader, Normalisation, permutation};
use crate::device::Executable;
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::graph::{Graph, Program, Shape, StoreLayout};
use crate::machine::Machine;
use crate::search::step::{BatchStates, InputPipeline};

/// Images of CIFAR's size that are staged.
const IMAGES: usize = 4096;
const SIZE: Geometry = Geometry { height: 32, width: 32, channels: 3 };
const BATCH: usize = 64;

/// Images a second of one case.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// Name and times of one pass.
    #[serde(flatten)]
    pub measured: Measured,
    /// Images of a pass.
    pub images: usize,
    /// Images a second, by the median.
    pub images_per_second: f64,
}

/// What only the loader's result has: nothing.
#[derive(Clone, Debug, Serialize)]
pub struct LoaderDetails {}

/// Result of the loader.
pub type LoaderReport = Report<Rate, LoaderDetails>;

fn rate(name: &str, images: usize, times: Times) -> Rate {
    let measured = Measured { name: name.into(), times };
    Rate { measured, images, images_per_second: images as f64 / (times.milliseconds * 1e-3).max(f64::MIN_POSITIVE) }
}

/// Copies a full batch into its states.
pub(super) fn put(cpu: &mut Cpu, states: &BatchStates, batch: &Batch) {
    for (state, values) in
        [(states.pixels, &batch.pixels), (states.labels, &batch.labels), (states.index, &batch.indices)]
    {
        cpu.state_mut(state).copy_from_slice(values);
    }
}

/// Synthetic images on their way to the engine.
pub struct Feed {
    images: Arc<Images>,
    cpu: Cpu,
    exe: Executable,
    states: BatchStates,
    staged: Batch,
}

impl Feed {
    /// Images of one pass.
    pub const IMAGES: usize = IMAGES;

    /// Draws the images and records crop, flip, cutout and normalisation of a batch, on one thread.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] if no thread can be started.
    pub fn new() -> Result<Self> {
        let pixels = (0..IMAGES * 32 * 32 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let images = Arc::new(Images { geometry: SIZE, pixels, labels: (0..IMAGES as u32).map(|i| i % 10).collect() });
        let mut layout = StoreLayout::new();
        let states = BatchStates::declare(&mut layout, "images", BATCH, SIZE);
        let epoch = layout.add("epoch", Shape::vector(1));
        let normalisation = Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] };
        let input = InputPipeline { pad: 4, flip: true, cutout: 16, normalisation, seed: 0 };
        let mut graph = Graph::new();
        let out = input.record(&mut graph, &states, epoch, true);
        let mut cpu = Cpu::new(&layout, 1)?;
        let exe = cpu.prepare(Program::new("augmentation", graph, &[out]))?;
        let mut feed = Self { images, cpu, exe, states, staged: Batch::default() };
        let mut staged = Batch::default();
        feed.pass(|_, batch| staged.clone_from(batch));
        feed.staged = staged;
        Ok(feed)
    }

    /// One pass over the images in a shuffled order; `each` gets the batches.
    fn pass(&mut self, mut each: impl FnMut(&mut Self, &Batch)) {
        let mut loader = Loader::new(self.images.clone(), permutation(IMAGES, 0, 0, 0), BATCH, 3);
        while let Some(batch) = loader.next() {
            each(self, &batch);
            loader.recycle(batch);
        }
    }

    fn augment_batch(&mut self, batch: &Batch) {
        put(&mut self.cpu, &self.states, batch);
        self.cpu.run(&self.exe);
    }

    /// Stages all images.
    pub fn stage(&mut self) {
        self.pass(|_, batch| _ = std::hint::black_box(batch));
    }

    /// Augments one staged batch as often as a pass has batches.
    pub fn augment(&mut self) {
        let staged = std::mem::take(&mut self.staged);
        (0..IMAGES / BATCH).for_each(|_| self.augment_batch(&staged));
        self.staged = staged;
    }

    /// Stages and augments all images.
    pub fn stage_and_augment(&mut self) {
        self.pass(Self::augment_batch);
    }
}

/// Measures staging and augmentation, and the loading of `folder` (a specification) if there is one, cold and through a
/// cache below `scratch`.
///
/// # Errors
/// Those of loading the folder.
pub fn run_all(folder: Option<(&str, &Path)>, quick: bool) -> Result<LoaderReport> {
    let effort = Effort::new(quick);
    let mut feed = Feed::new()?;
    let mut time = |name: &str, pass: fn(&mut Feed)| {
        rate(name, IMAGES, measure::sample(effort, |repeats| (0..repeats).for_each(|_| pass(&mut feed))))
    };
    let mut cases = vec![
        time("stage/32x32x3", Feed::stage),
        time("augment/32x32x3", Feed::augment),
        time("stage+augment/32x32x3", Feed::stage_and_augment),
    ];
    if let Some((spec, scratch)) = folder {
        let spec: crate::data::Spec = spec.parse()?;
        let load = |cache| {
            let options = crate::data::LoadOptions { cache, ..crate::data::LoadOptions::default() };
            crate::data::load(&spec, &options)
        };
        let cache = Some(scratch.to_path_buf());
        let dataset = load(cache.clone())?;
        let count = dataset.train.len() + dataset.test.len();
        for (name, cache) in [("decode", None), ("cached", cache)] {
            let mut failed = None;
            let times = measure::sample(Effort::QUICK, |repeats| {
                (0..repeats).for_each(|_| failed = failed.take().or(load(cache.clone()).err()));
            });
            if let Some(error) = failed {
                return Err(error);
            }
            cases.push(rate(&format!("{name}/{}", dataset.name), count, times));
        }
    }
    Ok(Report { bench: "loader", machine: Machine::here(1), quick, cases, changes: None, details: LoaderDetails {} })
}
