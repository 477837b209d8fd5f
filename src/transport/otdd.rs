//! Distance of labelled datasets (OTDD, Alvarez-Melis and Fusi 2020): transport between the datasets' points at the cost
//! `lambda_x |x - x'|^2 / 2 + lambda_y W(y, y') / 2`, where `W` is itself the squared transport distance between the
//! points of two classes.
//!
//! The profile `normalised` is ours: eps is relative to the mean cost, problems are solved until their marginals fit, and
//! a set is at distance 0 of itself. `paper` has the arithmetic of the released code: eps 0.1 absolute, GeomLoss's
//! schedule, an inner cost that is halved twice (so that the label term is `W / 4`), and biased inner distances across
//! datasets, so that a set is not at distance 0 of itself.
//!
//! All class pairs of all pairs of datasets are one batch of problems, and so are all outer problems. A class pair within
//! a dataset is solved once, however many datasets that one is compared with.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::bures::{Gaussian, bures, means};
use super::points::{Cloud, Points, Values};
use super::solver::{Costs, Epsilon, Labels, Options, Problem, Schedule, solve};
use crate::data::permutation;
use crate::device::DeviceSpec;
use crate::embedding::{Embedded, Profile};
use crate::error::{Error, Result};
use crate::random::Stream;

/// Purposes of draws, for the counter-based generator: the subset, the halves, the bootstrap.
const PURPOSE_SUBSET: u32 = 91;
const PURPOSE_HALVES: u32 = 92;
const PURPOSE_BOOTSTRAP: u32 = 93;

/// The distance of two classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inner {
    /// Transport between their points.
    Exact,
    /// The closed form for Gaussians of their means and covariances.
    Gaussian,
    /// Between their means; in the profile `paper` not squared, as released.
    Means,
}

/// A dataset as points with labels.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What messages and results call it.
    pub name: String,
    /// Coordinates, `[labels.len(), dim]`.
    pub points: Vec<f32>,
    /// Dimensions.
    pub dim: usize,
    /// Class of each point.
    pub labels: Vec<u32>,
}

impl From<Embedded> for Sample {
    fn from(embedded: Embedded) -> Self {
        let Embedded { name, points, dim, labels, .. } = embedded;
        Self { name, points, dim, labels }
    }
}

/// Settings of a distance.
#[derive(Clone, Copy, Debug)]
pub struct OtddOptions {
    /// The conventions.
    pub profile: Profile,
    /// The distance of classes.
    pub inner: Inner,
    /// Points of a dataset that are used at most.
    pub max_samples: usize,
    /// Seed of subsets, halves and bootstrap.
    pub seed: u64,
    /// Share of the mean cost that is eps, in `normalised`.
    pub epsilon: f64,
    /// Factor of the distance of points.
    pub lambda_x: f64,
    /// Factor of the distance of labels.
    pub lambda_y: f64,
    /// Iterations of a problem at most, in `normalised`.
    pub iterations: usize,
    /// Whether split-half distances are wanted.
    pub floor: bool,
    /// Bootstrap draws of a ranking; 0 for none.
    pub bootstrap: usize,
    /// What solves the problems.
    pub device: DeviceSpec,
    /// Threads.
    pub threads: usize,
}

impl Default for OtddOptions {
    fn default() -> Self {
        Self {
            profile: Profile::Normalised,
            inner: Inner::Exact,
            max_samples: 1000,
            seed: 0,
            epsilon: 0.01,
            lambda_x: 1.0,
            lambda_y: 1.0,
            iterations: 5000,
            floor: true,
            bootstrap: 20,
            device: DeviceSpec::Cpu,
            threads: 1,
        }
    }
}

/// Distances of datasets.
#[derive(Clone, Debug, Serialize)]
pub struct Distances {
    /// Names, in the order given.
    pub names: Vec<String>,
    /// Distance of each pair, symmetric.
    pub matrix: Vec<Vec<f64>>,
    /// Distance of two disjoint halves of each dataset: what finite samples alone amount to (halves are smaller, so it
    /// overestimates). Empty if it was not asked for; None for a dataset too small to be halved.
    pub floor: Vec<Option<f64>>,
    /// Points of each dataset that were used.
    pub samples: Vec<usize>,
    /// Whether every problem met its marginals; in `paper` none is asked to.
    pub converged: bool,
    /// Largest marginal error of an outer problem.
    pub marginal_error: f64,
    /// Inner and outer problems that were solved.
    pub problems: usize,
}

