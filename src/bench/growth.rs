//! How the time of a step grows with one setting: a series of steps, and the exponent of the law through it.

use serde::Serialize;

use super::chart::{Chart, Series};
use super::measure::PowerLaw;
use super::report::{Measured, Report, Table, changes, milliseconds};
use super::step::{Recipe, Subject};
use crate::data::Geometry;
use crate::error::{Error, Result};
use crate::machine::Machine;

/// The setting that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Images of a batch.
    Batch,
    /// Channels of the first cell.
    Channels,
    /// Cells.
    Layers,
    /// Side of the images.
    Size,
}

impl Axis {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Channels => "channels",
            Self::Layers => "layers",
            Self::Size => "size",
        }
    }

    /// The setting in a subject; of images the longer side.
    fn get(self, subject: &Subject) -> usize {
        let (channels, layers) = match &subject.recipe {
            Recipe::Search(c) => (c.channels, c.layers),
            Recipe::Training(c) => (c.channels, c.layers),
        };
        match self {
            Self::Batch => subject.batch(),
            Self::Channels => channels,
            Self::Layers => layers,
            Self::Size => subject.size.height.max(subject.size.width),
        }
    }

    /// A subject with another value.
    fn set(self, subject: &Subject, value: usize) -> Subject {
        let mut grown = subject.clone();
        let (batch, channels, layers) = match &mut grown.recipe {
            Recipe::Search(c) => (&mut c.batch, &mut c.channels, &mut c.layers),
            Recipe::Training(c) => (&mut c.batch, &mut c.channels, &mut c.layers),
        };
        match self {
            Self::Batch => *batch = value,
            Self::Channels => *channels = value,
            Self::Layers => *layers = value,
            Self::Size => grown.size = Geometry { height: value, width: value, ..subject.size },
        }
        grown
    }

    /// A quarter, a half, the whole and twice the subject's value, as far as networks exist there.
    pub fn series(self, subject: &Subject) -> Vec<usize> {
        let own = self.get(subject);
        let mut values: Vec<usize> = [own / 4, own / 2, own, 2 * own]
            .map(|value| match self {
                Self::Channels => (value / 2 * 2).max(2),
                Self::Batch => value.max(2),
                Self::Layers | Self::Size => value.max(1),
            })
            .to_vec();
        values.dedup();
        values
    }
}

/// One step of the series.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Value of the setting.
    pub value: usize,
    /// Floating-point operations of a step.
    pub flops: f64,
    /// Bytes that the engine allocated.
    pub peak_bytes: usize,
    /// Billions of operations a second.
    pub gflops: f64,
}

/// What only a series has.
#[derive(Clone, Debug, Serialize)]
pub struct GrowthDetails {
    /// The setting.
    pub grow: Axis,
    /// The steps, in the order of `cases`.
    pub points: Vec<Point>,
    /// Law of the median time.
    pub time: Option<PowerLaw>,
    /// Law of the operations: what the time would follow at a constant rate.
    pub work: Option<PowerLaw>,
    /// Law of the engine's memory.
    pub memory: Option<PowerLaw>,
}

/// Result of a series.
pub type GrowthReport = Report<Measured, GrowthDetails>;

/// Times a step at each value of a setting; `look` is told each value before it starts.
///
/// # Errors
/// [`Error::Usage`] for fewer than two different values, and as [`Subject::time`].
pub fn run(subject: &Subject, axis: Axis, values: &[usize], mut look: impl FnMut(usize)) -> Result<GrowthReport> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.dedup();
    if values.len() < 2 {
        return Err(Error::usage(format!(
            "--grow {} needs at least two different values; there are {values:?}",
            axis.name()
        )));
    }
    let (mut cases, mut points) = (Vec::<Measured>::new(), Vec::<Point>::new());
    let mut machine = Machine::here(0);
    for value in values {
        look(value);
        let report = axis.set(subject, value).time()?;
        let details = report.details;
        machine = report.machine;
        cases.extend(report.cases);
        points.push(Point { value, flops: details.flops, peak_bytes: details.peak_bytes, gflops: details.gflops });
    }
    let law = |of: &dyn Fn(usize) -> f64| {
        let pairs: Vec<(f64, f64)> = points.iter().enumerate().map(|(i, p)| (p.value as f64, of(i))).collect();
        PowerLaw::fit(&pairs)
    };
    let time = law(&|i| cases[i].times.milliseconds);
    let work = law(&|i| points[i].flops);
    let memory = law(&|i| points[i].peak_bytes as f64);
    let details = GrowthDetails { grow: axis, points, time, work, memory };
    Ok(Report { bench: "step", machine, quick: false, cases, changes: None, details })
}

