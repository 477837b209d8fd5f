//! What came of an experiment: every run, and for every arm its test accuracy, how soon its search was as good as the one
//! from nothing ever was, and the difference from it, paired by target and seed.

use serde::{Deserialize, Serialize};

use super::job::Searched;
use super::protocol::{Arm, Cell, Experiment, Protocol};
use super::statistics::{Summary, mean, rank_correlation, smoothed, summary};
use crate::error::Result;
use crate::transport::Ranked;

/// Epochs over which validation accuracies are averaged before they are compared: one epoch may be lucky.
pub const WINDOW: usize = 3;

/// A finished cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Name of the target.
    pub target: String,
    /// Seed.
    pub seed: u64,
    /// What was run.
    pub arm: Arm,
    /// Validation accuracy after each epoch of the search; empty where there was none.
    pub accuracies: Vec<f64>,
    /// Seconds of each epoch.
    pub epoch_seconds: Vec<f64>,
    /// Test accuracy of the trained network.
    pub test_accuracy: f64,
    /// Its parameters.
    pub parameters: usize,
    /// Seconds of its training.
    pub training_seconds: f64,
}

/// A row of the table: a policy, which is an arm or a selection of arms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// From nothing.
    Scratch,
    /// From the nearest source.
    Nearest,
    /// From the supernet of all sources.
    Multi,
    /// From a random source: the mean over all, which is what a random choice gives on average.
    Random,
    /// From the source with the most images; of equal ones that with the most classes, then by name.
    Largest,
    /// From the nearest, without its alphas.
    WeightsOnly,
    /// From the nearest, without its weights.
    AlphasOnly,
    /// No search: the network of the nearest source, trained there, trained on.
    Finetune,
}

impl Policy {
    /// All of them in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Scratch,
        Self::Nearest,
        Self::Multi,
        Self::Random,
        Self::Largest,
        Self::WeightsOnly,
        Self::AlphasOnly,
        Self::Finetune,
    ];

    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scratch => "scratch",
            Self::Nearest => "nearest source (OT)",
            Self::Multi => "multi-dataset supernet",
            Self::Random => "random source",
            Self::Largest => "largest source",
            Self::WeightsOnly => "nearest, weights only",
            Self::AlphasOnly => "nearest, alphas only",
            Self::Finetune => "fine-tuned network",
        }
    }
}

/// What a policy reached for a target and a seed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Outcome {
    test_accuracy: f64,
    /// Epochs and seconds until the search was as good as the one from nothing ever was; the whole budget if it never was.
    epochs: Option<f64>,
    seconds: Option<f64>,
    /// Share of its runs that got there.
    reached: f64,
}

/// A policy on one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OnTarget {
    /// Name of the target.
    pub target: String,
    /// Test accuracy.
    pub test_accuracy: Summary,
    /// Its difference from a search from nothing of the same seed.
    pub gain: Summary,
    /// Epochs to reach the best validation accuracy of that search.
    pub epochs: Option<Summary>,
    /// Seconds for that.
    pub seconds: Option<Summary>,
    /// Share of the searches that reached it.
    pub reached: f64,
}

/// A policy on all targets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The policy.
    pub policy: Policy,
    /// On each target.
    pub targets: Vec<OnTarget>,
    /// Test accuracy, over targets.
    pub test_accuracy: Summary,
    /// Difference from a search from nothing over all pairs of target and seed.
    pub gain: Summary,
    /// The same difference over targets, each by the mean of its seeds: what another dataset may expect.
    pub gain_over_targets: Summary,
    /// Targets with a positive mean difference.
    pub positive: usize,
    /// Epochs to reach the best of a search from nothing, over targets.
    pub epochs: Option<Summary>,
    /// Seconds for that.
    pub seconds: Option<Summary>,
    /// How many times fewer epochs: of the means.
    pub speedup: Option<f64>,
    /// Runs that never got there, as `target seed`.
    pub never: Vec<String>,
    /// What the choice costs on each target: test accuracy of the best source minus that of the chosen one.
    pub regret: Option<Summary>,
}

