//! What the CUDA device's host code does around the kernels, with a program as small as can be: replays that allocate
//! nothing, values on their way to the device, kernels that overlap; and caches, memory and kernels that fail it. The
//! scenarios run in processes of their own, as all of [`super::cuda_host`].

use std::path::PathBuf;

use supernet::device::cuda::Cuda;
use supernet::device::paged::{Backend, Gpu as _, Paged};
use supernet::device::{Executable, Precision, Starting};
use supernet::graph::{Graph, Program, Shape, State, StoreLayout};
use supernet::ops::elementwise::Linear;
use supernet::{Error, Result};

use super::cuda_host::{count, fakes, live, open, scenario};

/// A program that adds one state to another.
struct Adder {
    device: Paged<Cuda>,
    exe: Executable,
    term: State,
    sum: State,
}

impl Adder {
    fn new(elements: usize, capture: bool) -> Result<Self> {
        Self::starting(elements, Starting { capture, ..Starting::default() })
    }

    fn starting(elements: usize, starting: Starting) -> Result<Self> {
        let mut layout = StoreLayout::new();
        let shape = Shape::vector(elements);
        let [term, sum] = ["term", "sum"].map(|name| layout.add(name, shape));
        let mut graph = Graph::new();
        let [a, b] = [term, sum].map(|state| graph.state(state));
        let next = Linear::record(&mut graph, &[(1.0, a), (1.0, b)], "next")?;
        Linear::record_into(&mut graph, &[(1.0, next)], b)?;
        let mut device = Paged::new(Cuda::open(0, starting)?, &layout, Precision::F32)?;
        let exe = device.prepare(Program::new("adding", graph, &[]))?;
        Ok(Self { device, exe, term, sum })
    }

    fn step(&mut self, value: f32) -> Result<()> {
        self.device.write(self.term, &vec![value; self.term.shape.len()])?;
        self.device.run(&self.exe)
    }
}

pub(super) fn replays() {
    let mut adder = Adder::new(5, true).unwrap();
    // Warm, with a watched flag.
    adder.step(0.0).unwrap();
    assert!(!adder.device.flag(adder.sum).unwrap());
    for _ in 0..20 {
        adder.step(0.0).unwrap();
    }
    let (before, graphs, launches) = (live(), count("graph launches"), count("launches"));
    // The flag may be seen late, but not later than some replays, and the host does not stop the stream for it.
    let seen = (1..=200).position(|i| {
        adder.step(i as f32).unwrap();
        adder.device.flag(adder.sum).unwrap()
    });
    let seen = seen.expect("the flag is seen");
    assert!(seen <= 8, "the flag was raised by the first replay and seen after {seen} more");
    for i in seen + 2..=200 {
        adder.step(i as f32).unwrap();
        assert!(adder.device.flag(adder.sum).unwrap());
    }
    assert_eq!([count("graph launches") - graphs, count("launches") - launches], [200, 0]);
    assert_eq!(adder.device.read(adder.sum).unwrap(), [20_100.0; 5], "every replay met its own term");
    assert_eq!(live()[2..], before[2..], "replays allocate nothing");
    assert!(live()[1] - before[1] <= 64, "events are used again: {before:?}, {:?}", live());

    // A flag that the host takes down is down at once, whatever copies are still under way.
    adder.step(1.0).unwrap();
    adder.device.write(adder.sum, &[0.0; 5]).unwrap();
    assert!(!adder.device.flag(adder.sum).unwrap());
    adder.step(0.0).unwrap();
    assert!(!adder.device.flag(adder.sum).unwrap());

    // A second program with a larger arena: the first is recorded anew and still right.
    let mut graph = Graph::new();
    let b = graph.state(adder.sum);
    let mut terms: Vec<_> = (0..40).map(|i| Linear::record(&mut graph, &[(f64::from(i), b)], "x").unwrap()).collect();
    terms.push(b);
    let all: Vec<_> = terms.iter().map(|&t| (1.0, t)).collect();
    let total = Linear::record(&mut graph, &all, "total").unwrap();
    let other = adder.device.prepare(Program::new("more", graph, &[total])).unwrap();
    adder.device.write(adder.sum, &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    adder.device.run(&other).unwrap();
    assert_eq!(adder.device.read_tensor(&other, total).unwrap(), [781.0, 1562.0, 2343.0, 3124.0, 3905.0]);
    adder.step(1.0).unwrap();
    assert_eq!(adder.device.read(adder.sum).unwrap(), [2.0, 3.0, 4.0, 5.0, 6.0]);
    drop(adder);
    assert!(live().iter().all(|&objects| objects == 0), "{:?}", live());

    // A replay that nobody waited for has its kernels until it ends: the driver would say so at the next call.
    let mut adder = Adder::new(5, true).unwrap();
    adder.device.run(&adder.exe).unwrap();
    drop(adder);
    Adder::new(5, true).unwrap().step(1.0).unwrap();
}

#[test]
fn replays_are_one_call_and_allocate_nothing() {
    scenario("replays", "driver", &[]);
}

/// Values larger than a piece, and together larger than the rings, while streams lag behind.
pub(super) fn staging() {
    let eager = std::env::var("FAKE_CUDA_EAGER").unwrap_or_default();
    let refused = std::env::var_os("FAKE_CUDA_MEMORY").is_some();
    for capture in [false, true] {
        let elements = (5 << 20) / 4 + 13;
        let mut adder = Adder::new(elements, capture).unwrap();
        let (bytes, copies) = (adder.device.bytes(), count("copies on the device"));
        for value in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0] {
            let values: Vec<f32> = (0..elements).map(|i| value * (1 + i % 5) as f32).collect();
            adder.device.write(adder.term, &values).unwrap();
            adder.device.run(&adder.exe).unwrap();
            if value == 1.0 && eager == "1" {
                let waiting = ["waiting 0", "waiting 1"].map(count);
                assert!(waiting[0] > 0 && waiting[1] == 0, "values are there before the replay begins: {waiting:?}");
            }
        }
        assert!(count("waiting") > 0, "the host does not wait for the stream");
        let sums = adder.device.read(adder.sum).unwrap();
        assert!(sums.iter().enumerate().all(|(i, &sum)| sum == (127 * (1 + i % 5)) as f32));
        let through = (adder.device.bytes() - bytes, count("copies on the device") - copies);
        assert_eq!(through, if refused { (0, 0) } else { (16 << 20, 14) }, "by way of the device's memory or not");
    }
    small_and_large();
    assert!(live().iter().all(|&objects| objects == 0), "{:?}", live());
}

