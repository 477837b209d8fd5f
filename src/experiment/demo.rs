//! The smallest comparison: rank the zoo for a target that it has never seen, search from the nearest source and from
//! nothing with the same budget, and train both found networks in the same way.

use std::path::Path;

use serde::Serialize;

use super::job::{self, Searched, Trained};
use crate::config::{SCRATCH, SearchConfig, TrainConfig};
use crate::device::DeviceSpec;
use crate::error::{Error, Result};
use crate::run::Control;
use crate::search::choose::Choice;

/// Settings of a demo.
#[derive(Clone, Debug)]
pub struct Demo {
    /// The target's specification.
    pub target: String,
    /// Folder of the zoo.
    pub zoo: String,
    /// Which entry to start from, as for a search.
    pub warm_start: String,
    /// Height and width to which images are brought.
    pub size: Option<(usize, usize)>,
    /// Channels and cells of the supernet, which are the zoo's.
    pub space: (usize, usize),
    /// Epochs of each search.
    pub epochs: usize,
    /// Epochs of each training.
    pub training_epochs: usize,
    /// Seed.
    pub seed: u64,
    /// What computes.
    pub device: DeviceSpec,
    /// Threads; 0: all cores.
    pub threads: usize,
}

/// One side of the comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// The search.
    pub search: Searched,
    /// The training of what it found.
    pub training: Trained,
}

/// What a demo found.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// The target's specification.
    pub target: String,
    /// What was chosen from the zoo, and why.
    pub choice: Choice,
    /// From the zoo.
    pub warm: Side,
    /// From nothing.
    pub scratch: Side,
    /// First epoch after which the warm search was at least as good as the other ever was; None if it never was.
    pub epochs_to_reach: Option<usize>,
    /// The epoch in which the search from nothing was best.
    pub best_scratch_epoch: usize,
}

/// The first of a series that reaches the best of another, and where that best is; both counted from 1.
pub fn reach(series: &[f64], other: &[f64]) -> (Option<usize>, usize) {
    let best = other.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let place = other.iter().position(|&a| a == best).map_or(0, |i| i + 1);
    (series.iter().position(|&a| a >= best).map(|i| i + 1), place)
}

impl Demo {
    fn search(&self, warm_start: &str) -> SearchConfig {
        SearchConfig {
            data: self.target.as_str().into(),
            size: self.size,
            channels: self.space.0,
            layers: self.space.1,
            epochs: self.epochs,
            batch: 32,
            crop_padding: 2,
            seed: self.seed,
            device: self.device,
            threads: self.threads,
            warm_start: warm_start.into(),
            zoo: self.zoo.clone(),
            ..SearchConfig::default()
        }
    }

    fn training(&self, genotype: &str) -> TrainConfig {
        TrainConfig {
            genotype: genotype.into(),
            data: self.target.clone(),
            size: self.size,
            channels: 12,
            layers: self.space.1,
            epochs: self.training_epochs,
            batch: 32,
            auxiliary: 0.0,
            drop_path: 0.1,
            cutout: 6,
            crop_padding: 2,
            seed: self.seed,
            device: self.device,
            threads: self.threads,
            ..TrainConfig::default()
        }
    }

    /// Runs everything into folders below `out`, or goes on with it.
    ///
    /// # Errors
    /// Those of searches and trainings; [`Error::Interrupted`] after a stop.
    pub fn run(&self, out: &Path, control: &mut Control<'_>) -> Result<DemoReport> {
        if self.warm_start == SCRATCH {
            return Err(Error::usage(
                "a demo compares a start from the zoo with one from nothing; name an entry or auto",
            ));
        }
        let folder = |name: &str| out.join(name);
        control.observer.note(&format!("1 of 4: rank the zoo for {}, and search from the nearest source", self.target));
        let warm = job::searched(&self.search(&self.warm_start), &folder("warm-search"), control)?;
        let choice = job::choice(&folder("warm-search"))?.unwrap_or_else(|| Choice::named(&warm.source));
        control.observer.note("2 of 4: the same search from nothing");
        let scratch = job::searched(&self.search(SCRATCH), &folder("scratch-search"), control)?;
        control.observer.note("3 of 4: train the network that the warm search found");
        let warm_net = job::trained(&self.training(&warm.genotype), &folder("warm-training"), control)?;
        control.observer.note("4 of 4: train the network that the search from nothing found");
        let scratch_net = job::trained(&self.training(&scratch.genotype), &folder("scratch-training"), control)?;
        let (epochs_to_reach, best_scratch_epoch) = reach(&warm.accuracies, &scratch.accuracies);
        Ok(DemoReport {
            target: self.target.clone(),
            choice,
            warm: Side { search: warm, training: warm_net },
            scratch: Side { search: scratch, training: scratch_net },
            epochs_to_reach,
            best_scratch_epoch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::reach;

    #[test]
    fn the_first_epoch_that_is_as_good_as_the_other_ever_was() {
        assert_eq!(reach(&[0.5, 0.7, 0.8], &[0.1, 0.7, 0.6]), (Some(2), 2));
        assert_eq!(reach(&[0.5, 0.6], &[0.1, 0.7]), (None, 2));
        assert_eq!(reach(&[0.9], &[0.7, 0.7]), (Some(1), 1));
    }
}