/// Distance and gain of the sources of a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Relation {
    /// Name of the target.
    pub target: String,
    /// Its sources, the nearest first.
    pub sources: Vec<Ranked>,
    /// Mean gain in test accuracy from each of them.
    pub gains: Vec<f64>,
    /// Mean epochs to reach the best of a search from nothing.
    pub epochs: Vec<f64>,
    /// Rank correlation of distance and gain: -1 where the nearer the better.
    pub with_gain: Option<f64>,
    /// Rank correlation of distance and epochs: 1 where the nearer the sooner.
    pub with_epochs: Option<f64>,
}

/// What was paid before the first search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pretraining {
    /// Name of its folder.
    pub name: String,
    /// Seconds.
    pub seconds: f64,
    /// Validation accuracy at its end.
    pub validation_accuracy: f64,
}

/// An experiment's outcome.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The settings.
    pub protocol: Protocol,
    /// Cells that have finished, of how many.
    pub finished: [usize; 2],
    /// Seeds of which all cells have finished: those in the table.
    pub seeds: Vec<u64>,
    /// The table.
    pub rows: Vec<Row>,
    /// Distance and gain.
    pub relations: Vec<Relation>,
    /// Mean over targets of the rank correlation of distance and gain.
    pub with_gain: Option<Summary>,
    /// Mean over targets of the rank correlation of distance and epochs.
    pub with_epochs: Option<Summary>,
    /// Pretraining, which a zoo pays once.
    pub pretraining: Vec<Pretraining>,
    /// Every run.
    pub runs: Vec<Run>,
}

/// The first epoch, counted from 1, whose accuracy is at least a bar.
fn first_at_least(series: &[f64], bar: f64) -> Option<usize> {
    series.iter().position(|&a| a >= bar).map(|i| i + 1)
}

/// Runs of complete seeds, found by target, seed and arm.
struct Runs<'a> {
    runs: &'a [Run],
    largest: &'a dyn Fn(&str) -> Option<String>,
    nearest: &'a dyn Fn(&str) -> Option<String>,
    sources: &'a dyn Fn(&str) -> Vec<String>,
}

