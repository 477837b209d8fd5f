//! One device with its streams, and what lives on it: buffers, pinned memory, events. Everything holds the context, which
//! ends with the last of them.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::rc::Rc;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUevent, CUstream};

use super::driver::{Driver, Fault, NOT_READY, OUT_OF_MEMORY, Outcome, version_text};
use crate::error::{Error, Result};

/// The oldest architecture that the kernels are made for: Turing.
const OLDEST: (c_int, c_int) = (7, 5);
/// The oldest architecture, and the oldest driver's CUDA, of kernels that overlap, captured or not: Hopper.
const OVERLAP: ((c_int, c_int), c_int) = ((9, 0), 12_040);

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_uint; 2] = [75, 76];
/// `CU_STREAM_NON_BLOCKING`: does not wait for the default stream.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;

/// What the driver says of a device.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its number, as `--device cuda:N` counts.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Compute capability: major and minor.
    pub capability: (i32, i32),
    /// Its memory.
    pub memory_bytes: usize,
}

impl Info {
    pub(super) fn ask(driver: &Driver, index: usize) -> Outcome<(CUdevice, Self)> {
        let (mut device, mut name, mut capability, mut memory_bytes) = (0, [0u8; 256], [0; 2], 0);
        // SAFETY: all pointers outlive the calls; of `name`, the last byte stays zero.
        unsafe {
            driver.cuDeviceGet(&mut device, index as c_int)?;
            driver.cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int - 1, device)?;
            for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
                driver.cuDeviceGetAttribute(value, attribute, device)?;
            }
            driver.cuDeviceTotalMem_v2(&mut memory_bytes, device)?;
        }
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        Ok((device, Self { index, name, capability: (capability[0], capability[1]), memory_bytes }))
    }

    /// Whether its tensor cores multiply in tf32.
    pub fn has_tf32(&self) -> bool {
        self.capability >= (8, 0)
    }

    /// The architecture as NVRTC names it.
    pub fn architecture(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

impl std::fmt::Display for Info {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gib = self.memory_bytes as f64 / (1u64 << 30) as f64;
        write!(f, "cuda:{}, {}, {}, {gib:.1} GiB", self.index, self.name, self.architecture())
    }
}

/// A device's primary context and streams of our own.
pub(super) struct Context {
    pub driver: Driver,
    pub info: Info,
    device: CUdevice,
    context: CUcontext,
    /// Runs everything that touches pages, in order.
    pub stream: CUstream,
    /// Brings values from the host to the device meanwhile; what of them `stream` may see, events say.
    pub uploads: CUstream,
    /// Bytes in device buffers.
    pub allocated: Cell<usize>,
}

