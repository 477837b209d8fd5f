//! Compiles `kernels/*.cu` with the system's C++ compiler, against `tests/cuda_cpu/cuda_cpu.h`, and runs every case on
//! the CPU: blocks and threads in three orders, grids folded, accesses wide and narrow.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::Library;
use supernet::device::precision::Precision;
use supernet::device::source::{COMMON, COMMON_NAME, SOURCES, Source, Variant, cuda_options, source};
use supernet::ops::launch::Launch;

use super::cases;
use super::harness::{KERNELS_WITH_HALVES, Machine, Page, Placed, Spread, folded, narrow};

/// `Call` in cuda_cpu.h.
#[repr(C)]
struct Call {
    grid: [u32; 3],
    threads: u32,
    params: *const c_void,
    params_bytes: usize,
    pages: *const *mut f32,
    page_count: usize,
    table: *const c_void,
    order: u32,
    seed: u32,
    message: *mut c_char,
    room: usize,
}

/// Orders in which blocks and threads take turns: `Order` in cuda_cpu.h.
const ORDERS: [u32; 3] = [0, 1, 2];

/// These variants of all sources.
pub(super) fn all(variants: &[Variant]) -> Vec<(Source, Variant)> {
    SOURCES.iter().flat_map(|&source| variants.iter().map(move |&variant| (source, variant))).collect()
}

