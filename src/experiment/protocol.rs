//! The comparison of transfer with what it is to replace: leave one dataset out over all of them, several seeds, equal
//! budgets. Nothing that is used for a target has seen it: neither the zoo entries, nor the supernet of many datasets, nor
//! the embedder (the trunk of that supernet).
//!
//! Below the folder of an experiment:
//!
//! ```text
//! experiment.json                      the settings
//! pretraining/NAME                     the supernet of one dataset
//! pretraining/without-NAME             the supernet of all others, together
//! pretraining/NAME-network             the network found there, trained on the same dataset
//! zoos/without-NAME/*.safetensors      what may be used for that target
//! targets/NAME/choice.json             its sources in the order of their distance
//! targets/NAME/seed-S/ARM/search       a search; its result.json is what the report reads
//! targets/NAME/seed-S/ARM/training     the training of what it found
//! ```
//!
//! Every source is searched from, so that the nearest, a random one and the largest are selections of the same runs, and so
//! that it can be told what the best choice would have been.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::job::{self, Searched, Trained};
use crate::checkpoint::Checkpoint;
use crate::config::{AlphaTransfer, Mixing, SCRATCH, SearchConfig, Specs, TrainConfig, WeightTransfer};
use crate::device::DeviceSpec;
use crate::embedding::Profile;
use crate::error::{Error, Result};
use crate::network::SearchSpace;
use crate::run::{self, Control, Observer, RunFolder};
use crate::search::choose::{AUTO, Choice, choose};
use crate::zoo::embed::{self, CoresetOptions};
use crate::zoo::{Entry, Zoo, check_name};

/// Name, in the zoo of a target, of the supernet of all other datasets.
pub const JOINT: &str = "joint";

/// Settings of an experiment; with its data they tell every number in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Dataset specifications, each in turn the target.
    pub data: Vec<String>,
    /// Height and width to which all images are brought.
    pub size: (usize, usize),
    /// Channels and cells of the supernets.
    pub space: (usize, usize),
    /// Images of a batch.
    pub batch: usize,
    /// Searches of each target and arm; their seeds count from 0.
    pub seeds: u64,
    /// Epochs of each search.
    pub epochs: usize,
    /// Epochs of the pretraining of one dataset.
    pub pretraining_epochs: usize,
    /// Epochs of the pretraining of all datasets but one.
    pub joint_epochs: usize,
    /// Epochs of each final training.
    pub training_epochs: usize,
    /// Channels of the trained networks.
    pub training_channels: usize,
    /// Whether the final training starts from the weights of the search.
    pub inherit: bool,
    /// Learning rate of the alphas, in pretraining and search.
    pub alpha_learning_rate: f64,
    /// What becomes of the source's alphas.
    pub transfer_alphas: AlphaTransfer,
    /// Epochs after a transfer in which only the new head learns.
    pub head_warm_up: usize,
    /// Padding of the random crop.
    pub crop_padding: usize,
    /// Random horizontal flips.
    pub flip: bool,
}

/// What is run for a target and a seed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// From nothing.
    Scratch,
    /// From the supernet of one source.
    Source(String),
    /// From the supernet of all sources.
    Multi,
    /// From the nearest source without its alphas.
    WeightsOnly,
    /// From the nearest source without its weights.
    AlphasOnly,
    /// No search: the nearest source's network, trained there, trained on.
    Finetune,
}

impl Arm {
    /// Name of its folder.
    pub fn folder(&self) -> String {
        match self {
            Self::Scratch => "scratch".into(),
            Self::Source(name) => format!("from-{name}"),
            Self::Multi => "multi".into(),
            Self::WeightsOnly => "weights-only".into(),
            Self::AlphasOnly => "alphas-only".into(),
            Self::Finetune => "finetune".into(),
        }
    }
}

/// A target with a seed and an arm.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Name of the target.
    pub target: String,
    /// Seed.
    pub seed: u64,
    /// What is run.
    pub arm: Arm,
}

/// The share of an experiment that one machine runs: part `index` of `count`, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Shard {
    fn has(self, job: usize) -> bool {
        job % self.count == self.index
    }
}

/// Short name of a dataset specification: its last path component.
fn short(spec: &str) -> String {
    let path = spec.split_once(':').map_or(spec, |(_, rest)| rest).trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or(path);
    last.split('.').next().unwrap_or(last).to_string()
}

