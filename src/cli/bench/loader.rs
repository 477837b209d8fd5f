//! `supernet bench loader`.

use clap::Args;
use supernet::Result;
use supernet::bench::loader::{LoaderReport, run_all};
use supernet::bench::report::{Table, milliseconds};

use super::super::{output, parse};
use super::Common;

const AFTER_HELP: &str = "\
Examples:
  supernet bench loader --json > loader.json
  supernet bench loader --data folder:photos
  supernet bench loader --compare loader.json";

/// Time staging and augmentation of decoded images on one core, and the loading of an image folder with and without the
/// cache of decoded images.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Also load this dataset, decoded anew and from a cache.
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    data: Option<String>,
    /// Few and short samples: for a look, not for quoting.
    #[arg(long)]
    quick: bool,
}

fn table(report: &LoaderReport) -> String {
    let mut table = Table::new(&["case", "images", "median", "images/s"]);
    for case in &report.cases {
        let times = case.measured.times;
        table.row(vec![
            case.measured.name.clone(),
            case.images.to_string(),
            milliseconds(times.milliseconds),
            format!("{:.0}", case.images_per_second),
        ]);
    }
    format!("{}\n{table}", report.machine.line())
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    arguments.common.processor_only("loader")?;
    let earlier = arguments.common.earlier_on("loader", 1)?;
    let scratch = std::env::temp_dir().join(format!("supernet-bench-{}", std::process::id()));
    let folder = arguments.data.as_deref().map(|spec| (spec, scratch.as_path()));
    let measured = run_all(folder, arguments.quick);
    // Not there unless a folder was loaded; a leftover in the temporary folder does no harm.
    let _ = std::fs::remove_dir_all(&scratch);
    let mut report = measured?;
    report.changes = earlier.map(|earlier| earlier.changes(report.cases.iter().map(|c| &c.measured))).transpose()?;
    output::print_text(json, &report, table)
}
