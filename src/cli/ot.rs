//! `supernet ot`: optimal transport between two files of points.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};
use serde::Serialize;
use supernet::data::{Matrix, read_matrix};
use supernet::device::DeviceSpec;
use supernet::run::threads;
use supernet::transport::{
    Cloud, Costs, Domain, Epsilon, Held, Metric, Options, Points, Problem, Schedule, Solution, Values, divergences,
    solve,
};
use supernet::{Error, Result};

use super::output::{self, Lines};
use super::{folder, parse};

const AFTER_HELP: &str = "\
Files are NumPy's: np.save of float32, float64 or integers, one point a row. The optimal cost lies between `lower` and
`upper`, whatever the regularisation and whether or not the iteration converged.

Examples:
  supernet ot x.npy y.npy
  supernet ot x.npy y.npy --epsilon-relative 0.002 --json
  supernet ot x.npy y.npy --metric cosine --weights a.npy b.npy
  supernet ot --cost c.npy --epsilon 0.1";

/// Transport points of one file to those of another at the cost |x - y|^2 / 2, 1 - cos(x, y) or a given one.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Points, one a row.
    #[arg(value_name = "X.npy", required_unless_present = "cost", requires = "right")]
    left: Option<PathBuf>,
    /// Points they go to.
    #[arg(value_name = "Y.npy")]
    right: Option<PathBuf>,
    /// Costs, one row for each point of X and one column for each of Y, in place of the distances.
    #[arg(long, value_name = "C.npy")]
    cost: Option<PathBuf>,
    /// Cost of two points.
    #[arg(long, value_name = "METRIC", default_value = "squared", conflicts_with = "cost")]
    metric: MetricName,
    /// Weights of the points of X and of Y, each divided by their sum; all equal where they are not given.
    #[arg(long, value_names = ["A.npy", "B.npy"], num_args = 2)]
    weights: Option<Vec<PathBuf>>,
    /// Regularisation in the units of the cost.
    #[arg(long, value_name = "E", conflicts_with = "epsilon_relative")]
    epsilon: Option<f64>,
    /// Regularisation as a share of the mean cost [default: 0.01].
    #[arg(long, value_name = "R")]
    epsilon_relative: Option<f64>,
    /// Iterations at most.
    #[arg(long, value_name = "N", default_value_t = 5000)]
    iterations: usize,
    /// Marginal error (the sum of absolute differences) at which to stop; -1 for never.
    #[arg(long, value_name = "T", default_value_t = 1e-5, allow_negative_numbers = true)]
    tolerance: f64,
    /// Where iterations are done.
    #[arg(long, value_name = "DOMAIN", default_value = "auto")]
    domain: DomainName,
    /// Allow missed marginals at this price, in the units of the cost; 0 to meet them.
    #[arg(long, value_name = "RHO", default_value_t = 0.0, allow_negative_numbers = true)]
    rho: f64,
    /// Also the Sinkhorn divergence, which is zero between equal sets.
    #[arg(long, conflicts_with = "cost")]
    debiased: bool,
    /// What computes: cpu, wgpu or cuda, the latter two with :N where there are several.
    #[arg(long, value_name = "DEVICE", value_parser = parse::device, default_value = "cpu")]
    device: DeviceSpec,
    /// Threads; 0 for all cores.
    #[arg(long, value_name = "T", default_value_t = 0)]
    threads: u16,
}

#[derive(Clone, Copy, ValueEnum)]
enum DomainName {
    /// A stored kernel where it fits.
    Auto,
    /// One exponential an element and iteration.
    Log,
    /// A stored kernel.
    Kernel,
}

#[derive(Clone, Copy, ValueEnum)]
enum MetricName {
    /// Half the squared distance.
    Squared,
    /// 1 - cos of the angle between the points as seen from the origin.
    Cosine,
}

#[derive(Serialize)]
struct Report {
    points: [usize; 2],
    #[serde(flatten)]
    solution: Solution,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<f64>,
}

fn points(path: &Path) -> Result<(String, Matrix)> {
    Ok((path.display().to_string(), read_matrix(path)?))
}

/// Weights of `count` points, a vector or a matrix of any shape, divided by their sum.
fn weights(path: &Path, count: usize) -> Result<Vec<f64>> {
    let Matrix { values, .. } = read_matrix(path)?;
    if values.len() != count {
        return Err(Error::input(path, format!("holds {} weights for {count} points", values.len())));
    }
    if let Some(at) = values.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        return Err(Error::input(path, format!("has weight {} in place {at}: weights are at least 0", values[at])));
    }
    let sum: f64 = values.iter().sum();
    if !(sum.is_finite() && sum > 0.0) {
        return Err(Error::input(path, format!("has weights of sum {sum}: some must be above 0")));
    }
    Ok(values.iter().map(|w| w / sum).collect())
}

