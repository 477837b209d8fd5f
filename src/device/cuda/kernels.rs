//! Entry points of compiled sources, each source compiled when a recording first names it.

use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

use cudarc::driver::sys::{CUfunction, CUmodule};

use super::cache::Cache;
use super::context::Context;
use super::driver::{Fault, version_text};
use super::nvrtc::Nvrtc;
use crate::device::source::{Source, Variant, cuda_options, source};
use crate::error::{Error, Result};
use crate::ops::launch::Launch;

/// Stack of a thread that compiles: the compiler was made for main threads.
const STACK: usize = 16 << 20;

/// A source, and what it is compiled for.
type Key = (&'static str, Variant);

/// A loaded cubin.
struct Module {
    context: Rc<Context>,
    module: CUmodule,
}

impl Drop for Module {
    fn drop(&mut self) {
        // A replay may be under way that nobody has waited for.
        let _ = self.context.enter().and_then(|()| self.context.settle());
        // SAFETY: whoever holds its functions holds the module, and what was started is done.
        let _ = unsafe { self.context.driver.cuModuleUnload(self.module) };
    }
}

/// An entry point with the module that it belongs to.
#[derive(Clone)]
pub(super) struct Kernel {
    pub function: CUfunction,
    _module: Rc<Module>,
}

/// All that was compiled so far.
pub(super) struct Kernels {
    context: Rc<Context>,
    nvrtc: Nvrtc,
    cache: Cache,
    modules: HashMap<Key, Rc<Module>>,
    functions: HashMap<(Key, &'static str), Kernel>,
    /// Whether matrices are multiplied on tensor cores.
    pub tensor: bool,
}

impl Kernels {
    pub fn new(context: &Rc<Context>, nvrtc: Nvrtc, cache: Cache) -> Self {
        let (modules, functions) = (HashMap::new(), HashMap::new());
        Self { context: Rc::clone(context), nvrtc, cache, modules, functions, tensor: false }
    }

    /// Compiles what these launches need and has not been compiled yet, several sources at once.
    pub fn compile(&mut self, launches: &[Launch]) -> Result<()> {
        let mut variants: Vec<Key> = launches.iter().map(|l| (l.source, Variant::on(l, self.tensor))).collect();
        variants.sort_unstable();
        variants.dedup();
        variants.retain(|variant| !self.modules.contains_key(variant));
        let (nvrtc, cache, architecture) = (&self.nvrtc, &self.cache, self.context.info.architecture());
        let compile = |(stem, variant): Key| {
            let mut options = cuda_options(variant).to_vec();
            options.extend(["--std=c++17".to_owned(), format!("--gpu-architecture={architecture}")]);
            let source: Source = source(stem);
            cache.get(&source, &options, nvrtc.version(), || nvrtc.compile(&source, &options))
        };
        let compile = &compile;
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        for batch in variants.chunks(at_once) {
            let cubins: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
                let start = |&variant: &Key| {
                    std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || compile(variant))
                };
                let started: Vec<_> = batch.iter().map(start).collect();
                let end = |thread: std::io::Result<std::thread::ScopedJoinHandle<'_, Result<Vec<u8>>>>| {
                    let thread = thread.map_err(|error| Error::device(format!("cannot start a thread: {error}")))?;
                    thread.join().unwrap_or_else(|_| Err(Error::device("a thread that compiles kernels panicked")))
                };
                started.into_iter().map(end).collect()
            });
            for (&variant, cubin) in batch.iter().zip(cubins) {
                let module = self.load(variant.0, &cubin?)?;
                self.modules.insert(variant, module);
            }
        }
        Ok(())
    }

    fn load(&self, stem: &str, cubin: &[u8]) -> Result<Rc<Module>> {
        let mut module = std::ptr::null_mut();
        // SAFETY: a whole cubin, which outlives the call.
        let loaded = unsafe { self.context.driver.cuModuleLoadData(&mut module, cubin.as_ptr().cast()) };
        loaded.map_err(|fault| {
            let (major, minor) = self.nvrtc.version();
            let driver = version_text(self.context.driver.version);
            self.context.error(
                &format!(
                    "loading {stem}.cu as NVRTC {major}.{minor} compiled it (if that is newer than the driver's CUDA {driver}, \
                     update the driver or set SUPERNET_NVRTC to an older one)"
                ),
                &fault,
            )
        })?;
        Ok(Rc::new(Module { context: Rc::clone(&self.context), module }))
    }

    /// The entry point of a launch whose source is compiled.
    pub fn get(&mut self, launch: &Launch) -> Result<Kernel> {
        let variant = (launch.source, Variant::on(launch, self.tensor));
        if let Some(kernel) = self.functions.get(&(variant, launch.kernel)) {
            return Ok(kernel.clone());
        }
        let what = || format!("kernel `{}` of {}.cu", launch.kernel, launch.source);
        let module = self.modules.get(&variant).ok_or_else(|| Error::device(format!("{} is not compiled", what())))?;
        let name = CString::new(launch.kernel).map_err(|_| Error::device("a kernel's name contains a zero byte"))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded and the name ends with a zero.
        let found = unsafe { self.context.driver.cuModuleGetFunction(&mut function, module.module, name.as_ptr()) };
        found.map_err(|fault: Fault| self.context.error(&what(), &fault))?;
        let kernel = Kernel { function, _module: Rc::clone(module) };
        self.functions.insert((variant, launch.kernel), kernel.clone());
        Ok(kernel)
    }
}