impl Protocol {
    /// Names of the datasets, in order.
    ///
    /// # Errors
    /// [`Error::Usage`] for fewer than three datasets, and for names that are alike or cannot name a zoo entry.
    pub fn names(&self) -> Result<Vec<String>> {
        let names: Vec<String> = self.data.iter().map(|spec| short(spec)).collect();
        if names.len() < 3 {
            return Err(Error::usage(format!(
                "{} datasets: leaving one out takes at least three, so that there are sources to choose from",
                names.len()
            )));
        }
        for (i, name) in names.iter().enumerate() {
            check_name(name)?;
            if names[..i].contains(name) || name == JOINT {
                return Err(Error::usage(format!(
                    "{}: another dataset of the experiment is called `{name}` too; rename its folder",
                    self.data[i]
                )));
            }
        }
        Ok(names)
    }

    fn spec(&self, names: &[String], name: &str) -> &str {
        let index = names.iter().position(|n| n == name).unwrap_or(0);
        &self.data[index]
    }

    /// All searches and trainings behind the pretraining, seed by seed: what is there is balanced over targets at any time.
    ///
    /// # Errors
    /// As [`Protocol::names`].
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let names = self.names()?;
        let mut cells = Vec::new();
        for seed in 0..self.seeds {
            for target in &names {
                let others = names.iter().filter(|n| *n != target).map(|n| Arm::Source(n.clone()));
                let arms = [Arm::Scratch, Arm::Multi].into_iter().chain(others);
                let arms = arms.chain([Arm::WeightsOnly, Arm::AlphasOnly, Arm::Finetune]);
                cells.extend(arms.map(|arm| Cell { target: target.clone(), seed, arm }));
            }
        }
        Ok(cells)
    }

    fn search(&self, data: Specs, (device, threads): (DeviceSpec, usize)) -> SearchConfig {
        SearchConfig {
            data,
            size: Some(self.size),
            channels: self.space.0,
            layers: self.space.1,
            batch: self.batch,
            alpha_learning_rate: self.alpha_learning_rate,
            crop_padding: self.crop_padding,
            flip: self.flip,
            device,
            threads,
            ..SearchConfig::default()
        }
    }

    fn training(&self, data: &str, genotype: &str, seed: u64, (device, threads): (DeviceSpec, usize)) -> TrainConfig {
        TrainConfig {
            genotype: genotype.into(),
            data: data.into(),
            size: Some(self.size),
            channels: self.training_channels,
            layers: self.space.1,
            epochs: self.training_epochs,
            batch: self.batch,
            seed,
            device,
            threads,
            auxiliary: 0.0,
            drop_path: 0.1,
            crop_padding: self.crop_padding,
            flip: self.flip,
            cutout: self.size.0 / 4,
            ..TrainConfig::default()
        }
    }

    fn check(&self) -> Result<()> {
        self.names()?;
        let on = (DeviceSpec::Cpu, 1);
        self.search(self.data[0].as_str().into(), on).check()?;
        self.training(&self.data[0], "DARTS_V2", 0, on).check()?;
        let counts = [
            ("--epochs", self.epochs),
            ("--pretraining-epochs", self.pretraining_epochs),
            ("--joint-epochs", self.joint_epochs),
            ("--seeds", self.seeds as usize),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::usage(format!("{name} is 0; it must be at least 1")));
        }
        if self.head_warm_up >= self.epochs {
            let (warm_up, epochs) = (self.head_warm_up, self.epochs);
            return Err(Error::usage(format!("--head-warm-up {warm_up} leaves nothing of {epochs} epochs")));
        }
        if self.inherit && self.training_channels != self.space.0 {
            return Err(Error::usage(format!(
                "--inherit: the trained network has {} channels, the supernet {}; weights fit only if they are equal",
                self.training_channels, self.space.0
            )));
        }
        Ok(())
    }
}

/// An experiment in its folder.
pub struct Experiment {
    /// Its settings.
    pub protocol: Protocol,
    names: Vec<String>,
    out: PathBuf,
    /// What computes, and its threads.
    on: (DeviceSpec, usize),
}

impl Experiment {
    /// Opens the folder: a new one gets the settings, another must have the same.
    ///
    /// # Errors
    /// [`Error::Usage`] for settings that make no experiment or are not those of the folder.
    pub fn open(protocol: Protocol, out: &Path, on: (DeviceSpec, usize)) -> Result<Self> {
        protocol.check()?;
        let folder = RunFolder::create(out)?;
        match folder.read_json::<Protocol>("experiment.json")? {
            Some(kept) if kept != protocol => {
                return Err(Error::usage(format!(
                    "--out {} holds an experiment of other settings (experiment.json); use another folder",
                    out.display()
                )));
            }
            Some(_) => {}
            None => folder.write_json("experiment.json", &protocol)?,
        }
        Ok(Self { names: protocol.names()?, protocol, out: out.to_path_buf(), on })
    }

    /// Names of the datasets.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Folder of a pretraining.
    pub fn pretraining(&self, name: &str) -> PathBuf {
        self.out.join("pretraining").join(name)
    }

    /// Folder of a target.
    pub fn target(&self, target: &str) -> PathBuf {
        self.out.join("targets").join(target)
    }