/// A source in the order of its distance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ranked {
    /// Its name.
    pub name: String,
    /// Its place in the list given.
    pub index: usize,
    /// Distance to the target.
    pub distance: f64,
    /// 5 % and 95 % quantiles over bootstrap draws of both datasets' points; None without draws.
    pub interval: Option<[f64; 2]>,
    /// Share of draws in which it was the nearest.
    pub nearest: Option<f64>,
    /// Split-half distance of the source.
    pub floor: Option<f64>,
}

/// A dataset, or a half of one, among the points of a batch: its rows sorted by class.
struct Part {
    rows: Range<usize>,
    /// Rows of each class.
    classes: Vec<Range<usize>>,
    /// Number of its first class among those of all parts.
    first: usize,
}

impl Part {
    fn labels(&self) -> Range<usize> {
        self.first..self.first + self.classes.len()
    }
}

/// Everything of a batch but the outer problems.
struct Bench<'a> {
    options: &'a OtddOptions,
    points: Points,
    parts: Vec<Part>,
    labels: Labels,
    problems: usize,
    converged: bool,
}

/// Rows of a sample, class by class.
type Classes = Vec<Vec<usize>>;

/// Rows of each class that has enough of them, in the order of labels.
fn by_class(sample: &Sample, least: usize) -> Classes {
    let mut classes: std::collections::BTreeMap<u32, Vec<usize>> = std::collections::BTreeMap::new();
    sample.labels.iter().enumerate().for_each(|(row, &label)| classes.entry(label).or_default().push(row));
    classes.into_values().filter(|rows| rows.len() >= least).collect()
}

/// At most so many rows of classes. In `normalised` each class keeps its share, one row at least; in `paper` rows are
/// drawn from all, as released.
fn subset(classes: Classes, options: &OtddOptions) -> Classes {
    let all: usize = classes.iter().map(Vec::len).sum();
    if all <= options.max_samples {
        return classes;
    }
    let draw = |n: usize, number: u64| permutation(n, options.seed, PURPOSE_SUBSET, number);
    if options.profile == Profile::Paper {
        let mut chosen = vec![false; all];
        draw(all, 0).into_iter().take(options.max_samples).for_each(|i| chosen[i as usize] = true);
        let mut number = 0..;
        let keep = |rows: Vec<usize>| -> Vec<usize> {
            rows.into_iter().filter(|_| chosen[number.next().expect("endless")]).collect()
        };
        return classes.into_iter().map(keep).filter(|rows| !rows.is_empty()).collect();
    }
    let keep = |(number, rows): (usize, Vec<usize>)| {
        let share = (rows.len() * options.max_samples).div_ceil(all).max(1);
        let mut order: Vec<u32> = draw(rows.len(), number as u64).into_iter().take(share).collect();
        order.sort_unstable();
        order.into_iter().map(|i| rows[i as usize]).collect()
    };
    classes.into_iter().enumerate().map(keep).collect()
}

/// Two halves of every class; None if too few classes have two points.
fn halves(classes: &[Vec<usize>], seed: u64) -> Option<[Classes; 2]> {
    let mut parts = [Vec::new(), Vec::new()];
    for (number, rows) in classes.iter().enumerate().filter(|(_, rows)| rows.len() > 1) {
        let order = permutation(rows.len(), seed, PURPOSE_HALVES, number as u64);
        for (half, part) in parts.iter_mut().enumerate() {
            let own = order.iter().skip(half).step_by(2).take(rows.len() / 2);
            part.push(own.map(|&i| rows[i as usize]).collect::<Vec<_>>());
        }
    }
    (!parts[0].is_empty()).then_some(parts)
}

