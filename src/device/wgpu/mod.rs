//! GPUs by way of Vulkan, Metal or Direct3D 12: WGSL shaders through wgpu.
//!
//! A program is recorded once: pipelines compiled, parameters and tables in one uniform buffer, a bind group for each
//! launch. A replay encodes the dispatches and submits them in a few parts; nothing is looked up, allocated or waited for.
//! The host runs at most a few replays ahead.

mod adapter;
mod peek;
mod pipelines;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};

pub use adapter::{Listed, Options, REMEDY, list};

use self::adapter::{Opened, wait};
use self::peek::Peek;
use self::pipelines::Pipelines;
use super::paged::Backend;
use crate::error::{Error, Result};
use crate::ops::launch::{Launch, TABLE_BYTES};

/// Replays that may be under way at once.
const AHEAD: usize = 3;
/// Dispatches of one submission. What runs for seconds without an end is taken for a fault: systems reset a GPU whose
/// submission lasts longer than 2 (Windows) to 10 seconds (Linux), and a slow one needs seconds for a search step.
const TOGETHER: usize = 64;
/// Bytes that are read at once; a staging buffer is no larger.
const STAGING: u64 = 32 << 20;

/// The first thing that went wrong outside of any error scope: a lost device, or a late failure.
#[derive(Clone, Default)]
struct Faults(Arc<Mutex<Option<String>>>);

impl Faults {
    fn watch(device: &wgpu::Device) -> Self {
        let faults = Self::default();
        let (lost, late) = (faults.clone(), faults.clone());
        device.set_device_lost_callback(move |reason, message| {
            // An orderly end is reported as well.
            if reason != wgpu::DeviceLostReason::Destroyed {
                lost.note(format!("the device was lost: {message}"));
            }
        });
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| late.note(error.to_string())));
        faults
    }

    fn note(&self, message: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    }

    fn check(&self) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(message) => Err(Error::device(format!("wgpu: {message}"))),
        }
    }

    /// Runs `body` and turns what goes wrong in it, which wgpu reports beside the results, into an error that names it.
    fn scoped<T>(&self, device: &wgpu::Device, what: impl Fn() -> String, body: impl FnOnce() -> T) -> Result<T> {
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let value = body();
        let failed = [wait(validation.pop()), wait(internal.pop())].into_iter().flatten().next();
        let full = wait(memory.pop());
        if let Some(error) = failed {
            return Err(Error::device(format!("wgpu: {}: {error}", what())));
        }
        match full {
            Some(error) => Err(Error::Memory(format!("wgpu: {}: {error}", what()))),
            None => self.check().map(|()| value),
        }
    }
}

/// A GPU with its pages.
pub struct Wgpu {
    instance: wgpu::Instance,
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
    page: usize,
    pages: Vec<wgpu::Buffer>,
    pipelines: Pipelines,
    staging: Option<wgpu::Buffer>,
    under_way: VecDeque<wgpu::SubmissionIndex>,
    peek: Peek,
    faults: Faults,
}

/// Launches with their bind groups.
pub struct Recording {
    what: String,
    steps: Vec<Step>,
}

struct Step {
    pipeline: wgpu::ComputePipeline,
    bound: wgpu::BindGroup,
    grid: [u32; 3],
}

