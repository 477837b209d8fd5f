//! One function a command.

use serde_json::json;
use supernet::config::{SearchConfig, TrainConfig};
use supernet::cpu::micro::Level;
use supernet::data::{LoadOptions, Spec, contact_sheet, describe, load};
use supernet::export::onnx::{to_onnx, write_onnx};
use supernet::run::{self, Control};
use supernet::{Result, search, train};

use super::args::{DataArgs, EvaluateArgs, ExportArgs, JsonArgs, PlanArgs, SearchArgs, StepArgs, TrainArgs};
use super::output::print;
use super::progress::{Progress, stop_flag};
use super::settings::effective;

pub fn search(args: &SearchArgs) -> Result<()> {
    let config: SearchConfig = effective(args, SearchConfig::check)?;
    let mut progress = Progress::new();
    let mut control = Control { observer: &mut progress, stop: stop_flag()? };
    let report = search::run::search(&config, &args.run.out, args.run.resume, &mut control)?;
    print(&report, args.run.json);
    Ok(())
}

pub fn train(args: &TrainArgs) -> Result<()> {
    let config: TrainConfig = effective(args, TrainConfig::check)?;
    let mut progress = Progress::new();
    let mut control = Control { observer: &mut progress, stop: stop_flag()? };
    let report = train::run::train(&config, &args.run.out, args.run.resume, &mut control)?;
    print(&report, args.run.json);
    Ok(())
}

pub fn evaluate(args: &EvaluateArgs) -> Result<()> {
    print(&train::run::evaluate(&args.checkpoint, &args.data, args.threads)?, args.json);
    Ok(())
}

pub fn export(args: &ExportArgs) -> Result<()> {
    let trained = train::run::load(&args.checkpoint)?;
    let meta = &trained.meta;
    let bytes = to_onnx(&trained.network, &trained.weights, &trained.running, &meta.normalisation, &meta.classes);
    write_onnx(&args.out, &bytes)?;
    let parameters = trained.network.parameters();
    let out = args.out.display().to_string();
    print(
        &json!({ "out": out, "file_bytes": bytes.len(), "parameters": parameters, "classes": meta.classes }),
        args.json,
    );
    Ok(())
}

pub fn devices(args: &JsonArgs) -> Result<()> {
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("model name"))?;
        Some(line.split(':').nth(1)?.trim().to_string())
    });
    let levels: Vec<String> = Level::available().iter().map(|l| format!("{l:?}")).collect();
    let cpu = json!({
        "name": "cpu",
        "model": model,
        "threads": run::threads(0),
        "instruction_sets": levels,
        "chosen": format!("{:?}", Level::detect()),
    });
    print(&json!({ "devices": [cpu], "not_built": ["cuda", "wgpu"] }), args.json);
    Ok(())
}

pub fn data(args: &DataArgs) -> Result<()> {
    let spec: Spec = args.spec.parse()?;
    let dataset = load(&spec, &LoadOptions { size: args.size, ..LoadOptions::default() })?;
    if let Some(path) = &args.contact_sheet {
        contact_sheet(&dataset, path, 12)?;
    }
    print(&describe(&dataset), args.json);
    Ok(())
}

pub fn plan(args: &PlanArgs) -> Result<()> {
    let report = match &args.genotype {
        None => {
            let config = SearchConfig {
                channels: args.channels,
                layers: args.layers,
                batch: args.batch,
                order: args.order.into(),
                ..SearchConfig::default()
            };
            search::run::plan(&config, args.classes, args.size)?
        }
        Some(genotype) => {
            let config = TrainConfig {
                genotype: genotype.clone(),
                channels: args.channels,
                layers: args.layers,
                batch: args.batch,
                auxiliary: 0.0,
                ..TrainConfig::default()
            };
            train::run::plan(&config, args.classes, args.size)?
        }
    };
    print(&report, args.json);
    Ok(())
}

pub fn step(args: &StepArgs) -> Result<()> {
    let config = SearchConfig {
        channels: args.channels,
        layers: args.layers,
        batch: args.batch,
        order: args.order.into(),
        threads: args.threads,
        ..SearchConfig::default()
    };
    let report = search::run::time_steps(&config, args.classes, args.size, args.warmup, args.steps)?;
    print(&report, args.json);
    Ok(())
}
