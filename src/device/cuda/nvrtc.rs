//! NVRTC, NVIDIA's run-time compiler, opened at run time from wherever it is: the toolkit, or a wheel of Python's. It
//! contains the assembler, so that a source becomes machine code of exactly one architecture: PTX would be refused by any
//! driver that is older than the compiler.

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::device::source::{HEADERS, Source};
use crate::error::{Error, Result};

type Program = *mut c_void;
type Strings = *const *const c_char;

/// `NVRTC_ERROR_INVALID_OPTION`.
const INVALID_OPTION: c_int = 5;

/// The functions that compiling needs. Their signatures are those of nvrtc.h, unchanged since they came; 0 is success.
#[derive(Clone, Copy)]
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Strings) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
}

impl Functions {
    fn look_up(library: &Library) -> Result<Self, String> {
        /// A function of the library.
        ///
        /// # Safety
        /// `F` is its type.
        unsafe fn get<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
            // SAFETY: the caller's.
            unsafe { library.get::<F>(format!("{name}\0")) }
                .map(|symbol| *symbol)
                .map_err(|_| format!("it lacks {name}"))
        }
        // SAFETY: see the fields.
        unsafe {
            Ok(Self {
                version: get(library, "nvrtcVersion")?,
                create: get(library, "nvrtcCreateProgram")?,
                compile: get(library, "nvrtcCompileProgram")?,
                log_size: get(library, "nvrtcGetProgramLogSize")?,
                log: get(library, "nvrtcGetProgramLog")?,
                cubin_size: get(library, "nvrtcGetCUBINSize")?,
                cubin: get(library, "nvrtcGetCUBIN")?,
                destroy: get(library, "nvrtcDestroyProgram")?,
            })
        }
    }
}

/// The compiler.
pub struct Nvrtc {
    functions: Functions,
    version: (c_int, c_int),
    /// It opens its builtins by their bare name, which is found only while they are loaded.
    _libraries: Vec<Library>,
}

impl Nvrtc {
    /// Looks at `SUPERNET_NVRTC` alone if that is set, else in the loader's path, `CUDA_PATH`, `/usr/local/cuda*` and the
    /// folders of Python packages. A compiler of the driver's major version (12, 13) comes before one of another.
    ///
    /// # Errors
    /// [`Error::Device`] with what to install.
    pub fn find(driver_major: i32) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(file) = variable("SUPERNET_NVRTC") {
            let file = PathBuf::from(file);
            return Self::load(&file).map_err(|error| {
                Error::device(format!("SUPERNET_NVRTC={}: not a usable NVRTC: {error}", file.display()))
            });
        }
        let mut broken = String::new();
        for candidate in candidates(variable, Path::new("/"), driver_major) {
            match Self::load(&candidate) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) if candidate.is_file() => broken += &format!("; {}: {error}", candidate.display()),
                Err(_) => {}
            }
        }
        let package = if driver_major >= 13 { "nvidia-cuda-nvrtc==13.0.88" } else { "nvidia-cuda-nvrtc-cu12" };
        Err(Error::device(format!(
            "no NVRTC, the compiler of CUDA kernels: libnvrtc.so.13 or .12 is neither in the loader's path, nor below CUDA_PATH \
             or /usr/local/cuda*, nor among Python's packages; install CUDA's toolkit or `pip install {package}`, or set \
             SUPERNET_NVRTC to the file{broken}"
        )))
    }

    fn load(path: &Path) -> Result<Self, String> {
        let mut libraries: Vec<Library> = builtins(path).into_iter().collect();
        // SAFETY: NVRTC's initialisers have no preconditions.
        let library = unsafe { Library::new(path) }.map_err(|error| {
            // The loader's own words stand behind the error.
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        })?;
        let functions = Functions::look_up(&library)?;
        libraries.push(library);
        let mut version = (0, 0);
        // SAFETY: the pointers outlive the call.
        match unsafe { (functions.version)(&mut version.0, &mut version.1) } {
            0 => Ok(Self { functions, version, _libraries: libraries }),
            status => Err(format!("nvrtcVersion returned {status}")),
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles to machine code.
    ///
    /// # Errors
    /// [`Error::Device`] with the compiler's log.
    pub fn compile(&self, source: &Source, options: &[String]) -> Result<Vec<u8>> {
        let text = |text: &str| CString::new(text).map_err(|_| Error::device("a kernel source contains a zero byte"));
        let name = format!("{}.cu", source.stem);
        let (code, file) = (text(source.cuda)?, text(&name)?);
        let headers = HEADERS.iter().map(|(name, code)| Ok((text(name)?, text(code)?))).collect::<Result<Vec<_>>>()?;
        let (names, codes): (Vec<_>, Vec<_>) =
            headers.iter().map(|(name, code)| (name.as_ptr(), code.as_ptr())).unzip();
        let option_texts = options.iter().map(|o| text(o)).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = option_texts.iter().map(|o| o.as_ptr()).collect();
        let f = self.functions;
        let (major, minor) = self.version;
        let failed = |call: &str, status: c_int, log: &str| {
            let log = if log.is_empty() { String::new() } else { format!(":\n{log}") };
            Error::device(format!("{name}: NVRTC {major}.{minor}: {call} returned {status}{log}"))
        };
        let check = |call: &str, status: c_int| if status == 0 { Ok(()) } else { Err(failed(call, status, "")) };

        let mut open = Open { program: std::ptr::null_mut(), destroy: f.destroy };
        // SAFETY: all strings outlive the calls, and each buffer has the size that the compiler asked for.
        unsafe {
            let status = (f.create)(
                &mut open.program,
                code.as_ptr(),
                file.as_ptr(),
                headers.len() as c_int,
                codes.as_ptr(),
                names.as_ptr(),
            );
            check("nvrtcCreateProgram", status)?;
            let status = (f.compile)(open.program, options.len() as c_int, options.as_ptr());
            if status != 0 {
                let mut size = 0;
                let mut log = Vec::new();
                if (f.log_size)(open.program, &mut size) == 0 {
                    log = vec![0u8; size + 1];
                    (f.log)(open.program, log.as_mut_ptr().cast());
                }
                let log = String::from_utf8_lossy(&log);
                let log = log.trim_end_matches('\0').trim_end();
                if status == INVALID_OPTION {
                    let newer =
                        "if it does not know the GPU's architecture, install a newer one or set SUPERNET_NVRTC to it";
                    return Err(failed("nvrtcCompileProgram", status, &format!("{log}\n{newer}")));
                }
                return Err(failed("nvrtcCompileProgram", status, log));
            }
            let mut size = 0;
            check("nvrtcGetCUBINSize", (f.cubin_size)(open.program, &mut size))?;
            let mut cubin = vec![0u8; size];
            check("nvrtcGetCUBIN", (f.cubin)(open.program, cubin.as_mut_ptr().cast()))?;
            Ok(cubin)
        }
    }
}

/// A program until it is destroyed.
struct Open {
    program: Program,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: it was created and is not used any more.
            unsafe { (self.destroy)(&mut self.program) };
        }
    }
}