impl Runs<'_> {
    fn find(&self, target: &str, seed: u64, arm: &Arm) -> Option<&Run> {
        self.runs.iter().find(|r| r.target == target && r.seed == seed && &r.arm == arm)
    }

    fn outcome_of(&self, target: &str, seed: u64, arm: &Arm) -> Option<Outcome> {
        let run = self.find(target, seed, arm)?;
        let scratch = smoothed(&self.find(target, seed, &Arm::Scratch)?.accuracies, WINDOW);
        let bar = scratch.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let test_accuracy = run.test_accuracy;
        if run.accuracies.is_empty() {
            return Some(Outcome { test_accuracy, epochs: None, seconds: None, reached: 0.0 });
        }
        let first = first_at_least(&smoothed(&run.accuracies, WINDOW), bar);
        let epochs = first.unwrap_or(run.accuracies.len());
        let seconds: f64 = run.epoch_seconds.iter().take(epochs).sum();
        let reached = if first.is_some() { 1.0 } else { 0.0 };
        Some(Outcome { test_accuracy, epochs: Some(epochs as f64), seconds: Some(seconds), reached })
    }

    fn outcome(&self, policy: Policy, target: &str, seed: u64) -> Option<Outcome> {
        let of = |arm: Arm| self.outcome_of(target, seed, &arm);
        match policy {
            Policy::Scratch => of(Arm::Scratch),
            Policy::Nearest => of(Arm::Source((self.nearest)(target)?)),
            Policy::Largest => of(Arm::Source((self.largest)(target)?)),
            Policy::Multi => of(Arm::Multi),
            Policy::WeightsOnly => of(Arm::WeightsOnly),
            Policy::AlphasOnly => of(Arm::AlphasOnly),
            Policy::Finetune => of(Arm::Finetune),
            Policy::Random => {
                let all: Vec<Outcome> =
                    (self.sources)(target).into_iter().map(|s| of(Arm::Source(s))).collect::<Option<_>>()?;
                let over = |value: &dyn Fn(&Outcome) -> Option<f64>| -> Option<f64> {
                    Some(mean(&all.iter().map(value).collect::<Option<Vec<f64>>>()?))
                };
                Some(Outcome {
                    test_accuracy: over(&|o| Some(o.test_accuracy))?,
                    epochs: over(&|o| o.epochs),
                    seconds: over(&|o| o.seconds),
                    reached: over(&|o| Some(o.reached))?,
                })
            }
        }
    }

    fn on_target(&self, policy: Policy, target: &str, seeds: &[u64]) -> Option<OnTarget> {
        let all = |policy| seeds.iter().map(|&s| self.outcome(policy, target, s)).collect::<Option<Vec<_>>>();
        let (own, scratch) = (all(policy)?, all(Policy::Scratch)?);
        let gains: Vec<f64> = own.iter().zip(&scratch).map(|(o, s)| o.test_accuracy - s.test_accuracy).collect();
        let of = |value: fn(&Outcome) -> Option<f64>| summary(&own.iter().filter_map(value).collect::<Vec<_>>());
        Some(OnTarget {
            target: target.into(),
            test_accuracy: of(|o| Some(o.test_accuracy))?,
            gain: summary(&gains)?,
            epochs: of(|o| o.epochs),
            seconds: of(|o| o.seconds),
            reached: of(|o| Some(o.reached))?.mean,
        })
    }

    fn row(&self, policy: Policy, names: &[String], seeds: &[u64]) -> Option<Row> {
        let targets: Vec<OnTarget> =
            names.iter().map(|t| self.on_target(policy, t, seeds)).collect::<Option<Vec<_>>>()?;
        let mut gains = Vec::new();
        let mut never = Vec::new();
        for target in names {
            for &seed in seeds {
                let own = self.outcome(policy, target, seed)?;
                gains.push(own.test_accuracy - self.outcome(Policy::Scratch, target, seed)?.test_accuracy);
                if own.epochs.is_some() && own.reached < 1.0 {
                    never.push(format!("{target} {seed}"));
                }
            }
        }
        let over = |value: &dyn Fn(&OnTarget) -> Option<f64>| {
            summary(&targets.iter().map(value).collect::<Option<Vec<f64>>>().unwrap_or_default())
        };
        let chooses = matches!(policy, Policy::Nearest | Policy::Random | Policy::Largest);
        let regret = |t: &OnTarget| {
            let best = (self.sources)(&t.target)
                .into_iter()
                .filter_map(|s| self.mean_accuracy(&t.target, seeds, &Arm::Source(s)))
                .fold(f64::NEG_INFINITY, f64::max);
            chooses.then_some(best - t.test_accuracy.mean)
        };
        Some(Row {
            policy,
            test_accuracy: over(&|t| Some(t.test_accuracy.mean))?,
            gain: summary(&gains)?,
            gain_over_targets: over(&|t| Some(t.gain.mean))?,
            positive: targets.iter().filter(|t| t.gain.mean > 0.0).count(),
            epochs: over(&|t| t.epochs.map(|e| e.mean)),
            seconds: over(&|t| t.seconds.map(|s| s.mean)),
            speedup: None,
            never,
            regret: over(&regret),
            targets,
        })
    }

    fn mean_accuracy(&self, target: &str, seeds: &[u64], arm: &Arm) -> Option<f64> {
        let all: Option<Vec<f64>> =
            seeds.iter().map(|&seed| Some(self.find(target, seed, arm)?.test_accuracy)).collect();
        all.map(|all| mean(&all))
    }

    fn relation(&self, target: &str, seeds: &[u64], sources: &[Ranked]) -> Option<Relation> {
        let scratch = self.mean_accuracy(target, seeds, &Arm::Scratch)?;
        let (mut gains, mut epochs) = (Vec::new(), Vec::new());
        for source in sources {
            let arm = Arm::Source(source.name.clone());
            gains.push(self.mean_accuracy(target, seeds, &arm)? - scratch);
            let own: Option<Vec<f64>> = seeds.iter().map(|&s| self.outcome_of(target, s, &arm)?.epochs).collect();
            epochs.push(mean(&own?));
        }
        let distances: Vec<f64> = sources.iter().map(|s| s.distance).collect();
        let (with_gain, with_epochs) = (rank_correlation(&distances, &gains), rank_correlation(&distances, &epochs));
        Some(Relation { target: target.into(), sources: sources.to_vec(), gains, epochs, with_gain, with_epochs })
    }
}

