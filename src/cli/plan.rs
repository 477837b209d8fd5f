//! `supernet plan`.

use clap::Args;
use serde::Serialize;
use supernet::Result;
use supernet::config::{SearchConfig, TrainConfig};
use supernet::data::Geometry;
use supernet::device::{DeviceSpec, Precision};
use supernet::search::run::PlanReport;
use supernet::search::step::Order;

use super::output::{self, Lines, grouped, mib, millions};
use super::parse;

const AFTER_HELP: &str = "\
Examples:
  supernet plan --channels 16 --layers 8 --classes 10 --size 32x32x3 --batch 64
  supernet plan --order second --batch 32 --memory-limit 2048
  supernet plan --device wgpu --batch 64
  supernet plan --genotype DARTS_V2 --channels 36 --layers 20 --json";

/// Memory, operations, parameters and launches of a supernet, or of the network of a genotype, without running it.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Plan the derived network of these cells (without auxiliary head): a file, or DARTS_V1 or DARTS_V2.
    #[arg(long, value_name = "FILE", conflicts_with = "order")]
    genotype: Option<String>,
    /// Channels of the first cell [default: 16; with --genotype 36].
    #[arg(long, value_name = "C")]
    channels: Option<u32>,
    /// Cells [default: 8; with --genotype 20].
    #[arg(long, value_name = "L")]
    layers: Option<u32>,
    /// Images of a batch [default: 64; with --genotype 96].
    #[arg(long, value_name = "B")]
    batch: Option<u32>,
    /// Classes.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=65536))]
    classes: u32,
    /// Height, width and channels of the images.
    #[arg(long, value_name = "HxWxC", default_value = "32x32x3", value_parser = parse::geometry)]
    size: Geometry,
    /// Architecture gradient of the search step: first or second.
    #[arg(long, value_name = "first|second", default_value = "first", value_parser = parse::order)]
    order: Order,
    /// The device for which launches and memory are counted; it need not be there: cpu, wgpu (as all of them grant it) or
    /// cuda.
    #[arg(long, value_name = "DEVICE", value_parser = parse::any_device, default_value = "cpu")]
    device: DeviceSpec,
    /// How that device is to store maps and multiply matrices: f32, f16 (on wgpu), tf32 or bf16 (on cuda).
    #[arg(long, value_name = "PRECISION", default_value = "f32", value_parser = parse::precision)]
    precision: Precision,
    /// Fail if the engine needs more memory.
    #[arg(long, value_name = "MiB")]
    memory_limit: Option<u32>,
}

#[derive(Serialize)]
struct Report {
    network: &'static str,
    channels: usize,
    layers: usize,
    batch: usize,
    classes: usize,
    size: Geometry,
    device: DeviceSpec,
    #[serde(skip_serializing_if = "Precision::is_full")]
    precision: Precision,
    #[serde(flatten)]
    plan: PlanReport,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let given = |value: Option<u32>, default: usize| value.map_or(default, |n| n as usize);
    let (classes, size) = (arguments.classes as usize, arguments.size);
    let (device, precision) = (arguments.device, arguments.precision);
    let memory_limit = arguments.memory_limit.map(|mib| mib as usize);
    let report = match &arguments.genotype {
        None => {
            let defaults = SearchConfig::default();
            let config = SearchConfig {
                channels: given(arguments.channels, defaults.channels),
                layers: given(arguments.layers, defaults.layers),
                batch: given(arguments.batch, defaults.batch),
                order: arguments.order,
                device,
                precision,
                memory_limit,
                ..defaults
            };
            let plan = supernet::search::run::plan(&config, classes, size)?;
            let SearchConfig { channels, layers, batch, .. } = config;
            Report { network: "supernet", channels, layers, batch, classes, size, device, precision, plan }
        }
        Some(genotype) => {
            let defaults = TrainConfig::default();
            let config = TrainConfig {
                genotype: genotype.clone(),
                channels: given(arguments.channels, defaults.channels),
                layers: given(arguments.layers, defaults.layers),
                batch: given(arguments.batch, defaults.batch),
                auxiliary: 0.0,
                device,
                precision,
                memory_limit,
                ..defaults
            };
            let plan = supernet::train::run::plan(&config, classes, size)?;
            let TrainConfig { channels, layers, batch, .. } = config;
            Report { network: "derived", channels, layers, batch, classes, size, device, precision, plan }
        }
    };
    output::print(json, &report, lines)
}

fn lines(report: &Report) -> Lines {
    let plan = &report.plan;
    let Report { network, channels, layers, batch, classes, size, device, .. } = report;
    Lines::default()
        .add("network", format!("{network}, {channels} channels, {layers} layers, {classes} classes"))
        .add("batch", format!("{batch} images of {size}"))
        .add("device", device)
        .add_some("precision", (!report.precision.is_full()).then_some(report.precision))
        .add("parameters", grouped(plan.parameters))
        .add("multiply-adds an image", millions(plan.macs_per_image))
        .add("memory of the engine", mib(plan.peak_bytes))
        .add("  of it arena", mib(plan.arena_bytes))
        .add("launches of a forward", plan.launches_forward)
        .add("launches of a step", plan.launches_step)
        .add("operations of a step", format!("{:.3} GFLOP", plan.flops_step / 1e9))
        .add("least traffic of a step", format!("{:.3} GB", plan.bytes_step / 1e9))
}
