//! Compiles `kernels/*.cu` with the system's C++ compiler, against `tests/cuda_cpu/cuda_cpu.h`, and runs every case on
//! the CPU: blocks and threads in three orders, grids folded, accesses wide and narrow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libloading::Library;
use supernet::device::precision::Precision;
use supernet::device::source::{HEADERS, PRODUCTS, SOURCES, Source, Variant, cuda_options, source};
use supernet::ops::launch::{BLOCK, Launch};

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

/// These variants of all sources, as far as a source has them.
pub(super) fn all(of_interest: impl Fn(Variant) -> bool) -> Vec<(Source, Variant)> {
    let variants = |&source: &Source| source.variants().into_iter().map(move |variant| (source, variant));
    SOURCES.iter().flat_map(variants).filter(|&(_, variant)| of_interest(variant)).collect()
}

/// Kernels compiled for the CPU. Shared memory is static memory of a library: one launch at a time.
pub(super) struct CudaCpu {
    libraries: HashMap<(&'static str, Variant), Library>,
    order: u32,
    /// Whether matrices are multiplied on tensor cores, or what stands for them.
    pub(super) tensor: bool,
    /// Elements of each page before its memory begins.
    pub(super) origin: usize,
}

/// How a library is compiled.
const PLAIN: &[&str] = &["-O2"];

/// Compiles a variant of a source in `folder`, which has the headers; returns the library.
fn compile(folder: &Path, options: &[&str], source: &Source, text: &str, variant: Variant) -> PathBuf {
    let Variant { wide, halves, tensor } = variant;
    let [width, halves, tensor] =
        [(wide, "_wide"), (halves, "_halves"), (tensor, "_tensor")].map(|(on, s)| if on { s } else { "" });
    let name = format!("{}{width}{halves}{tensor}", source.stem);
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

/// What a library is made of: its source and headers, the variant, the compiler's options.
type Recipe = (String, Vec<String>, Variant, Vec<String>);

/// Libraries that some test of this process has compiled, which most of the time goes into. A machine loads a copy: a
/// library's shared memory is one launch's at a time.
static COMPILED: Mutex<BTreeMap<Recipe, Arc<OnceLock<Vec<u8>>>>> = Mutex::new(BTreeMap::new());

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
        let headers: Vec<String> = HEADERS.iter().map(|(_, text)| edit(text)).collect();
        for ((name, _), text) in HEADERS.iter().zip(&headers) {
            std::fs::write(folder.join(name), text).expect("the folder for temporary files is writable");
        }
        let load = |&(source, variant): &(Source, Variant)| {
            let text = edit(source.cuda);
            let recipe = (text.clone(), headers.clone(), variant, options.iter().map(|&o| o.to_owned()).collect());
            let entry = COMPILED.lock().unwrap_or_else(PoisonError::into_inner).entry(recipe).or_default().clone();
            let mut path = None;
            let bytes = entry.get_or_init(|| {
                let made = path.insert(compile(folder, options, &source, &text, variant));
                std::fs::read(made).expect("the compiler has written it")
            });
            let path = path.unwrap_or_else(|| {
                let copy = folder.join(format!("{}_{variant:?}.so", source.stem));
                std::fs::write(&copy, bytes).expect("the folder for temporary files is writable");
                copy
            });
            // SAFETY: the library was compiled from our own sources; loading it runs no code of theirs.
            let library = unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            ((source.stem, variant), library)
        };
        let libraries = std::thread::scope(|scope| {
            let threads: Vec<_> = variants.iter().map(|v| scope.spawn(|| load(v))).collect();
            threads.into_iter().map(|t| t.join().expect("compiles")).collect()
        });
        Self { libraries, order: 0, tensor: false, origin: 0 }
    }

