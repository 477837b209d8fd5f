//! Gradients of every case against central differences in f64 on the reference device.
//!
//! Each variable is checked along a random direction over all its elements and at some elements one by one, with the
//! case's own ops writing its gradient first and with them adding to it.

use supernet::device::reference::Reference;
use supernet::graph::{Program, State, Tensor};

use super::cases::{Built, CASES, Case, Draw, draw};

const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-6;
/// Elements checked one by one in each variable.
const ELEMENTS: usize = 12;

fn loss_at(device: &mut Reference<f64>, program: &Program, loss: Tensor, state: State, values: &[f64]) -> f64 {
    device.state_mut(state).copy_from_slice(values);
    device.run(program);
    device.read(program, loss)[0]
}

/// Derivative of the loss along `direction` in one state.
fn slope(built: &Built, program: &Program, device: &mut Reference<f64>, state: State, direction: &[f64]) -> f64 {
    let loss = built.loss.expect("there are variables");
    let start = device.state(state).to_vec();
    let moved = |by: f64| -> Vec<f64> { start.iter().zip(direction).map(|(x, d)| x + by * d).collect() };
    let above = loss_at(device, program, loss, state, &moved(STEP));
    let below = loss_at(device, program, loss, state, &moved(-STEP));
    device.state_mut(state).copy_from_slice(&start);
    (above - below) / (2.0 * STEP)
}

fn check(case: &Case, late: bool, failures: &mut Vec<String>) -> usize {
    let built = case.build(late);
    let (program, Some(forward)) = (built.program(), built.loss_program()) else { return 0 };
    let mut device = built.reference::<f64>();
    device.run(&program);
    let gradients: Vec<Vec<f64>> = built.gradients.iter().map(|&g| device.read(&program, g)).collect();
    let mut checked = 0;
    for (number, (variable, gradient)) in built.variables.iter().zip(&gradients).enumerate() {
        if !gradient.iter().all(|g| g.is_finite()) {
            failures.push(format!("case `{}` (late {late}), variable {number}: gradient is not finite", case.name));
        }
        if !variable.smooth {
            continue;
        }
        let n = gradient.len();
        let scale = gradient.iter().fold(0.01, |a: f64, g| a.max(g.abs()));
        let mut compare = |what: String, slope: f64, expected: f64, scale: f64| {
            checked += 1;
            let agrees = (slope - expected).abs() <= TOLERANCE * scale;
            if !agrees {
                failures.push(format!(
                    "case `{}` (late {late}), variable {number} {}, {what}: gradient {expected}, finite difference {slope}",
                    case.name, variable.state.shape
                ));
            }
        };
        let direction = draw(number as u64, 1, n, Draw::Normal(1.0 / (n as f64).sqrt()));
        let along: f64 = direction.iter().zip(gradient).map(|(d, g)| d * g).sum();
        let found = slope(&built, &forward, &mut device, variable.state, &direction);
        compare("along a direction".into(), found, along, scale);
        let picks = draw(number as u64, 2, ELEMENTS, Draw::Below(n));
        let mut picks: Vec<usize> =
            if n <= ELEMENTS { (0..n).collect() } else { picks.iter().map(|&p| p as usize).collect() };
        picks.dedup();
        for i in picks {
            let mut unit = vec![0.0; n];
            unit[i] = 1.0;
            let found = slope(&built, &forward, &mut device, variable.state, &unit);
            compare(format!("element {i}"), found, gradient[i], scale);
        }
    }
    checked
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (mut failures, mut checked) = (Vec::new(), 0);
    for case in CASES.iter() {
        for late in [false, true] {
            checked += check(case, late, &mut failures);
        }
    }
    assert!(failures.is_empty(), "{} of {checked}:\n{}", failures.len(), failures.join("\n"));
    assert!(checked > 3000, "only {checked} derivatives were checked");
}