/// Kernels compiled for the CPU. Shared memory is static memory of a library: one launch at a time.
pub(super) struct CudaCpu {
    libraries: HashMap<(&'static str, Variant), Library>,
    order: u32,
}

/// How a library is compiled.
const PLAIN: &[&str] = &["-O2"];

fn compile(folder: &Path, options: &[&str], source: &Source, text: &str, variant: Variant) -> PathBuf {
    let Variant { wide, halves } = variant;
    let name =
        format!("{}_{}{}", source.stem, if wide { "wide" } else { "narrow" }, if halves { "_halves" } else { "" });
    let exports: String = source.entry_points().iter().map(|k| format!("CUDA_CPU_EXPORT({k})\n")).collect();
    let main = folder.join(format!("{name}.cpp"));
    let library = folder.join(format!("{name}.so"));
    std::fs::write(&main, format!("#include \"cuda_cpu.h\"\n#line 1 \"{}.cu\"\n{text}\n{exports}", source.stem))
        .expect("the folder for temporary files is writable");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let output = Command::new(&compiler)
        // The compiler is not what is to run under a sanitizer.
        .env_remove("LD_PRELOAD")
        .args(options)
        .args(["-march=native", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas"])
        .args(["-Wno-unused-function"])
        .args(cuda_options(variant))
        .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda_cpu")])
        .arg("-I")
        .arg(folder)
        .arg(&main)
        .arg("-o")
        .arg(&library)
        .output()
        .unwrap_or_else(|error| panic!("the C++ compiler `{compiler}` (or $CXX) does not run: {error}"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    library
}

impl CudaCpu {
    /// Compiles variants of sources, `edit` applied to each; a folder named after `purpose` holds them meanwhile.
    pub(super) fn new(purpose: &str, variants: &[(Source, Variant)], edit: impl Fn(&str) -> String + Sync) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda_cpu_{purpose}_{}", std::process::id()));
        let machine = Self::compiled(&folder, PLAIN, variants, edit);
        // The libraries stay mapped; their files are not needed any more.
        let _ = std::fs::remove_dir_all(&folder);
        machine
    }

    /// The same with the compiler's options, in a folder that stays.
    pub(super) fn compiled(
        folder: &Path,
        options: &[&str],
        variants: &[(Source, Variant)],
        edit: impl Fn(&str) -> String + Sync,
    ) -> Self {
        std::fs::create_dir_all(folder).expect("the folder for temporary files is writable");
        std::fs::write(folder.join(COMMON_NAME), edit(COMMON)).expect("the folder for temporary files is writable");
        let load = |&(source, variant): &(Source, Variant)| {
            let path = compile(folder, options, &source, &edit(source.cuda), variant);
            // SAFETY: the library was just compiled from our own sources; loading it runs no code of theirs.
            let library = unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            ((source.stem, variant), library)
        };
        let libraries = std::thread::scope(|scope| {
            let threads: Vec<_> = variants.iter().map(|v| scope.spawn(|| load(v))).collect();
            threads.into_iter().map(|t| t.join().expect("compiles")).collect()
        });
        Self { libraries, order: 0 }
    }

    fn launch(&self, launch: &Launch, pages: &mut [Page]) -> Result<(), String> {
        let library = &self.libraries[&(launch.source, Variant::of(launch))];
        let name = format!("cuda_cpu_{}", launch.kernel);
        // SAFETY: CUDA_CPU_EXPORT gives every entry point this signature.
        let run: libloading::Symbol<'_, unsafe extern "C" fn(*const Call) -> bool> =
            unsafe { library.get(name.as_bytes()) }.map_err(|error| error.to_string())?;
        let bound: Vec<*mut f32> = launch.pages.iter().map(|&p| pages[p as usize].values_mut().as_mut_ptr()).collect();
        // Tables hold 8-byte pairs.
        let mut table = vec![0u64; launch.table.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut table)[..launch.table.len()].copy_from_slice(&launch.table);
        let mut message = [0 as c_char; 256];
        let call = Call {
            grid: launch.grid,
            threads: launch.block,
            params: launch.params.as_ptr().cast(),
            params_bytes: launch.params.len(),
            pages: bound.as_ptr(),
            page_count: bound.len(),
            table: table.as_ptr().cast(),
            order: self.order,
            seed: 1,
            message: message.as_mut_ptr(),
            room: message.len(),
        };
        // SAFETY: all pointers of `call` live until it returns, and the lowering keeps offsets within the pages.
        if unsafe { run(&call) } {
            return Ok(());
        }
        // SAFETY: snprintf has ended the message with a zero.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned();
        Err(format!("{}: {text}", launch.kernel))
    }
}

impl Machine for CudaCpu {
    fn run(&mut self, launches: &[Launch], pages: &mut [Page]) -> Result<(), String> {
        launches.iter().try_for_each(|l| self.launch(l, pages))
    }
}

#[test]
fn cuda_kernels_agree_with_the_reference() {
    let variants = all(&Variant::ALL[..2]);
    let mut machine = CudaCpu::new("cases", &variants, str::to_owned);
    for case in cases::all() {
        for spread in [Spread::One, Spread::Each] {
            let placed = Placed::new(&case, spread);
            let launches = placed.launches();
            let bits = ORDERS.map(|order| {
                machine.order = order;
                placed.check(&mut machine, &launches)
            });
            assert!(bits[0] == bits[1] && bits[0] == bits[2], "{}: the order of threads shows", case.name);
            assert!(placed.check(&mut machine, &folded(&launches)) == bits[0], "{}: the grid's shape shows", case.name);
            machine.order = 0;
            placed.check(&mut machine, &narrow(&launches));
        }
    }
}

/// Maps in halves: the same kernels, over accesses of their own.
#[test]
fn cuda_kernels_read_and_write_halves() {
    let mut machine = CudaCpu::new("halves", &all(&Variant::ALL), str::to_owned);
    let mut seen = BTreeSet::new();
    for case in cases::all() {
        for spread in [Spread::One, Spread::Each] {
            let placed = Placed::stored(&case, spread, Precision::Bf16);
            if placed.has_halves() {
                let launches = placed.launches();
                seen.extend(launches.iter().filter(|l| l.halves).map(|l| l.kernel));
                placed.check(&mut machine, &launches);
                placed.check(&mut machine, &narrow(&launches));
            }
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), KERNELS_WITH_HALVES);
}

/// The tests above are worth something only if they notice a broken kernel.
#[test]
fn broken_cuda_kernels_are_noticed() {
    let cases = cases::all();
    let broken = |stem: &str, from: &str, to: &str| {
        let mut stems = vec![stem, "fold", "pool"];
        stems.dedup();
        let variants: Vec<_> = stems.iter().map(|stem| (source(stem), Variant::default())).collect();
        let mut machine = CudaCpu::new("broken", &variants, |text| text.replace(from, to));
        cases.iter().flat_map(|case| ORDERS.map(|order| (case, order))).any(|(case, order)| {
            let placed = Placed::new(case, Spread::One);
            let launches = narrow(&placed.launches());
            let mut pages = placed.pages();
            machine.order = order;
            launches.iter().all(|l| stems.contains(&l.source))
                && machine.run(&launches, &mut pages).and_then(|()| placed.compare(&pages)).is_err()
        })
    };
    let (barrier, condition) = ("__syncthreads();\n        const", "if (lane.row + half < width) {");
    assert!(!broken("statistics", "", ""), "nothing is broken");
    assert!(broken("statistics", barrier, "const"), "a missing barrier");
    assert!(broken("mixture", condition, &format!("{condition} __syncthreads();")), "a divergent barrier");
    assert!(broken("statistics", "(a.count * share) * ", ""), "a wrong merge of moments");
    assert!(broken("augment", "a.z >> 31", "a.w >> 31"), "the wrong word of a draw");
    assert!(broken("folded", "p.left;", "p.top;"), "padding as if the map were square");
    assert!(broken("elementary", "+ t[other * lanes]", "+ t[0]"), "a wrong partner in a reduction");
    assert!(broken("optimiser", "if (!is_finite(norm))", "if (false)"), "a step after a norm that is not finite");
    assert!(broken("optimiser", "x < -0.5f", "x < 0.0f"), "1 - beta^t as a difference");
    assert!(broken("second_order", "norm == 0.0f ? radius :", ""), "a direction of zero");
    assert!(broken("softmax", "(dp[c] - dot)", "dp[c]"), "a gradient without its sum");
    assert!(broken("loss", "&& j < row.label", ""), "ties at a better rank");
    assert!(broken("loss", "&& is_finite(label)", ""), "a NaN as a hit");
    assert!(broken("elementwise", "t.mask)[row / p.pixels]", "t.mask)[row % p.pixels]"), "the wrong image's factor");
    assert!(broken("global_pool", "row / p.pixels", "row % p.pixels"), "the wrong image's mean");
    assert!(broken("mixture", "if (valid > 3) p[3]", "p[3]"), "a write beyond the last channel");
    assert!(broken("transport", "own.sum *= exp2f(own.top - top);", ""), "powers of different exponents");
    assert!(
        broken("transport", "= shifts[i];\n    __syncthreads();", "= shifts[i];"),
        "shifts that are not all staged"
    );
    assert!(broken("transport", "if (now.state != 0.0f) return;", ""), "iterations of what is done");
    assert!(broken("transport", "x[k] = i < count ?", "x[k] = true ?"), "padding that is read");
    assert!(broken("transport", "unsigned stretch = 1;", "unsigned stretch = 2;"), "a stretch that is left out");
    assert!(broken("transport", "q.x + (p.right ? j : i)", "q.x + i"), "labels of the wrong side");
    assert!(broken("certificate", "*vector(p, pages, SHARE, q.g + j)", "1.0f"), "columns that are not rounded");
    assert!(
        broken("certificate", "rounded[c] += factor * plan", "rounded[c] += fmaxf(factor, 1.0f) * plan"),
        "rows that are not rounded"
    );
    assert!(broken("certificate", "j < end ? (p.stage == 0", "true ? (p.stage == 0"), "a least cost that is padding");
    assert!(broken("certificate", "unsigned stretch = 1;", "unsigned stretch = 2;"), "a stretch that is left out");
}
