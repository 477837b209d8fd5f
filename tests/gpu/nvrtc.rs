//! Compiles every CUDA source for real GPUs with NVRTC, which contains the assembler: no GPU is needed. Asserts that no
//! kernel spills registers and that enough blocks fit on a multiprocessor.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;
use supernet::device::source::{HEADERS, SOURCES, Source, cuda_options};

use super::missing;

/// Turing, Ampere, Hopper, Blackwell.
const ARCHITECTURES: [&str; 4] = ["sm_75", "sm_80", "sm_90", "sm_120"];
/// Registers of a thread with which so many blocks of 256 threads fit on a multiprocessor.
fn registers(blocks: usize) -> usize {
    65_536 / 256 / blocks / 8 * 8
}
/// Bytes of shared memory that every device has for a block without being asked.
const SHARED: usize = 48 << 10;

/// The five functions of NVRTC that compiling needs. Handles are opaque; 0 is success.
struct Nvrtc {
    library: Library,
    /// NVRTC opens it by its bare name, which is found only once it is loaded.
    _builtins: Option<Library>,
}

type Program = *mut c_void;

impl Nvrtc {
    /// Looks at `SUPERNET_NVRTC`, in the loader's path, and under `CUDA_PATH`.
    fn find() -> Result<Self, String> {
        let mut candidates: Vec<PathBuf> = std::env::var_os("SUPERNET_NVRTC").into_iter().map(PathBuf::from).collect();
        let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
        candidates.extend(names.iter().map(PathBuf::from));
        let roots = std::env::var_os("CUDA_PATH").map(PathBuf::from);
        candidates.extend(roots.iter().flat_map(|root| names.map(|n| root.join("lib64").join(n))));
        let mut why = String::new();
        for path in &candidates {
            let builtins = Self::builtins(path);
            // SAFETY: NVRTC's initialisers have no preconditions.
            match unsafe { Library::new(path) } {
                Ok(library) => return Ok(Self { library, _builtins: builtins }),
                Err(error) => why += &format!("{error}; "),
            }
        }
        Err(why)
    }

    /// Loads the builtins that lie beside NVRTC, as in the wheel.
    fn builtins(nvrtc: &Path) -> Option<Library> {
        let folder = nvrtc.parent().filter(|folder| folder.is_dir())?;
        let is_builtins = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("libnvrtc-builtins.so")
        };
        let path = std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path())).find(is_builtins)?;
        // SAFETY: as above.
        unsafe { Library::new(path) }.ok()
    }

    /// Compiles to machine code; the compiler's log and PTX, or as error the log of a failure.
    fn compile(&self, source: &Source, options: &[String]) -> Result<(String, String), String> {
        let options: Vec<CString> = options.iter().map(|o| CString::new(o.as_str()).expect("no zero")).collect();
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let string = |s: &str| CString::new(s).expect("no zero");
        let [text, name] = [source.cuda, source.stem].map(string);
        let headers: Vec<_> = HEADERS.iter().map(|(name, text)| (string(name), string(text))).collect();
        let (names, texts): (Vec<_>, Vec<_>) = headers.iter().map(|(n, t)| (n.as_ptr(), t.as_ptr())).unzip();
        let mut program: Program = std::ptr::null_mut();
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type LogSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Log = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        // SAFETY: the signatures are those of nvrtc.h, unchanged since CUDA 7; all pointers outlive the calls.
        let (status, log, ptx) = unsafe {
            let get = "every NVRTC has it";
            let status = self.library.get::<Create>(b"nvrtcCreateProgram\0").expect(get)(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            );
            assert_eq!(status, 0, "nvrtcCreateProgram");
            let status = self.library.get::<Compile>(b"nvrtcCompileProgram\0").expect(get)(
                program,
                options.len() as c_int,
                options.as_ptr(),
            );
            let mut size = 0;
            self.library.get::<LogSize>(b"nvrtcGetProgramLogSize\0").expect(get)(program, &mut size);
            let mut log = vec![0u8; size + 1];
            self.library.get::<Log>(b"nvrtcGetProgramLog\0").expect(get)(program, log.as_mut_ptr().cast());
            let mut size = 0;
            self.library.get::<LogSize>(b"nvrtcGetPTXSize\0").expect(get)(program, &mut size);
            let mut ptx = vec![0u8; size + 1];
            self.library.get::<Log>(b"nvrtcGetPTX\0").expect(get)(program, ptx.as_mut_ptr().cast());
            self.library.get::<Destroy>(b"nvrtcDestroyProgram\0").expect(get)(&mut program);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
            (status, text(&log), text(&ptx))
        };
        if status == 0 { Ok((log, ptx)) } else { Err(format!("NVRTC error {status}: {log}")) }
    }
}

