//! The NVIDIA driver, opened at run time: every function that we call is looked up once, so that a driver that lacks one
//! is an error and not a panic. What the functions return is kept as a number: a newer driver may have codes that no
//! enumeration knows.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUlaunchConfig, CUmodule, CUstream,
};
use libloading::Library;

use crate::error::{Error, Result};

/// The oldest driver whose functions and cubins we rely on.
const OLDEST: c_int = 12_000;

/// The driver's library, that which comes with it before the one that a toolkit has for linking: that opens too, and refuses
/// all calls.
const LIBRARIES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: c_uint = 2;
/// `CUDA_ERROR_STUB_LIBRARY`.
const STUB: c_uint = 34;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_uint = 100;
/// `CUDA_ERROR_NOT_READY`.
pub(super) const NOT_READY: c_uint = 600;
/// `CUDA_ERROR_SYSTEM_DRIVER_MISMATCH`.
const MISMATCH: c_uint = 803;

/// A call that the driver refused, or after which it reports an earlier failure.
#[derive(Debug)]
pub(super) struct Fault {
    /// The function.
    pub call: &'static str,
    /// What it returned.
    pub code: c_uint,
    /// The driver's words for that.
    pub text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (error {} of {})", self.text, self.code, self.call)
    }
}

impl Fault {
    /// Whether nothing can be done on the device any more: memory or a link that is damaged (214, 220, 226), a kernel that
    /// touched what it must not, ran too long or gave up (700, 702, 710, 714 to 719, 721).
    pub fn is_final(&self) -> bool {
        matches!(self.code, 214 | 220 | 226 | 700 | 702 | 710 | 714..=719 | 721)
    }
}

/// Result of a call of the driver.
pub(super) type Outcome<T> = Result<T, Fault>;

/// Declares the functions: their addresses as fields, safe from misspelling by the methods of the same names.
macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// The functions of the driver that we use, under its own names.
        #[allow(non_snake_case)]
        #[derive(Clone, Copy)]
        pub(super) struct Driver {
            $($name: unsafe extern "C" fn($($kind),*) -> c_uint,)*
            /// CUDA's version that it supports: 13000 for 13.0.
            pub version: c_int,
        }

        // Texts of errors are asked by address: their methods would ask for the texts of their own errors.
        #[allow(non_snake_case, clippy::too_many_arguments, dead_code)]
        impl Driver {
            $(
                /// The function of this name in CUDA's driver API.
                ///
                /// # Safety
                /// As that documents.
                pub unsafe fn $name(&self, $($argument: $kind),*) -> Outcome<()> {
                    // SAFETY: the caller's.
                    match unsafe { (self.$name)($($argument),*) } {
                        0 => Ok(()),
                        code => Err(self.fault(stringify!($name), code)),
                    }
                }
            )*

            /// Looks up all functions; the names of those that are missing.
            fn look_up(library: &Library) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    // SAFETY: the signature is that of cuda.h, which the driver keeps for each name.
                    let found = unsafe {
                        library.get::<unsafe extern "C" fn($($kind),*) -> c_uint>(concat!(stringify!($name), "\0"))
                    };
                    let $name = found.map(|symbol| *symbol).map_err(|_| missing.push(stringify!($name)));
                )*
                match ($($name,)*) {
                    ($(Ok($name),)*) => Ok(Self { $($name,)* version: 0 }),
                    #[allow(unreachable_patterns)]
                    _ => Err(missing),
                }
            }
        }
    };
}