impl Experiment {
    fn runs(&self) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for cell in self.protocol.cells()? {
            if let Some((search, training)) = self.result(&cell)? {
                let Cell { target, seed, arm } = cell;
                let (accuracies, epoch_seconds) =
                    search.map_or_else(Default::default, |s: Searched| (s.accuracies, s.epoch_seconds));
                runs.push(Run {
                    target,
                    seed,
                    arm,
                    accuracies,
                    epoch_seconds,
                    test_accuracy: training.test_accuracy,
                    parameters: training.parameters,
                    training_seconds: training.seconds,
                });
            }
        }
        Ok(runs)
    }

    fn pretrainings(&self) -> Result<Vec<Pretraining>> {
        let joint = self.names().iter().map(|n| format!("without-{n}"));
        let mut found = Vec::new();
        for name in self.names().iter().cloned().chain(joint) {
            if let Some(kept) = super::job::kept_search(&self.pretraining(&name))? {
                let validation_accuracy = kept.accuracies.last().copied().unwrap_or(f64::NAN);
                found.push(Pretraining { name, seconds: kept.seconds, validation_accuracy });
            }
        }
        Ok(found)
    }

    /// The table over the seeds of which every cell has finished.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] if the pretraining is not done, [`crate::Error::Input`] for a damaged result.
    pub fn report(&self) -> Result<Report> {
        let names = self.names();
        let (cells, runs) = (self.protocol.cells()?, self.runs()?);
        let complete = |seed: &u64| {
            let wanted = cells.iter().filter(|c| c.seed == *seed).count();
            runs.iter().filter(|r| r.seed == *seed).count() == wanted
        };
        let seeds: Vec<u64> = (0..self.protocol.seeds).filter(complete).collect();
        let mut rankings = Vec::new();
        for target in names {
            rankings.push((target.as_str(), self.choice(target)?.ranking));
        }
        let sizes = self.sizes()?;
        let ranking = |target: &str| rankings.iter().find(|(t, _)| *t == target).map(|(_, r)| r);
        let nearest = |target: &str| ranking(target)?.first().map(|r| r.name.clone());
        let sources = |target: &str| names.iter().filter(|n| *n != target).cloned().collect::<Vec<_>>();
        let largest = |target: &str| {
            let size = |name: &String| names.iter().position(|n| n == name).map(|i| sizes[i]);
            sources(target).into_iter().rev().max_by_key(size)
        };
        let found = Runs { runs: &runs, largest: &largest, nearest: &nearest, sources: &sources };
        let mut rows: Vec<Row> = Policy::ALL.iter().filter_map(|&p| found.row(p, names, &seeds)).collect();
        let scratch = rows.first().and_then(|r| r.epochs).map(|e| e.mean);
        for row in &mut rows {
            row.speedup = row.epochs.and_then(|e| Some(scratch? / e.mean));
        }
        let relations: Vec<Relation> =
            rankings.iter().filter_map(|(target, ranked)| found.relation(target, &seeds, ranked)).collect();
        let over =
            |value: fn(&Relation) -> Option<f64>| summary(&relations.iter().filter_map(value).collect::<Vec<_>>());
        Ok(Report {
            protocol: self.protocol.clone(),
            finished: [runs.len(), cells.len()],
            with_gain: over(|r| r.with_gain),
            with_epochs: over(|r| r.with_epochs),
            pretraining: self.pretrainings()?,
            seeds,
            rows,
            relations,
            runs,
        })
    }

    /// Training images and classes of each dataset.
    fn sizes(&self) -> Result<Vec<(usize, usize)>> {
        let of = |name: &String| {
            let meta = self.entry(name, name)?.meta;
            Ok((meta.sources[0].images, meta.sources[0].classes.len()))
        };
        self.names().iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64, arm: Arm, accuracies: &[f64], test_accuracy: f64) -> Run {
        let (target, accuracies) = ("t".to_string(), accuracies.to_vec());
        let epoch_seconds = vec![2.0; accuracies.len()];
        Run { target, seed, arm, accuracies, epoch_seconds, test_accuracy, parameters: 0, training_seconds: 0.0 }
    }

    #[test]
    fn an_experiment_of_one_target_by_hand() {
        let source = |name: &str| Arm::Source(name.into());
        let runs = [
            run(0, Arm::Scratch, &[0.1, 0.3, 0.5, 0.7], 0.80),
            run(0, source("a"), &[0.4, 0.6, 0.8, 0.8], 0.85),
            run(0, source("b"), &[0.1, 0.1, 0.1, 0.1], 0.75),
            run(0, Arm::Finetune, &[], 0.82),
        ];
        let a = |_: &str| Some("a".to_string());
        let all = |_: &str| vec!["a".to_string(), "b".to_string()];
        let found = Runs { runs: &runs, largest: &a, nearest: &a, sources: &all };
        let names = ["t".to_string()];
        // The best three-epoch mean from nothing is 0.5, in epoch 4; from `a` that of epoch 2 is (0.4 + 0.6) / 2.
        let scratch = found.row(Policy::Scratch, &names, &[0]).unwrap();
        assert_eq!((scratch.epochs.unwrap().mean, scratch.gain.mean, scratch.positive), (4.0, 0.0, 0));
        let nearest = found.row(Policy::Nearest, &names, &[0]).unwrap();
        assert_eq!((nearest.epochs.unwrap().mean, nearest.seconds.unwrap().mean), (2.0, 4.0));
        assert!((nearest.gain.mean - 0.05).abs() < 1e-12 && nearest.positive == 1 && nearest.never.is_empty());
        assert_eq!(nearest.regret.unwrap().mean, 0.0);
        // `b` never gets there: its whole budget counts, and it is listed.
        let random = found.row(Policy::Random, &names, &[0]).unwrap();
        assert_eq!((random.epochs.unwrap().mean, random.targets[0].reached), (3.0, 0.5));
        assert_eq!(random.never, ["t 0"]);
        assert!((random.regret.unwrap().mean - 0.05).abs() < 1e-12);
        let finetune = found.row(Policy::Finetune, &names, &[0]).unwrap();
        assert!(finetune.epochs.is_none() && finetune.never.is_empty() && finetune.regret.is_none());
        assert!(found.row(Policy::Multi, &names, &[0]).is_none());
        let ranked = |name: &str, distance: f64| Ranked {
            name: name.into(),
            index: 0,
            distance,
            interval: None,
            nearest: None,
            floor: None,
        };
        let relation = found.relation("t", &[0], &[ranked("a", 1.0), ranked("b", 2.0)]).unwrap();
        assert_eq!((relation.with_gain, relation.with_epochs), (Some(-1.0), Some(1.0)));
    }
}
