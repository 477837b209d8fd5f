//! `supernet bench step`, also called `supernet step`.

use clap::Args;
use supernet::bench::growth::{self, Axis};
use supernet::bench::report::{Table, ceilings, changes};
use supernet::bench::step::{KernelShare, OpShare, Recipe, StepReport, Subject};
use supernet::config::{SearchConfig, TrainConfig};
use supernet::data::Geometry;
use supernet::device::Precision;
use supernet::search::step::Order;
use supernet::{Error, Result};

use super::super::output::{self, Lines, mib};
use super::super::parse;
use super::Common;

const AFTER_HELP: &str = "\
`supernet step` and `supernet bench step` are one command.

Examples:
  supernet step --channels 16 --layers 8 --batch 64 --size 32x32x3 --threads 2
  supernet step --channels 8 --layers 5 --order second --warmup 1 --steps 3 --json
  supernet bench step --derived --genotype DARTS_V2 --auxiliary 0.4 --drop-path 0.2 --profile
  supernet bench step --grow batch --svg batch.svg
  supernet bench step --threads 2 --compare earlier.json
  supernet bench step --device cuda --order second --profile
  supernet bench step --device cuda --precision tf32
  supernet bench step --grow channels --values 4,8,16,32 --json";

/// Time whole steps of a search, or of a training, on synthetic images, with the very programs that a run uses.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Time the training step of a derived network.
    #[arg(long, conflicts_with = "order")]
    derived: bool,
    /// With --derived: its cells, a file or DARTS_V1 or DARTS_V2.
    #[arg(long, value_name = "FILE", default_value = "DARTS_V2", requires = "derived")]
    genotype: String,
    /// With --derived: weight of the auxiliary head's loss; 0 for no head.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, requires = "derived")]
    auxiliary: f64,
    /// With --derived: probability of cutting a path; 0 for none.
    #[arg(long, value_name = "P", default_value_t = 0.0, requires = "derived")]
    drop_path: f64,
    /// Channels of the first cell [default: 16; with --derived 36].
    #[arg(long, value_name = "C")]
    channels: Option<u32>,
    /// Cells [default: 8; with --derived 20].
    #[arg(long, value_name = "L")]
    layers: Option<u32>,
    /// Images of a batch [default: 64; with --derived 96].
    #[arg(long, value_name = "B")]
    batch: Option<u32>,
    /// Height, width and channels of the images.
    #[arg(long, value_name = "HxWxC", default_value = "32x32x3", value_parser = parse::geometry)]
    size: Geometry,
    /// Classes.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=65536))]
    classes: u32,
    /// Architecture gradient: first or second.
    #[arg(long, value_name = "first|second", default_value = "first", value_parser = parse::order)]
    order: Order,
    /// Seed of weights and images.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Steps before the timed ones [default: 2; with --quick 1].
    #[arg(long, value_name = "N")]
    warmup: Option<u32>,
    /// Steps to time [default: 10; with --quick 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Few steps: for a look, not for quoting.
    #[arg(long)]
    quick: bool,
    /// Say where the time of a step goes, beside what this machine can do at best.
    #[arg(long, conflicts_with = "grow")]
    profile: bool,
    /// Time a series of steps in which one setting grows, and fit the exponent.
    #[arg(long, value_name = "batch|channels|layers|size", value_parser = axis)]
    grow: Option<Axis>,
    /// With --grow: the values [default: a quarter, a half, once and twice the setting].
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', requires = "grow",
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    values: Option<Vec<u32>>,
    /// How maps are stored and matrices multiplied: f32, f16 (on wgpu), tf32 or bf16 (on cuda).
    #[arg(long, value_name = "PRECISION", default_value = "f32", value_parser = parse::precision)]
    precision: Precision,
    /// Refuse to run if the engine needs more memory.
    #[arg(long, value_name = "MiB")]
    memory_limit: Option<u32>,
}

fn axis(text: &str) -> Result<Axis, String> {
    let known = [Axis::Batch, Axis::Channels, Axis::Layers, Axis::Size];
    known.into_iter().find(|axis| axis.name() == text).ok_or_else(|| "expected batch, channels, layers or size".into())
}

