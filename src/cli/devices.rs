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
        /// Why it is not available, and what to do.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(flatten)]
        gpu: Option<Gpu>,
    },
    Wgpu {
        available: bool,
        /// Why there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        #[cfg(feature = "wgpu")]
        adapters: Vec<supernet::device::wgpu::Listed>,
    },
}

/// An NVIDIA GPU.
#[derive(Serialize)]
struct Gpu {
    /// As `--device cuda:N` counts.
    index: usize,
    name: String,
    compute_capability: String,
    /// Whether `--precision tf32` and `bf16` multiply on tensor cores; in f32 otherwise.
    tf32: bool,
    memory_bytes: usize,
    /// CUDA's version that the driver supports.
    driver: String,
    nvrtc: Option<String>,
}

/// The NVIDIA GPUs, or one entry that says why there are none.
#[cfg(feature = "cuda")]
fn cuda() -> Vec<Device> {
    let survey = match supernet::device::cuda::survey() {
        Ok(survey) => survey,
        Err(error) => return vec![Device::Cuda { available: false, reason: Some(error.to_string()), gpu: None }],
    };
    let (nvrtc, reason) = match survey.nvrtc {
        Ok(version) => (Some(version), None),
        Err(reason) => (None, Some(reason)),
    };
    let one = |info: supernet::device::cuda::Info| Device::Cuda {
        available: nvrtc.is_some(),
        reason: reason.clone(),
        gpu: Some(Gpu {
            index: info.index,
            tf32: info.has_tf32(),
            name: info.name,
            compute_capability: format!("{}.{}", info.capability.0, info.capability.1),
            memory_bytes: info.memory_bytes,
            driver: survey.driver.clone(),
            nvrtc: nvrtc.clone(),
        }),
    };
    survey.devices.into_iter().map(one).collect()
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Vec<Device> {
    vec![Device::Cuda { available: false, reason: Some("not built in: build with --features cuda".into()), gpu: None }]
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
    let devices = [vec![cpu], cuda(), vec![wgpu()]].into_iter().flatten().collect();
    output::print(json, &Report { devices }, lines)
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Device {
    let adapters = supernet::device::wgpu::list();
    let available = adapters.iter().any(|adapter| adapter.missing.is_none());
    let reason = adapters.is_empty().then_some(supernet::device::wgpu::REMEDY);
    Device::Wgpu { available, reason, adapters }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Device {
    Device::Wgpu { available: false, reason: Some("not built in: build with --features wgpu") }
}

#[cfg(feature = "wgpu")]
fn adapter(lines: Lines, adapter: &supernet::device::wgpu::Listed) -> Lines {
    let yes = |has: bool| if has { "yes" } else { "no" };
    let (least, most) = (adapter.subgroup[0], adapter.subgroup[1]);
    lines
        .add(adapter.device.as_str(), format!("{} ({}, {})", adapter.name, adapter.backend, adapter.class))
        .add("  driver", &adapter.driver)
        .add("  largest tensor", mib(adapter.binding_bytes as usize))
        .add("  largest buffer", mib(adapter.buffer_bytes as usize))
        .add("  workgroup memory", format!("{} bytes", adapter.workgroup_bytes))
        .add("  subgroups", format!("{least} to {most} threads"))
        .add("  half precision", yes(adapter.f16))
        .add("  timestamps", yes(adapter.timestamps))
        .add_some("  cannot be used", adapter.missing.as_deref())
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
        Device::Cuda { reason, gpu: None, .. } => lines.add("cuda", reason.as_deref().unwrap_or("not usable")),
        Device::Cuda { reason, gpu: Some(gpu), .. } => lines
            .add(format!("cuda:{}", gpu.index), &gpu.name)
            .add("  compute capability", &gpu.compute_capability)
            .add(
                "  products in tf32",
                if gpu.tf32 { "yes" } else { "no, in f32: compute capability 8.0 and newer have it" },
            )
            .add("  memory", mib(gpu.memory_bytes))
            .add("  driver", format!("CUDA {}", gpu.driver))
            .add("  NVRTC", gpu.nvrtc.as_ref().or(reason.as_ref()).map_or("none", String::as_str)),
        #[cfg(feature = "wgpu")]
        Device::Wgpu { adapters, reason: None, .. } => adapters.iter().fold(lines, adapter),
        Device::Wgpu { reason, .. } => lines.add("wgpu", format!("none: {}", reason.unwrap_or_default())),
    })
}
