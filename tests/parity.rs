//! Every case on every device present, against the reference in f64, with outputs poisoned with NaN beforehand.
//!
//! To add a device: give [`devices`] a name and a closure that runs a case, and [`PROMISED`] the name if it must be
//! there on every machine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use supernet::cpu::micro::Level;

use supernet::device::cpu::Cpu;
use supernet::device::reference::Reference;
use supernet::ops::Real;

use super::cases::{Built, CASES, Case};

/// Devices without which the suite fails.
const PROMISED: &[&str] = &["reference f32", "cpu Portable, 1 thread", "cpu Portable, 2 threads"];

/// Results of one case: outputs and gradients, then the watched states.
type Outcome = Vec<Vec<f64>>;

/// Something that runs cases.
struct Device {
    name: String,
    run: Box<dyn Fn(&Built) -> Outcome>,
    /// Name of a device whose bits this one must give.
    same_bits_as: Option<String>,
}

fn reference<T: Real>(built: &Built) -> Outcome {
    let program = built.program();
    let mut device: Reference<T> = built.reference();
    device.run(&program);
    let wide = |values: &[T]| values.iter().map(|v| v.wide()).collect();
    let mut outcome: Outcome = built.results().into_iter().map(|t| wide(&device.read(&program, t))).collect();
    outcome.extend(built.watched.iter().map(|&s| wide(device.state(s))));
    outcome
}

fn cpu(built: &Built, level: Level, threads: usize) -> Outcome {
    let mut device = Cpu::with_level(&built.layout, threads, level).expect("the level is available");
    let exe = device.prepare(built.program()).expect("a case is small");
    let mut last = None;
    // A replay finds the remains of the one before and must not see them.
    for _ in 0..2 {
        for (state, values) in &built.values {
            for (slot, &value) in device.state_mut(*state).iter_mut().zip(values) {
                *slot = value as f32;
            }
        }
        if last.is_none() {
            device.poison();
        }
        device.run(&exe);
        let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect();
        let mut outcome: Outcome = built.results().into_iter().map(|t| wide(&device.read(&exe, t))).collect();
        outcome.extend(built.watched.iter().map(|&s| wide(device.state(s))));
        if let Some(last) = &last {
            assert!(bits(last) == bits(&outcome), "a second replay gives other bits");
        }
        last = Some(outcome);
    }
    last.expect("two replays")
}

fn devices() -> Vec<Device> {
    let mut devices =
        vec![Device { name: "reference f32".into(), run: Box::new(reference::<f32>), same_bits_as: None }];
    for level in Level::available() {
        let name = |threads: usize| format!("cpu {level:?}, {threads} thread{}", if threads == 1 { "" } else { "s" });
        for threads in [1, 2] {
            devices.push(Device {
                name: name(threads),
                run: Box::new(move |built| cpu(built, level, threads)),
                same_bits_as: (threads > 1).then(|| name(1)),
            });
        }
    }
    devices
}

fn bits(outcome: &Outcome) -> Vec<Vec<u64>> {
    outcome.iter().map(|t| t.iter().map(|v| v.to_bits()).collect()).collect()
}

/// What is wrong with a device's outcome, tensor by tensor.
fn differences(case: &Case, found: &Outcome, expected: &Outcome) -> Vec<String> {
    let mut wrong = Vec::new();
    assert_eq!(found.len(), expected.len());
    for (number, (a, b)) in found.iter().zip(expected).enumerate() {
        assert_eq!(a.len(), b.len());
        let odd = a.iter().zip(b).position(|(x, y)| x.is_finite() != y.is_finite());
        if let Some(i) = odd {
            wrong.push(format!("result {number}, element {i}: {} instead of {}", a[i], b[i]));
            continue;
        }
        let finite = || a.iter().zip(b).filter(|(x, _)| x.is_finite());
        let norm = finite().map(|(_, y)| y * y).sum::<f64>().sqrt();
        let distance = finite().map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        // What should be zero but for rounding has no norm to measure by.
        let scale = norm.max(1e-2 * (b.len() as f64).sqrt());
        if distance.is_nan() || distance > case.tolerance * scale {
            wrong.push(format!("result {number}: relative error {:.2e}", distance / scale));
        }
    }
    wrong
}

/// Runs the table on some devices; returns how many cases each ran, and what went wrong.
fn run(devices: &[Device]) -> (Vec<usize>, Vec<String>) {
    let (mut counts, mut failures) = (vec![0; devices.len()], Vec::new());
    for case in CASES.iter() {
        for late in [false, true] {
            let built = case.build(late);
            let expected = reference::<f64>(&built);
            let mut outcomes: Vec<(&str, Outcome)> = Vec::new();
            for (device, count) in devices.iter().zip(&mut counts) {
                let Ok(found) = catch_unwind(AssertUnwindSafe(|| (device.run)(&built))) else {
                    failures.push(format!("`{}` on {}: panics", case.name, device.name));
                    continue;
                };
                for difference in differences(case, &found, &expected) {
                    failures.push(format!("`{}` on {}: {difference}", case.name, device.name));
                }
                if let Some(other) = &device.same_bits_as
                    && outcomes.iter().all(|o| o.0 != other || bits(&o.1) != bits(&found))
                {
                    failures.push(format!("`{}`: {other} and {} give different bits", case.name, device.name));
                }
                *count += found.len();
                outcomes.push((&device.name, found));
            }
        }
    }
    (counts, failures)
}

#[test]
fn every_device_agrees_with_the_reference() {
    let devices = devices();
    let (counts, failures) = run(&devices);
    for promised in PROMISED {
        let place = devices.iter().position(|d| d.name == *promised);
        assert!(place.is_some_and(|i| counts[i] > 0), "promised device `{promised}` ran no case");
    }
    for (device, &count) in devices.iter().zip(&counts) {
        assert!(count >= CASES.len(), "`{}` compared {count} results of {} cases", device.name, CASES.len());
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_runner_notices_wrong_devices() {
    let spoiled = |name: &str, spoil: fn(&mut Outcome)| Device {
        name: name.into(),
        run: Box::new(move |built| {
            let mut outcome = reference::<f64>(built);
            spoil(&mut outcome);
            outcome
        }),
        same_bits_as: Some("sound".into()),
    };
    let sound = Device { name: "sound".into(), run: Box::new(reference::<f64>), same_bits_as: None };
    let wrong = [
        sound,
        spoiled("nothing written", |o| o.last_mut().expect("has results").fill(f64::NAN)),
        spoiled("off by a little", |o| {
            o.last_mut().expect("has results").iter_mut().for_each(|v| *v += 1e-3 + 1e-3 * v.abs())
        }),
        spoiled("other bits", |o| o.last_mut().expect("has results").iter_mut().for_each(|v| *v *= 1.0 + 1e-15)),
    ];
    let (_, failures) = run(&wrong);
    let of = |name: &str, text: &str| failures.iter().filter(|f| f.contains(name) && f.contains(text)).count();
    assert_eq!(failures.iter().filter(|f| f.contains("on sound")).count(), 0);
    assert!(of("on nothing written", "NaN instead of") >= 2 * CASES.len() - 2);
    assert!(of("on off by a little", "relative error") >= 2 * CASES.len() - 20, "{}", of("on off by a little", ""));
    assert!(of("other bits", "different bits") >= CASES.len());
}