fn check(samples: &[&Sample], options: &OtddOptions) -> Result<()> {
    let OtddOptions { max_samples, epsilon, lambda_x, lambda_y, .. } = *options;
    if max_samples < 2 {
        return Err(Error::usage(format!("at most {max_samples} samples of a dataset: at least 2 are needed")));
    }
    if !(epsilon.is_finite() && epsilon > 0.0) {
        return Err(Error::usage(format!("epsilon is {epsilon}; it must be a finite number above 0")));
    }
    if ![lambda_x, lambda_y].iter().all(|l| l.is_finite() && *l >= 0.0) || lambda_x + lambda_y == 0.0 {
        let message = format!("lambda_x {lambda_x} and lambda_y {lambda_y} must be at least 0, and one of them above");
        return Err(Error::usage(message));
    }
    for sample in samples {
        let Sample { name, points, dim, labels } = sample;
        if points.len() != labels.len() * dim {
            let values = points.len();
            return Err(Error::usage(format!(
                "{name} has {values} values for {} labels of {dim} dimensions",
                labels.len()
            )));
        }
    }
    Ok(())
}

impl<'a> Bench<'a> {
    /// Samples, then, where they are wanted, the two halves of each; and the distances of classes that `pairs` of parts
    /// need. Also which parts are the halves of each sample.
    fn new(
        samples: &[&Sample],
        pairs: &[(usize, usize)],
        options: &'a OtddOptions,
        stop: &AtomicBool,
    ) -> Result<(Self, Vec<Option<[usize; 2]>>)> {
        check(samples, options)?;
        let least = if options.profile == Profile::Paper { 2 } else { 1 };
        let (mut chosen, mut names): (Vec<(usize, Classes)>, Vec<String>) = (Vec::new(), Vec::new());
        for (number, sample) in samples.iter().enumerate() {
            let classes = subset(by_class(sample, least), options);
            if classes.is_empty() {
                return Err(Error::usage(format!("{} has no class with {least} samples", sample.name)));
            }
            chosen.push((number, classes));
            names.push(sample.name.clone());
        }
        let mut half_parts = vec![None; samples.len()];
        if options.floor {
            for number in 0..samples.len() {
                if let Some(both) = halves(&chosen[number].1, options.seed) {
                    half_parts[number] = Some([chosen.len(), chosen.len() + 1]);
                    for half in both {
                        chosen.push((number, half));
                        names.push(format!("a half of {}", samples[number].name));
                    }
                }
            }
        }
        let gather = |(number, classes): &(usize, Classes)| -> Vec<f32> {
            let Sample { points, dim, .. } = samples[*number];
            classes.iter().flatten().flat_map(|&row| points[row * dim..(row + 1) * dim].iter().copied()).collect()
        };
        let values: Vec<Vec<f32>> = chosen.iter().map(gather).collect();
        let clouds: Vec<Cloud<'_>> = values
            .iter()
            .zip(&chosen)
            .zip(&names)
            .map(|((values, (number, _)), name)| Cloud {
                name,
                values: Values::Single(values),
                dim: samples[*number].dim,
            })
            .collect();
        let points = Points::new(&clouds)?;
        let (mut parts, mut first) = (Vec::new(), 0);
        for (number, (_, classes)) in chosen.iter().enumerate() {
            let rows = points.cloud(number);
            let mut at = rows.start;
            let classes: Vec<Range<usize>> = classes
                .iter()
                .map(|class| {
                    at += class.len();
                    at - class.len()..at
                })
                .collect();
            let count = classes.len();
            parts.push(Part { rows, classes, first });
            first += count;
        }
        let of_rows = parts
            .iter()
            .flat_map(|p| p.classes.iter().zip(p.labels()).flat_map(|(c, l)| vec![l as u32; c.len()]))
            .collect();
        let labels =
            Labels { of_rows, distances: vec![0.0; first * first], count: first, scale: options.lambda_y / 2.0 };
        let mut bench = Self { options, points, parts, labels, problems: 0, converged: true };
        let mut needed: Vec<(usize, usize)> = pairs.to_vec();
        needed.extend(half_parts.iter().flatten().map(|&[a, b]| (a, b)));
        bench.label_distances(&needed, &values, stop)?;
        Ok((bench, half_parts))
    }