/// Writes to overlapping stretches of a page, the large ones by way of the device's memory.
fn small_and_large() {
    const ELEMENTS: usize = 1 << 20;
    let copies = count("copies on the device");
    let mut device = Cuda::open(0, Starting::default()).unwrap();
    device.allocate(&[ELEMENTS]).unwrap();
    let mut large = 0;
    let (mut stands, mut found) = (vec![0.0; ELEMENTS], vec![f32::NAN; ELEMENTS]);
    let lengths = [3, 1 << 19, 16_383, 16_384, 200_000, 16_385, 1, ELEMENTS];
    for number in 0..100 {
        let length = lengths[number % 7 * (number + 3) % 8];
        let first = number * 77_777 % (ELEMENTS - length + 1);
        let values = vec![number as f32; length];
        device.write(0, first, &values).unwrap();
        large += i64::from(length >= 16_384);
        stands[first..first + length].copy_from_slice(&values);
        if number % 40 == 39 {
            device.read(0, 0, &mut found).unwrap();
            assert!(found == stands, "after write {number}");
        }
    }
    device.read(0, 0, &mut found).unwrap();
    assert!(found == stands, "after the last write");
    assert_eq!(count("copies on the device") - copies, large);
}

#[test]
fn staged_values_arrive_in_order_however_large() {
    // Each stream far behind the other, both as late as possible, and no memory for a second ring.
    for variable in [("FAKE_CUDA_EAGER", "0"), ("FAKE_CUDA_EAGER", "1"), ("_", ""), ("FAKE_CUDA_MEMORY", "25165824")] {
        scenario("staging", "driver", &[variable]);
    }
}

/// Every kernel of a program but the first may be brought up early, where the device can; none while kernels are timed. The
/// fake driver refuses it behind anything but a kernel.
pub(super) fn overlap() {
    let can = i64::from(std::env::var_os("CANNOT").is_none());
    let launches = || ["launches", "captured launches", "overlapping launches"].map(count);
    for (capture, overlap) in [(true, true), (true, false), (false, true), (false, false)] {
        let before = launches();
        let mut adder = Adder::starting(5, Starting { capture, overlap }).unwrap();
        adder.step(1.0).unwrap();
        adder.step(2.0).unwrap();
        assert_eq!(adder.device.read(adder.sum).unwrap(), [3.0; 5]);
        let after = launches();
        let found = [0, 1, 2].map(|i| after[i] - before[i]);
        let [started, captured] = if capture { [0, 2] } else { [4, 0] };
        assert_eq!(found, [started, captured, i64::from(overlap) * can * (started + captured) / 2]);
        adder.device.profile(&adder.exe, 1).unwrap();
        assert_eq!(launches(), [after[0] + 2, after[1], after[2]]);
    }
}

