//! The CUDA device end to end without a GPU: its host code against a fake driver and a fake NVRTC
//! (`tests/cuda_cpu/fake_*.cpp`), which run the real kernels on the CPU. cudarc opens the driver once a process, by its
//! bare name, so each scenario is a process of its own: this test binary again, with the fakes in the loader's path.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use libloading::Library;
use supernet::data::{Geometry, Normalisation};
use supernet::device::cuda::{Cuda, Nvrtc};
use supernet::device::paged::{Gpu as _, Paged};
use supernet::device::source::{SOURCES, Source, Variant, cuda_options};
use supernet::device::{Device, DeviceSpec, Precision, Starting};
use supernet::graph::{Program, StoreLayout};
use supernet::network::{SearchSpace, Supernet};
use supernet::ops::optimiser::Adam;
use supernet::search::step::{self, InputPipeline, Order, SearchRecipe, SearchStates, WeightOptimiser};
use supernet::transport::{Cloud, Costs, Domain, Epsilon, Held, Options, Points, Problem, Values, solve};
use supernet::{Error, Result};

use super::cuda_replays;

/// Names the scenario that a process of its own runs.
const SCENARIO: &str = "SUPERNET_FAKE_CUDA";

const SOURCE_FILES: [&str; 4] = ["cuda_cpu.h", "fake_image.h", "fake_driver.cpp", "fake_nvrtc.cpp"];

/// A folder with the fakes: `driver/` and `old/` with a libcuda.so.1, and libnvrtc.so. Named by the hash of their sources, so
/// that kernels compiled by an older fake are not taken for those of this one.
pub(super) fn fakes() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_cpu");
        let mut hasher = DefaultHasher::new();
        // The fakes know where the header lies.
        sources.hash(&mut hasher);
        for file in SOURCE_FILES {
            std::fs::read_to_string(sources.join(file)).expect("the fakes are in the repository").hash(&mut hasher);
        }
        let name = format!("cuda_host_{:016x}", hasher.finish());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let build = |file: &str, options: &[&str], library: &str| {
            let path = folder.join(library);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a writable folder");
            if path.exists() {
                return;
            }
            let fresh = path.with_extension(format!("fresh-{}", std::process::id()));
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
            let output = Command::new(&compiler)
                .args(["-O1", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-function"])
                .arg(format!("-DCUDA_CPU_FOLDER=\"{}\"", sources.display()))
                .args(options)
                .arg(sources.join(file))
                .arg("-o")
                .arg(&fresh)
                .arg("-ldl")
                .output()
                .unwrap_or_else(|error| panic!("the C++ compiler `{compiler}` (or $CXX) does not run: {error}"));
            assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
            std::fs::rename(&fresh, &path).expect("a writable folder");
        };
        build("fake_driver.cpp", &[], "driver/libcuda.so.1");
        build("fake_driver.cpp", &["-DFAKE_CUDA_OLD"], "old/libcuda.so.1");
        build("fake_nvrtc.cpp", &[], "libnvrtc.so");
        folder
    })
}

/// A command with the fakes in place of the real libraries; `driver` is a subfolder of them.
pub(super) fn with_fakes(program: &Path, driver: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    command
        .env("LD_LIBRARY_PATH", format!("{}:{path}", fakes().join(driver).display()))
        .env("SUPERNET_NVRTC", fakes().join("libnvrtc.so"))
        .env("SUPERNET_CACHE", fakes().join("cache"));
    command
}

