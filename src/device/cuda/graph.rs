//! Launches bound to kernels and pages, captured once as a CUDA graph and replayed by one call.

use std::ffi::{c_uint, c_void};
use std::rc::Rc;

use cudarc::driver::sys::{
    CUdeviceptr, CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig,
};

use super::context::{Buffer, Context, Event, Pinned};
use super::driver::{Fault, Outcome};
use super::kernels::{Kernel, Kernels};
use crate::device::Starting;
use crate::error::{Error, Result};
use crate::ops::launch::{Launch, PAGES};

/// Bytes to which tables are aligned.
const ALIGNMENT: usize = 256;
/// Bytes of a copy that keeps the stream busy: some 80 microseconds on PCI Express 5, twice that on 4. A single launch gets
/// one of them.
const HEAD_START: usize = 4 << 20;
/// Bytes of such copies for each launch: 7 microseconds or more, while it takes 3 to 5 to start a kernel and an event.
const HEAD_START_PER_LAUNCH: usize = 400_000;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: this thread calls nothing but launches meanwhile, and what other threads call or other
/// streams still do is none of its business.
const RELAXED: c_uint = 2;

/// One launch with its arguments.
struct Bound {
    name: &'static str,
    kernel: Kernel,
    grid: [u32; 3],
    block: u32,
    /// The parameter record, in words so that it is aligned.
    params: Box<[u64]>,
    /// `Pages` of common.cuh.
    pages: [CUdeviceptr; PAGES],
    table: CUdeviceptr,
}

impl Bound {
    /// Starts the kernel; with `overlap` while the one before it in the stream still runs.
    ///
    /// That leaves the order as it was. Every kernel begins with `after_others` of common.cuh, in all threads: it touches no
    /// memory and does not end before the kernel before it has ended, with all that it wrote. So whoever comes after a kernel
    /// comes after all that were started before: the next kernel, which waits in the same way; and copies, events and
    /// graphs, which wait for the whole of it.
    fn launch(&self, context: &Context, overlap: bool) -> Outcome<()> {
        let ([x, y, z], pages) = (self.grid, &self.pages);
        let mut arguments: [*mut c_void; 3] = [
            self.params.as_ptr().cast_mut().cast(),
            pages.as_ptr().cast_mut().cast(),
            std::ptr::from_ref(&self.table).cast_mut().cast(),
        ];
        let mut attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { pad: [0; 64] },
        };
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: context.stream,
            attrs: &mut attribute,
            numAttrs: c_uint::from(overlap),
        };
        let (function, arguments, none) = (self.kernel.function, arguments.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: every kernel takes a record, pages and a table (kernels/common.cuh); the driver copies them before it
        // returns. The recording holds the pages and the table that the kernel touches.
        unsafe { context.driver.cuLaunchKernelEx(&config, function, arguments, none) }
    }
}

/// An executable graph.
struct Exec {
    context: Rc<Context>,
    exec: CUgraphExec,
}

impl Drop for Exec {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: nobody launches it any more; the driver lets a launch under way end first.
        let _ = unsafe { self.context.driver.cuGraphExecDestroy(self.exec) };
    }
}

/// Launches ready for replays.
pub struct Recording {
    /// What they are, for errors.
    pub(super) what: String,
    exec: Option<Exec>,
    bound: Vec<Bound>,
    overlap: bool,
    _tables: Option<Buffer>,
    _pages: Vec<Rc<Buffer>>,
}

