//! Runs every case as WGSL, on whatever Vulkan device there is, within the limits that WebGPU grants everywhere: 256
//! threads a workgroup, eight storage buffers. (Its 16 KiB of shared memory are held in `translated`.)

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};

use supernet::device::precision::Precision;
use supernet::device::source::{Variant, source};
use supernet::ops::launch::{Launch, TABLE_BYTES};

use super::cases;
use super::harness::{KERNELS_WITH_HALVES, Machine, Page, Placed, Spread, folded, narrow};
use super::missing;

/// Waits for a future that the driver completes on its own.
fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        std::thread::yield_now();
    }
}

/// Stem, entry point, variant, number of pages.
type Key = (&'static str, &'static str, Variant, usize);

struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    layouts: HashMap<usize, wgpu::BindGroupLayout>,
    pipelines: HashMap<Key, wgpu::ComputePipeline>,
    /// Whether sums use subgroups.
    subgroups: bool,
    /// Whether accesses and loops are checked, as in builds of the crate for debugging; those for release are not.
    checked: bool,
    /// Changed in every shader, to see the tests fail.
    edit: Option<(&'static str, &'static str)>,
}

impl Gpu {
    fn find(subgroups: bool) -> Result<Self, String> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let options = wgpu::RequestAdapterOptions::default();
        let adapter = wait(instance.request_adapter(&options)).map_err(|error| error.to_string())?;
        let info = adapter.get_info();
        println!("running on {}, subgroups of {} to {}", info.name, info.subgroup_min_size, info.subgroup_max_size);
        // The default limits are WebGPU's guaranteed ones: a shader that binds more fails here, on any machine.
        let required_features = if subgroups { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
        let required_limits = wgpu::Limits::default();
        let descriptor = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
        let (device, queue) = wait(adapter.request_device(&descriptor)).map_err(|error| error.to_string())?;
        Ok(Self {
            device,
            queue,
            layouts: HashMap::new(),
            pipelines: HashMap::new(),
            subgroups,
            checked: true,
            edit: None,
        })
    }

    /// Runs `body`, and turns validation errors, which wgpu reports by panics, into messages.
    fn scoped<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> Result<T, String> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let value = body(self);
        wait(scope.pop()).map_or(Ok(value), |error| Err(error.to_string()))
    }

    fn buffer(&self, bytes: &[u8], usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let size = (bytes.len() as u64).next_multiple_of(16).max(16);
        let usage = usage | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// Binding 0 the parameter record, 1 the table, from 2 on the pages.
    fn prepare(&mut self, launch: &Launch) {
        let pages = launch.pages.len();
        let key = (launch.source, launch.kernel, Variant::of(launch), pages);
        if self.pipelines.contains_key(&key) {
            return;
        }
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
        let layout = self.layouts.entry(pages).or_insert_with(|| {
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            self.device.create_bind_group_layout(&descriptor)
        });
        let mut text = source(launch.source).wgsl(Variant::of(launch), pages, self.subgroups);
        if let Some((from, to)) = self.edit {
            text = text.replace(from, to);
        }
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(launch.source), source: wgpu::ShaderSource::Wgsl(text.into()) };
        let module = if self.checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: indices lie within tensors and arrays, as other tests show with the checks.
            unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(launch.kernel),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(launch.kernel),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        self.pipelines.insert(key, pipeline);
    }

    fn execute(&self, launches: &[Launch], pages: &[Page]) -> wgpu::Buffer {
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let buffers: Vec<_> = pages.iter().map(|p| self.buffer(bytemuck::cast_slice(p.values()), storage)).collect();
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for launch in launches {
            let key = (launch.source, launch.kernel, Variant::of(launch), launch.pages.len());
            let params = self.buffer(&launch.params, wgpu::BufferUsages::UNIFORM);
            let mut table = launch.table.clone();
            table.resize(TABLE_BYTES, 0);
            let table = self.buffer(&table, wgpu::BufferUsages::UNIFORM);
            let bound = launch.pages.iter().map(|&p| &buffers[p as usize]);
            let entries: Vec<_> = [&params, &table]
                .into_iter()
                .chain(bound)
                .enumerate()
                .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.as_entire_binding() })
                .collect();
            let layout = &self.layouts[&launch.pages.len()];
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
            pass.set_pipeline(&self.pipelines[&key]);
            pass.set_bind_group(0, &self.device.create_bind_group(&descriptor), &[]);
            pass.dispatch_workgroups(launch.grid[0], launch.grid[1], launch.grid[2]);
        }
        drop(pass);
        let size = buffers.iter().map(wgpu::Buffer::size).sum();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let host = self.device.create_buffer(&descriptor);
        let mut at = 0;
        for buffer in &buffers {
            encoder.copy_buffer_to_buffer(buffer, 0, &host, at, buffer.size());
            at += buffer.size();
        }
        self.queue.submit([encoder.finish()]);
        host.map_async(wgpu::MapMode::Read, .., |result| result.expect("the buffer can be mapped"));
        host
    }
}

impl Machine for Gpu {
    fn run(&mut self, launches: &[Launch], pages: &mut [Page]) -> Result<(), String> {
        for launch in launches {
            self.scoped(|gpu| gpu.prepare(launch)).map_err(|error| format!("{}: {error}", launch.kernel))?;
        }
        let host = self.scoped(|gpu| gpu.execute(launches, pages))?;
        self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| error.to_string())?;
        let bytes = host.get_mapped_range(..).map_err(|error| error.to_string())?;
        let mut at = 0;
        for page in pages {
            let values: &mut [u8] = bytemuck::cast_slice_mut(page.values_mut());
            values.copy_from_slice(&bytes[at..at + values.len()]);
            at += values.len();
        }
        Ok(())
    }
}

