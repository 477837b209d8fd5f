//! Times what brings images to the engine: staging batches on the loader's thread, staging and augmenting them on one
//! core, and loading a folder of images, decoded and from the cache of decoded images.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::measure::{self, Effort, Times};
use super::report::{Measured, Report};
use crate::data::{Geometry, Images, Loader, Normalisation, permutation};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::graph::{Graph, Program, Shape, StoreLayout};
use crate::machine::Machine;
use crate::run;
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

fn synthetic() -> Arc<Images> {
    let pixels = (0..IMAGES * 32 * 32 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Arc::new(Images { geometry: SIZE, pixels, labels: (0..IMAGES as u32).map(|i| i % 10).collect() })
}

/// One pass over the images in a shuffled order; `each` gets the batches.
fn pass(images: &Arc<Images>, mut each: impl FnMut(&crate::data::Batch)) {
    let mut loader = Loader::new(images.clone(), permutation(IMAGES, 0, 0, 0), BATCH, 3);
    while let Some(batch) = loader.next() {
        each(&batch);
        loader.recycle(batch);
    }
}

/// Crop, flip, cutout and normalisation of staged batches, on one thread.
fn augmentation() -> Result<(Cpu, crate::device::cpu::Executable, BatchStates)> {
    let mut layout = StoreLayout::new();
    let states = BatchStates::declare(&mut layout, "images", BATCH, SIZE);
    let epoch = layout.add("epoch", Shape::vector(1));
    let normalisation = Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] };
    let input = InputPipeline { pad: 4, flip: true, cutout: 16, normalisation, seed: 0 };
    let mut graph = Graph::new();
    let out = input.record(&mut graph, &states, epoch, true);
    let mut cpu = Cpu::new(&layout, 1)?;
    let exe = cpu.prepare(Program::new("augmentation", graph, &[out]))?;
    Ok((cpu, exe, states))
}

/// Measures staging and augmentation, and the loading of `folder` (a specification) if there is one, cold and through a
/// cache below `scratch`.
///
/// # Errors
/// Those of loading the folder.
pub fn run_all(folder: Option<(&str, &Path)>, quick: bool) -> Result<LoaderReport> {
    let effort = Effort::new(quick);
    let images = synthetic();
    let staged = measure::sample(effort, |repeats| {
        (0..repeats).for_each(|_| pass(&images, |batch| _ = std::hint::black_box(batch)));
    });
    let (mut cpu, exe, states) = augmentation()?;
    let mut staging = crate::data::Batch::default();
    pass(&images, |batch| staging.clone_from(batch));
    let augmented = measure::sample(effort, |repeats| {
        for _ in 0..repeats * (IMAGES / BATCH) {
            run::stage(&mut cpu, &states, &staging);
            cpu.run(&exe);
        }
    });
    let both = measure::sample(effort, |repeats| {
        for _ in 0..repeats {
            pass(&images, |batch| {
                run::stage(&mut cpu, &states, batch);
                cpu.run(&exe);
            });
        }
    });
    let mut cases = vec![
        rate("stage/32x32x3", IMAGES, staged),
        rate("augment/32x32x3", IMAGES, augmented),
        rate("stage+augment/32x32x3", IMAGES, both),
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