    /// Folder of a cell.
    pub fn folder(&self, cell: &Cell) -> PathBuf {
        self.target(&cell.target).join(format!("seed-{}", cell.seed)).join(cell.arm.folder())
    }

    /// Where pieces are computed.
    fn on(&self) -> (DeviceSpec, usize) {
        (self.on.0, run::threads(self.on.1))
    }

    fn zoo(&self, target: &str) -> Zoo {
        Zoo::new(self.out.join("zoos").join(format!("without-{target}")))
    }

    /// Sources of a target in the order of their distance.
    ///
    /// # Errors
    /// [`Error::Usage`] if the pretraining has not come so far.
    pub fn choice(&self, target: &str) -> Result<Choice> {
        let folder = self.target(target);
        let found = RunFolder::create(&folder)?.read_json("choice.json")?;
        found.ok_or_else(|| {
            Error::usage(format!("{}: no sources are ranked yet; run the pretraining first", folder.display()))
        })
    }

    /// Pretrains what the shard has: a supernet a dataset with its trained network, a supernet of all datasets but one.
    /// What all shards have made is brought together by [`Experiment::rank`].
    ///
    /// # Errors
    /// Those of searches and trainings; [`Error::Interrupted`] after a stop.
    pub fn pretrain(&self, shard: Shard, control: &mut Control<'_>) -> Result<()> {
        let count = self.names.len();
        for (i, name) in self.names.iter().enumerate().filter(|(i, _)| shard.has(*i)) {
            control.observer.note(&format!("pretraining {} of {}: {name}", i + 1, 2 * count));
            let found = self.pretrain_one(name, control)?;
            let spec = self.protocol.spec(&self.names, name);
            let config = self.protocol.training(spec, &found.genotype, 0, self.on);
            job::trained(&config, &self.pretraining(&format!("{name}-network")), control)?;
        }
        for (i, target) in self.names.iter().enumerate().filter(|(i, _)| shard.has(*i)) {
            control.observer.note(&format!("pretraining {} of {}: all but {target}", count + i + 1, 2 * count));
            self.pretrain_joint(target, control)?;
        }
        Ok(())
    }

    fn pretrain_one(&self, name: &str, control: &mut Control<'_>) -> Result<Searched> {
        let data = self.protocol.spec(&self.names, name).into();
        let own = self.protocol.search(data, self.on);
        let config = SearchConfig { epochs: self.protocol.pretraining_epochs, ..own };
        job::searched(&config, &self.pretraining(name), control)
    }

    fn pretrain_joint(&self, target: &str, control: &mut Control<'_>) -> Result<Searched> {
        let others = self.names.iter().zip(&self.protocol.data).filter(|(name, _)| *name != target);
        let data = Specs::Many(others.map(|(_, spec)| spec.clone()).collect());
        let own = self.protocol.search(data, self.on);
        let config = SearchConfig { epochs: self.protocol.joint_epochs, mixing: Mixing::Joint, ..own };
        job::searched(&config, &self.pretraining(&format!("without-{target}")), control)
    }

    /// For every target: its zoo of what has not seen it, and its sources in the order of their distance.
    ///
    /// # Errors
    /// Those of the embedding and of transport, [`Error::Io`] if a pretraining is missing.
    pub fn rank(&self, control: &mut Control<'_>) -> Result<()> {
        for target in &self.names {
            let folder = RunFolder::create(&self.target(target))?;
            if folder.read_json::<Choice>("choice.json")?.is_some() {
                continue;
            }
            let zoo = self.fill_zoo(target, control)?;
            let spec = self.protocol.spec(&self.names, target);
            let dataset = run::load_dataset(spec, Some(self.protocol.size), None, None, 0)?;
            let (channels, layers) = self.protocol.space;
            let (space, on) = (SearchSpace::darts(channels, layers)?, self.on());
            let choice = choose(AUTO, &zoo, &space, &dataset, on, &[], control)?;
            control.observer.note(&format!("{target}: {}, {}", choice.source, choice.reason));
            folder.write_json("choice.json", &choice)?;
        }
        Ok(())
    }

    pub(super) fn entry(&self, pretraining: &str, name: &str) -> Result<Entry> {
        let file = RunFolder::create(&self.pretraining(pretraining))?.checkpoint();
        Entry::from_checkpoint(&Checkpoint::load(&file)?, &file, name, "that of its datasets")
    }