#[test]
fn shaders_agree_with_the_reference() {
    let gpu = match Gpu::find(false) {
        Ok(gpu) => gpu,
        Err(why) => return missing("a Vulkan device", "SUPERNET_REQUIRE_WGPU", &why),
    };
    check(gpu, |_| true);
}

/// Sources whose sums use subgroups where there are some.
fn sums(launches: &[Launch]) -> bool {
    launches.iter().any(|l| source(l.source).shader.contains("block_sum("))
}

#[test]
fn shaders_with_subgroups_agree_with_the_reference() {
    match Gpu::find(true) {
        // As a release has them.
        Ok(gpu) => check(Gpu { checked: false, ..gpu }, sums),
        Err(why) => return missing("a Vulkan device with subgroups", "SUPERNET_REQUIRE_WGPU", &why),
    }
    // Lavapipe's subgroups are as large as the processor's vectors, which are said to be small here.
    if std::env::var_os(VECTORS).is_none() {
        let test = ["gpu::wgsl::shaders_with_subgroups_agree_with_the_reference", "--exact", "--nocapture"];
        let mut command = Command::new(std::env::current_exe().expect("a test binary"));
        let output = command.args(test).env(VECTORS, "128").output().expect("the test binary starts");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        println!("{text}");
    }
}

/// Bits of lavapipe's vectors.
const VECTORS: &str = "LP_NATIVE_VECTOR_WIDTH";

/// Compares the cases whose launches are of interest with the reference.
fn check(mut gpu: Gpu, of_interest: impl Fn(&[Launch]) -> bool) {
    for case in cases::all() {
        for spread in [Spread::One, Spread::Each] {
            let placed = Placed::new(&case, spread);
            let launches = placed.launches();
            if !of_interest(&launches) {
                continue;
            }
            let bits = placed.check(&mut gpu, &launches);
            assert!(placed.check(&mut gpu, &folded(&launches)) == bits, "{}: the grid's shape shows", case.name);
            if spread == Spread::One {
                placed.check(&mut gpu, &narrow(&launches));
            }
        }
    }
    println!("{} pipelines", gpu.pipelines.len());
}

/// Maps in halves: the same shaders, over accesses of their own.
#[test]
fn shaders_read_and_write_halves() {
    let mut gpu = match Gpu::find(false) {
        Ok(gpu) => Gpu { checked: false, ..gpu },
        Err(why) => return missing("a Vulkan device", "SUPERNET_REQUIRE_WGPU", &why),
    };
    let mut seen = BTreeSet::new();
    for case in cases::all() {
        let placed = Placed::stored(&case, Spread::One, Precision::F16);
        if placed.has_halves() {
            let launches = placed.launches();
            seen.extend(launches.iter().filter(|l| l.halves).map(|l| l.kernel));
            placed.check(&mut gpu, &launches);
            placed.check(&mut gpu, &narrow(&launches));
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), KERNELS_WITH_HALVES);
}

/// The test above is worth something only if it notices a broken shader.
#[test]
fn broken_shaders_are_noticed() {
    let find =
        |subgroups| Gpu::find(subgroups).map_err(|why| missing("a Vulkan device", "SUPERNET_REQUIRE_WGPU", &why));
    let Ok(mut gpu) = find(false) else { return };
    let cases = cases::all();
    let cases: Vec<_> = cases.iter().map(|case| Placed::new(case, Spread::One)).collect();
    let broken_on = |gpu: &mut Gpu, from: &'static str, to: &'static str| {
        gpu.edit = Some((from, to));
        gpu.pipelines.clear();
        cases.iter().any(|placed| {
            let mut pages = placed.pages();
            gpu.run(&placed.launches(), &mut pages).and_then(|()| placed.compare(&pages)).is_err()
        })
    };
    if let Ok(mut gpu) = find(true) {
        assert!(
            broken_on(&mut gpu, "part, subgroupExclusiveAdd(1u) == 0u", "part, true"),
            "a subgroup's sum more than once"
        );
        assert!(broken_on(&mut gpu, "i += lanes", "i += 2u * lanes"), "subgroups that are left out");
    }
    let mut broken = |from, to| broken_on(&mut gpu, from, to);
    assert!(broken("(a.count * share) * ", ""), "a wrong merge of moments");
    assert!(broken("k < valid; k++", "k < 4u; k++"), "accesses beyond the last channel");
    assert!(broken("row / p.pixels", "row % p.pixels"), "the wrong image's factor");
    assert!(broken(" + (cross >> 16u)", ""), "a lost carry of a draw");
    assert!(broken("min(4u, inputs - i)", "4u"), "a product over more channels than there are");
    assert!(broken("far % p.stride == 0u", "true"), "a gradient through pixels that a stride skips");
    assert!(broken("own.sum *= exp2(own.top - top);", ""), "powers of different exponents");
    assert!(broken("var stretch = 1u", "var stretch = 2u"), "a stretch that is left out");
    assert!(broken("!= 0x7f800000u", "!= 1u"), "a step after a norm that is not finite");
    assert!(broken("better < 1.0 && is_finite(label)", "better < 1.0"), "a NaN as a hit");
    assert!(broken("2u * terms[i].coef_stride", "terms[i].coef_stride"), "the wrong coefficient");
    assert!(broken("fn quad(", "fn quart("), "a shader that does not compile");
}