    /// Fills the distances of all classes that meet in the outer problems of some pairs of parts.
    fn label_distances(&mut self, pairs: &[(usize, usize)], values: &[Vec<f32>], stop: &AtomicBool) -> Result<()> {
        let class = |part: &Part, i: usize| (part.labels().start + i, part.classes[i].clone());
        let mut meet: Vec<[(usize, Range<usize>); 2]> = Vec::new();
        let mut within: Vec<usize> = pairs.iter().flat_map(|&(a, b)| [a, b]).collect();
        within.sort_unstable();
        within.dedup();
        for part in within.into_iter().map(|p| &self.parts[p]) {
            for i in 0..part.classes.len() {
                meet.extend((i + 1..part.classes.len()).map(|j| [class(part, i), class(part, j)]));
            }
        }
        for (a, b) in pairs.iter().filter(|(a, b)| a != b).map(|&(a, b)| (&self.parts[a], &self.parts[b])) {
            for i in 0..a.classes.len() {
                meet.extend((0..b.classes.len()).map(|j| [class(a, i), class(b, j)]));
            }
        }
        let paper = self.options.profile == Profile::Paper;
        let found: Vec<f64> = match self.options.inner {
            Inner::Exact => {
                let problem = |[(_, a), (_, b)]: &[(usize, Range<usize>); 2]| {
                    let epsilon = if paper { Epsilon::Absolute(0.1) } else { Epsilon::Mean(self.options.epsilon) };
                    let diameter = if paper { self.diameter(&[a.clone(), b.clone()], 0.0) } else { 0.0 };
                    Problem { diameter, ..Problem::uniform(a.clone(), b.clone(), epsilon) }
                };
                let problems: Vec<Problem> = meet.iter().map(problem).collect();
                let costs = Costs::Points { points: &self.points, point_scale: 0.5, labels: None };
                let solutions = solve(costs, &problems, &self.solver(), stop, &mut |_| ())?;
                self.problems += solutions.len();
                self.converged &= paper || solutions.iter().all(|s| s.converged);
                // The released inner cost is halved already. Ours is the cost of a plan with exact marginals.
                solutions.iter().map(|s| if paper { s.dual } else { 2.0 * s.upper }).collect()
            }
            Inner::Gaussian | Inner::Means => {
                let gaussian = |(part, values): (&Part, &Vec<f32>)| -> Vec<Gaussian> {
                    let dim = self.points.dim();
                    let of = |class: &Range<usize>| {
                        let start = part.rows.start;
                        Gaussian::of(&values[(class.start - start) * dim..(class.end - start) * dim], dim)
                    };
                    part.classes.iter().map(of).collect()
                };
                let gaussians: Vec<Gaussian> = self.parts.par_iter().zip(values).flat_map(gaussian).collect();
                let distance = |[(a, _), (b, _)]: &[(usize, Range<usize>); 2]| {
                    let (a, b) = (&gaussians[*a], &gaussians[*b]);
                    match self.options.inner {
                        Inner::Means if paper => means(a, b).sqrt(),
                        Inner::Means => means(a, b),
                        _ => bures(a, b),
                    }
                };
                meet.par_iter().map(distance).collect()
            }
        };
        for ([(a, _), (b, _)], w) in meet.iter().zip(found) {
            self.labels.distances[a * self.labels.count + b] = w;
            self.labels.distances[b * self.labels.count + a] = w;
        }
        Ok(())
    }

    fn solver(&self) -> Options {
        let OtddOptions { profile, iterations, device, threads, .. } = *self.options;
        let schedule = match profile {
            Profile::Normalised => Schedule::Converge { factor: 0.5 },
            Profile::Paper => Schedule::GeomLoss { factor: 0.25 },
        };
        Options { schedule, iterations, device, threads, ..Options::default() }
    }

    /// Squared diagonal of the box around rows of points, and around labels that span so much.
    fn diameter(&self, rows: &[Range<usize>], labels: f64) -> f64 {
        let dim = self.points.dim();
        let (mut low, mut high) = (vec![f32::INFINITY; dim], vec![f32::NEG_INFINITY; dim]);
        for row in
            rows.iter().cloned().flatten().flat_map(|r| self.points.rows[r * dim..(r + 1) * dim].chunks_exact(dim))
        {
            for (k, &x) in row.iter().enumerate() {
                (low[k], high[k]) = (low[k].min(x), high[k].max(x));
            }
        }
        let sum: f64 = low.iter().zip(&high).map(|(l, h)| f64::from(h - l).powi(2)).sum();
        sum / self.points.unit() + labels * labels
    }