/// A problem between rows of two sets, with the weights of two files if they are given.
fn problem(rows: [Range<usize>; 2], files: Option<&[PathBuf]>, epsilon: Epsilon) -> Result<Problem> {
    let [left, right] = rows;
    let found = match files {
        Some([a, b]) => Some((weights(a, left.len())?, weights(b, right.len())?)),
        _ => None,
    };
    Ok(Problem { weights: found, ..Problem::uniform(left, right, epsilon) })
}

fn given_costs(
    path: &Path,
    sizes: Option<[usize; 2]>,
    (epsilon, weights): (Epsilon, Option<&[PathBuf]>),
    options: &Options,
) -> Result<Report> {
    let costs = read_matrix(path)?;
    let found = [costs.rows, costs.columns];
    if let Some([n, m]) = sizes.filter(|&sizes| sizes != found) {
        let [rows, columns] = found;
        return Err(Error::input(path, format!("holds {rows} x {columns} costs for {n} and {m} points")));
    }
    if let Some(at) = costs.values.iter().position(|c| !c.is_finite()) {
        let (row, column, value) = (at / costs.columns, at % costs.columns, costs.values[at]);
        let message = format!("has the value {value} in row {row}, column {column}: costs must be finite");
        return Err(Error::input(path, message));
    }
    let problem = problem([0..costs.rows, 0..costs.columns], weights, epsilon)?;
    let matrices = [costs.values];
    let found_all = solve(Costs::Matrices(&matrices), &[problem], options, &AtomicBool::new(false), &mut |_| ())?;
    report(found, found_all, None)
}

fn report(points: [usize; 2], solutions: Vec<Solution>, divergence: Option<f64>) -> Result<Report> {
    let solution = solutions.into_iter().next().ok_or_else(|| Error::usage("no problem was solved"))?;
    Ok(Report { points, solution, divergence })
}

fn distances(
    sets: &[(String, Matrix); 2],
    epsilon: Epsilon,
    arguments: &Arguments,
    options: &Options,
) -> Result<Report> {
    let clouds = sets.each_ref().map(|(name, m)| Cloud { name, values: Values::Double(&m.values), dim: m.columns });
    let metric = match arguments.metric {
        MetricName::Squared => Metric::Squared,
        MetricName::Cosine => Metric::Cosine,
    };
    let points = Points::of(&clouds, metric)?;
    let sizes = sets.each_ref().map(|(_, m)| m.rows);
    let problems = [problem([points.cloud(0), points.cloud(1)], arguments.weights.as_deref(), epsilon)?];
    let stop = AtomicBool::new(false);
    if arguments.debiased {
        let found = divergences((&points, 0.5, None), &problems, options, &stop)?;
        let value = found.first().map(|d| d.value);
        return report(sizes, found.into_iter().map(|d| d.across).collect(), value);
    }
    let costs = Costs::Points { points: &points, point_scale: 0.5, labels: None };
    report(sizes, solve(costs, &problems, options, &stop, &mut |_| ())?, None)
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let count = usize::from(arguments.threads);
    folder::limit_threads(count)?;
    let options = Options {
        schedule: Schedule::Converge { factor: 0.5 },
        iterations: arguments.iterations,
        tolerance: arguments.tolerance,
        rho: arguments.rho,
        domain: match arguments.domain {
            DomainName::Auto => Domain::Auto,
            DomainName::Log => Domain::Log,
            DomainName::Kernel => Domain::Kernel,
        },
        device: arguments.device,
        threads: threads(count),
        ..Options::default()
    };
    let epsilon = match (arguments.epsilon, arguments.epsilon_relative) {
        (Some(eps), _) => Epsilon::Absolute(eps),
        (None, share) => Epsilon::Mean(share.unwrap_or(0.01)),
    };
    let sets = match (&arguments.left, &arguments.right) {
        (Some(left), Some(right)) => Some([points(left)?, points(right)?]),
        _ => None,
    };
    let report = match (&arguments.cost, sets) {
        (Some(path), sets) => {
            let sizes = sets.map(|sets| sets.map(|(_, m)| m.rows));
            given_costs(path, sizes, (epsilon, arguments.weights.as_deref()), &options)?
        }
        (None, Some(sets)) => distances(&sets, epsilon, arguments, &options)?,
        (None, None) => return Err(Error::usage("two files of points or --cost are needed")),
    };
    output::print(json, &report, |report| {
        let Solution { cost, lower, upper, marginal_error, iterations, converged, epsilon, costs, .. } =
            &report.solution;
        let [n, m] = report.points;
        Lines::default()
            .add("points", format!("{n} to {m}"))
            .add("cost", format!("{cost:.6e}"))
            .add("optimal cost", format!("{lower:.6e} to {upper:.6e}"))
            .add_some("divergence", report.divergence.map(|d| format!("{d:.6e}")))
            .add("epsilon", format!("{epsilon:.3e}"))
            .add("marginal error", format!("{marginal_error:.1e}"))
            .add("iterations", iterations)
            .add("costs", if *costs == Held::Stored { "stored" } else { "recomputed: the matrix would be too large" })
            .add("converged", if *converged { "yes" } else { "no: the bounds hold, the plan misses its marginals" })
    })
}