    fn launch(&self, launch: &Launch, pages: &mut [Page]) -> Result<(), String> {
        let library = &self.libraries[&(launch.source, Variant::on(launch, self.tensor))];
        let name = format!("cuda_cpu_{}", launch.kernel);
        // SAFETY: CUDA_CPU_EXPORT gives every entry point this signature.
        let run: libloading::Symbol<'_, unsafe extern "C" fn(*const Call) -> bool> =
            unsafe { library.get(name.as_bytes()) }.map_err(|error| error.to_string())?;
        let mut start = |&page: &u32| pages[page as usize].values_mut().as_mut_ptr().wrapping_sub(self.origin);
        let bound: Vec<*mut f32> = launch.pages.iter().map(&mut start).collect();
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
    agree(Precision::F32);
}

#[test]
fn cuda_kernels_on_tensor_cores_agree_with_the_reference() {
    agree(Precision::Tf32);
}

/// Runs the cases, or those that multiply matrices, with maps that are not halved.
fn agree(precision: Precision) {
    let tensor = precision == Precision::Tf32;
    let variants = all(|variant| !variant.halves && (tensor || !variant.tensor));
    let mut machine = CudaCpu::new(&format!("cases_{precision}"), &variants, str::to_owned);
    machine.tensor = tensor;
    for case in cases::all() {
        for spread in [Spread::One, Spread::Each] {
            let placed = Placed::stored(&case, spread, precision);
            let launches = placed.launches();
            // Shuffles stand for tensor cores, at length.
            if tensor && (spread == Spread::Each || !launches.iter().any(|l| PRODUCTS.contains(&l.source))) {
                continue;
            }
            let bits = ORDERS.map(|order| {
                machine.order = order;
                placed.check(&mut machine, &launches)
            });
            assert!(bits[0] == bits[1] && bits[0] == bits[2], "{}: the order of threads shows", case.name);
            machine.order = 0;
            assert!(
                tensor || placed.check(&mut machine, &folded(&launches)) == bits[0],
                "{}: the grid's shape shows",
                case.name
            );
            placed.check(&mut machine, &narrow(&launches));
        }
    }
}

/// Maps in halves: the same kernels, over accesses of their own; with products in f32 and in tf32.
#[test]
fn cuda_kernels_read_and_write_halves() {
    let mut machine = CudaCpu::new("halves", &all(|_| true), str::to_owned);
    let mut seen = BTreeSet::new();
    for case in cases::all() {
        for spread in [Spread::One, Spread::Each] {
            let placed = Placed::stored(&case, spread, Precision::Bf16);
            if placed.has_halves() {
                let launches = placed.launches();
                seen.extend(launches.iter().filter(|l| l.halves).map(|l| l.kernel));
                placed.check(&mut machine, &launches);
                placed.check(&mut machine, &narrow(&launches));
                if spread == Spread::One {
                    machine.tensor = true;
                    placed.check(&mut machine, &launches);
                    placed.check(&mut machine, &narrow(&launches));
                    machine.tensor = false;
                }
            }
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), KERNELS_WITH_HALVES);
}

/// Factors of few bits, whose products are exact: every element by itself, so that no fragment can lie elsewhere than where
/// PTX has it. The first kernel fills and empties fragments as the PTX ISA says, the second goes through the tiles.
const FRAGMENTS: &str = r#"
#include "common.cuh"
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
fragment(const __grid_constant__ NoParams p, const __grid_constant__ Pages pages, const NoTable* table) {
    const unsigned lane = threadIdx.x % 32, group = lane >> 2, in_group = lane % 4;
    const float *a = pages.page[0], *b = pages.page[1];
    float *d = pages.page[2], v[4], f[6];
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = i % 2 == 0 ? group : group + 8, col = i < 2 ? in_group : in_group + 4;
        f[i] = factor(a[row * 8 + col]);
        v[i] = d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
    }
    for (unsigned i = 0; i < 2; i++) f[4 + i] = factor(b[(i == 0 ? in_group : in_group + 4) * 8 + group]);
    mma(v[0], v[1], v[2], v[3], f[0], f[1], f[2], f[3], f[4], f[5]);
    if (threadIdx.x < 32) {
        for (unsigned i = 0; i < 4; i++) d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = v[i];
    }
}
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
tiles(const __grid_constant__ NoParams p, const __grid_constant__ Pages pages, const NoTable* table) {
    __shared__ float4 left[8 * TILE_LEFT / 4];
    __shared__ float4 right[208];
    const float *a = pages.page[0], *b = pages.page[1];
    float* d = pages.page[2];
    // 64 rows, 40 columns, 16 indices; twice, by the other way to fill each tile.
    for (unsigned way = 0; way < 2; way++) {
        float *l = reinterpret_cast<float*>(left), *r = reinterpret_cast<float*>(right);
        const unsigned t = threadIdx.x, row = t / 4, k = t % 4 * 4;
        if (way == 0) put_row(l, TILE_LEFT, k, row, make_float4(a[row * 16 + k], a[row * 16 + k + 1], a[row * 16 + k + 2], a[row * 16 + k + 3]));
        else {
            const unsigned k = t / 16, row = t % 16 * 4;
            put_rows(l, TILE_LEFT, k, row, make_float4(a[row * 16 + k], a[row * 16 + 16 + k], a[row * 16 + 32 + k], a[row * 16 + 48 + k]));
        }
        if (way == 0 && t < 160) {
            const unsigned k = t / 10, c = t % 10 * 4;
            put_columns(r, tile_right(10), k, c, make_float4(b[k * 40 + c], b[k * 40 + c + 1], b[k * 40 + c + 2], b[k * 40 + c + 3]));
        }
        if (way == 1 && t < 160) {
            const unsigned c = t / 4, k = t % 4 * 4;
            put_column(r, tile_right(10), k, c, make_float4(b[k * 40 + c], b[k * 40 + 40 + c], b[k * 40 + 80 + c], b[k * 40 + 120 + c]));
        }
        __syncthreads();
        float4 acc[4] = {quad(0.0f), quad(0.0f), quad(0.0f), quad(0.0f)};
        tile_product(acc, l, r, 10, 4);
        const Lane lane = tile_lane(40, 10, 0);
        for (unsigned i = 0; i < 4 && lane.used; i++) store4(d + way * 2560 + (4 * lane.row + i) * 40 + lane.channel, acc[i], lane.valid);
        __syncthreads();
    }
}
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
rounding(const __grid_constant__ NoParams p, const __grid_constant__ Pages pages, const NoTable* table) {
    pages.page[1][threadIdx.x] = factor(pages.page[0][threadIdx.x]);
}
"#;

