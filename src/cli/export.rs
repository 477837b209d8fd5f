//! `supernet export`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use supernet::data::Geometry;
use supernet::export::{to_onnx, write_onnx};
use supernet::train::run::{Trained, load};
use supernet::{Error, Result};

use super::output::{self, Lines, grouped};

const AFTER_HELP: &str = "\
Examples:
  supernet export --checkpoint runs/train/checkpoint.safetensors --out model.onnx
  supernet export --checkpoint runs/train/checkpoint.safetensors --out model.onnx --json";

/// Write a trained network as an ONNX model.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Checkpoint of a training.
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// The model to write.
    #[arg(long, value_name = "FILE.onnx")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Report {
    out: String,
    bytes: usize,
    parameters: usize,
    size: Geometry,
    classes: Vec<String>,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let out = &arguments.out;
    if out.is_dir() || out.file_name().is_none() {
        return Err(Error::usage(format!("--out {}: is a folder; name a file", out.display())));
    }
    let Trained { network, weights, running, meta } = load(&arguments.checkpoint)?;
    let source = &meta.sources[0];
    let bytes = to_onnx(&network, &weights, &running, &source.normalisation, &source.classes);
    write_onnx(out, &bytes)?;
    let report = Report {
        out: out.display().to_string(),
        bytes: bytes.len(),
        parameters: network.parameters(),
        size: meta.size,
        classes: source.classes.clone(),
    };
    output::print(json, &report, |report| {
        Lines::default()
            .add("model", &report.out)
            .add("bytes", grouped(report.bytes))
            .add("parameters", grouped(report.parameters))
            .add("images", report.size)
            .add("classes", report.classes.len())
    })
}
