//! A kernel that computes something else is not worth timing: every case runs on the device with poisoned memory and on
//! the reference in f64, at a batch that the reference can bear.

use super::cases::Case;
use super::gpu::drawn;
use super::recorder::Built;
use crate::device::cpu::Cpu;
use crate::device::reference::Reference;
use crate::device::{Device, DeviceSpec, Precision};
use crate::error::Result;

/// Images of a parity run at most. Batches are cut into tasks by image, so three take the same paths as many, an odd one
/// included.
pub const BATCH: usize = 3;

/// Largest error of an f32 kernel, relative to the norm of what it writes. Sums over some ten thousand pixels stay far
/// below it, a wrong tap or a missing row far above.
pub const TOLERANCE: f64 = 2e-4;

/// The same in a precision. The reference rounds the maps that the device rounds, so that what is left are roundings to the
/// neighbour, by the last bit of f32 or of products in tf32, of which both factors are rounded by up to 2^-11.
pub const fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => TOLERANCE,
        Precision::F16 | Precision::Tf32 => 1e-3,
        Precision::Bf16 => 4e-3,
    }
}

/// What a parity run found.
#[derive(Clone, Debug, PartialEq)]
pub struct Parity {
    /// Images that both ran.
    pub batch: usize,
    /// Largest relative error of a result; infinite if one is not finite where the reference is.
    pub error: f64,
}

/// Runs a case on the device and on the reference.
///
/// # Errors
/// [`crate::Error::Shape`] if it cannot be recorded, [`crate::Error::Memory`] if it does not fit, [`crate::Error::Usage`] if
/// the device is missing or has no kernel for an op, [`crate::Error::Device`] if it fails.
pub fn check(case: &Case, (spec, threads): (DeviceSpec, usize), precision: Precision) -> Result<Parity> {
    let batch = case.batch.min(BATCH);
    let built = case.build(batch, precision)?;
    let expected = reference(&built, precision);
    let found = if spec.is_cpu() { processor(&built, threads)? } else { gpu(&built, spec, precision)? };
    let error = found.iter().zip(&expected).map(|(a, b)| distance(a, b)).fold(0.0, f64::max);
    Ok(Parity { batch, error })
}

/// Distance of two tensors relative to the norm of the second, in the Euclidean norm. What should be zero but for
/// rounding has no norm to measure by and counts as one of a hundredth an element.
pub fn distance(found: &[f64], expected: &[f64]) -> f64 {
    let odd = |(a, b): (&f64, &f64)| a.is_finite() != b.is_finite();
    if found.len() != expected.len() || found.iter().zip(expected).any(odd) {
        return f64::INFINITY;
    }
    let finite = || found.iter().zip(expected).filter(|(_, b)| b.is_finite());
    let norm = finite().map(|(_, b)| b * b).sum::<f64>().sqrt();
    let off = finite().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    off / norm.max(1e-2 * (expected.len() as f64).sqrt()).max(f64::MIN_POSITIVE)
}

fn reference(built: &Built, precision: Precision) -> Vec<Vec<f64>> {
    let mut device: Reference<f64> = Reference::new(&built.layout);
    built.draw(|state, i, value| device.state_mut(state)[i] = value.into());
    device.run_in(&built.program, precision);
    built.results.iter().map(|&t| device.read(&built.program, t)).collect()
}

fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

fn processor(built: &Built, threads: usize) -> Result<Vec<Vec<f64>>> {
    let mut cpu = Cpu::new(&built.layout, threads)?;
    let exe = cpu.prepare(built.program.clone())?;
    built.draw(|state, i, value| cpu.state_mut(state)[i] = value);
    cpu.poison();
    cpu.run(&exe);
    Ok(built.results.iter().map(|&t| wide(cpu.read(&exe, t))).collect())
}

fn gpu(built: &Built, spec: DeviceSpec, precision: Precision) -> Result<Vec<Vec<f64>>> {
    let mut device = Device::open(&spec, &built.layout, 1, precision)?;
    let exe = device.prepare(built.program.clone())?;
    for (state, values) in drawn(built) {
        device.write(state, &values)?;
    }
    device.run(&exe)?;
    built.results.iter().map(|&t| device.read_tensor(&exe, t).map(wide)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_notice_what_is_wrong() {
        let expected: Vec<f64> = (0..100).map(|i| f64::from(i) * 0.1 - 5.0).collect();
        assert_eq!(distance(&expected, &expected), 0.0);
        let mut poisoned = expected.clone();
        poisoned[99] = f64::NAN;
        assert_eq!(distance(&poisoned, &expected), f64::INFINITY);
        assert_eq!(distance(&expected[1..], &expected), f64::INFINITY);
        let mut one_off = expected.clone();
        one_off[50] += 0.1;
        assert!(distance(&one_off, &expected) > TOLERANCE);
        let rounded: Vec<f64> = expected.iter().map(|&v| v * (1.0 + 1e-6)).collect();
        assert!(distance(&rounded, &expected) < TOLERANCE);
        assert!(distance(&[1e-9; 4], &[0.0; 4]) < TOLERANCE, "rounding around zero");
        assert_eq!(distance(&[1.0, f64::NAN], &[1.0, f64::NAN]), 0.0, "both not finite");
    }
}
