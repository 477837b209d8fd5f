//! Whole steps with feature maps in halves: how far rounding leads them, and that wgpu follows. CUDA's kernels are in `merged`.

use supernet::device::precision::Precision;

use super::merged::{Check, Step};

/// How far a step may be led, relative in norm. In a gradient, a rectifier that flips shows as a whole, and statistics over
/// 16 to 256 values amplify: the networks of the tests are small.
const LIMITS: [(&str, [f64; 2]); 6] = [
    ("training sums", [1e-4, 1e-3]),
    ("validation sums", [1e-4, 1e-3]),
    ("running", [2e-4, 2e-3]),
    ("weights", [1e-3, 5e-3]),
    ("velocity", [0.06, 0.2]),
    ("alpha first moment", [0.06, 0.25]),
];

#[test]
fn rounding_leads_a_step_not_far() {
    let step = Step::new(8);
    for (kind, precision) in [Precision::F16, Precision::Bf16].into_iter().enumerate() {
        assert!(step.programs.iter().all(|program| precision.halves(program).len() > 20), "maps are stored in halves");
        let check = Check::new(&step, precision);
        for (name, limits) in LIMITS {
            let effect = check.effect(&step, name);
            println!("{precision}: {name} {effect:.1e}");
            assert!(effect > 0.0 && effect < limits[kind], "{precision}: {name} is led {effect:.1e} away");
        }
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn a_step_on_wgpu_in_f16() {
    use supernet::device::Device;

    for channels in [4, 6] {
        let step = Step::new(channels);
        let mut device = match Device::open(&"wgpu".parse().unwrap(), &step.layout, 1, Precision::F16) {
            Ok(device) => device,
            Err(why) => return super::missing("a Vulkan device", "SUPERNET_REQUIRE_WGPU", &why.to_string()),
        };
        for (state, values) in &step.values {
            device.write(*state, values).unwrap();
        }
        for program in &step.programs {
            let exe = device.prepare(program.clone()).unwrap();
            device.run(&exe).unwrap();
            assert!(device.find_non_finite(&exe).unwrap().is_none(), "halves are read as numbers");
        }
        let states: Vec<_> = step.layout.iter().map(|(_, state)| device.read(state).unwrap().into_owned()).collect();
        Check::new(&step, Precision::F16).check(&format!("wgpu, {channels} channels"), &step, &states);
    }
}
