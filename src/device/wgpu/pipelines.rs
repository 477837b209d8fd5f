//! Compute pipelines, compiled once, and kept between runs where the driver can.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use super::Faults;
use crate::device::source::{Variant, source};
use crate::error::Result;
use crate::files::{cache_folder, write_atomically};
use crate::ops::launch::{Launch, TABLE_BYTES};

/// Stem, entry point, what it is compiled for, number of pages.
type Key = (&'static str, &'static str, Variant, usize);

/// What has been compiled.
pub(super) struct Pipelines {
    layouts: HashMap<usize, wgpu::BindGroupLayout>,
    modules: HashMap<(&'static str, Variant, usize), wgpu::ShaderModule>,
    pipelines: HashMap<Key, wgpu::ComputePipeline>,
    cache: Option<(wgpu::PipelineCache, PathBuf)>,
    /// Pipelines that were compiled since the cache was written.
    fresh: usize,
}

fn key(launch: &Launch) -> Key {
    (launch.source, launch.kernel, Variant::of(launch), launch.pages.len())
}

impl Pipelines {
    /// Nothing yet but what an earlier run left on the disk.
    pub fn new(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Self {
        let file = device
            .features()
            .contains(wgpu::Features::PIPELINE_CACHE)
            .then(|| wgpu::util::pipeline_cache_key(&adapter.get_info()))
            .flatten()
            .and_then(|name| Some(cache_folder()?.join(name)));
        let cache = file.map(|file| {
            let data = std::fs::read(&file).ok();
            let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
            // SAFETY: the data comes from `get_data` of the same adapter by the file's name, and wgpu checks its header
            // and drops what does not fit.
            (unsafe { device.create_pipeline_cache(&descriptor) }, file)
        });
        Self { layouts: HashMap::new(), modules: HashMap::new(), pipelines: HashMap::new(), cache, fresh: 0 }
    }

    /// Layout of the bindings of a launch: 0 the parameter record, 1 the table, from 2 on the pages.
    pub fn layout(&self, launch: &Launch) -> &wgpu::BindGroupLayout {
        &self.layouts[&launch.pages.len()]
    }

    /// The pipeline of a launch that was compiled.
    pub fn pipeline(&self, launch: &Launch) -> &wgpu::ComputePipeline {
        &self.pipelines[&key(launch)]
    }

    /// Compiles what a launch needs.
    ///
    /// # Errors
    /// [`crate::Error::Device`] with the compiler's words.
    pub fn compile(&mut self, device: &wgpu::Device, faults: &Faults, what: &str, launch: &Launch) -> Result<()> {
        if self.pipelines.contains_key(&key(launch)) {
            return Ok(());
        }
        let pages = launch.pages.len();
        let name = || format!("kernel `{}` of shaders/{}.wgsl for {what}", launch.kernel, launch.source);
        let pipeline = faults.scoped(device, name, || {
            let layout = self.layouts.entry(pages).or_insert_with(|| bindings(device, pages));
            let module = self.modules.entry((launch.source, Variant::of(launch), pages)).or_insert_with(|| {
                let subgroups = device.features().contains(wgpu::Features::SUBGROUP);
                module(device, launch.source, source(launch.source).wgsl(Variant::of(launch), pages, subgroups))
            });
            let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(layout)],
                immediate_size: 0,
            });
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(launch.kernel),
                layout: Some(&layout),
                module,
                entry_point: Some(launch.kernel),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: self.cache.as_ref().map(|c| &c.0),
            })
        })?;
        self.pipelines.insert(key(launch), pipeline);
        self.fresh += 1;
        Ok(())
    }

    /// Leaves what was compiled for the next run. A cache that cannot be written costs time, not results.
    pub fn keep(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        let Some((cache, file)) = self.cache.as_ref().filter(|_| fresh > 0) else { return };
        let Some(data) = cache.get_data() else { return };
        let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        if folder.is_ok() {
            let _ = write_atomically(file, &data);
        }
    }
}

fn bindings(device: &wgpu::Device, pages: usize) -> wgpu::BindGroupLayout {
    let entry = |binding: u32| {
        let ty = match binding {
            0 | 1 => wgpu::BufferBindingType::Uniform,
            _ => wgpu::BufferBindingType::Storage { read_only: false },
        };
        let min_binding_size = if binding == 1 { NonZeroU64::new(TABLE_BYTES as u64) } else { None };
        let ty = wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size };
        wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
    };
    let entries: Vec<_> = (0..pages as u32 + 2).map(entry).collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

/// Compiles a shader: with checks of every access and loop where the crate itself is built with checks, without them
/// otherwise.
fn module(device: &wgpu::Device, stem: &'static str, text: String) -> wgpu::ShaderModule {
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(stem), source: wgpu::ShaderSource::Wgsl(text.into()) };
    if cfg!(debug_assertions) {
        return device.create_shader_module(descriptor);
    }
    // SAFETY: shaders index the places that the plan gives their tensors, and their loops end; the tests run all of them
    // with the checks, over poisoned memory.
    unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}
