//! GPU kernels, tested without a GPU: the list of cases runs as CUDA on the CPU and as WGSL on whatever Vulkan device
//! there is (Mesa's lavapipe in CI), against the ops' reference in f64. NVRTC compiles the CUDA sources for real GPUs.
//!
//! `scripts/ci_tools.sh` installs lavapipe and NVRTC. Where they are missing, their tests say so loudly and pass,
//! unless `SUPERNET_REQUIRE_WGPU=1`, `SUPERNET_REQUIRE_NVRTC=1` or `SUPERNET_REQUIRE_ASAN=1` is set. Where there is an NVIDIA GPU, the cases and whole
//! steps run on it too; `SUPERNET_REQUIRE_CUDA=1` makes its absence an error.

mod augment_cases;
#[cfg(all(feature = "cli", unix))]
mod bench;
mod cases;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod cuda_cpu;
#[cfg(feature = "cuda")]
mod cuda_device;
#[cfg(all(feature = "cuda", target_arch = "x86_64", target_os = "linux"))]
mod cuda_host;
#[cfg(all(feature = "cuda", target_arch = "x86_64", target_os = "linux"))]
mod cuda_replays;
mod dense_cases;
mod elementary_cases;
mod elementwise_cases;
mod folded_cases;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod halves;
mod harness;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod large;
mod loss_cases;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod merged;
mod nvrtc;
mod optimiser_cases;
mod overflow_cases;
mod pool_cases;
mod records;
mod reduce_cases;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod sanitized;
mod separable_cases;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod steps;
mod translated;
mod transport_cases;
mod wgsl;

use std::io::Write;

/// Whether a tool that is not there must fail the test.
fn required(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Fails if the tool is required; says loudly that nothing was tested otherwise.
fn missing(tool: &str, variable: &str, why: &str) {
    assert!(!required(variable), "{tool} is required ({variable}=1) but not usable: {why}");
    // Not eprintln: the test harness would hide it.
    let line = format!("*** NOT TESTED: {tool} is not usable: {why}");
    let remedy = match variable {
        "SUPERNET_REQUIRE_CUDA" => "it takes an NVIDIA GPU (scripts/gpu_run.sh)",
        _ => "scripts/ci_tools.sh installs it",
    };
    let _ = writeln!(std::io::stderr(), "\n{line}\n*** {remedy}; {variable}=1 makes this an error\n");
}
