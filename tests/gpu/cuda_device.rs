//! The list of cases on a real NVIDIA GPU, by way of the CUDA device. `scripts/gpu_run.sh` runs them on a machine that has
//! one, the small ones under compute-sanitizer.

use supernet::Result;
use supernet::device::cuda::Cuda;
use supernet::device::paged::Backend;
use supernet::device::source::PRODUCTS;
use supernet::device::{Precision, Starting};
use supernet::ops::launch::Launch;

use super::harness::{Machine, Page, Placed, Spread, folded, narrow};
use super::{cases, missing};

/// Elements of a case that a sanitizer can bear.
const SMALL: usize = 40_000;

/// A device as a machine: memory comes and goes with each case.
pub struct Device(Cuda);

impl Device {
    pub fn open(capture: bool) -> Result<Self> {
        Cuda::open(0, Starting { capture, ..Starting::default() }).map(Self)
    }

    fn run_once(&mut self, launches: &[Launch], pages: &mut [Page]) -> Result<()> {
        let Self(device) = self;
        device.release(0);
        device.allocate(&pages.iter().map(|page| page.values().len()).collect::<Vec<_>>())?;
        for (number, page) in (0..).zip(&*pages) {
            device.write(number, 0, page.values())?;
        }
        let recording = device.record("a case", launches)?;
        device.replay(&recording)?;
        (0..).zip(pages).try_for_each(|(number, page)| device.read(number, 0, page.values_mut()))
    }
}

/// Whether a case multiplies matrices.
fn has_products(launches: &[Launch]) -> bool {
    launches.iter().any(|l| PRODUCTS.contains(&l.source))
}

impl Machine for Device {
    fn run(&mut self, launches: &[Launch], pages: &mut [Page]) -> std::result::Result<(), String> {
        self.run_once(launches, pages).map_err(|error| error.to_string())
    }
}

/// Runs every `step`th case of at most so many elements: as lowered, folded, narrow; returns their number.
pub fn check_cases(device: &mut Device, step: usize, most: usize) -> usize {
    let elements = |case: &super::harness::Case| case.values.iter().map(Vec::len).sum::<usize>();
    let cases: Vec<_> = cases::all().into_iter().filter(|case| elements(case) <= most).step_by(step).collect();
    for case in &cases {
        for spread in [Spread::One, Spread::Each] {
            let placed = Placed::new(case, spread);
            let launches = placed.launches();
            let bits = placed.check(device, &launches);
            assert!(placed.check(device, &launches) == bits, "{}: two runs differ", case.name);
            assert!(placed.check(device, &folded(&launches)) == bits, "{}: the grid's shape shows", case.name);
            if spread == Spread::One {
                placed.check(device, &narrow(&launches));
            }
            // The same on tensor cores, if the device has them; with maps in halves, too.
            for precision in [Precision::Tf32, Precision::Bf16] {
                let placed = Placed::stored(case, spread, precision);
                if !has_products(&launches) || precision.has_halves() && !placed.has_halves() {
                    continue;
                }
                device.0.set_precision(precision);
                let launches = placed.launches();
                let bits = placed.check(device, &launches);
                assert!(placed.check(device, &launches) == bits, "{}: two runs differ in {precision}", case.name);
                placed.check(device, &narrow(&launches));
                device.0.set_precision(Precision::F32);
            }
        }
    }
    cases.len()
}

fn open() -> Option<Device> {
    match Device::open(true) {
        Ok(device) => {
            println!("running on {}", device.0.name());
            Some(device)
        }
        Err(why) => {
            missing("a CUDA device", "SUPERNET_REQUIRE_CUDA", &why.to_string());
            None
        }
    }
}

#[test]
fn kernels_agree_with_the_reference() {
    let Some(mut device) = open() else { return };
    println!("{} cases", check_cases(&mut device, 1, usize::MAX));
}

/// For compute-sanitizer, which slows every access down; with `SUPERNET_EVERY=n` only every n-th case.
#[test]
fn small_kernels_agree_with_the_reference() {
    let Some(mut device) = open() else { return };
    let every = std::env::var("SUPERNET_EVERY").map_or(1, |n| n.parse().expect("SUPERNET_EVERY is a number"));
    println!("{} small cases", check_cases(&mut device, every, SMALL));
}
