//! The list of cases on a real NVIDIA GPU, by way of the CUDA device. `scripts/gpu_run.sh` runs them on a machine that has
//! one, the small ones under compute-sanitizer.

use supernet::Result;
use supernet::device::cuda::Cuda;
use supernet::device::paged::Backend;
use supernet::ops::launch::Launch;

use super::harness::{Machine, Page, Placed, Spread, folded, narrow};
use super::{cases, missing};

/// Elements of a case that a sanitizer can bear.
const SMALL: usize = 40_000;

/// A device as a machine: memory comes and goes with each case.
pub struct Device(Cuda);

impl Device {
    pub fn open(capture: bool) -> Result<Self> {
        Cuda::open(0, capture).map(Self)
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

/// For compute-sanitizer, which slows every access down.
#[test]
fn small_kernels_agree_with_the_reference() {
    let Some(mut device) = open() else { return };
    println!("{} small cases", check_cases(&mut device, 1, SMALL));
}