/// Runs a kernel of [`FRAGMENTS`], or of what `edit` makes of the sources.
fn fragments(kernel: &'static str, pages: &mut [Page], edit: impl Fn(&str) -> String + Sync) {
    let stem = "dense";
    let variant = Variant { tensor: true, ..Variant::default() };
    let text = FRAGMENTS.replace("NoParams", "NoTable");
    let source = Source { stem, cuda: text.leak(), shader: "" };
    let mut machine = CudaCpu::new(&format!("fragments_{kernel}"), &[(source, variant)], edit);
    machine.tensor = true;
    let launch = Launch {
        source: stem,
        kernel,
        wide: false,
        halves: false,
        params: vec![0],
        table: Vec::new(),
        pages: (0..pages.len() as u32).collect(),
        grid: [1, 1, 1],
        block: BLOCK,
        jobs: None,
        reads: Vec::new(),
        writes: Vec::new(),
    };
    machine.run(&[launch], pages).expect("the kernel runs");
}

fn page(len: usize, value: impl Fn(usize) -> f32) -> Page {
    let mut page = Page::new(len);
    page.values_mut().iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
    page
}

/// Whether products through fragments, and through tiles, are exact.
fn exact(edit: impl Fn(&str) -> String + Sync) -> [bool; 2] {
    let (a, b) = (|i: usize| (i * 7 % 251) as f32 - 125.0, |i: usize| (i * 13 % 241) as f32 / 8.0 - 15.0);
    let product = |row: usize, column: usize, depth: usize, columns: usize| {
        (0..depth).map(|k| a(row * depth + k) * b(k * columns + column)).sum::<f32>()
    };
    let mut one = [page(128, a), page(64, b), page(128, |i| i as f32)];
    fragments("fragment", &mut one, &edit);
    let whole = one[2].values().iter().enumerate().all(|(i, &d)| d == i as f32 + product(i / 8, i % 8, 8, 8));
    let mut tiles = [page(64 * 16, a), page(16 * 40, b), page(2 * 64 * 40, |_| f32::NAN)];
    fragments("tiles", &mut tiles, &edit);
    let expected = |i: usize| product(i % 2560 / 40, i % 40, 16, 40);
    [whole, tiles[2].values().iter().enumerate().all(|(i, &d)| d == expected(i))]
}

#[test]
fn fragments_lie_where_ptx_has_them() {
    assert_eq!(exact(str::to_owned), [true, true]);
    let broken = |from: &str, to: &str| {
        assert!(HEADERS.iter().any(|(_, text)| text.contains(from)), "{from}");
        exact(|text| text.replace(from, to))
    };
    assert_eq!(broken("k < 4 ? a0 : a2, 4 * g", "k < 4 ? a0 : a1, 4 * g"), [false, false], "another fragment of a");
    assert_eq!(broken("4 * (2 * q + 1) + k % 4", "4 * (q + 4) + k % 4"), [false, false], "another column of d");
    assert_eq!(
        broken("acc[0].y, acc[0].w, acc[1]", "acc[0].w, acc[0].y, acc[1]"),
        [true, false],
        "columns changed over"
    );
    assert_eq!(broken("row / 2 % 2 * half_of", "row % 2 * half_of"), [true, false], "rows in the wrong half");
    assert_eq!(broken("p[4] = factor(v.z)", "p[4] = factor(v.w)"), [true, false], "a column twice");
}