    /// Puts the entries of a target's zoo in, with the points that the trunk of the joint supernet gives their datasets.
    fn fill_zoo(&self, target: &str, control: &mut Control<'_>) -> Result<Zoo> {
        let zoo = self.zoo(target);
        let joint = self.entry(&format!("without-{target}"), JOINT)?;
        let file = zoo.add(&joint, true)?;
        // As it lies in the file: half precision is part of what the distances are taken with.
        let joint = Entry::load(&file)?;
        let mut embedder = embed::trunk(&joint, &file, Profile::default(), self.on())?;
        for name in self.names.iter().filter(|n| *n != target) {
            let mut entry = self.entry(name, name)?;
            let (datasets, cache) = (embed::sources(&entry, &self.pretraining(name))?, crate::files::cache_folder());
            let around: (_, &mut dyn Observer) = (cache.as_deref(), &mut *control.observer);
            embed::add_coresets(&mut entry, &datasets, &mut embedder, CoresetOptions::default(), around)?;
            zoo.add(&entry, true)?;
        }
        Ok(zoo)
    }

    /// Runs the searches and trainings that the shard has.
    ///
    /// # Errors
    /// As [`Experiment::pretrain`], and [`Error::Usage`] before it.
    pub fn run(&self, shard: Shard, control: &mut Control<'_>) -> Result<()> {
        let cells = self.protocol.cells()?;
        let own: Vec<&Cell> = cells.iter().enumerate().filter(|(i, _)| shard.has(*i)).map(|(_, c)| c).collect();
        let (start, mut run) = (Instant::now(), 0u32);
        for (done, cell) in own.iter().enumerate() {
            if self.result(cell)?.is_some() {
                continue;
            }
            let left = match run {
                0 => String::new(),
                _ => {
                    let minutes = start.elapsed().as_secs_f64() / f64::from(run) * (own.len() - done) as f64 / 60.0;
                    format!(", about {minutes:.0} min left")
                }
            };
            let (target, seed, arm) = (&cell.target, cell.seed, cell.arm.folder());
            control.observer.note(&format!("{} of {}: {target}, seed {seed}, {arm}{left}", done + 1, own.len()));
            self.run_cell(cell, control)?;
            run += 1;
        }
        Ok(())
    }

    /// What is kept of a cell that has finished. A fine-tuning has no search.
    ///
    /// # Errors
    /// As [`RunFolder::read_json`].
    pub fn result(&self, cell: &Cell) -> Result<Option<(Option<Searched>, Trained)>> {
        let folder = self.folder(cell);
        let search = job::kept_search(&folder.join("search"))?;
        let training = job::kept_training(&folder.join("training"))?;
        Ok(match (search, training) {
            (Some(search), Some(training)) => Some((Some(search), training)),
            (None, Some(training)) if cell.arm == Arm::Finetune => Some((None, training)),
            _ => None,
        })
    }

    fn run_cell(&self, cell: &Cell, control: &mut Control<'_>) -> Result<()> {
        let (folder, protocol) = (self.folder(cell), &self.protocol);
        let spec = protocol.spec(&self.names, &cell.target);
        let nearest = self.choice(&cell.target)?.source;
        let mut config = SearchConfig {
            epochs: protocol.epochs,
            seed: cell.seed,
            zoo: self.zoo(&cell.target).path().display().to_string(),
            transfer_alphas: protocol.transfer_alphas,
            head_warm_up: protocol.head_warm_up,
            ..protocol.search(spec.into(), self.on)
        };
        match &cell.arm {
            Arm::Scratch => (config.warm_start, config.head_warm_up) = (SCRATCH.into(), 0),
            Arm::Source(name) => config.warm_start = name.clone(),
            Arm::Multi => config.warm_start = JOINT.into(),
            Arm::WeightsOnly => (config.warm_start, config.transfer_alphas) = (nearest, AlphaTransfer::Reset),
            Arm::AlphasOnly => {
                config = SearchConfig {
                    warm_start: nearest,
                    transfer_weights: WeightTransfer::Reset,
                    head_warm_up: 0,
                    ..config
                };
            }
            Arm::Finetune => {
                let genotype = self.pretraining(&nearest).join("genotype.json").display().to_string();
                let parent = self.pretraining(&format!("{nearest}-network")).join("checkpoint.safetensors");
                let own = protocol.training(spec, &genotype, cell.seed, self.on);
                let config = TrainConfig { inherit: parent.display().to_string(), ..own };
                return job::trained(&config, &folder.join("training"), control).map(|_| ());
            }
        }
        let found = job::searched(&config, &folder.join("search"), control)?;
        let mut config = protocol.training(spec, &found.genotype, cell.seed, self.on);
        if protocol.inherit {
            config.inherit = folder.join("search").join("checkpoint.safetensors").display().to_string();
        }
        job::trained(&config, &folder.join("training"), control).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_called_by_the_end_of_its_path() {
        assert_eq!(short("builtin:fashion"), "fashion");
        assert_eq!(short("folder:/data/photos/"), "photos");
        assert_eq!(short("npz:some/digits.npz"), "digits");
    }
}
