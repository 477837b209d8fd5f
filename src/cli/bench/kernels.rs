//! `supernet bench kernels`.

use clap::Args;
use supernet::bench::kernels::{Settings, run_all};
use supernet::bench::{cases, chart, parity, report};
use supernet::device::Precision;
use supernet::{Error, Result};

use super::super::{output, parse};
use super::Common;

const AFTER_HELP: &str = "\
Exit status 1 if a kernel disagrees with the reference: such kernels are named and not timed.

Examples:
  supernet bench kernels --threads 2 --json > kernels.json
  supernet bench kernels --filter separable/c16,mixture --svg roofline.svg
  supernet bench kernels --threads 2 --compare kernels.json
  supernet bench kernels --device cuda --json > cuda.json
  supernet bench kernels --device cuda --precision tf32 --filter separable,dense";

/// Check every kernel against the f64 reference, then time it at the shapes of real searches, beside what this machine
/// can do at best. On a GPU the time is the device's own, launches alone.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Only cases with one of these comma-separated parts in their names.
    #[arg(long, value_name = "PARTS")]
    filter: Option<String>,
    /// Few and short samples: for a look, not for quoting.
    #[arg(long)]
    quick: bool,
    /// Names of the cases, without running them.
    #[arg(long)]
    list: bool,
    /// How maps are stored and matrices multiplied: f32, f16 (on wgpu), tf32 or bf16 (on cuda).
    #[arg(long, value_name = "PRECISION", default_value = "f32", value_parser = parse::precision)]
    precision: Precision,
    /// Largest error relative to the reference, which rounds the maps that the device rounds [default: 2e-4; in f16 and
    /// tf32 1e-3, in bf16 4e-3].
    #[arg(long, value_name = "SHARE")]
    tolerance: Option<f64>,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let chosen = cases::matching(arguments.filter.as_deref())?;
    if arguments.list {
        let names: Vec<&str> = chosen.iter().map(|case| case.name.as_str()).collect();
        let object = serde_json::json!({ "cases": names });
        return output::print_text(json, &object, |_| names.iter().map(|name| format!("{name}\n")).collect());
    }
    let common = &arguments.common;
    let ((device, threads), precision) = (common.on(), arguments.precision);
    precision.check(device)?;
    let earlier = common.earlier("kernels")?;
    let tolerance = arguments.tolerance.unwrap_or_else(|| parity::tolerance(precision));
    let settings = Settings { device, threads, quick: arguments.quick, precision, tolerance };
    let mut report = run_all(&chosen, &settings, |number, name| {
        eprintln!("{:3}/{}  {name}", number + 1, chosen.len());
    })?;
    report.changes =
        earlier.map(|earlier| earlier.changes(report.cases.iter().map(|case| &case.measured))).transpose()?;
    super::draw(common.svg.as_deref(), || chart::roofline(&report))?;
    output::print_text(json, &report, report::kernels)?;
    let failed = &report.details.failed;
    match failed.first() {
        None => Ok(()),
        Some(first) => Err(Error::Parity(format!(
            "{} of {} kernels disagree with the f64 reference by more than {:e} (the first: {first}); they were not timed",
            failed.len(),
            report.cases.len(),
            settings.tolerance
        ))),
    }
}