    /// The three problems of a pair of parts: across, and within each. `weights`: of the rows of both.
    fn outer(&self, (a, b): (usize, usize), weights: Option<(&[f64], &[f64])>) -> [Problem; 3] {
        let (left, right) = (&self.parts[a], &self.parts[b]);
        let (epsilon, diameter) = match self.options.profile {
            Profile::Paper => {
                // The label is a further coordinate there: labels of the second set lie behind those of the first.
                let span = (left.classes.len() + right.classes.len() - 1) as f64;
                (0.1, self.diameter(&[left.rows.clone(), right.rows.clone()], span))
            }
            Profile::Normalised => (self.options.epsilon * self.mean_cost(left, right), 0.0),
        };
        let epsilon = if epsilon > 0.0 { epsilon } else { 1.0 };
        let problem = |l: &Part, r: &Part, weights: Option<(&[f64], &[f64])>| Problem {
            left: l.rows.clone(),
            right: r.rows.clone(),
            epsilon: Epsilon::Absolute(epsilon),
            weights: weights.map(|(a, b)| (a.to_vec(), b.to_vec())),
            diameter,
        };
        [
            problem(left, right, weights),
            problem(left, left, weights.map(|(a, _)| (a, a))),
            problem(right, right, weights.map(|(_, b)| (b, b))),
        ]
    }

    fn mean_cost(&self, a: &Part, b: &Part) -> f64 {
        let share = |part: &Part, i: usize| part.classes[i].len() as f64 / part.rows.len() as f64;
        let mut labels = 0.0;
        for i in 0..a.classes.len() {
            for j in 0..b.classes.len() {
                let w = self.labels.distances[(a.first + i) * self.labels.count + b.first + j];
                labels += share(a, i) * share(b, j) * w;
            }
        }
        let points = self.points.mean_square_distance(a.rows.clone(), b.rows.clone());
        0.5 * self.options.lambda_x * points + self.labels.scale * labels
    }

    /// Debiased values of triples from [`Bench::outer`], and the largest marginal error.
    fn values(&mut self, triples: &[[Problem; 3]], stop: &AtomicBool) -> Result<(Vec<f64>, f64)> {
        let problems: Vec<Problem> = triples.iter().flatten().cloned().collect();
        let point_scale = 0.5 * self.options.lambda_x;
        let costs = Costs::Points { points: &self.points, point_scale, labels: Some(&self.labels) };
        let solutions = solve(costs, &problems, &self.solver(), stop, &mut |_| ())?;
        self.problems += solutions.len();
        let paper = self.options.profile == Profile::Paper;
        self.converged &= paper || solutions.iter().all(|s| s.converged);
        let error = solutions.iter().map(|s| s.marginal_error).fold(0.0, f64::max);
        let value = |s: &[super::Solution]| {
            let value = s[0].dual - 0.5 * (s[1].dual + s[2].dual);
            if paper { value } else { value.max(0.0) }
        };
        Ok((solutions.chunks_exact(3).map(value).collect(), error))
    }
}

/// Whether two samples hold the same points under the same labels.
fn same(a: &Sample, b: &Sample) -> bool {
    a.dim == b.dim && a.labels == b.labels && a.points == b.points
}

/// Distances of all pairs of datasets.
///
/// # Errors
/// [`Error::Usage`] for samples or settings that make no distance (unequal dimensions name both samples), and as
/// [`solve`].
pub fn distances(samples: &[Sample], options: &OtddOptions, stop: &AtomicBool) -> Result<Distances> {
    let paper = options.profile == Profile::Paper;
    let mut pairs = Vec::new();
    for a in 0..samples.len() {
        for b in a..samples.len() {
            // Only the released conventions give a set a distance from itself, which takes two copies of it.
            if a != b && (paper || !same(&samples[a], &samples[b])) {
                pairs.push((a, b));
            }
        }
    }
    let mut all: Vec<&Sample> = samples.iter().collect();
    let mut twins = Vec::new();
    if paper {
        for (number, sample) in samples.iter().enumerate() {
            twins.push((number, all.len()));
            all.push(sample);
        }
    }
    pairs.extend(&twins);
    let (mut bench, half_parts) = Bench::new(&all, &pairs, options, stop)?;
    let half_parts = &half_parts[..samples.len()];
    let mut triples: Vec<[Problem; 3]> = pairs.iter().map(|&pair| bench.outer(pair, None)).collect();
    triples.extend(half_parts.iter().flatten().map(|&[a, b]| bench.outer((a, b), None)));
    let (values, marginal_error) = bench.values(&triples, stop)?;
    let mut matrix = vec![vec![0.0; samples.len()]; samples.len()];
    for (&(a, b), &value) in pairs.iter().zip(&values) {
        match twins.contains(&(a, b)) {
            true => matrix[a][a] = value,
            false => (matrix[a][b], matrix[b][a]) = (value, value),
        }
    }
    let mut halves = values[pairs.len()..].iter();
    let floor = match options.floor {
        true => half_parts.iter().map(|p| p.and_then(|_| halves.next().copied())).collect(),
        false => Vec::new(),
    };
    Ok(Distances {
        names: samples.iter().map(|s| s.name.clone()).collect(),
        matrix,
        floor,
        samples: bench.parts[..samples.len()].iter().map(|p| p.rows.len()).collect(),
        converged: bench.converged,
        marginal_error,
        problems: bench.problems,
    })
}