#[test]
fn factors_are_rounded_to_the_nearest() {
    let ulp = f32::from_bits(0x3f80_2000) - 1.0;
    let pairs = [
        (1.0, 1.0),
        (1.0 + 0.499 * ulp, 1.0),
        (1.0 + 0.5 * ulp, 1.0 + ulp),
        (-1.0 - 0.5 * ulp, -1.0 - ulp),
        (2.0 - 0.5 * ulp, 2.0),
        (0.0, 0.0),
        (-0.0, -0.0),
        (3.0e-39, f32::from_bits((3.0e-39f32.to_bits() + 0x1000) & !0x1fff)),
        (f32::MAX, f32::INFINITY),
        (f32::INFINITY, f32::INFINITY),
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
        (f32::NAN, f32::NAN),
        (f32::from_bits(0x7fff_ffff), f32::NAN),
    ];
    let mut pages = [page(BLOCK as usize, |i| pairs.get(i).map_or(0.0, |pair| pair.0)), Page::new(BLOCK as usize)];
    fragments("rounding", &mut pages, str::to_owned);
    for ((from, to), &found) in pairs.iter().zip(pages[1].values()) {
        assert!(found.to_bits() == to.to_bits() || to.is_nan() && found.is_nan(), "{from} becomes {found}, not {to}");
    }
}

/// The tests above are worth something only if they notice a broken kernel.
#[test]
fn broken_cuda_kernels_are_noticed() {
    let cases = cases::all();
    let placed = |case| {
        let placed = Placed::new(case, Spread::One);
        let launches = narrow(&placed.launches());
        (placed, launches)
    };
    let cases: Vec<_> = cases.iter().map(placed).collect();
    let broken = |stem: &str, from: &str, to: &str| {
        let mut stems = vec![stem, "fold", "pool"];
        stems.extend(["separable", "separable_backward"].into_iter().filter(|_| stem.starts_with("separable")));
        stems.sort_unstable();
        stems.dedup();
        let variants: Vec<_> = stems.iter().map(|stem| (source(stem), Variant::default())).collect();
        let mut machine = CudaCpu::new("broken", &variants, |text| text.replace(from, to));
        let of_interest = cases.iter().filter(|(_, launches)| launches.iter().all(|l| stems.contains(&l.source)));
        of_interest.flat_map(|case| ORDERS.map(|order| (case, order))).any(|((placed, launches), order)| {
            let mut pages = placed.pages();
            machine.order = order;
            machine.run(launches, &mut pages).and_then(|()| placed.compare(&pages)).is_err()
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
    assert!(
        broken("separable", "j.reach, step);\n                        __syncthreads();", "j.reach, step);"),
        "a region half full"
    );
    assert!(broken("separable", "base, j.reach, step", "base, 1, step"), "a region that is too small");
    assert!(
        broken("separable", "pixel(line, column, q) : quad(0.0f)", "pixel(line, column, q) : quad(1.0f)"),
        "what is beyond"
    );
    assert!(broken("separable", "sum[1][c] += above[i]", "sum[1][c] += above[0]"), "the wrong taps of a second line");
    assert!(broken("separable", "now == start ? part", "true ? part"), "moments of the last region only");
    for stem in ["elementary", "dense", "separable"] {
        assert!(broken(stem, "v < 0.0f ? 0.0f : v", "fmaxf(v, 0.0f)"), "{stem}: NaN that ReLU takes for nothing");
    }
    assert!(broken("separable_backward", "KERNEL * KERNEL - 1 - tap : tap", "tap : tap"), "taps in order");
    assert!(broken("separable_backward", "+= d[1][c] * x", "+= d[0][c] * x"), "the wrong line's gradient");
    assert!(broken("separable_backward", "+= far[i / 4][i % 4]", "= far[i / 4][i % 4]"), "only what is dilated");
    assert!(
        broken("separable_backward", "warp < TILE_THREADS / 32; warp++", "warp < 3; warp++"),
        "a warp's sums left out"
    );
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