#[test]
fn kernels_overlap_where_device_and_driver_can() {
    scenario("overlap", "driver", &[]);
    scenario("overlap", "driver", &[("FAKE_CUDA_VERSION", "12040")]);
    scenario("overlap", "driver", &[("FAKE_CUDA_VERSION", "12030"), ("CANNOT", "")]);
    scenario("overlap", "driver", &[("FAKE_CUDA_CAPABILITY", "89"), ("CANNOT", "")]);
}

// ------------------------------------------------------------------------------------------------ what goes wrong

pub(super) fn damaged_cache() {
    let folder = PathBuf::from(std::env::var_os("SUPERNET_CACHE").unwrap());
    let sum = || {
        let mut adder = Adder::new(5, true).unwrap();
        adder.step(3.0).unwrap();
        assert_eq!(adder.device.read(adder.sum).unwrap(), [3.0; 5]);
    };
    let entries = || -> Vec<(PathBuf, Vec<u8>)> {
        let files = std::fs::read_dir(folder.join("cuda")).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    };
    sum();
    let made = entries();
    assert!(!made.is_empty() && made.iter().all(|(path, _)| path.extension().is_some_and(|e| e == "cubin")));
    for (path, bytes) in &made {
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 1;
        std::fs::write(path, damaged).unwrap();
    }
    sum();
    for (path, bytes) in entries() {
        let original = &made.iter().find(|(p, _)| *p == path).expect("the same names").1;
        assert_eq!(bytes.len(), original.len(), "{} was rebuilt", path.display());
        let damaged = bytes.iter().zip(original).position(|(a, b)| a != b);
        assert!(damaged != Some(bytes.len() / 2), "{} was rebuilt", path.display());
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn damaged_cache_entries_are_rebuilt() {
    let folder = fakes().join(format!("own-cache-{}", std::process::id()));
    scenario("cache", "driver", &[("SUPERNET_CACHE", folder.to_str().unwrap())]);
    // Without any cache it only takes longer.
    scenario("replays", "driver", &[("SUPERNET_CACHE", "")]);
}

pub(super) fn memory() {
    let mut layout = StoreLayout::new();
    layout.add("large", Shape::vector(1 << 20));
    let error = open(&layout, true).err().expect("4 MiB do not fit into 3");
    let message = error.to_string();
    assert!(matches!(error, Error::Memory(_)), "{message}");
    for part in ["cuda:0", "4.0 MiB for store", "3.0 MiB of 3.0 MiB are free", "--batch"] {
        assert!(message.contains(part), "{message}");
    }
    // The arena grows, or nothing changes: what was prepared before says so.
    let mut adder = Adder::new(20_000, true).unwrap();
    let mut graph = Graph::new();
    let wide = graph.state(adder.sum);
    let parts: Vec<_> = (0..60).map(|_| Linear::record(&mut graph, &[(1.0, wide)], "x").unwrap()).collect();
    let error = adder.device.prepare(Program::new("large", graph, &parts)).unwrap_err();
    assert!(matches!(error, Error::Memory(_)), "{error}");
    assert!(adder.step(1.0).unwrap_err().to_string().contains("the arena could not grow"));
    drop(adder);
    assert!(live().iter().all(|&objects| objects == 0), "{:?}", live());
}

#[test]
fn memory_that_does_not_fit_is_refused_with_the_numbers() {
    scenario("memory", "driver", &[("FAKE_CUDA_MEMORY", "3145728")]);
}

pub(super) fn fault() {
    let mut adder = Adder::new(5, true).unwrap();
    adder.step(1.0).unwrap();
    adder.step(1.0).unwrap();
    let error = adder.device.read(adder.sum).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Device(_)), "{message}");
    for part in ["cuda:0, Fake GPU", "reading values after `adding`", "CUDA_ERROR_ILLEGAL_ADDRESS", "--resume"] {
        assert!(message.contains(part), "{message}");
    }
    // Everything later fails in words, too.
    assert!(adder.step(1.0).unwrap_err().to_string().contains("an illegal memory access"));
    assert!(adder.device.flag(adder.sum).is_err());
    let backend_name = adder.device.backend().name();
    assert!(backend_name.starts_with("cuda:0"));
}

#[test]
fn a_kernel_that_faults_is_reported() {
    scenario("fault", "driver", &[("FAKE_CUDA_FAULT", "3")]);
}