/// Sources in the order of their distance from a target, the nearest first, with the confidence of that order: the
/// Bayesian bootstrap (Rubin 1981) weighs the points of target and sources anew in every draw, class distances stay.
///
/// # Errors
/// As [`distances`].
pub fn rank(target: &Sample, sources: &[Sample], options: &OtddOptions, stop: &AtomicBool) -> Result<Vec<Ranked>> {
    let all: Vec<&Sample> = std::iter::once(target).chain(sources).collect();
    let pairs: Vec<(usize, usize)> = (1..all.len()).map(|s| (0, s)).collect();
    let (mut bench, half_parts) = Bench::new(&all, &pairs, options, stop)?;
    let mut triples: Vec<[Problem; 3]> = pairs.iter().map(|&pair| bench.outer(pair, None)).collect();
    let halves: Vec<usize> = (1..all.len()).filter(|&s| half_parts[s].is_some()).collect();
    triples.extend(halves.iter().filter_map(|&s| half_parts[s]).map(|[a, b]| bench.outer((a, b), None)));
    for draw in 0..options.bootstrap as u64 {
        let weights: Vec<Vec<f64>> =
            (0..all.len()).map(|s| bootstrap(bench.parts[s].rows.len(), options.seed, draw, s as u32)).collect();
        triples.extend(pairs.iter().map(|&(a, b)| bench.outer((a, b), Some((&weights[a], &weights[b])))));
    }
    let (values, _) = bench.values(&triples, stop)?;
    let (distances, rest) = values.split_at(sources.len());
    let (floors, draws) = rest.split_at(halves.len());
    let floors: HashMap<usize, f64> = halves.iter().map(|s| s - 1).zip(floors.iter().copied()).collect();
    let draws: Vec<&[f64]> = draws.chunks_exact(sources.len().max(1)).collect();
    let nearest = |draw: &&[f64], s: usize| draw.iter().all(|&d| draw[s] <= d);
    let mut ranked: Vec<Ranked> = distances
        .iter()
        .enumerate()
        .map(|(index, &distance)| {
            let mut own: Vec<f64> = draws.iter().map(|d| d[index]).collect();
            own.sort_by(f64::total_cmp);
            let quantile = |share: f64| own[((own.len() - 1) as f64 * share).round() as usize];
            let wins = draws.iter().filter(|d| nearest(d, index)).count();
            Ranked {
                name: sources[index].name.clone(),
                index,
                distance,
                interval: (!own.is_empty()).then(|| [quantile(0.05), quantile(0.95)]),
                nearest: (!own.is_empty()).then(|| wins as f64 / own.len() as f64),
                floor: floors.get(&index).copied(),
            }
        })
        .collect();
    ranked.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    Ok(ranked)
}

/// Weights of a draw: exponential numbers over their sum.
fn bootstrap(n: usize, seed: u64, draw: u64, sample: u32) -> Vec<f64> {
    let stream = Stream::new(seed, PURPOSE_BOOTSTRAP + 256 * sample);
    let number = |i: usize| -((f64::from(stream.block(draw, i as u32)[0]) + 0.5) / 4_294_967_296.0).ln();
    let drawn: Vec<f64> = (0..n).map(number).collect();
    let sum: f64 = drawn.iter().sum();
    drawn.into_iter().map(|w| w / sum).collect()
}