impl Wgpu {
    /// Opens the adapter of a number; without one the fastest.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none or it cannot run the kernels, [`Error::Usage`] if there is none of that number.
    pub fn open(index: Option<usize>, options: Options) -> Result<Self> {
        let Opened { instance, adapter, device, queue } = adapter::open(index, options)?;
        let faults = Faults::watch(&device);
        let info = adapter.get_info();
        let name = format!("wgpu, {} ({}, {} {})", info.name, info.backend, info.driver, info.driver_info);
        let limits = device.limits();
        // Kernels count elements with 32 bits.
        let bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 33);
        let pipelines = Pipelines::new(&adapter, &device);
        let peek = Peek::new(&device);
        Ok(Self {
            name,
            page: (bytes / 4 / 64 * 64) as usize,
            pages: Vec::new(),
            pipelines,
            staging: None,
            under_way: VecDeque::new(),
            peek,
            faults,
            instance,
            device,
            queue,
        })
    }

    /// What is alive on the device: buffers, bind groups, and the bytes that its allocator holds where it tells.
    pub fn live(&self) -> [usize; 3] {
        let hub = self.instance.generate_report().map(|report| {
            let hub = report.hub_report();
            [hub.buffers.num_allocated, hub.bind_groups.num_allocated]
        });
        let [buffers, groups] = hub.unwrap_or_default();
        [buffers, groups, self.device.generate_allocator_report().map_or(0, |r| r.total_reserved_bytes as usize)]
    }

    fn buffer(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.device.create_buffer(&descriptor)
    }

    fn settle(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let poll = wgpu::PollType::Wait { submission_index: submission, timeout: None };
        let polled = self.device.poll(poll);
        self.faults.check()?;
        polled.map(|_| ()).map_err(|error| Error::device(format!("wgpu: waiting for the device: {error}")))
    }

    /// Submits, and waits until few enough replays are under way.
    fn submit(&mut self, encoder: wgpu::CommandEncoder) -> Result<()> {
        self.under_way.push_back(self.queue.submit([encoder.finish()]));
        self.faults.check()?;
        while self.under_way.len() > AHEAD {
            let oldest = self.under_way.pop_front();
            self.settle(oldest)?;
        }
        Ok(())
    }

    /// Copies bytes of a buffer to the processor and hands them to `take`.
    fn fetch(&mut self, from: &wgpu::Buffer, start: u64, len: u64, take: impl FnOnce(&[u8])) -> Result<()> {
        if self.staging.as_ref().is_none_or(|staging| staging.size() < len) {
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let size = len.next_power_of_two().max(1 << 16);
            let what = || format!("a staging buffer of {size} bytes");
            self.staging = Some(self.faults.scoped(&self.device, what, || self.buffer(size, usage))?);
        }
        let Some(staging) = &self.staging else { return Ok(()) };
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(from, start, staging, 0, len);
        self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, ..len, |_| ());
        self.settle(None)?;
        self.under_way.clear();
        {
            let bytes = staging.get_mapped_range(..len);
            take(&bytes.map_err(|error| Error::device(format!("wgpu: reading back: {error}")))?);
        }
        staging.unmap();
        Ok(())
    }

    /// Parameters and tables of launches in one buffer, and where each lies.
    fn uniforms(&self, launches: &[Launch]) -> (wgpu::Buffer, Vec<[u64; 2]>) {
        let align = self.device.limits().min_uniform_buffer_offset_alignment as usize;
        let mut bytes = Vec::new();
        let mut put = |part: &[u8]| {
            bytes.resize(bytes.len().next_multiple_of(align), 0);
            bytes.extend_from_slice(part);
            (bytes.len() - part.len()) as u64
        };
        let one = |launch: &Launch| {
            let params = put(&launch.params);
            // A kernel without a table still binds one.
            [params, if launch.table.is_empty() { 0 } else { put(&launch.table) }]
        };
        let at: Vec<[u64; 2]> = launches.iter().map(one).collect();
        // Every table is bound at its largest extent.
        bytes.resize((bytes.len() + TABLE_BYTES).next_multiple_of(16), 0);
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(bytes.len() as u64, usage);
        self.queue.write_buffer(&buffer, 0, &bytes);
        (buffer, at)
    }

    fn bind(&self, launch: &Launch, uniforms: &wgpu::Buffer, [params, table]: [u64; 2]) -> Step {
        let range = |offset, size: usize| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: uniforms,
                offset,
                size: NonZeroU64::new(size as u64),
            })
        };
        let pages = launch.pages.iter().map(|&page| self.pages[page as usize].as_entire_binding());
        let entries: Vec<_> = [range(params, launch.params.len()), range(table, TABLE_BYTES)]
            .into_iter()
            .chain(pages)
            .enumerate()
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource })
            .collect();
        let layout = self.pipelines.layout(launch);
        let descriptor = wgpu::BindGroupDescriptor { label: Some(launch.kernel), layout, entries: &entries };
        Step {
            pipeline: self.pipelines.pipeline(launch).clone(),
            bound: self.device.create_bind_group(&descriptor),
            grid: launch.grid,
        }
    }
}

fn dispatch(pass: &mut wgpu::ComputePass<'_>, step: &Step) {
    pass.set_pipeline(&step.pipeline);
    pass.set_bind_group(0, &step.bound, &[]);
    pass.dispatch_workgroups(step.grid[0], step.grid[1], step.grid[2]);
}

impl Backend for Wgpu {
    type Recording = Recording;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn page(&self) -> usize {
        self.page
    }

