//! Every case on the CPU with the CUDA kernels under the compiler's sanitizers: accesses beyond a tensor, a table, a local
//! or a shared array, and arithmetic without a meaning, end the process. A sanitizer must be loaded before all else, so
//! each run is a process of its own: this test binary again.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libloading::os::unix::Library;
use supernet::device::precision::Precision;
use supernet::device::source::{PRODUCTS, SOURCES, Source, source};
use supernet::ops::launch::Launch;

use super::cuda_cpu::CudaCpu;
use super::harness::{Machine, Page, Placed, Spread, folded, narrow};
use super::{cases, missing};

/// Names the folder of a run.
const FOLDER: &str = "SUPERNET_SANITIZED";
/// What a run changes in a kernel: stem, text, other text.
const EDIT: [&str; 3] = ["SUPERNET_SANITIZED_STEM", "SUPERNET_SANITIZED_FROM", "SUPERNET_SANITIZED_TO"];

const OPTIONS: &[&str] = &[
    "-O1",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    // Shared memory lies in a section of its own, which is left alone unless it is named.
    "-fsanitize-sections=cuda_cpu_shared",
];

/// The library of the compiler's address sanitizer.
fn runtime() -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let output = Command::new(&compiler).arg("-print-file-name=libasan.so").output();
    let output = output.map_err(|error| format!("`{compiler}` (or $CXX) does not run: {error}"))?;
    let (path, mut start) = (PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()), [0; 4]);
    // A compiler that does not have it repeats the name; a linker script of that name cannot be loaded.
    match std::fs::File::open(&path).and_then(|mut file| file.read_exact(&mut start)) {
        Ok(()) if path.is_absolute() && start == *b"\x7fELF" => Ok(path),
        _ => Err(format!("`{compiler}` has no libasan.so")),
    }
}

/// Runs the cases in a process of its own; what it says, and whether it ended well.
fn run(runtime: &Path, name: &str, edit: [&str; 3]) -> (String, bool) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sanitized_{name}_{}", std::process::id()));
    let output = Command::new(std::env::current_exe().expect("a test binary"))
        .args(["gpu::sanitized::a_run", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LD_PRELOAD", runtime)
        // Leaks of the test harness are not ours, and threads of a block are fibers, whose stacks it does not know.
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .env(FOLDER, &folder)
        .envs(EDIT.into_iter().zip(edit))
        .stdin(Stdio::null())
        .output()
        .expect("the test binary starts");
    let _ = std::fs::remove_dir_all(folder);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let done = output.status.success() && text.contains("all cases done");
    (text, done)
}

/// Kernels under sanitizers, and memory in which only tensors may be touched.
struct Guarded {
    kernels: CudaCpu,
    free: Vec<Vec<bool>>,
    runtime: Library,
}

impl Guarded {
    /// Forbids or allows kernels to touch what lies between tensors.
    fn guard(&self, pages: &mut [Page], forbid: bool) {
        type Mark = unsafe extern "C" fn(*const f32, usize);
        let name: &[u8] = if forbid { b"__asan_poison_memory_region\0" } else { b"__asan_unpoison_memory_region\0" };
        // SAFETY: the sanitizer's interface, which takes the start of a region and its bytes.
        let mark = unsafe { self.runtime.get::<Mark>(name) }.expect("the sanitizer is loaded");
        for (page, free) in pages.iter_mut().zip(&self.free) {
            let values = page.values_mut();
            let mut first = 0;
            for stretch in free.chunk_by(|a, b| a == b) {
                if stretch[0] {
                    let region = &values[first..first + stretch.len()];
                    // SAFETY: the region lies in the page, and nothing of Rust looks at it until it is allowed again.
                    unsafe { mark(region.as_ptr(), size_of_val(region)) };
                }
                first += stretch.len();
            }
        }
    }
}

impl Machine for Guarded {
    fn run(&mut self, launches: &[Launch], pages: &mut [Page]) -> Result<(), String> {
        self.guard(pages, true);
        let outcome = self.kernels.run(launches, pages);
        self.guard(pages, false);
        outcome
    }
}

#[test]
#[ignore = "a process of the other tests, with a sanitizer loaded"]
fn a_run() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let [stem, from, to] = EDIT.map(|name| std::env::var(name).expect("set with the folder"));
    let stems: Vec<&str> = if stem.is_empty() { Vec::new() } else { vec![&stem, "fold"] };
    let sources: Vec<Source> =
        if stem.is_empty() { SOURCES.to_vec() } else { stems.iter().map(|s| source(s)).collect() };
    let whole = |source: &Source| source.variants().into_iter().filter(|variant| !variant.halves);
    let variants: Vec<_> = sources.iter().flat_map(|s| whole(s).map(|variant| (*s, variant))).collect();
    let kernels = CudaCpu::compiled(&folder, OPTIONS, &variants, |text| text.replace(&from, &to));
    let mut machine = Guarded { kernels, free: Vec::new(), runtime: Library::this() };
    for case in cases::all() {
        for spread in [Spread::One, Spread::Each] {
            let placed = Placed::new(&case, spread);
            let launches = placed.launches();
            if !launches.iter().all(|l| sources.iter().any(|s| s.stem == l.source)) {
                continue;
            }
            eprintln!("{}, {spread:?}", case.name);
            machine.free = placed.free();
            placed.check(&mut machine, &launches);
            if launches.iter().any(|l| PRODUCTS.contains(&l.source)) {
                let placed = Placed::stored(&case, spread, Precision::Tf32);
                machine.kernels.tensor = true;
                placed.check(&mut machine, &launches);
                machine.kernels.tensor = false;
            }
            if spread == Spread::One {
                placed.check(&mut machine, &folded(&narrow(&launches)));
            }
        }
    }
    println!("all cases done");
}

/// The runtime; says loudly where there is none.
fn find() -> Option<PathBuf> {
    runtime().map_err(|why| missing("an address sanitizer", "SUPERNET_REQUIRE_ASAN", &why)).ok()
}

#[test]
fn cuda_kernels_are_clean_under_sanitizers() {
    let Some(runtime) = find() else { return };
    let (text, done) = run(&runtime, "cases", ["", "", ""]);
    assert!(done, "{text}");
}

/// The test above is worth something only if it notices a broken kernel, by the right words, even where no result shows it.
#[test]
fn unclean_cuda_kernels_are_noticed() {
    let Some(runtime) = find() else { return };
    let noticed = |stem: &str, from: &str, to: &str, words: &str| {
        assert!(source(stem).cuda.contains(from), "{from}");
        let (text, done) = run(&runtime, stem, [stem, from, to]);
        assert!(!done && text.contains(words), "{to} in {stem}: expected `{words}` in: {text}");
    };
    let (text, done) = run(&runtime, "sound", ["softmax", "", ""]);
    assert!(done, "nothing is broken: {text}");
    noticed("softmax", "float top = x[0];", "float top = fmaxf(x[0], x[p.channels]);", "use-after-poison");
    noticed("mixture", "__shared__ float4 left[BLOCK];", "__shared__ float4 left[BLOCK - 1];", "insufficient space");
    noticed("augment", "table[lane.channel / 4]", "table[lane.channel / 4 + 1]", "heap-buffer-overflow");
    noticed("augment", "a.z >> 31", "a.z >> (31 + p.flip)", "runtime error: shift exponent 32");
}