/// The series as text.
pub fn text(report: &GrowthReport) -> String {
    let details = &report.details;
    let mut table = Table::new(&[details.grow.name(), "median", "+-", "GFLOP", "GFLOP/s", "engine MiB"]);
    for (case, point) in report.cases.iter().zip(&details.points) {
        table.row(vec![
            point.value.to_string(),
            milliseconds(case.times.milliseconds),
            format!("{:.1} %", 100.0 * case.times.spread()),
            format!("{:.2}", point.flops * 1e-9),
            format!("{:.1}", point.gflops),
            format!("{:.1}", point.peak_bytes as f64 / f64::from(1 << 20)),
        ]);
    }
    let law = |what: &str, law: Option<PowerLaw>| {
        law.map_or(String::new(), |l| {
            format!("{what} ~ {}^{:.3} (r2 {:.4})\n", details.grow.name(), l.exponent, l.r_squared)
        })
    };
    format!(
        "{}\n{table}{}{}{}{}",
        report.machine.line(),
        law("time  ", details.time),
        law("work  ", details.work),
        law("memory", details.memory),
        report.changes.as_deref().map(changes).unwrap_or_default()
    )
}

/// The series as a picture.
pub fn chart(report: &GrowthReport) -> Chart {
    let details = &report.details;
    let dots = report.cases.iter().zip(&details.points);
    let points: Vec<(f64, f64, String)> = dots
        .map(|(case, point)| {
            let time = case.times.milliseconds;
            (point.value as f64, time, format!("{}: {}", case.name, milliseconds(time)))
        })
        .collect();
    let ends = points.first().zip(points.last()).map(|(a, b)| (a.0, b.0));
    let line = details.time.zip(ends).map(|(law, (a, b))| [a, b].map(|x| (x, law.factor * x.powf(law.exponent))));
    let name = details.time.map_or("a step".into(), |law| format!("a step, exponent {:.2}", law.exponent));
    Chart {
        title: format!("A step as its {} grows: {}", details.grow.name(), report.machine.title()),
        axes: [details.grow.name().into(), "milliseconds".into()],
        series: vec![Series { name, points, line }],
        limits: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SearchConfig;

    #[test]
    fn every_axis_moves_its_own_setting() {
        let recipe = Recipe::Search(SearchConfig { channels: 6, layers: 5, batch: 4, ..SearchConfig::default() });
        let size = Geometry { height: 8, width: 12, channels: 3 };
        let subject = Subject { recipe, classes: 10, size, warmup: 0, steps: 1, profile: false };
        assert_eq!(Axis::Batch.series(&subject), [2, 4, 8]);
        assert_eq!(Axis::Channels.series(&subject), [2, 6, 12]);
        assert_eq!(Axis::Layers.series(&subject), [1, 2, 5, 10]);
        assert_eq!(Axis::Size.series(&subject), [3, 6, 12, 24]);
        for axis in [Axis::Batch, Axis::Channels, Axis::Layers, Axis::Size] {
            let grown = axis.set(&subject, 14);
            for other in [Axis::Batch, Axis::Channels, Axis::Layers, Axis::Size] {
                assert_eq!(other.get(&grown), if other == axis { 14 } else { other.get(&subject) });
            }
            assert_ne!(grown.name(), subject.name());
        }
        let error = run(&subject, Axis::Batch, &[4, 4], |_| ()).unwrap_err();
        assert!(error.to_string().contains("--grow batch"), "{error}");
    }
}