impl Arguments {
    fn subject(&self) -> Subject {
        let given = |value: Option<u32>, default: usize| value.map_or(default, |n| n as usize);
        let ((device, threads), seed) = (self.common.on(), self.seed);
        let memory_limit = self.memory_limit.map(|mib| mib as usize);
        let recipe = if self.derived {
            let defaults = TrainConfig::default();
            Recipe::Training(TrainConfig {
                genotype: self.genotype.clone(),
                channels: given(self.channels, defaults.channels),
                layers: given(self.layers, defaults.layers),
                batch: given(self.batch, defaults.batch),
                auxiliary: self.auxiliary,
                drop_path: self.drop_path,
                device,
                precision: self.precision,
                threads,
                seed,
                memory_limit,
                ..defaults
            })
        } else {
            let defaults = SearchConfig::default();
            Recipe::Search(SearchConfig {
                channels: given(self.channels, defaults.channels),
                layers: given(self.layers, defaults.layers),
                batch: given(self.batch, defaults.batch),
                order: self.order,
                device,
                precision: self.precision,
                threads,
                seed,
                memory_limit,
                ..defaults
            })
        };
        Subject {
            recipe,
            classes: self.classes as usize,
            size: self.size,
            warmup: given(self.warmup, if self.quick { 1 } else { 2 }),
            steps: given(self.steps, if self.quick { 3 } else { 10 }),
            profile: self.profile,
        }
    }
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let (subject, common) = (arguments.subject(), &arguments.common);
    let earlier = common.earlier("step")?;
    let Some(axis) = arguments.grow else {
        if let Some(path) = &common.svg {
            let message = format!("--svg {}: there is a picture of a series only; add --grow", path.display());
            return Err(Error::usage(message));
        }
        let mut report = subject.time()?;
        report.quick = arguments.quick;
        report.changes = earlier.map(|earlier| earlier.changes(&report.cases)).transpose()?;
        return output::print_text(json, &report, text);
    };
    let values = arguments.values.as_ref().map(|values| values.iter().map(|&n| n as usize).collect());
    let values: Vec<usize> = values.unwrap_or_else(|| axis.series(&subject));
    let mut report = growth::run(&subject, axis, &values, |value| eprintln!("{} {value}", axis.name()))?;
    report.quick = arguments.quick;
    report.changes = earlier.map(|earlier| earlier.changes(&report.cases)).transpose()?;
    super::draw(common.svg.as_deref(), || growth::chart(&report))?;
    output::print_text(json, &report, growth::text)
}

fn text(report: &StepReport) -> String {
    let details = &report.details;
    let spread = report.cases.iter().map(|case| case.times.spread()).sum::<f64>();
    let lines = Lines::default()
        .add("median", format!("{:.1} ms +- {:.1} %", details.milliseconds, 100.0 * spread))
        .add("fastest", format!("{:.1} ms", details.milliseconds_min))
        .add("steps", details.steps)
        .add("threads", details.threads)
        .add("images a second", format!("{:.0}", details.images_per_second))
        .add("operations", format!("{:.2} GFLOP, {:.1} GFLOP/s", details.flops * 1e-9, details.gflops))
        .add_some("device", report.machine.device.as_ref())
        .add_some("products", details.products.as_ref())
        .add_some("host until started", details.host_seconds.map(|seconds| format!("{:.2} ms", 1e3 * seconds)))
        .add_some("launches", details.host_seconds.map(|_| details.launches))
        .add("memory of the engine", mib(details.peak_bytes))
        .add_some("memory of the process", details.peak_rss_bytes.map(mib));
    let mut text = lines.to_string();
    if let (Some(measured), Some(profile)) = (&details.ceilings, &details.profile) {
        text += &format!("\n{}\n{}", ceilings(&report.machine, measured), profile_table(profile));
    }
    if let Some(kernels) = &details.kernels {
        text += &format!("\nkernels as merged\n{}", kernel_table(kernels));
    }
    text + &report.changes.as_deref().map(changes).unwrap_or_default()
}

fn kernel_table(kernels: &[KernelShare]) -> String {
    let mut table = Table::new(&["kernel", "launches", "ms", "of all"]);
    for share in kernels {
        table.row(vec![
            share.kernel.into(),
            share.launches.to_string(),
            format!("{:.3}", share.milliseconds),
            format!("{:.1} %", 100.0 * share.time_share),
        ]);
    }
    table.to_string()
}

fn profile_table(profile: &[OpShare]) -> String {
    let mut table =
        Table::new(&["op", "count", "ms", "of the step", "GFLOP/s", "GB/s", "floor ms", "of the ceiling", "gap ms"]);
    let mut row = |share: &OpShare, rates: [String; 2]| {
        let [gflops, bandwidth] = rates;
        table.row(vec![
            share.op.into(),
            share.count.to_string(),
            format!("{:.2}", share.milliseconds),
            format!("{:.1} %", 100.0 * share.time_share),
            gflops,
            bandwidth,
            format!("{:.2}", share.floor_milliseconds),
            format!("{:.0} %", 100.0 * share.ceiling_share),
            format!("{:.2}", share.milliseconds - share.floor_milliseconds),
        ]);
    };
    for share in profile {
        row(share, [share.gflops, share.gigabytes_per_second].map(|rate| format!("{rate:.1}")));
    }
    let sum = |of: fn(&OpShare) -> f64| profile.iter().map(of).sum::<f64>();
    let (milliseconds, floor_milliseconds) = (sum(|s| s.milliseconds), sum(|s| s.floor_milliseconds));
    let total = OpShare {
        op: "all",
        count: profile.iter().map(|s| s.count).sum(),
        milliseconds,
        time_share: sum(|s| s.time_share),
        floor_milliseconds,
        ceiling_share: floor_milliseconds / milliseconds.max(f64::MIN_POSITIVE),
        ..OpShare::default()
    };
    row(&total, [String::new(), String::new()]);
    table.to_string()
}
