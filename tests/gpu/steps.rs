//! Whole steps on a GPU behind the same checks as on the processor: search steps of first and second order and a training
//! step with its auxiliary head, against PyTorch's values in f64.

use supernet::device::{Device, Executable};
use supernet::graph::{Program, State, StoreLayout, Tensor};

use crate::torch::{Engine, Small, check_derived, check_first_order, check_second_order};

/// A device with the programs that it has prepared.
pub struct Gpu {
    pub device: Device,
    prepared: Vec<(String, usize, Executable)>,
}

impl Gpu {
    pub fn new(device: Device) -> Self {
        Self { device, prepared: Vec::new() }
    }

    /// Programs are told apart by name and number of ops; each is prepared once.
    fn executable(&mut self, program: &Program) -> Executable {
        let key = |p: &(String, usize, Executable)| p.0 == program.name && p.1 == program.nodes().len();
        if let Some(found) = self.prepared.iter().find(|p| key(p)) {
            return found.2.clone();
        }
        let exe = self.device.prepare(program.clone()).unwrap();
        self.prepared.push((program.name.clone(), program.nodes().len(), exe.clone()));
        exe
    }
}

impl Engine for Gpu {
    fn set(&mut self, state: State, values: &[f64]) {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        self.device.write(state, &values).unwrap();
    }

    fn get(&mut self, state: State) -> Vec<f64> {
        self.device.read(state).unwrap().iter().map(|&v| f64::from(v)).collect()
    }

    fn run(&mut self, program: &Program) {
        let exe = self.executable(program);
        self.device.run(&exe).unwrap();
    }

    fn read(&mut self, program: &Program, tensor: Tensor) -> Vec<f64> {
        let exe = self.executable(program);
        self.device.read_tensor(&exe, tensor).unwrap().iter().map(|&v| f64::from(v)).collect()
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use super::*;
    use crate::gpu::missing;

    /// The fastest adapter; says loudly where there is none.
    fn open(layout: &StoreLayout) -> Option<Gpu> {
        match Device::open(&"wgpu".parse().unwrap(), layout, 1) {
            Ok(device) => {
                println!("running on {}", device.name());
                Some(Gpu::new(device))
            }
            Err(why) => {
                missing("a Vulkan device", "SUPERNET_REQUIRE_WGPU", &why.to_string());
                None
            }
        }
    }

    #[test]
    fn first_order_step() {
        let Some(mut gpu) = open(&Small::new().layout) else { return };
        check_first_order(&mut gpu, 1e-3);
    }

    #[test]
    fn second_order_step() {
        let Some(mut gpu) = open(&Small::new().layout) else { return };
        check_second_order(&mut gpu, 1e-3, false);
    }

    #[test]
    fn derived_network() {
        if open(&StoreLayout::new()).is_none() {
            return;
        }
        check_derived(&mut |layout| Box::new(open(layout).unwrap()), 1e-3);
    }
}