    fn allocate(&mut self, pages: &[usize]) -> Result<()> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let mib = |elements: usize| elements as f64 * 4.0 / (1024.0 * 1024.0);
        let (new, held) = (mib(pages.iter().sum()), self.bytes() as f64 / (1024.0 * 1024.0));
        let what = || {
            format!(
                "{new:.1} MiB beside {held:.1} MiB that are held: lower --batch, --channels or --size, or use --device cpu"
            )
        };
        let buffers = self.faults.scoped(&self.device, what, || {
            pages.iter().map(|&len| self.buffer(len as u64 * 4, usage)).collect::<Vec<_>>()
        })?;
        self.pages.extend(buffers);
        Ok(())
    }

    fn release(&mut self, keep: usize) {
        self.pages.truncate(keep);
        // What is under way holds its pages: without this they would be there beside those that come. A failure shows at the
        // next call.
        let _ = self.settle(None);
    }

    fn record(&mut self, what: &str, launches: &[Launch]) -> Result<Recording> {
        for launch in launches {
            self.pipelines.compile(&self.device, &self.faults, what, launch)?;
        }
        self.pipelines.keep();
        let bound = || format!("binding the launches of {what}");
        let steps = self.faults.scoped(&self.device, bound, || {
            let (uniforms, at) = self.uniforms(launches);
            launches.iter().zip(at).map(|(launch, at)| self.bind(launch, &uniforms, at)).collect()
        })?;
        Ok(Recording { what: what.to_string(), steps })
    }

    fn replay(&mut self, recording: &Recording) -> Result<()> {
        let label = wgpu::CommandEncoderDescriptor { label: Some(&recording.what) };
        let mut encoder = self.device.create_command_encoder(&label);
        for (number, steps) in recording.steps.chunks(TOGETHER).enumerate() {
            if number > 0 {
                let full = std::mem::replace(&mut encoder, self.device.create_command_encoder(&label));
                self.queue.submit([full.finish()]);
            }
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            steps.iter().for_each(|step| dispatch(&mut pass, step));
        }
        let copied = self.peek.copy(&self.pages, &mut encoder);
        self.submit(encoder)?;
        self.peek.map(copied);
        Ok(())
    }

    fn time(&mut self, recording: &Recording) -> Result<Vec<f64>> {
        if !self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::usage(format!(
                "{}: the adapter has no timestamps, so nothing can be profiled",
                self.name
            )));
        }
        let mut times = Vec::new();
        for steps in recording.steps.chunks(wgpu::QUERY_SET_MAX_QUERIES as usize / 2) {
            let count = steps.len() as u32 * 2;
            let bytes = u64::from(count) * 8;
            let set = self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count,
            });
            let ticks = self.buffer(bytes, wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for (step, first) in steps.iter().zip((0..).step_by(2)) {
                let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                    query_set: &set,
                    beginning_of_pass_write_index: Some(first),
                    end_of_pass_write_index: Some(first + 1),
                });
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
                dispatch(&mut pass, step);
            }
            encoder.resolve_query_set(&set, 0..count, &ticks, 0);
            self.submit(encoder)?;
            let tick = f64::from(self.queue.get_timestamp_period()) * 1e-9;
            self.fetch(&ticks, 0, bytes, |bytes| {
                let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
                times.extend(ticks.chunks(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * tick));
            })?;
        }
        Ok(times)
    }

    fn write(&mut self, page: u32, first: usize, values: &[f32]) -> Result<()> {
        self.queue.write_buffer(&self.pages[page as usize], first as u64 * 4, bytemuck::cast_slice(values));
        self.peek.forget(page, first, values.len());
        self.faults.check()
    }

    fn read(&mut self, page: u32, first: usize, values: &mut [f32]) -> Result<()> {
        let buffer = self.pages[page as usize].clone();
        let mut start = first as u64 * 4;
        for part in values.chunks_mut(STAGING as usize / 4) {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(part);
            let len = bytes.len() as u64;
            self.fetch(&buffer, start, len, |from| bytes.copy_from_slice(from))?;
            start += len;
        }
        Ok(())
    }

    fn peek(&mut self, page: u32, first: usize) -> Result<f32> {
        let polled = self.device.poll(wgpu::PollType::Poll);
        self.faults.check()?;
        polled.map_err(|error| Error::device(format!("wgpu: asking the device: {error}")))?;
        if let Some(value) = self.peek.value(page, first)? {
            return Ok(value);
        }
        let mut value = [0.0];
        self.read(page, first, &mut value)?;
        self.peek.follow(page, first, value[0]);
        Ok(value[0])
    }

    fn bytes(&self) -> usize {
        self.pages.iter().map(|page| page.size() as usize).sum()
    }
}
