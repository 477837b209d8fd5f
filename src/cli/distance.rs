//! `supernet distance`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use supernet::bench::report::Table;
use supernet::embedding::{Embedder, Sample, Signature, check_comparable};
use supernet::run::{self, Observer};
use supernet::transport::{self, Distances, Inner, OtddOptions, distances};
use supernet::zoo::Zoo;
use supernet::{Error, Result};

use super::embed::{Choice, EmbedderFlags};
use super::progress::Progress;
use super::{interrupt, output, parse};

const AFTER_HELP: &str = "\
A SPEC is a dataset (see `supernet data --help`), or zoo:ENTRY for the points that a zoo entry carries of its source.

The floor of a dataset is the distance of two disjoint halves of it: what finite samples alone amount to. A distance near
the floors of its two sets says little.

Examples:
  supernet distance builtin:mnist builtin:fashion builtin:emoji
  supernet distance builtin:mnist builtin:fashion --embedder pixels --inner gaussian --max-samples 500 --json
  supernet distance folder:photos zoo:emoji zoo:textures --embedder zoo --trunk all";

/// Measure how far datasets lie from one another, by optimal transport between their labelled points (OTDD).
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Datasets, at least two.
    #[arg(value_name = "SPEC", required = true, num_args = 2..)]
    specs: Vec<String>,
    /// Name of the embedder: pixels, zoo, efficientnet-lite0 or resnet18 [default: efficientnet-lite0 where its weights
    /// are in the cache folder, else the trunk of the zoo's supernet of most datasets, else pixels].
    #[arg(long, value_name = "NAME", value_parser = parse::embedder)]
    embedder: Option<Choice>,
    #[command(flatten)]
    flags: EmbedderFlags,
    /// Folder of the zoo.
    #[arg(long, value_name = "DIR", default_value = "zoo")]
    zoo: PathBuf,
    /// Distance of two classes: exact (transport), gaussian (closed form) or means.
    #[arg(long, value_name = "KIND", default_value = "exact", value_parser = inner)]
    inner: Inner,
    /// At most so many training images of a dataset.
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_samples: u32,
    /// Seed of the choice of images and of the halves.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Regularisation as a share of the mean cost; of the profile normalised.
    #[arg(long, value_name = "R", default_value_t = 0.01)]
    epsilon_relative: f64,
    /// Factor of the distance of points.
    #[arg(long, value_name = "L", default_value_t = 1.0)]
    lambda_x: f64,
    /// Factor of the distance of labels.
    #[arg(long, value_name = "L", default_value_t = 1.0)]
    lambda_y: f64,
}

fn inner(text: &str) -> Result<Inner, String> {
    match text {
        "exact" => Ok(Inner::Exact),
        "gaussian" => Ok(Inner::Gaussian),
        "means" => Ok(Inner::Means),
        _ => Err("expected exact, gaussian or means".into()),
    }
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    signature: Signature,
    inner: Inner,
    #[serde(flatten)]
    distances: Distances,
    seconds: f64,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let Arguments { specs, flags, .. } = arguments;
    let zoo = Zoo::new(&arguments.zoo);
    let (choice, mut embedder) = flags.pick(arguments.embedder, &zoo)?;
    flags.check(&[choice])?;
    flags.limit_threads()?;
    let stop = interrupt::catch()?;
    let mut progress = Progress::new();
    let mut samples: Vec<transport::Sample> = Vec::new();
    let sample = Sample { max: arguments.max_samples as usize, seed: arguments.seed };
    for spec in specs {
        samples.push(points(spec, &zoo, &mut embedder, sample, &mut progress)?);
    }
    let options = OtddOptions {
        profile: embedder.signature().profile,
        inner: arguments.inner,
        max_samples: sample.max,
        seed: arguments.seed,
        epsilon: arguments.epsilon_relative,
        lambda_x: arguments.lambda_x,
        lambda_y: arguments.lambda_y,
        device: flags.device(),
        threads: flags.threads(),
        ..OtddOptions::default()
    };
    let start = std::time::Instant::now();
    let found = distances(&samples, &options, &stop)?;
    let seconds = start.elapsed().as_secs_f64();
    drop(progress);
    let signature = embedder.signature().clone();
    let report = Report { signature, inner: arguments.inner, distances: found, seconds };
    output::print_text(json, &report, text)
}

/// The points of a dataset, or those that a zoo entry carries.
fn points(
    spec: &str,
    zoo: &Zoo,
    embedder: &mut Embedder,
    sample: Sample,
    progress: &mut Progress,
) -> Result<transport::Sample> {
    let Some(name) = spec.strip_prefix("zoo:") else {
        let dataset = run::load_dataset(spec, None, None, None, 0)?;
        dataset.notes.iter().for_each(|note| progress.note(note));
        let (mut embedded, _) =
            embedder.embed(&dataset, sample, supernet::files::cache_folder().as_deref(), progress)?;
        embedded.name = spec.into();
        return Ok(embedded.into());
    };
    let (entry, path) = (zoo.load(name)?, zoo.file(name));
    if entry.meta.multi() {
        return Err(Error::usage(format!("{spec} was pretrained on several datasets; name one of one dataset")));
    }
    let signature = embedder.signature();
    let coreset = entry.coreset(&path, &signature.embedder, 0)?.ok_or_else(|| {
        let embedder = &signature.embedder;
        Error::usage(format!("{spec} carries no points of the embedder {embedder}: run `supernet zoo embed`"))
    })?;
    check_comparable((spec, &coreset.meta.signature), ("the others", signature))?;
    Ok(coreset.embedded(spec, &entry.meta.sources[0].classes).into())
}

fn text(report: &Report) -> String {
    let Distances { names, matrix, floor, samples, converged, marginal_error, problems } = &report.distances;
    let mut header = vec!["", "points", "floor"];
    header.extend(names.iter().map(String::as_str));
    let mut table = Table::new(&header);
    for (i, name) in names.iter().enumerate() {
        let floor = floor.get(i).copied().flatten().map_or("-".into(), number);
        let mut row = vec![name.clone(), samples[i].to_string(), floor];
        row.extend(matrix[i].iter().map(|&d| number(d)));
        table.row(row);
    }
    let seconds = report.seconds;
    let open = if *converged { "" } else { "not every problem met its marginals: raise --epsilon-relative\n" };
    format!(
        "embedder {}, inner {:?}\n{table}{problems} transport problems in {seconds:.2} s, largest marginal error \
         {marginal_error:.1e}\n{open}",
        report.signature, report.inner
    )
}

fn number(value: f64) -> String {
    match value.abs() {
        a if a == 0.0 || (1e-3..1e6).contains(&a) => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}
