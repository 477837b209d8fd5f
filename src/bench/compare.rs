//! Holds a result against an earlier one, and calls a change real only when the noise of both cannot explain it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::measure::Times;
use super::report::Measured;
use crate::error::{Error, Result};
use crate::machine::Machine;

/// An earlier result.
#[derive(Clone, Debug)]
pub struct Earlier {
    path: PathBuf,
    cases: Vec<Measured>,
}

/// What is read of a file; the rest of it is of no interest here.
#[derive(Deserialize)]
struct Stored {
    bench: String,
    machine: Machine,
    cases: Vec<Measured>,
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The widened quartiles do not overlap and the new ones are lower.
    Faster,
    /// The widened quartiles do not overlap and the new ones are higher.
    Slower,
    /// The widened quartiles overlap.
    WithinNoise,
}

impl Verdict {
    /// Whether something changed.
    pub fn is_real(self) -> bool {
        self != Self::WithinNoise
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Faster => "faster",
            Self::Slower => "SLOWER",
            Self::WithinNoise => "within noise",
        })
    }
}

/// One thing that was measured both times.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What was measured.
    pub name: String,
    /// Then.
    pub before: Times,
    /// Now.
    pub now: Times,
    /// Median then over median now.
    pub speed_up: f64,
    /// Whether the difference is more than noise.
    pub verdict: Verdict,
}

impl Earlier {
    /// Reads a result that `bench` wrote on this machine with as many threads.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Input`] if it is no such result or comes from another machine:
    /// its times would mean nothing here.
    pub fn load(path: &Path, bench: &str, machine: &Machine) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let stored: Stored = serde_json::from_str(&text).map_err(|e| {
            Error::input(path, format!("is no result of `supernet bench {bench} --json` ({e}); write it again"))
        })?;
        if stored.bench != bench {
            return Err(Error::input(path, format!("is a result of `bench {}`, not of `bench {bench}`", stored.bench)));
        }
        if let Some((what, theirs, ours)) = stored.machine.difference(machine) {
            let message = format!(
                "WARNING: measured with another {what} ({theirs}, here {ours}): the times cannot be compared; measure \
                 the earlier version on this machine, or leave out --compare"
            );
            return Err(Error::input(path, message));
        }
        Ok(Self { path: path.to_path_buf(), cases: stored.cases })
    }

    /// What changed, for everything that was measured both times.
    ///
    /// # Errors
    /// [`Error::Input`] if nothing was.
    pub fn changes<'a>(&self, now: impl IntoIterator<Item = &'a Measured>) -> Result<Vec<Change>> {
        let measured = |m: &Measured| m.times.samples > 0;
        let changes: Vec<Change> = now
            .into_iter()
            .filter(|m| measured(m))
            .filter_map(|m| self.cases.iter().find(|c| c.name == m.name && measured(c)).map(|before| change(before, m)))
            .collect();
        if changes.is_empty() {
            return Err(Error::input(&self.path, "holds nothing of what was measured now; nothing can be compared"));
        }
        Ok(changes)
    }
}

/// Change between two processes of the same build that is nothing unusual: other addresses, another clock.
const DRIFT: f64 = 0.05;

/// The quartiles, widened by half of what lies between them (few samples say little of the tails) and by the drift.
fn widened(times: &Times) -> (f64, f64) {
    let margin = 0.5 * (times.milliseconds_high - times.milliseconds_low) + DRIFT * times.milliseconds;
    (times.milliseconds_low - margin, times.milliseconds_high + margin)
}

fn change(before: &Measured, now: &Measured) -> Change {
    let (a, b) = (before.times, now.times);
    let (before_low, before_high) = widened(&a);
    let (now_low, now_high) = widened(&b);
    let verdict = if now_high < before_low {
        Verdict::Faster
    } else if now_low > before_high {
        Verdict::Slower
    } else {
        Verdict::WithinNoise
    };
    let speed_up = a.milliseconds / b.milliseconds.max(f64::MIN_POSITIVE);
    Change { name: now.name.clone(), before: a, now: b, speed_up, verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, low: f64, high: f64) -> Measured {
        let times = Times {
            milliseconds: (low + high) / 2.0,
            milliseconds_low: low,
            milliseconds_high: high,
            milliseconds_min: low,
            samples: 9,
        };
        Measured { name: name.into(), times }
    }

    #[test]
    fn only_clearly_disjoint_quartiles_are_a_change() {
        let path = PathBuf::from("earlier.json");
        let earlier = Earlier { path, cases: ["a", "b", "c", "e"].map(|n| measured(n, 10.0, 12.0)).to_vec() };
        let now = [
            measured("a", 4.0, 6.0),
            measured("b", 11.9, 14.0),
            measured("c", 16.0, 17.0),
            measured("e", 13.0, 14.0),
            measured("d", 1.0, 2.0),
        ];
        let changes = earlier.changes(&now).unwrap();
        let verdicts: Vec<Verdict> = changes.iter().map(|c| c.verdict).collect();
        assert_eq!(verdicts, [Verdict::Faster, Verdict::WithinNoise, Verdict::Slower, Verdict::WithinNoise]);
        assert!((changes[0].speed_up - 2.2).abs() < 1e-12);
        let failed = Measured { name: "a".into(), times: Times::default() };
        assert!(earlier.changes(&[failed]).unwrap_err().to_string().starts_with("earlier.json: "));
    }
}