/// What the assembler says of one kernel.
#[derive(Debug, PartialEq)]
struct Usage {
    kernel: String,
    registers: usize,
    stack: usize,
    spills: usize,
    shared: usize,
}

/// The number that stands before `unit`.
fn before(line: &str, unit: &str) -> Option<usize> {
    line[..line.find(unit)?].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Reads the report of `--ptxas-options=-v`.
fn usages(log: &str) -> Vec<Usage> {
    let mut list = Vec::new();
    let mut current = Usage { kernel: String::new(), registers: 0, stack: 0, spills: 0, shared: 0 };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current.kernel = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if let Some(stack) = before(line, "bytes stack frame") {
            current.stack = stack;
            let both = ["bytes spill stores", "bytes spill loads"].map(|unit| before(line, unit).unwrap_or(0));
            current.spills = both.iter().sum();
        } else if let Some(registers) = before(line, "registers") {
            current.registers = registers;
            current.shared = before(line, "bytes smem").unwrap_or(0);
            list.push(current);
            current = Usage { kernel: String::new(), registers: 0, stack: 0, spills: 0, shared: 0 };
        }
    }
    list
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    let nvrtc = match Nvrtc::find() {
        Ok(nvrtc) => nvrtc,
        Err(why) => return missing("NVRTC", "SUPERNET_REQUIRE_NVRTC", &why),
    };
    for source in SOURCES {
        for variant in source.variants() {
            for architecture in ARCHITECTURES {
                let mut options = cuda_options(variant).to_vec();
                options.extend(["--std=c++17", "--ptxas-options=-v"].map(str::to_owned));
                options.push(format!("--gpu-architecture={architecture}"));
                let what = format!("{}.cu, {variant:?}, {architecture}", source.stem);
                let (log, ptx) = nvrtc.compile(source, &options).unwrap_or_else(|error| panic!("{what}: {error}"));
                let usages = usages(&log);
                let multiplies = ["mma.sync.aligned.m16n8k8", "cvt.rna.tf32"].map(|word| ptx.contains(word));
                let expected = variant.tensor && architecture != "sm_75";
                assert_eq!(multiplies, [expected; 2], "{what}: products on tensor cores");
                let begin = ptx.matches("griddepcontrol.launch_dependents;").count();
                let waits = ptx.matches("griddepcontrol.wait;").count();
                let kernels = if ["sm_75", "sm_80"].contains(&architecture) { 0 } else { usages.len() };
                assert_eq!([begin, waits], [kernels; 2], "{what}: kernels that overlap");
                println!("{what}: {usages:?}");
                let mut reported: Vec<_> = usages.iter().map(|u| u.kernel.as_str()).collect();
                let mut declared = source.entry_points();
                reported.sort_unstable();
                declared.sort_unstable();
                assert_eq!(reported, declared, "{what}: {log}");
                let kernels = source.kernels();
                for usage in usages {
                    let (_, blocks) = kernels.iter().find(|(name, _)| *name == usage.kernel).expect("just compared");
                    let most = registers(*blocks);
                    let sound =
                        usage.spills == 0 && usage.stack == 0 && usage.registers <= most && usage.shared <= SHARED;
                    assert!(sound, "{what}: {usage:?}, at most {most} registers, {SHARED} bytes of shared memory");
                }
            }
        }
    }
    let broken = Source { cuda: "extern \"C\" __global__ void k() { undeclared(); }", ..SOURCES[0] };
    let error = nvrtc.compile(&broken, &[]).expect_err("an undeclared function");
    assert!(error.contains("undeclared"), "{error}");
}

#[test]
fn the_assemblers_report_is_read() {
    let log = [
        "ptxas info    : Compiling entry function 'k' for 'sm_90'",
        "ptxas info    : Function properties for k",
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads",
        "ptxas info    : Used 13 registers, used 1 barriers, 512 bytes smem",
    ];
    assert_eq!(
        usages(&log.join("\n")),
        [Usage { kernel: "k".into(), registers: 13, stack: 16, spills: 12, shared: 512 }]
    );
}
