//! NVIDIA GPUs. The driver and NVRTC are opened at run time, so that a binary with this device starts on any machine.
//!
//! One stream of our own runs all that touches pages, in order; another brings large values to the device meanwhile. A program
//! is captured once as a CUDA graph of its launches; a replay is one call. Values are staged through pinned memory, so that the
//! host goes on while the device computes.

mod cache;
mod context;
mod driver;
mod graph;
mod kernels;
mod nvrtc;
mod staging;
mod watches;

use std::rc::Rc;

use self::cache::Cache;
use self::context::{Buffer, Context};
use self::driver::{Driver, Fault, OUT_OF_MEMORY, Outcome, version_text};
use self::kernels::Kernels;
use self::staging::Staging;
use self::watches::Watches;
use super::needs::CUDA_PAGE;
use super::paged::Backend;
use super::{Precision, Starting};
use crate::error::{Error, Result};
use crate::ops::launch::Launch;
pub use context::Info;
pub use graph::Recording;
pub use nvrtc::Nvrtc;

/// An NVIDIA GPU.
pub struct Cuda {
    context: Rc<Context>,
    pages: Vec<Rc<Buffer>>,
    kernels: Kernels,
    staging: Staging,
    watches: Watches,
    starting: Starting,
    precision: Precision,
    /// What was started last, for errors that show later.
    last: String,
}

impl Cuda {
    /// Opens the device of this number. Without [`Starting::capture`], debuggers see the kernels, and with
    /// `CUDA_LAUNCH_BLOCKING=1` errors name them.
    ///
    /// # Errors
    /// [`Error::Device`] with the remedy if the driver, the device or NVRTC is missing or too old.
    pub fn open(index: usize, starting: Starting) -> Result<Self> {
        let context = Context::open(Driver::open()?, index)?;
        let starting = Starting { overlap: starting.overlap && context.can_overlap(), ..starting };
        let nvrtc = Nvrtc::find(context.driver.version / 1000)?;
        let kernels = Kernels::new(&context, nvrtc, Cache::new(crate::files::cache_folder().as_deref()));
        let (staging, watches) = (Staging::new(), Watches::default());
        let (pages, precision, last) = (Vec::new(), Precision::F32, String::new());
        Ok(Self { context, pages, kernels, staging, watches, starting, precision, last })
    }

    /// Runs something on the device; `what` names it in errors.
    fn on_device<T>(&mut self, what: &str, run: impl FnOnce(&mut Self) -> Outcome<T>) -> Result<T> {
        let done = match self.context.enter() {
            Ok(()) => run(self),
            Err(fault) => Err(fault),
        };
        done.map_err(|fault| self.error(what, &fault))
    }

    fn error(&self, what: &str, fault: &Fault) -> Error {
        let after = match self.last.is_empty() {
            true => String::new(),
            false => format!(" after `{}` was started", self.last),
        };
        self.context.error(&format!("{what}{after}"), fault)
    }

    fn page_bytes(&self, page: u32, first: usize, values: usize) -> Rc<Buffer> {
        let buffer = Rc::clone(&self.pages[page as usize]);
        assert!(4 * (first + values) <= buffer.bytes, "values stay within their page");
        buffer
    }
}

impl Backend for Cuda {
    type Recording = Recording;

    fn name(&self) -> String {
        self.context.info.to_string()
    }

    fn products(&self) -> Option<String> {
        let Info { capability: (major, minor), .. } = self.context.info;
        self.precision.has_tf32().then(|| match self.kernels.tensor {
            true => "in tf32, on tensor cores".into(),
            false => format!("in f32: compute capability {major}.{minor} has no tf32, 8.0 and newer have"),
        })
    }

    fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.kernels.tensor = precision.has_tf32() && self.context.info.has_tf32();
    }

    fn page(&self) -> usize {
        CUDA_PAGE
    }

    fn free(&self) -> Option<usize> {
        self.context.enter().ok().map(|()| self.context.memory().0)
    }

    fn allocate(&mut self, pages: &[usize]) -> Result<()> {
        let what = "allocating memory";
        self.on_device(what, |_| Ok(()))?;
        let mut fresh = Vec::new();
        for &elements in pages {
            match Buffer::zeros(&self.context, 4 * elements) {
                Ok(buffer) => fresh.push(Rc::new(buffer)),
                Err(fault) if fault.code == OUT_OF_MEMORY => {
                    drop(fresh);
                    let mib = pages.iter().sum::<usize>() as f64 / (1 << 18) as f64;
                    return Err(self.context.too_large(&format!("{mib:.1} MiB for store or arena")));
                }
                Err(fault) => return Err(self.error(what, &fault)),
            }
        }
        self.pages.append(&mut fresh);
        Ok(())
    }

    fn release(&mut self, keep: usize) {
        self.watches.release(keep);
        self.pages.truncate(keep);
    }

    fn record(&mut self, what: &str, launches: &[Launch]) -> Result<Recording> {
        self.on_device(&format!("recording `{what}`"), |_| Ok(()))?;
        self.kernels.compile(launches)?;
        Recording::new(&self.context, &mut self.kernels, &self.pages, what, launches, self.starting)
    }

    fn replay(&mut self, recording: &Recording) -> Result<()> {
        self.on_device(&format!("running `{}`", recording.what), |_| Ok(()))?;
        recording.replay(&self.context)?;
        self.last.clone_from(&recording.what);
        let Self { context, pages, watches, .. } = self;
        watches.follow(context, pages).map_err(|fault| self.error("copying flags", &fault))
    }

    fn time(&mut self, recording: &Recording) -> Result<Vec<f64>> {
        self.on_device(&format!("timing `{}`", recording.what), |_| Ok(()))?;
        self.last.clone_from(&recording.what);
        recording.time(&self.context)
    }

    fn write(&mut self, page: u32, first: usize, values: &[f32]) -> Result<()> {
        let buffer = self.page_bytes(page, first, values.len());
        self.watches.written(page, first, values);
        self.on_device("writing values", |device| {
            device.staging.write(&device.context, &buffer, 4 * first, bytemuck::cast_slice(values))
        })
    }

    fn read(&mut self, page: u32, first: usize, values: &mut [f32]) -> Result<()> {
        let buffer = self.page_bytes(page, first, values.len());
        self.on_device("reading values", |device| {
            let Context { driver, stream, .. } = &*device.context;
            let from = buffer.address + 4 * first as u64;
            // SAFETY: the values lie within their page; the copy is waited for.
            unsafe { driver.cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), from, size_of_val(values), *stream)? };
            device.context.synchronise()
        })
    }

    fn peek(&mut self, page: u32, first: usize) -> Result<f32> {
        if let Some(value) = self.on_device("reading a flag", |device| device.watches.newest(page, first))? {
            return Ok(value);
        }
        let mut value = [0.0];
        self.read(page, first, &mut value)?;
        self.on_device("reading a flag", |device| device.watches.add(&device.context, page, first, value[0]))?;
        Ok(value[0])
    }

    fn bytes(&self) -> usize {
        self.context.allocated.get()
    }
}

/// What a machine has for this device.
#[derive(Clone, Debug)]
pub struct Survey {
    /// CUDA's version that the driver supports.
    pub driver: String,
    /// NVRTC's version, or why there is none and what to install.
    pub nvrtc: Result<String, String>,
    /// All devices that the driver sees.
    pub devices: Vec<Info>,
}

/// Asks the driver for its devices, and looks for NVRTC.
///
/// # Errors
/// [`Error::Device`] with the remedy if the driver is missing, too old, or sees no device.
pub fn survey() -> Result<Survey> {
    let driver = Driver::open()?;
    let failed = |fault: Fault| Error::device(format!("asking the NVIDIA driver for its devices: {fault}"));
    let count = driver.count().map_err(failed)?;
    let devices = (0..count).map(|index| Ok(Info::ask(&driver, index)?.1)).collect::<Outcome<Vec<_>>>();
    let nvrtc = Nvrtc::find(driver.version / 1000);
    let nvrtc = nvrtc.map(|nvrtc| format!("{}.{}", nvrtc.version().0, nvrtc.version().1));
    Ok(Survey {
        driver: version_text(driver.version),
        nvrtc: nvrtc.map_err(|error| error.to_string()),
        devices: devices.map_err(failed)?,
    })
}
