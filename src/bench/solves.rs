//! Times whole solves of transport problems, from points to certified costs: the batch of all class pairs of a pair of
//! datasets, and large problems, in both domains, one problem alone also with costs that are recomputed; and how the time
//! grows with points, dimensions and problems.
//!
//! The iterations are counted, not waited for, so that a time tells the speed of the solver and not the luck of the data.

use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::chart::{Chart, Series};
use super::measure::{self, Effort, PowerLaw};
use super::report::{Measured, Report, Skipped, Table, changes, milliseconds};
use crate::device::{Device, DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::graph::StoreLayout;
use crate::machine::Machine;
use crate::random::{Stream, normal};
use crate::transport::{
    Cloud, Costs, Domain, Epsilon, Held, Memory, Options, Points, Problem, Schedule, Solution, Values, solve,
};

/// Iterations of a solve.
pub const ITERATIONS: usize = 100;
/// Regularisation as a share of the mean cost: the kernel stays within f32 there.
const EPSILON: f64 = 0.05;
/// Purpose of the points, for the counter-based generator.
const PURPOSE_POINTS: u32 = 90;

/// Problems of one size that are solved in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// How many problems.
    pub problems: usize,
    /// Points of each side.
    pub points: usize,
    /// Their dimensions.
    pub dimensions: usize,
}

impl Shape {
    /// The class pairs of two datasets with twenty classes.
    pub const BATCH: Self = Self { problems: 190, points: 256, dimensions: 64 };
    /// One large problem.
    pub const SINGLE: Self = Self { problems: 1, points: 2000, dimensions: 64 };
    /// One problem that does not fit into caches.
    pub const LARGE: Self = Self { problems: 1, points: 4000, dimensions: 64 };
    /// What is timed where nothing else is asked for.
    pub const USUAL: [Self; 3] = [Self::BATCH, Self::SINGLE, Self::LARGE];

    /// Reads `PROBLEMSxPOINTSxDIMENSIONS`.
    ///
    /// # Errors
    /// [`Error::Usage`] for anything but three numbers above 0.
    pub fn parse(text: &str) -> Result<Self> {
        let numbers: Vec<usize> = text.split('x').filter_map(|n| n.parse().ok().filter(|&n| n > 0)).collect();
        match numbers[..] {
            [problems, points, dimensions] if text.matches('x').count() == 2 => {
                Ok(Self { problems, points, dimensions })
            }
            _ => Err(Error::usage(format!("shape `{text}`: expected PROBLEMSxPOINTSxDIMENSIONS, such as 1x2000x64"))),
        }
    }

    fn name(self, way: Way) -> String {
        let Self { problems, points, dimensions } = self;
        format!("{problems}x{points}x{points}/d{dimensions}/{}", way.name())
    }
}

/// How problems are solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In the log domain.
    Log,
    /// With a stored kernel.
    Kernel,
    /// In the log domain, with costs that are not stored.
    Recomputed,
}

impl Way {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Log, Self::Kernel, Self::Recomputed];

    /// As it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Kernel => "kernel",
            Self::Recomputed => "recomputed",
        }
    }
}

/// Points that wait to be transported.
pub struct Subject {
    points: Points,
    problems: Vec<Problem>,
    options: Options,
}