/// Runs a scenario in a process of its own.
pub(super) fn scenario(name: &str, driver: &str, variables: &[(&str, &str)]) -> String {
    let mut command = with_fakes(&std::env::current_exe().expect("a test binary"), driver);
    command.args(["gpu::cuda_host::a_scenario", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.env(SCENARIO, name).envs(variables.iter().copied()).output().expect("the test binary starts");
    let Output { stdout, stderr, .. } = &output;
    let text = format!("{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr));
    assert!(output.status.success() && text.contains("scenario done"), "{name} {variables:?}: {text}");
    text
}

#[test]
#[ignore = "a process of the other tests, with the fakes in its environment"]
fn a_scenario() {
    match std::env::var(SCENARIO).as_deref() {
        Ok("open") => report_opening(),
        Ok("no tf32") => no_tf32(),
        Ok("step") => whole_steps_equal_the_processors(),
        Ok("replays") => cuda_replays::replays(),
        Ok("staging") => cuda_replays::staging(),
        Ok("overlap") => cuda_replays::overlap(),
        Ok("cache") => cuda_replays::damaged_cache(),
        Ok("compile error") => compile_error(),
        Ok("memory") => cuda_replays::memory(),
        Ok("fault") => cuda_replays::fault(),
        Ok("cases") => some_cases(),
        Ok("transport") => transport(),
        _ => return,
    }
    println!("scenario done");
}

/// A count of the fake driver.
pub(super) fn count(what: &str) -> i64 {
    let name = std::ffi::CString::new(what).unwrap();
    // SAFETY: the driver is loaded already; the function takes a text that ends with a zero and returns a number.
    unsafe {
        let library = Library::new("libcuda.so.1").unwrap();
        let ask = library.get::<unsafe extern "C" fn(*const std::ffi::c_char) -> i64>("fake_cuda\0").unwrap();
        ask(name.as_ptr())
    }
}

/// Objects that live.
pub(super) fn live() -> Vec<i64> {
    ["streams", "events", "memory", "pinned", "modules", "graphs", "executables"].map(count).to_vec()
}

// ------------------------------------------------------------------------------------------------ what is missing

fn report_opening() {
    let spec = std::env::var("DEVICE").unwrap_or_else(|_| "cuda".into()).parse::<DeviceSpec>().unwrap();
    match Device::open(&spec, &StoreLayout::new(), 1, Precision::F32) {
        Ok(device) => println!("opened: {}", device.name()),
        Err(error) => println!("{}: {error}", if matches!(error, Error::Device(_)) { "device" } else { "other" }),
    }
}

#[track_caller]
fn check_opening(driver: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let text = scenario("open", driver, variables);
    for part in expected {
        assert!(text.contains(part), "{variables:?}: expected `{part}` in: {text}");
    }
}

#[test]
fn what_is_missing_has_its_own_message() {
    check_opening("driver", &[], &["opened: cuda:0, Fake GPU, sm_90, 4.0 GiB"]);
    let two = [("FAKE_CUDA_DEVICES", "2"), ("DEVICE", "cuda:1")];
    check_opening("driver", &two, &["opened: cuda:1"]);
    check_opening("driver", &[("DEVICE", "cuda:1")], &["device: cuda:1", "sees 1 device(s)", "supernet devices"]);
    check_opening("driver", &[("FAKE_CUDA_DEVICES", "0")], &["device: ", "sees no GPU", "nvidia-smi", "--gpus all"]);
    let old = ["device: ", "supports CUDA 11.4 at most", "driver 525", "CUDA 12.0"];
    check_opening("driver", &[("FAKE_CUDA_VERSION", "11040")], &old);
    check_opening("driver", &[("FAKE_CUDA_STUB", "1")], &["device: ", "stub for linking", "LD_LIBRARY_PATH"]);
    check_opening("old", &[], &["device: ", "lacks cuGraphUpload", "driver 525"]);
    check_opening("driver", &[("FAKE_CUDA_CAPABILITY", "61")], &["device: ", "sm_61", "7.5 (Turing)"]);
    let nowhere = [("SUPERNET_NVRTC", "/nowhere/libnvrtc.so.13")];
    check_opening("driver", &nowhere, &["device: SUPERNET_NVRTC=/nowhere/libnvrtc.so.13", "not a usable NVRTC"]);
    let other = fakes().join("driver/libcuda.so.1");
    let other = [("SUPERNET_NVRTC", other.to_str().unwrap())];
    check_opening("driver", &other, &["not a usable NVRTC: it lacks nvrtcVersion"]);
}

#[test]
fn a_machine_without_driver_or_nvrtc_says_what_to_install() {
    // SAFETY: the driver's initialisers have no preconditions.
    let real = ["libcuda.so", "libcuda.so.1"].iter().any(|name| unsafe { Library::new(*name) }.is_ok());
    if !real {
        check_opening("none", &[], &["device: no NVIDIA driver", "libcuda.so.1", "--device cpu"]);
    }
    let nothing =
        ["SUPERNET_NVRTC", "CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "HOME"].map(|name| (name, ""));
    let text = scenario("open", "driver", &nothing);
    let missing = text.contains("device: no NVRTC") && text.contains("pip install nvidia-cuda-nvrtc==13.0.88");
    assert!(missing || text.contains("opened: "), "{text}");
}

#[cfg(feature = "cli")]
#[test]
fn devices_lists_gpus_or_what_is_missing() {
    let program = Path::new(env!("CARGO_BIN_EXE_supernet"));
    let list = |variables: &[(&str, &str)]| {
        let mut command = with_fakes(program, "driver");
        let output = command.args(["devices", "--json"]).envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let devices = report["devices"].as_array().unwrap().clone();
        devices.into_iter().filter(|device| device["kind"] == "cuda").collect::<Vec<_>>()
    };
    let two = list(&[("FAKE_CUDA_DEVICES", "2")]);
    let expected = |index: usize| {
        serde_json::json!({
            "kind": "cuda", "available": true, "index": index, "name": "Fake GPU", "compute_capability": "9.0", "tf32": true,
            "memory_bytes": 1u64 << 32, "driver": "13.0", "nvrtc": "13.0",
        })
    };
    assert_eq!(two, [expected(0), expected(1)]);
    assert_eq!(list(&[("FAKE_CUDA_CAPABILITY", "75")])[0]["tf32"], false);
    let without = list(&[("SUPERNET_NVRTC", "/nowhere")]);
    assert_eq!(without[0]["available"], false);
    assert!(without[0]["reason"].as_str().unwrap().contains("not a usable NVRTC"), "{without:?}");
    let none = list(&[("FAKE_CUDA_DEVICES", "0")]);
    assert!(none.len() == 1 && none[0]["reason"].as_str().unwrap().contains("sees no GPU"), "{none:?}");
}

// ------------------------------------------------------------------------------------------------ whole steps

struct Search {
    network: Supernet,
    states: SearchStates,
    layout: StoreLayout,
}

impl Search {
    fn new() -> Self {
        let size = Geometry { height: 8, width: 8, channels: 3 };
        let network = Supernet::with_heads(SearchSpace::darts(4, 2).unwrap(), size, &[5]);
        let mut layout = StoreLayout::new();
        let states = SearchStates::declare(&mut layout, &network, 4);
        Self { network, states, layout }
    }

    /// Architecture and weight half.
    fn programs(&self) -> [Program; 2] {
        let normalisation = Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] };
        let recipe = SearchRecipe {
            order: Order::First,
            optimiser: WeightOptimiser { momentum: 0.9, decay: 3e-4, clip: 5.0 },
            adam: Adam { beta1: 0.5, beta2: 0.999, eps: 1e-3, decay: 1e-3 },
            input: InputPipeline { pad: 1, flip: true, cutout: 3, normalisation, seed: 3 },
        };
        let architecture = step::architecture_step(&self.network, &self.states, &recipe).unwrap();
        let weight = step::weight_step(&self.network, &self.states, &recipe).unwrap();
        [architecture.program("architecture step", false), weight.program("weight step", false)]
    }

    /// Two steps; everything that they change.
    fn run(&self, device: &mut Device) -> Result<Vec<(&'static str, Vec<f32>)>> {
        let s = &self.states;
        device.write(s.model.weights, &self.network.layout.initial_weights(3))?;
        device.write(s.model.running, &self.network.layout.initial_running())?;
        device.write(s.alphas, &self.network.initial_alphas(3))?;
        device.fill(s.model.rate, 0.025)?;
        device.fill(s.alpha_rate, 3e-4)?;
        let programs = self.programs().map(|program| device.prepare(program));
        for number in 0..2 {
            for (batch, salt) in [(s.valid, 37), (s.model.train, 53)] {
                device.write_with(batch.pixels, |pixels| {
                    pixels.iter_mut().enumerate().for_each(|(i, p)| *p = ((i * salt + number * 11) % 256) as f32);
                    Ok(())
                })?;
                device.write(batch.labels, &[0.0, 3.0, 1.0, 4.0])?;
                device.write(batch.index, &[4.0, 9.0, number as f32, 2.0])?;
            }
            for program in &programs {
                device.run(program.as_ref().unwrap())?;
                assert!(!device.flag(s.model.flag)?);
            }
        }
        let changed = [
            ("weights", s.model.weights),
            ("velocity", s.model.velocity),
            ("running statistics", s.model.running),
            ("alphas", s.alphas),
            ("first moment", s.first_moment),
            ("training sums", s.model.train_sums),
            ("validation sums", s.valid_sums),
        ];
        changed.into_iter().map(|(name, state)| Ok((name, device.read(state)?.into_owned()))).collect()
    }
}

pub(super) fn open(layout: &StoreLayout, capture: bool) -> Result<Paged<Cuda>> {
    let starting = Starting { capture, ..Starting::default() };
    Paged::new(Cuda::open(0, starting)?, layout, Precision::F32)
}

fn whole_steps_equal_the_processors() {
    let search = Search::new();
    let expected = search.run(&mut Device::open(&DeviceSpec::Cpu, &search.layout, 1, Precision::F32).unwrap()).unwrap();
    let mut bits = Vec::new();
    for capture in [true, false] {
        let before = [count("graph launches"), count("launches")];
        let spec = "cuda".parse::<DeviceSpec>().unwrap().with_starting(Starting { capture, overlap: !capture });
        let mut device = Device::open(&spec, &search.layout, 1, Precision::F32).unwrap();
        let found = search.run(&mut device).unwrap();
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            let square = |x: f64| x * x;
            let error: f64 = found.iter().zip(expected).map(|(&f, &e)| square(f64::from(f) - f64::from(e))).sum();
            let norm: f64 = expected.iter().map(|&e| square(f64::from(e))).sum();
            let relative = (error / norm).sqrt();
            assert!(relative < 1e-4, "{name}, capture {capture}: off by {relative:.1e} in norm");
        }
        bits.push(found);
        let after = [count("graph launches"), count("launches")];
        let [graphs, launches] = [after[0] - before[0], after[1] - before[1]];
        assert!(if capture { [graphs, launches] == [4, 0] } else { graphs == 0 && launches > 100 });
    }
    assert_eq!(bits[0], bits[1], "captured and launched steps have the same bits");

    // Maps in halves: other variants of the kernels.
    let halves = Paged::new(Cuda::open(0, Starting::default()).unwrap(), &search.layout, Precision::Bf16).unwrap();
    let found = search.run(&mut Device::Gpu(Box::new(halves))).unwrap();
    assert_ne!(found, bits[0], "the precision does something");
    for ((name, found), (_, expected)) in found.iter().zip(&expected).filter(|((name, _), _)| name.ends_with("sums")) {
        let close = found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 2e-2 * e.abs());
        assert!(close, "{name} in halves: {found:?}, expected {expected:?}");
    }

    // Products in tf32: yet others, and closer; maps are as they are.
    let mut device = Device::open(&"cuda".parse().unwrap(), &search.layout, 1, Precision::Tf32).unwrap();
    assert_eq!(device.products().unwrap(), "in tf32, on tensor cores");
    let found = search.run(&mut device).unwrap();
    assert_ne!(found, bits[0], "the precision does something");
    for ((name, found), (_, expected)) in found.iter().zip(&expected).filter(|((name, _), _)| name.ends_with("sums")) {
        let close = found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 2e-3 * e.abs());
        assert!(close, "{name} in tf32: {found:?}, expected {expected:?}");
    }
    drop(device);

    // What is not finite is found op by op, in between the replays of a captured program.
    let mut device = open(&search.layout, true).unwrap();
    let [program, _] = search.programs();
    let exe = device.prepare(program).unwrap();
    let mut weights = search.network.layout.initial_weights(3);
    weights[0] = f32::NAN;
    device.write(search.states.model.weights, &weights).unwrap();
    let found = device.find_non_finite(&exe).unwrap().expect("a NaN weight shows");
    assert!(found.contains("op ") && found.contains("`architecture step`") && found.contains("NaN"), "{found}");
    let after = device.read(search.states.model.weights).unwrap();
    assert!(after.iter().zip(&weights).all(|(a, b)| a.to_bits() == b.to_bits()), "the store is as it was");

    let times = device.profile(&exe, 1).unwrap();
    assert_eq!(times.iter().map(|t| t.launches).sum::<usize>(), device.launches(&exe));
    assert!(times.windows(2).all(|pair| pair[0].seconds >= pair[1].seconds));
    drop(device);
    assert!(live().iter().all(|&objects| objects == 0), "{:?}", live());
}

