//! `supernet devices`.

use clap::Args;
use serde::Serialize;
use supernet::Result;
use supernet::cpu::micro::Level;
use supernet::machine::{cores, level_name, memory, model_name};

use super::output::{self, Lines, mib};

const AFTER_HELP: &str = "\
Examples:
  supernet devices
  supernet devices --json";

/// What devices of other kinds say until they are there.
const NOT_BUILT: &str = "not built into this version";

/// List the devices that can run networks.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {}

#[derive(Serialize)]
struct Report {
    devices: Vec<Device>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Device {
    Cpu {
        available: bool,
        name: Option<String>,
        /// Threads that can run at once.
        cores: usize,
        /// Instruction sets with kernels of their own, from slowest to fastest.
        levels: Vec<&'static str>,
        /// The one in use.
        level: &'static str,
        memory_bytes: Option<usize>,
        memory_available_bytes: Option<usize>,
    },
    Cuda {
        available: bool,
        reason: &'static str,
    },
    Wgpu {
        available: bool,
        reason: &'static str,
    },
}

pub fn run(json: bool) -> Result<()> {
    let cpu = Device::Cpu {
        available: true,
        name: model_name(),
        cores: cores(),
        levels: Level::available().into_iter().map(level_name).collect(),
        level: level_name(Level::detect()),
        memory_bytes: memory("MemTotal:"),
        memory_available_bytes: memory("MemAvailable:"),
    };
    let cuda = Device::Cuda { available: false, reason: NOT_BUILT };
    let wgpu = Device::Wgpu { available: false, reason: NOT_BUILT };
    output::print(json, &Report { devices: vec![cpu, cuda, wgpu] }, lines)
}

fn lines(report: &Report) -> Lines {
    report.devices.iter().fold(Lines::default(), |lines, device| match device {
        Device::Cpu { name, cores, levels, level, memory_bytes, memory_available_bytes, .. } => lines
            .add("cpu", name.as_deref().unwrap_or("unknown model"))
            .add("  cores", cores)
            .add("  instruction sets", levels.join(", "))
            .add("  in use", level)
            .add_some("  memory", memory_bytes.map(mib))
            .add_some("  memory available", memory_available_bytes.map(mib)),
        Device::Cuda { reason, .. } => lines.add("cuda", reason),
        Device::Wgpu { reason, .. } => lines.add("wgpu", reason),
    })
}