impl Context {
    pub fn open(driver: Driver, index: usize) -> Result<Rc<Self>> {
        let refused = |fault: Fault| {
            Error::device(format!("cuda:{index}: {fault}; see what `nvidia-smi` says of other users of the device"))
        };
        let count = driver.count().map_err(refused)?;
        if index >= count {
            let last = count.saturating_sub(1);
            return Err(Error::device(format!(
                "cuda:{index}: the NVIDIA driver sees {count} device(s), cuda:0 to cuda:{last}; `supernet devices` lists them"
            )));
        }
        let (device, info) = Info::ask(&driver, index).map_err(refused)?;
        if info.capability < OLDEST {
            let (major, minor) = OLDEST;
            return Err(Error::device(format!(
                "{info}: the kernels need compute capability {major}.{minor} (Turing) or newer; use --device wgpu or cpu"
            )));
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call; what it names is released in `drop`.
        unsafe { driver.cuDevicePrimaryCtxRetain(&mut context, device).map_err(refused)? };
        let [stream, uploads] = [std::ptr::null_mut(); 2];
        // From here on `drop` gives back what there is.
        let mut made = Self { driver, info, device, context, stream, uploads, allocated: Cell::new(0) };
        made.enter().map_err(refused)?;
        for stream in [&mut made.stream, &mut made.uploads] {
            // SAFETY: the pointer outlives the call.
            unsafe { made.driver.cuStreamCreate(stream, NON_BLOCKING).map_err(refused)? };
        }
        Ok(Rc::new(made))
    }

    /// Whether a kernel can be brought up while the one before it ends.
    pub fn can_overlap(&self) -> bool {
        self.info.capability >= OVERLAP.0 && self.driver.version >= OVERLAP.1
    }

    /// Makes the context the thread's current one. What runs on a device begins with it: a thread may hold several.
    pub fn enter(&self) -> Outcome<()> {
        // SAFETY: the context lives until `drop`.
        unsafe { self.driver.cuCtxSetCurrent(self.context) }
    }

    /// Waits until all that touches pages and was started is done.
    pub fn synchronise(&self) -> Outcome<()> {
        // SAFETY: the stream lives until `drop`.
        unsafe { self.driver.cuStreamSynchronize(self.stream) }
    }

    /// Waits until all streams are done, before something ends that they may use.
    pub fn settle(&self) -> Outcome<()> {
        // SAFETY: the streams live until `drop`.
        let uploaded = unsafe { self.driver.cuStreamSynchronize(self.uploads) };
        self.synchronise().and(uploaded)
    }

    /// Bytes that are free, and all there are.
    pub fn memory(&self) -> (usize, usize) {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers outlive the call.
        match unsafe { self.driver.cuMemGetInfo_v2(&mut free, &mut total) } {
            Ok(()) => (free, total),
            Err(_) => (0, self.info.memory_bytes),
        }
    }

    /// The error of something that was attempted.
    pub fn error(&self, what: &str, fault: &Fault) -> Error {
        let driver = version_text(self.driver.version);
        match fault.code {
            OUT_OF_MEMORY => self.too_large(what),
            _ => {
                let lost =
                    "; nothing on the device can be used any more: start again, with --resume from the last checkpoint";
                let lost = if fault.is_final() { lost } else { "" };
                Error::device(format!("{}, driver for CUDA {driver}: {what}: {fault}{lost}", self.info))
            }
        }
    }

    /// The error of memory that does not fit.
    pub fn too_large(&self, what: &str) -> Error {
        let mib = |bytes: usize| bytes as f64 / (1u64 << 20) as f64;
        let (free, total) = self.memory();
        Error::Memory(format!(
            "{}: {what}: out of memory; {:.1} MiB of {:.1} MiB are free and {:.1} MiB are held already: lower --batch, \
             --channels or --size, end what else uses the device, or use another device",
            self.info,
            mib(free),
            mib(total),
            mib(self.allocated.get())
        ))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nobody is left to hear of errors; after a fault every call gives one.
        // SAFETY: whatever used the streams and the context held this object, and is gone. A stream is null where there was
        // an error before it was made.
        unsafe {
            let _ = self.enter();
            for stream in [self.uploads, self.stream].into_iter().filter(|stream| !stream.is_null()) {
                let _ = self.driver.cuStreamSynchronize(stream);
                let _ = self.driver.cuStreamDestroy_v2(stream);
            }
            let _ = self.driver.cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Memory of the device.
pub(super) struct Buffer {
    context: Rc<Context>,
    pub address: CUdeviceptr,
    pub bytes: usize,
}

impl Buffer {
    /// So many bytes, whatever stood there.
    pub fn new(context: &Rc<Context>, bytes: usize) -> Outcome<Self> {
        let mut address = 0;
        // SAFETY: the pointer outlives the call.
        unsafe { context.driver.cuMemAlloc_v2(&mut address, bytes)? };
        context.allocated.set(context.allocated.get() + bytes);
        Ok(Self { context: Rc::clone(context), address, bytes })
    }

    /// So many zeros, before whatever is started later.
    pub fn zeros(context: &Rc<Context>, bytes: usize) -> Outcome<Self> {
        let buffer = Self::new(context, bytes)?;
        // SAFETY: the buffer has so many bytes.
        unsafe { context.driver.cuMemsetD8Async(buffer.address, 0, bytes, context.stream)? };
        Ok(buffer)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let context = &self.context;
        context.allocated.set(context.allocated.get() - self.bytes);
        let _ = context.enter().and_then(|()| context.settle());
        // SAFETY: nothing names the buffer any more, and what was started before is done; after a fault nothing runs.
        let _ = unsafe { context.driver.cuMemFree_v2(self.address) };
    }
}

/// Memory of the host that the device copies from and to by itself.
pub(super) struct Pinned {
    context: Rc<Context>,
    address: *mut u8,
    pub bytes: usize,
}

impl Pinned {
    /// So many bytes.
    pub fn new(context: &Rc<Context>, bytes: usize) -> Outcome<Self> {
        let mut address = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call.
        unsafe { context.driver.cuMemHostAlloc(&mut address, bytes, 0)? };
        Ok(Self { context: Rc::clone(context), address: address.cast(), bytes })
    }

    /// The byte at `at`.
    pub fn at(&self, at: usize) -> *mut u8 {
        assert!(at <= self.bytes, "{at} of {} bytes", self.bytes);
        // SAFETY: within the memory or at its end, as just checked.
        unsafe { self.address.add(at) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.enter().and_then(|()| self.context.settle());
        // SAFETY: what was started is done, its copies too; after a fault nothing runs any more.
        let _ = unsafe { self.context.driver.cuMemFreeHost(self.address.cast::<c_void>()) };
    }
}

/// A point in a stream.
pub(super) struct Event {
    context: Rc<Context>,
    event: CUevent,
}

impl Event {
    /// An event that can be waited for and, if `timed`, compared with others.
    pub fn new(context: &Rc<Context>, timed: bool) -> Outcome<Self> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call.
        unsafe { context.driver.cuEventCreate(&mut event, if timed { 0 } else { DISABLE_TIMING })? };
        Ok(Self { context: Rc::clone(context), event })
    }

    /// Sets it behind all that was started in one of the context's streams.
    pub fn record(&self, stream: CUstream) -> Outcome<()> {
        // SAFETY: event and stream live.
        unsafe { self.context.driver.cuEventRecord(self.event, stream) }
    }

    /// Has one of the context's streams wait here, before what is started in it later. The event may be recorded again.
    pub fn hold(&self, stream: CUstream) -> Outcome<()> {
        // SAFETY: event and stream live.
        unsafe { self.context.driver.cuStreamWaitEvent(stream, self.event, 0) }
    }

    /// Whether its stream has come here.
    pub fn reached(&self) -> Outcome<bool> {
        // SAFETY: the event lives.
        match unsafe { self.context.driver.cuEventQuery(self.event) } {
            Ok(()) => Ok(true),
            Err(fault) if fault.code == NOT_READY => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Waits until its stream has come here.
    pub fn wait(&self) -> Outcome<()> {
        // SAFETY: the event lives.
        unsafe { self.context.driver.cuEventSynchronize(self.event) }
    }

    /// Seconds from an earlier event to this one; both are timed and reached.
    pub fn seconds_since(&self, earlier: &Self) -> Outcome<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: the events live and the pointer outlives the call.
        unsafe { self.context.driver.cuEventElapsedTime(&mut milliseconds, earlier.event, self.event)? };
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: nobody names it any more; the driver lets a pending record end first.
        let _ = unsafe { self.context.driver.cuEventDestroy_v2(self.event) };
    }
}