#[test]
fn whole_search_steps_on_a_fake_gpu() {
    scenario("step", "driver", &[]);
}

/// An older device has the same precisions, and says that it multiplies in f32.
fn no_tf32() {
    let open = |precision| Device::open(&"cuda".parse().unwrap(), &StoreLayout::new(), 1, precision).unwrap();
    for precision in [Precision::Tf32, Precision::Bf16] {
        let products = open(precision).products().unwrap();
        assert!(products.starts_with("in f32: compute capability 7.5 has no tf32"), "{products}");
    }
    assert_eq!(open(Precision::F32).products(), None);
}

#[test]
fn a_device_without_tf32_says_so() {
    scenario("no tf32", "driver", &[("FAKE_CUDA_CAPABILITY", "75")]);
}

// ------------------------------------------------------------------------------------------------ the list of cases

fn some_cases() {
    for capture in [true, false] {
        let mut device = super::cuda_device::Device::open(capture).unwrap();
        assert!(super::cuda_device::check_cases(&mut device, 23, 3_000) > 5);
    }
}

/// The machine that runs the list of cases on a real GPU works, but for the GPU.
#[test]
fn some_cases_run_on_a_fake_gpu() {
    scenario("cases", "driver", &[]);
}

// ---------------------------------------------------------------------------------------------------------- transport