functions! {
    cuInit(flags: c_uint);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, index: c_int);
    cuDeviceGetName(name: *mut c_char, room: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxSetCurrent(context: CUcontext);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(address: *mut c_void);
    cuMemsetD8Async(address: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventQuery(event: CUevent);
    cuEventSynchronize(event: CUevent);
    cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuEventDestroy_v2(event: CUevent);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuModuleUnload(module: CUmodule);
    cuLaunchKernelEx(
        config: *const CUlaunchConfig, function: CUfunction, parameters: *mut *mut c_void, extra: *mut *mut c_void
    );
    cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphUpload(executable: CUgraphExec, stream: CUstream);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphExecDestroy(executable: CUgraphExec);
    cuGraphDestroy(graph: CUgraph);
    cuGetErrorName(code: c_uint, text: *mut *const c_char);
    cuGetErrorString(code: c_uint, text: *mut *const c_char);
}

/// `13.0` for 13000.
pub(super) fn version_text(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Driver {
    /// Opens the driver and starts it.
    ///
    /// # Errors
    /// [`Error::Device`] with the remedy if there is none, if it is too old, or if it sees no device.
    pub fn open() -> Result<Self> {
        /// Stays open: what was looked up in it is kept.
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        // SAFETY: the initialisers of the driver's library have no preconditions.
        let find = || LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let Some(library) = LIBRARY.get_or_init(find) else {
            return Err(Error::device(
                "no NVIDIA driver: libcuda.so.1 (nvcuda.dll on Windows) was not found; install NVIDIA's driver, give a \
                 container access to the GPU (docker run --gpus all), or use --device cpu",
            ));
        };
        let old = |why: String| {
            let oldest = version_text(OLDEST);
            Error::device(format!("the NVIDIA driver {why}; install driver 525 or newer, which supports CUDA {oldest}"))
        };
        let version = match Self::ask_version(library) {
            Ok(version) => version,
            Err(STUB) => {
                return Err(Error::device(
                    "libcuda.so.1 is a stub for linking, not NVIDIA's driver: take the folder `stubs` out of LD_LIBRARY_PATH, \
                     install the driver, or use --device cpu",
                ));
            }
            Err(_) => return Err(old("does not say its version".into())),
        };
        if version < OLDEST {
            return Err(old(format!("supports CUDA {} at most", version_text(version))));
        }
        let driver = Self::look_up(library).map_err(|missing| old(format!("lacks {}", missing.join(", "))))?;
        let driver = Self { version, ..driver };
        // SAFETY: it may be called at any time, any number of times.
        unsafe { driver.cuInit(0) }.map_err(|fault| driver.refusal(&fault))?;
        match driver.count() {
            Ok(0) => Err(driver.refusal(&driver.fault("cuDeviceGetCount", NO_DEVICE))),
            Ok(_) => Ok(driver),
            Err(fault) => Err(driver.refusal(&fault)),
        }
    }

    /// The version, or what the driver says instead: 0 if it cannot be asked.
    fn ask_version(library: &Library) -> Result<c_int, c_uint> {
        // SAFETY: the signature is that of cuda.h; it may be called before cuInit.
        unsafe {
            let ask =
                library.get::<unsafe extern "C" fn(*mut c_int) -> c_uint>("cuDriverGetVersion\0").map_err(|_| 0u32)?;
            let mut version = 0;
            match ask(&mut version) {
                0 => Ok(version),
                code => Err(code),
            }
        }
    }

    /// What a driver that does not start means for the user.
    fn refusal(&self, fault: &Fault) -> Error {
        let remedy = match fault.code {
            NO_DEVICE => {
                "the NVIDIA driver sees no GPU: check `nvidia-smi` and CUDA_VISIBLE_DEVICES, give a container access \
                 (docker run --gpus all), or use --device cpu"
            }
            MISMATCH => {
                "the parts of the NVIDIA driver are of different versions: restart the machine after its update"
            }
            _ => "the NVIDIA driver does not start: see what `nvidia-smi` says",
        };
        Error::device(format!("{remedy}: {fault}; driver for CUDA {}", version_text(self.version)))
    }

    /// Devices that the driver sees.
    pub fn count(&self) -> Outcome<usize> {
        let mut count = 0;
        // SAFETY: the pointer outlives the call.
        unsafe { self.cuDeviceGetCount(&mut count)? };
        Ok(count.max(0) as usize)
    }

    /// Puts the driver's words to what a function returned.
    pub fn fault(&self, call: &'static str, code: c_uint) -> Fault {
        let words = |ask: unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint| {
            let mut text = std::ptr::null();
            // SAFETY: the driver's texts are constants that end with a zero; it leaves null for an unknown code.
            let known = unsafe { ask(code, &mut text) } == 0 && !text.is_null();
            // SAFETY: as above.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let text = match (words(self.cuGetErrorName), words(self.cuGetErrorString)) {
            (Some(name), Some(text)) => format!("{name}: {text}"),
            (Some(text), None) | (None, Some(text)) => text,
            (None, None) => "unknown error".into(),
        };
        Fault { call, code, text }
    }
}