/// Loads the builtins that lie beside NVRTC, as in the wheel.
fn builtins(nvrtc: &Path) -> Option<Library> {
    let folder = nvrtc.parent().filter(|folder| folder.is_dir())?;
    let files = entries(folder, |name| {
        name.starts_with("libnvrtc-builtins.so.") || name.starts_with("nvrtc-builtins64_") && name.ends_with(".dll")
    });
    // SAFETY: initialisers of these libraries have no preconditions.
    files.iter().find_map(|path| unsafe { Library::new(path) }.ok())
}

/// Entries of a folder whose names fit, in order; none if it cannot be read.
fn entries(folder: &Path, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        listed.filter(|entry| entry.file_name().to_str().is_some_and(&fits)).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Where NVRTC may be, the best places first; `root` is the root of the file system.
fn candidates(variable: impl Fn(&str) -> Option<OsString>, root: &Path, driver_major: i32) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from);
    let mut folders = Vec::new();
    for toolkit in [folder("CUDA_PATH"), folder("CUDA_HOME")].into_iter().flatten() {
        folders.extend(["lib64", "lib", "bin", "bin/x64"].map(|below| toolkit.join(below)));
    }
    // The newest toolkit first.
    let toolkits = entries(&root.join("usr/local"), |name| name.starts_with("cuda"));
    folders.extend(toolkits.iter().rev().map(|toolkit| toolkit.join("lib64")));
    let environments = [folder("VIRTUAL_ENV"), folder("CONDA_PREFIX"), folder("HOME").map(|home| home.join(".local"))];
    let mut packages = Vec::new();
    for environment in environments.into_iter().flatten() {
        folders.push(environment.join("lib"));
        packages.push(environment.join("Lib/site-packages"));
        let pythons = entries(&environment.join("lib"), |name| name.starts_with("python3"));
        packages.extend(pythons.iter().map(|python| python.join("site-packages")));
    }
    packages.push(root.join("usr/lib/python3/dist-packages"));
    let pythons = entries(&root.join("usr/local/lib"), |name| name.starts_with("python3"));
    packages.extend(pythons.iter().flat_map(|python| ["dist-packages", "site-packages"].map(|p| python.join(p))));
    for package in packages.iter().flat_map(|packages| entries(&packages.join("nvidia"), |_| true)) {
        folders.extend(["lib", "bin", "bin/x86_64"].map(|below| package.join(below)));
    }
    let mut names = [["libnvrtc.so.13", "nvrtc64_130_0.dll"], ["libnvrtc.so.12", "nvrtc64_120_0.dll"]];
    if driver_major < 13 {
        names.reverse();
    }
    names
        .iter()
        .flat_map(|names| {
            let bare = names.iter().map(PathBuf::from);
            bare.chain(folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_and_toolkits_are_found_the_drivers_version_first() {
        let root = std::env::temp_dir().join(format!("supernet-nvrtc-{}", std::process::id()));
        let files = [
            "usr/local/cuda-12.4/lib64/libnvrtc.so.12",
            "usr/local/cuda-13.0/lib64/libnvrtc.so.13",
            "env/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "home/.local/lib/python3.10/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        ];
        for file in files {
            std::fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            std::fs::write(root.join(file), "").unwrap();
        }
        let variable = |name: &str| match name {
            "VIRTUAL_ENV" => Some(root.join("env").into_os_string()),
            "HOME" => Some(root.join("home").into_os_string()),
            _ => None,
        };
        let found = |major: i32| -> Vec<String> {
            let there = candidates(variable, &root, major).into_iter().filter(|path| path.is_file());
            there.map(|path| path.strip_prefix(&root).unwrap().display().to_string()).collect()
        };
        assert_eq!(found(13), [files[1], files[2], files[0], files[3]]);
        assert_eq!(found(12), [files[0], files[3], files[1], files[2]]);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_file_that_is_no_nvrtc_is_named() {
        let error = Nvrtc::load(Path::new("/nowhere/libnvrtc.so.13")).err().unwrap();
        assert!(error.contains("/nowhere/libnvrtc.so.13"), "{error}");
    }
}
