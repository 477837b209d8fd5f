//! `supernet bench transport`.

use clap::{Args, ValueEnum};
use supernet::bench::solves::{self, Axis, Shape, What};
use supernet::{Error, Result};

use super::super::output;
use super::Common;

const AFTER_HELP: &str = "\
Examples:
  supernet bench transport --threads 2 --json > transport.json
  supernet bench transport --grow points --svg points.svg
  supernet bench transport --grow problems --values 10,100,1000
  supernet bench transport --device cuda --shape 1x5000x64 --shape 1x10000x64 --json > cuda.json";

/// Time whole solves of optimal transport, from points to certified costs: 190 class pairs in one call, and large problems,
/// with a stored kernel and in the log domain; a problem alone also without a cost matrix.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Time a series in which one quantity grows, and fit the exponent.
    #[arg(long, value_enum)]
    grow: Option<Quantity>,
    /// With --grow: the values.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', requires = "grow")]
    values: Vec<usize>,
    /// What is solved, once for each shape; all pairs of a set of clouds [default: 190x256x64, 1x2000x64, 1x4000x64].
    #[arg(long, value_name = "PROBLEMSxPOINTSxDIMENSIONS", conflicts_with = "grow", value_parser = shape)]
    shape: Vec<Shape>,
    /// Few and short samples: for a look, not for quoting.
    #[arg(long)]
    quick: bool,
}

fn shape(text: &str) -> Result<Shape, String> {
    Shape::parse(text).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, ValueEnum)]
enum Quantity {
    /// Points of each side.
    Points,
    /// Dimensions of the points.
    Dimensions,
    /// Problems of a call.
    Problems,
}

impl Quantity {
    fn axis(self) -> Axis {
        match self {
            Self::Points => Axis::Points,
            Self::Dimensions => Axis::Dimensions,
            Self::Problems => Axis::Problems,
        }
    }
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let common = &arguments.common;
    let axis = arguments.grow.map(Quantity::axis);
    if let (Some(path), None) = (&common.svg, axis) {
        let message = format!("--svg {}: there is a picture of a series only; add --grow", path.display());
        return Err(Error::usage(message));
    }
    let earlier = common.earlier("transport")?;
    let values = axis.map(|a| if arguments.values.is_empty() { a.series() } else { arguments.values.clone() });
    let shapes = if arguments.shape.is_empty() { &Shape::USUAL[..] } else { &arguments.shape };
    let what = axis.zip(values.as_deref()).map_or(What::Shapes(shapes), |(axis, values)| What::Series(axis, values));
    let mut report = solves::run(what, common.on(), arguments.quick, |name| eprintln!("{name}"))?;
    report.changes = earlier.map(|earlier| earlier.changes(report.cases.iter().map(|c| &c.measured))).transpose()?;
    if let Some(chart) = solves::chart(&report) {
        super::draw(common.svg.as_deref(), || chart)?;
    }
    output::print_text(json, &report, solves::text)
}