impl Subject {
    /// Draws normal points around as many centres as it takes to make so many pairs.
    ///
    /// # Errors
    /// Those of [`Points::new`].
    pub fn new(shape: Shape, way: Way, (device, threads): (DeviceSpec, usize)) -> Result<Self> {
        let Shape { problems, points, dimensions } = shape;
        let clouds = (2..).find(|n| n * (n - 1) / 2 >= problems).unwrap_or(2);
        let stream = Stream::new(0, PURPOSE_POINTS);
        let draw = |cloud: usize| -> Vec<f32> {
            let one = |i: usize| {
                let words = stream.block(cloud as u64, i as u32);
                // Centres lie about as far apart as points of one cloud.
                let centre = stream.block(u64::MAX - cloud as u64, (i % dimensions) as u32);
                (normal(words[0], words[1]).0 + normal(centre[0], centre[1]).0) as f32
            };
            (0..points * dimensions).map(one).collect()
        };
        let values: Vec<Vec<f32>> = (0..clouds).map(draw).collect();
        let cloud = |v| Cloud { name: "bench", values: Values::Single(v), dim: dimensions };
        let points = Points::new(&values.iter().map(|v| cloud(&v[..])).collect::<Vec<_>>())?;
        let pairs = (0..clouds).flat_map(|a| (a + 1..clouds).map(move |b| (a, b)));
        let problem = |(a, b)| Problem::uniform(points.cloud(a), points.cloud(b), Epsilon::Mean(EPSILON));
        let problems = pairs.take(problems).map(problem).collect();
        let schedule = Schedule::Converge { factor: 1.0 };
        let options = Options {
            schedule,
            iterations: ITERATIONS,
            tolerance: -1.0,
            domain: if way == Way::Kernel { Domain::Kernel } else { Domain::Log },
            memory: if way == Way::Recomputed { Memory::Recomputed } else { Memory::Stored },
            device,
            threads,
            ..Options::default()
        };
        Ok(Self { points, problems, options })
    }

    /// Solves all problems.
    ///
    /// # Errors
    /// As [`solve`].
    pub fn solve(&self) -> Result<Vec<Solution>> {
        let costs = Costs::Points { points: &self.points, point_scale: 0.5, labels: None };
        solve(costs, &self.problems, &self.options, &AtomicBool::new(false), &mut |_| ())
    }
}

/// The quantity that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Points of each side.
    Points,
    /// Dimensions of the points.
    Dimensions,
    /// Problems of a call.
    Problems,
}

impl Axis {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Points => "points",
            Self::Dimensions => "dimensions",
            Self::Problems => "problems",
        }
    }

    fn set(self, value: usize) -> Shape {
        let base = Shape { problems: 40, ..Shape::BATCH };
        match self {
            Self::Points => Shape { points: value, ..base },
            Self::Dimensions => Shape { dimensions: value, ..base },
            Self::Problems => Shape { problems: value, ..base },
        }
    }

    /// The values where none are given.
    pub fn series(self) -> Vec<usize> {
        match self {
            Self::Points => vec![64, 128, 256, 512],
            Self::Dimensions => vec![16, 64, 256, 1024],
            Self::Problems => vec![10, 40, 160, 640],
        }
    }
}

/// What to time.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// Problems of these shapes.
    Shapes(&'a [Shape]),
    /// A quantity that grows through these values.
    Series(Axis, &'a [usize]),
}

impl What<'_> {
    fn axis(self) -> Option<Axis> {
        match self {
            Self::Shapes(_) => None,
            Self::Series(axis, _) => Some(axis),
        }
    }
}

/// One solve that was timed.
#[derive(Clone, Debug, Serialize)]
pub struct Solved {
    /// Its name and times.
    #[serde(flatten)]
    pub measured: Measured,
    /// What was solved.
    pub shape: Shape,
    /// Where its costs were.
    pub costs: Held,
    /// Iterations of each problem.
    pub iterations: usize,
    /// Elements of cost matrices that the iterations passed, in billions a second.
    pub elements_per_nanosecond: f64,
}

/// What grew, and by which law.
#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    /// The quantity.
    pub axis: Axis,
    /// Law of the median time in each way.
    pub laws: Vec<(&'static str, Option<PowerLaw>)>,
}

