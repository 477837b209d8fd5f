//! Which GPUs there are, and opening one.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};

/// What is asked of an adapter beyond WebGPU's guaranteed limits, and what is left unused though it has it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most bytes of a binding; None for what the adapter has.
    pub binding_bytes: Option<u64>,
    /// Whether sums over a workgroup use subgroups where the adapter has them.
    pub subgroups: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { binding_bytes: None, subgroups: true }
    }
}

/// A GPU as `supernet devices` lists it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Listed {
    /// Name for `--device`.
    pub device: String,
    /// The adapter's own name.
    pub name: String,
    /// Graphics interface.
    pub backend: String,
    /// `DiscreteGpu`, `IntegratedGpu`, `VirtualGpu`, `Cpu` or `Other`.
    pub class: String,
    /// Driver with its version.
    pub driver: String,
    /// Most bytes of one binding: no tensor may be larger.
    pub binding_bytes: u64,
    /// Most bytes of one buffer.
    pub buffer_bytes: u64,
    /// Bytes of memory that a workgroup shares.
    pub workgroup_bytes: u32,
    /// Threads of a subgroup, least and most.
    pub subgroup: [u32; 2],
    /// Whether shaders can compute in half precision.
    pub f16: bool,
    /// Whether launches can be timed.
    pub timestamps: bool,
    /// Why it cannot be used, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Waits for a future that completes without being polled again by the device.
pub(super) fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        std::thread::yield_now();
    }
}

/// A GPU that was opened, with the instance that it belongs to.
pub(super) struct Opened {
    pub instance: wgpu::Instance,
    pub adapter: wgpu::Adapter,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
}

fn adapters() -> (wgpu::Instance, Vec<wgpu::Adapter>) {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = wait(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    (instance, adapters)
}

/// The limits that are requested: the guaranteed ones, with bindings and buffers as large as the adapter has them.
fn limits(adapter: &wgpu::Adapter, options: Options) -> wgpu::Limits {
    let own = adapter.limits();
    let most = options.binding_bytes.unwrap_or(u64::MAX);
    wgpu::Limits {
        max_storage_buffer_binding_size: own.max_storage_buffer_binding_size.min(most),
        max_buffer_size: own.max_buffer_size,
        min_uniform_buffer_offset_alignment: own.min_uniform_buffer_offset_alignment,
        ..wgpu::Limits::default()
    }
}

/// What the adapter lacks, in words.
fn missing(adapter: &wgpu::Adapter) -> Option<String> {
    let mut lacks = Vec::new();
    let required = limits(adapter, Options::default());
    required.check_limits_with_fail_fn(&adapter.limits(), false, |name, wanted, has| {
        lacks.push(format!("{name} is {has}, {wanted} needed"));
    });
    if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        lacks.push("no compute shaders".to_string());
    }
    // Without it wgpu takes the compiler of Windows itself, which cannot store to a component of a vector by its number.
    let new_compiler = adapter.features().contains(wgpu::Features::SUBGROUP);
    if adapter.get_info().backend == wgpu::Backend::Dx12 && !new_compiler {
        lacks.push("Direct3D 12 needs dxcompiler.dll in the path, or a Vulkan driver".to_string());
    }
    (!lacks.is_empty()).then(|| lacks.join("; "))
}

/// All adapters, in the order of their numbers.
pub fn list() -> Vec<Listed> {
    let one = |(index, adapter): (usize, wgpu::Adapter)| {
        let (info, own, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        Listed {
            device: format!("wgpu:{index}"),
            name: info.name,
            backend: info.backend.to_string(),
            class: format!("{:?}", info.device_type),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            binding_bytes: own.max_storage_buffer_binding_size,
            buffer_bytes: own.max_buffer_size,
            workgroup_bytes: own.max_compute_workgroup_storage_size,
            subgroup: [info.subgroup_min_size, info.subgroup_max_size],
            f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            missing: missing(&adapter),
        }
    };
    adapters().1.into_iter().enumerate().map(one).collect()
}

/// What to do where there is no adapter.
pub const REMEDY: &str = "install a Vulkan driver (on Debian: mesa-vulkan-drivers and libvulkan1, or NVIDIA's driver), \
                          see `supernet devices`, or use --device cpu";

/// The adapter of a number; without one the first of the fastest class.
fn choose(index: Option<usize>) -> Result<(wgpu::Instance, wgpu::Adapter)> {
    let (instance, mut adapters) = adapters();
    let count = adapters.len();
    if count == 0 {
        return Err(Error::device(format!("device `wgpu`: there is no graphics adapter; {REMEDY}")));
    }
    let class = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    let fastest = || (0..count).min_by_key(|&i| (missing(&adapters[i]).is_some(), class(&adapters[i]))).unwrap_or(0);
    let index = index.unwrap_or_else(fastest);
    if index >= count {
        let known: Vec<String> = list().into_iter().map(|a| format!("{} {}", a.device, a.name)).collect();
        let known = known.join(", ");
        return Err(Error::usage(format!("device `wgpu:{index}`: this machine has {known}")));
    }
    let adapter = adapters.swap_remove(index);
    match missing(&adapter) {
        Some(lacks) => {
            let name = adapter.get_info().name;
            Err(Error::device(format!(
                "device `wgpu:{index}`: {name} cannot run the kernels: {lacks}; use --device cpu"
            )))
        }
        None => Ok((instance, adapter)),
    }
}

/// Opens a device with the optional features that are of use.
pub(super) fn open(index: Option<usize>, options: Options) -> Result<Opened> {
    let (instance, adapter) = choose(index)?;
    let mut useful = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE;
    useful.set(wgpu::Features::SUBGROUP, options.subgroups);
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("supernet"),
        required_features: adapter.features() & useful,
        required_limits: limits(&adapter, options),
        ..Default::default()
    };
    let (device, queue) = wait(adapter.request_device(&descriptor)).map_err(|error| {
        let name = adapter.get_info().name;
        Error::device(format!("device `wgpu`: {name} cannot be opened: {error}; use --device cpu"))
    })?;
    Ok(Opened { instance, adapter, device, queue })
}