/// Costs are stored up to two thirds of the free memory, whatever the budget of many problems.
fn transport() {
    for (side, held) in [(800, Held::Stored), (900, Held::Recomputed)] {
        let values: Vec<f32> = (0..2 * side).map(|i| (i * i % 97) as f32).collect();
        let clouds =
            values.chunks(side).map(|values| Cloud { name: "a cloud", values: Values::Single(values), dim: 1 });
        let points = Points::new(&clouds.collect::<Vec<_>>()).unwrap();
        let costs = Costs::Points { points: &points, point_scale: 0.5, labels: None };
        let problems = [Problem::uniform(points.cloud(0), points.cloud(1), Epsilon::Mean(0.1))];
        let device = "cuda".parse().unwrap();
        let options = Options { device, iterations: 1, budget: 1000, domain: Domain::Log, ..Options::default() };
        let found = solve(costs, &problems, &options, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert_eq!(found[0].costs, held, "{found:?}");
    }
    crate::transport::check_device("cuda", 60);
}

#[test]
fn transport_is_stored_where_it_fits_and_its_bounds_hold() {
    scenario("transport", "driver", &[("FAKE_CUDA_MEMORY", "4194304")]);
}

// ------------------------------------------------------------------------------------------------ the compiler

fn compile_error() {
    let nvrtc = Nvrtc::find(13).unwrap();
    let broken = Source {
        cuda: "#include \"common.cuh\"\nextern \"C\" __global__ void __launch_bounds__(BLOCK, 4) k() { undeclared(); }",
        ..SOURCES[0]
    };
    let mut options = cuda_options(Variant::new(true, false)).to_vec();
    options.push("--gpu-architecture=sm_90".into());
    let error = nvrtc.compile(&broken, &options).unwrap_err().to_string();
    let file = format!("{}.cu", SOURCES[0].stem);
    assert!(error.contains("nvrtcCompileProgram returned 6") && error.contains("undeclared"), "{error}");
    assert!(error.starts_with(&file) && error.contains(&format!("{file}:2")), "{error}");
    let error = nvrtc.compile(&SOURCES[0], &options[..options.len() - 1]).unwrap_err().to_string();
    assert!(error.contains("returned 5") && error.contains("install a newer one"), "{error}");
}

#[test]
fn compile_errors_carry_the_log() {
    scenario("compile error", "driver", &[]);
}

/// The real compiler makes machine code, where it is at hand.
#[test]
fn nvrtc_makes_cubins() {
    let compile = || -> Result<Vec<u8>> {
        let mut options = cuda_options(Variant::new(true, false)).to_vec();
        options.extend(["--std=c++17", "--gpu-architecture=sm_90"].map(str::to_owned));
        Nvrtc::find(13)?.compile(&SOURCES[0], &options)
    };
    match compile() {
        Ok(cubin) => assert!(cubin.starts_with(b"\x7fELF"), "{:?}", &cubin[..16.min(cubin.len())]),
        Err(error) => super::missing("NVRTC", "SUPERNET_REQUIRE_NVRTC", &error.to_string()),
    }
}