/// What only this bench has.
#[derive(Clone, Debug, Serialize)]
pub struct SolveDetails {
    /// The series, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grow: Option<Growth>,
    /// What the device has no room for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// Result of the solves.
pub type SolveReport = Report<Solved, SolveDetails>;

fn time(shape: Shape, way: Way, on: (DeviceSpec, usize), quick: bool) -> Result<Solved> {
    let subject = Subject::new(shape, way, on)?;
    let mut solved = Ok(None);
    let times = measure::sample(Effort::new(quick), |repeats| {
        for _ in 0..repeats {
            if solved.is_ok() {
                solved = subject.solve().map(|solutions| solutions.first().map(|solution| solution.costs));
            }
        }
    });
    let costs = solved?.ok_or_else(|| Error::usage("a shape without problems"))?;
    let passed = (shape.problems * shape.points * shape.points * ITERATIONS) as f64;
    Ok(Solved {
        measured: Measured { name: shape.name(way), times },
        shape,
        costs,
        iterations: ITERATIONS,
        elements_per_nanosecond: passed / (times.milliseconds * 1e6),
    })
}

/// Times shapes, or a series, in all ways that suit them; `look` is told each case before it starts. What a GPU has no room
/// for is left out.
///
/// # Errors
/// [`Error::Usage`] for fewer than two different values, and those of the solver.
pub fn run(what: What<'_>, on: (DeviceSpec, usize), quick: bool, mut look: impl FnMut(&str)) -> Result<SolveReport> {
    let shapes: Vec<(usize, Shape)> = match what {
        What::Shapes(shapes) => shapes.iter().map(|&shape| (0, shape)).collect(),
        What::Series(axis, values) => {
            let mut values = values.to_vec();
            values.sort_unstable();
            values.dedup();
            if values.len() < 2 || values[0] == 0 {
                let name = axis.name();
                let message =
                    format!("--grow {name} needs at least two different values above 0; there are {values:?}");
                return Err(Error::usage(message));
            }
            values.into_iter().map(|v| (v, axis.set(v))).collect()
        }
    };
    // Held throughout: a solve opens its device, which is cheap while one is open.
    let held = Device::open(&on.0, &StoreLayout::new(), on.1, Precision::F32)?;
    let (mut cases, mut laws, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for way in Way::ALL {
        let mut points = Vec::new();
        // It is for large problems that costs are recomputed.
        let suits = |shape: &Shape| match way {
            Way::Log => true,
            // A GPU iterates in the log domain whatever is asked for.
            Way::Kernel => on.0.is_cpu(),
            Way::Recomputed => what.axis().is_none() && shape.problems == 1,
        };
        for &(value, shape) in shapes.iter().filter(|(_, shape)| suits(shape)) {
            look(&shape.name(way));
            match time(shape, way, on, quick) {
                Ok(solved) => {
                    points.push((value as f64, solved.measured.times.milliseconds));
                    cases.push(solved);
                }
                Err(error @ Error::Memory(_)) if !on.0.is_cpu() => {
                    skipped.push(Skipped { name: shape.name(way), reason: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        if !points.is_empty() {
            laws.push((way.name(), PowerLaw::fit(&points)));
        }
    }
    let details = SolveDetails { grow: what.axis().map(|axis| Growth { axis, laws }), skipped };
    Ok(Report { bench: "transport", machine: Machine::with(&held, on.1), quick, cases, changes: None, details })
}

/// The result as text.
pub fn text(report: &SolveReport) -> String {
    let mut table =
        Table::new(&["problems x points x points / dimensions / way", "costs", "median", "+-", "elements/ns"]);
    for case in &report.cases {
        let times = case.measured.times;
        table.row(vec![
            case.measured.name.clone(),
            if case.costs == Held::Stored { "stored" } else { "recomputed" }.into(),
            milliseconds(times.milliseconds),
            format!("{:.1} %", 100.0 * times.spread()),
            format!("{:.2}", case.elements_per_nanosecond),
        ]);
    }
    let mut out = format!("{}\n{table}{ITERATIONS} iterations, with costs and certificates\n", report.machine.line());
    for Skipped { name, reason } in &report.details.skipped {
        out += &format!("{name}: not on this device: {reason}\n");
    }
    for (grow, (domain, law)) in report.details.grow.iter().flat_map(|g| g.laws.iter().map(move |law| (g, law))) {
        if let Some(law) = law {
            out += &format!("{domain}: time ~ {}^{:.3} (r2 {:.4})\n", grow.axis.name(), law.exponent, law.r_squared);
        }
    }
    out + &report.changes.as_deref().map(changes).unwrap_or_default()
}

/// A series as a picture; None without one.
pub fn chart(report: &SolveReport) -> Option<Chart> {
    let grow = report.details.grow.as_ref()?;
    let value = |s: Shape| match grow.axis {
        Axis::Points => s.points,
        Axis::Dimensions => s.dimensions,
        Axis::Problems => s.problems,
    };
    let series = |(domain, law): &(&'static str, Option<PowerLaw>)| {
        let own = report.cases.iter().filter(|c| c.measured.name.ends_with(domain));
        let points: Vec<(f64, f64, String)> =
            own.map(|c| (value(c.shape) as f64, c.measured.times.milliseconds, c.measured.name.clone())).collect();
        let ends = points.first().zip(points.last()).map(|(a, b)| (a.0, b.0));
        let line = law.zip(ends).map(|(law, (a, b))| [a, b].map(|x| (x, law.factor * x.powf(law.exponent))));
        let name = law.map_or((*domain).into(), |law| format!("{domain} domain, exponent {:.2}", law.exponent));
        Series { name, points, line }
    };
    Some(Chart {
        title: format!("{ITERATIONS} Sinkhorn iterations as the {} grow: {}", grow.axis.name(), report.machine.title()),
        axes: [grow.axis.name().into(), "milliseconds".into()],
        series: grow.laws.iter().map(series).collect(),
        limits: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_its_shape_and_its_iterations() {
        let shape = Shape { problems: 4, points: 5, dimensions: 3 };
        for way in Way::ALL {
            let solutions = Subject::new(shape, way, (DeviceSpec::Cpu, 1)).unwrap().solve().unwrap();
            assert_eq!(solutions.len(), 4);
            assert!(solutions.iter().all(|s| s.iterations == ITERATIONS && s.lower <= s.upper), "{solutions:?}");
        }
    }

    #[test]
    fn shapes_are_read() {
        assert_eq!(Shape::parse("1x2000x64").unwrap(), Shape::SINGLE);
        for bad in ["", "1x2", "1x2x3x4", "0x2x3", "1xx3", "1x2xa", "1x2x-3"] {
            assert!(Shape::parse(bad).unwrap_err().to_string().contains("PROBLEMSxPOINTSxDIMENSIONS"), "{bad}");
        }
        let shape = Shape { problems: 3, points: 6, dimensions: 2 };
        let report = run(What::Shapes(&[shape]), (DeviceSpec::Cpu, 1), true, |_| ()).unwrap();
        assert!(report.cases.len() == 2 && report.cases.iter().all(|c| c.shape == shape));
        let shape = Shape { problems: 1, ..shape };
        let report = run(What::Shapes(&[shape]), (DeviceSpec::Cpu, 1), true, |_| ()).unwrap();
        let names: Vec<_> = report.cases.iter().map(|c| &c.measured.name[..]).collect();
        assert_eq!(names, ["1x6x6/d2/log", "1x6x6/d2/kernel", "1x6x6/d2/recomputed"]);
        let costs: Vec<_> = report.cases.iter().map(|c| c.costs).collect();
        assert_eq!(costs, [Held::Stored, Held::Stored, Held::Recomputed]);
    }

    #[test]
    fn a_series_needs_two_values() {
        let refused = |values: &[usize]| {
            run(What::Series(Axis::Points, values), (DeviceSpec::Cpu, 1), true, |_| ()).unwrap_err().to_string()
        };
        assert!(refused(&[4, 4]).contains("--grow points") && refused(&[0, 4]).contains("above 0"));
        let report = run(What::Series(Axis::Points, &[4, 8]), (DeviceSpec::Cpu, 1), true, |_| ()).unwrap();
        assert_eq!((report.cases.len(), report.details.grow.as_ref().unwrap().laws.len()), (4, 2));
        assert!(chart(&report).unwrap().series.iter().all(|s| s.points.len() == 2));
    }
}