impl Recording {
    /// Binds launches, whose kernels are compiled, and captures them if they are to be replayed as a graph.
    pub(super) fn new(
        context: &Rc<Context>,
        kernels: &mut Kernels,
        pages: &[Rc<Buffer>],
        what: &str,
        launches: &[Launch],
        Starting { capture, overlap }: Starting,
    ) -> Result<Self> {
        let failed = |fault: Fault| context.error(&format!("recording `{what}`"), &fault);
        let mut bytes = Vec::new();
        let starts: Vec<usize> = launches
            .iter()
            .map(|launch| {
                bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0u8);
                let start = bytes.len();
                bytes.extend_from_slice(&launch.table);
                start
            })
            .collect();
        let tables = upload(context, &bytes).map_err(failed)?;
        let base = tables.as_ref().map_or(0, |tables| tables.address);
        let bind = |(launch, start): (&Launch, usize)| {
            let mut params = vec![0u64; launch.params.len().div_ceil(8)];
            bytemuck::cast_slice_mut(&mut params)[..launch.params.len()].copy_from_slice(&launch.params);
            let mut addresses = [0; PAGES];
            for (address, &page) in addresses.iter_mut().zip(&launch.pages) {
                *address = pages
                    .get(page as usize)
                    .ok_or_else(|| Error::device(format!("`{what}` names page {page} of {}", pages.len())))?
                    .address;
            }
            Ok(Bound {
                name: launch.kernel,
                kernel: kernels.get(launch)?,
                grid: launch.grid,
                block: launch.block,
                params: params.into_boxed_slice(),
                pages: addresses,
                table: if launch.table.is_empty() { 0 } else { base + start as CUdeviceptr },
            })
        };
        let bound = launches.iter().zip(starts).map(bind).collect::<Result<Vec<_>>>()?;
        let exec = if capture && !bound.is_empty() { Some(captured(context, what, &bound, overlap)?) } else { None };
        Ok(Self { what: what.to_owned(), exec, bound, overlap, _tables: tables, _pages: pages.to_vec() })
    }

    /// Starts one replay.
    pub(super) fn replay(&self, context: &Context) -> Result<()> {
        let Some(exec) = &self.exec else {
            return launch_all(context, &self.what, &self.bound, self.overlap, |_| Ok(()));
        };
        // SAFETY: the graph lives, and so does what it touches.
        let launched = unsafe { context.driver.cuGraphLaunch(exec.exec, context.stream) };
        launched.map_err(|fault| context.error(&format!("running `{}`", self.what), &fault))
    }

    /// Runs launch by launch, none before the one before it has ended; seconds of each.
    pub(super) fn time(&self, context: &Rc<Context>) -> Result<Vec<f64>> {
        let failed = |fault: Fault| context.error(&format!("timing `{}`", self.what), &fault);
        let events: Outcome<Vec<Event>> = (0..=self.bound.len()).map(|_| Event::new(context, true)).collect();
        let events = events.map_err(failed)?;
        let _memory = self.head_start(context).map_err(failed)?;
        launch_all(context, &self.what, &self.bound, false, |index| events[index].record(context.stream))?;
        let measure = || {
            events[self.bound.len()].record(context.stream)?;
            context.synchronise()?;
            events.windows(2).map(|pair| pair[1].seconds_since(&pair[0])).collect::<Outcome<Vec<f64>>>()
        };
        measure().map_err(failed)
    }

    /// Keeps the stream busy with copies to the host while launches queue up behind them: a stream that runs dry would
    /// have the time of launching counted as that of kernels.
    fn head_start(&self, context: &Rc<Context>) -> Outcome<(Buffer, Pinned)> {
        let (from, to) = (Buffer::zeros(context, HEAD_START)?, Pinned::new(context, HEAD_START)?);
        for _ in 0..(HEAD_START + self.bound.len() * HEAD_START_PER_LAUNCH) / HEAD_START {
            // SAFETY: both have so many bytes, and wait for the stream before they end.
            unsafe {
                context.driver.cuMemcpyDtoHAsync_v2(to.at(0).cast(), from.address, HEAD_START, context.stream)?;
            }
        }
        // Copies run on an engine of their own. The first event comes behind this, where the kernels run.
        // SAFETY: as above.
        unsafe { context.driver.cuMemsetD8Async(from.address, 0, HEAD_START, context.stream)? };
        Ok((from, to))
    }
}

/// Launches one after the other, each after what `before` does with its number. With `overlap`, each but the first may begin
/// while the one before it ends: that before the first need not be a kernel.
fn launch_all(
    context: &Context,
    what: &str,
    bound: &[Bound],
    overlap: bool,
    before: impl Fn(usize) -> Outcome<()>,
) -> Result<()> {
    for (index, launch) in bound.iter().enumerate() {
        let started = before(index).and_then(|()| launch.launch(context, overlap && index > 0));
        started.map_err(|fault| context.error(&format!("kernel `{}` of `{what}`", launch.name), &fault))?;
    }
    Ok(())
}

/// Records the launches in the stream instead of running them.
fn captured(context: &Rc<Context>, what: &str, bound: &[Bound], overlap: bool) -> Result<Exec> {
    let failed = |fault: Fault| context.error(&format!("capturing `{what}`"), &fault);
    let (driver, stream) = (&context.driver, context.stream);
    let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the stream lives, the pointers outlive the calls, and the graph is not used after it is destroyed.
    unsafe {
        driver.cuStreamBeginCapture_v2(stream, RELAXED).map_err(failed)?;
        let launched = launch_all(context, what, bound, overlap, |_| Ok(()));
        // The capture ends whatever happened, so that the stream is usable.
        let ended = driver.cuStreamEndCapture(stream, &mut graph).map_err(failed);
        let made = launched
            .and(ended)
            .and_then(|()| driver.cuGraphInstantiateWithFlags(&mut exec, graph, 0).map_err(failed))
            .map(|()| Exec { context: Rc::clone(context), exec });
        if !graph.is_null() {
            let _ = driver.cuGraphDestroy(graph);
        }
        let exec = made?;
        driver.cuGraphUpload(exec.exec, stream).map_err(failed)?;
        Ok(exec)
    }
}

/// A buffer with these bytes; none if there are none.
fn upload(context: &Rc<Context>, bytes: &[u8]) -> Outcome<Option<Buffer>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let buffer = Buffer::new(context, bytes.len())?;
    // SAFETY: the buffer has so many bytes, and `bytes` outlives the copy, which is waited for.
    unsafe { context.driver.cuMemcpyHtoDAsync_v2(buffer.address, bytes.as_ptr().cast(), bytes.len(), context.stream)? };
    context.synchronise()?;
    Ok(Some(buffer))
}
