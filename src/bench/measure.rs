//! Sampling and robust statistics: medians and quartiles, because the noise of a machine is one-sided and has outliers;
//! and the exponent of a power law.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Samples at least.
    pub samples_min: usize,
    /// Samples at most.
    pub samples_max: usize,
    /// Stops between the two bounds when this much time has gone into samples.
    pub budget: Duration,
    /// A sample repeats what is measured until it lasts this long.
    pub sample: Duration,
}

impl Effort {
    /// For figures that are quoted.
    pub const FULL: Self = Self {
        samples_min: 9,
        samples_max: 60,
        budget: Duration::from_millis(400),
        sample: Duration::from_micros(400),
    };

    /// For a first look, and for tests.
    pub const QUICK: Self =
        Self { samples_min: 3, samples_max: 5, budget: Duration::from_millis(15), sample: Duration::from_micros(100) };

    /// One of the two.
    pub const fn new(quick: bool) -> Self {
        if quick { Self::QUICK } else { Self::FULL }
    }
}

/// Times of one thing, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Median.
    pub milliseconds: f64,
    /// Lower quartile.
    pub milliseconds_low: f64,
    /// Upper quartile.
    pub milliseconds_high: f64,
    /// Fastest.
    pub milliseconds_min: f64,
    /// Samples.
    pub samples: usize,
}

impl Times {
    /// Summary of samples in seconds; all zero for none.
    pub fn of(seconds: &[f64]) -> Self {
        let mut sorted: Vec<f64> = seconds.iter().map(|s| s * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        Self {
            milliseconds: quantile(&sorted, 0.5),
            milliseconds_low: quantile(&sorted, 0.25),
            milliseconds_high: quantile(&sorted, 0.75),
            milliseconds_min: sorted.first().copied().unwrap_or(0.0),
            samples: sorted.len(),
        }
    }

    /// Half the distance of the quartiles, relative to the median: the noise of the measurement.
    pub fn spread(&self) -> f64 {
        (self.milliseconds_high - self.milliseconds_low) / 2.0 / self.milliseconds.max(f64::MIN_POSITIVE)
    }

    /// Median in seconds.
    pub fn seconds(&self) -> f64 {
        self.milliseconds * 1e-3
    }
}

/// Quantile of sorted values, linear between neighbours; 0 for none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(last);
    sorted[low] + part * (sorted[high] - sorted[low])
}

/// Samples `run(repeats)`, which does its work so many times and nothing else. The first call warms up and says how many
/// repeats make a sample.
pub fn sample(effort: Effort, mut run: impl FnMut(usize)) -> Times {
    run(1);
    let start = Instant::now();
    run(1);
    let once = start.elapsed().as_secs_f64().max(1e-9);
    let repeats = (effort.sample.as_secs_f64() / once).ceil().clamp(1.0, 1e6) as usize;
    let (mut seconds, mut spent) = (Vec::new(), 0.0);
    while seconds.len() < effort.samples_min
        || (seconds.len() < effort.samples_max && spent < effort.budget.as_secs_f64())
    {
        let start = Instant::now();
        run(repeats);
        let sample = start.elapsed().as_secs_f64();
        spent += sample;
        seconds.push(sample / repeats as f64);
    }
    Times::of(&seconds)
}

/// The law `y = factor * x^exponent` that fits points best on logarithmic axes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PowerLaw {
    /// Exponent.
    pub exponent: f64,
    /// Value at x = 1.
    pub factor: f64,
    /// Share of the variance of log y that the law explains; 1 is a straight line.
    pub r_squared: f64,
}

impl PowerLaw {
    /// Least squares on the logarithms; None without two different positive x or with a value that has no logarithm.
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let logs: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x.ln(), y.ln())).collect();
        if logs.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
            return None;
        }
        let n = logs.len() as f64;
        let mean = |f: fn(&(f64, f64)) -> f64| logs.iter().map(f).sum::<f64>() / n;
        let (mx, my) = (mean(|p| p.0), mean(|p| p.1));
        let sum = |f: &dyn Fn(f64, f64) -> f64| logs.iter().map(|&(x, y)| f(x - mx, y - my)).sum::<f64>();
        let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
        if !(n >= 2.0 && xx > 0.0) {
            return None;
        }
        let exponent = xy / xx;
        let rest = sum(&|x, y| (y - exponent * x).powi(2));
        let r_squared = if yy > 0.0 { 1.0 - rest / yy } else { 1.0 };
        Some(Self { exponent, factor: (my - exponent * mx).exp(), r_squared })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_odd_and_even_counts() {
        let times = Times::of(&[0.005, 0.001, 0.003, 0.002, 0.004]);
        assert_eq!((times.milliseconds, times.milliseconds_low, times.milliseconds_high), (3.0, 2.0, 4.0));
        assert_eq!((times.milliseconds_min, times.samples), (1.0, 5));
        assert!((times.spread() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert_eq!(Times::of(&[]), Times::default());
    }

    #[test]
    fn one_outlier_moves_no_median() {
        let mut seconds = vec![0.001; 20];
        seconds.push(10.0);
        assert_eq!(Times::of(&seconds).milliseconds, 1.0);
    }

    #[test]
    fn samples_repeat_and_stop() {
        let (mut calls, mut total) = (0, 0);
        let times = sample(Effort::QUICK, |repeats| {
            calls += 1;
            total += repeats;
        });
        assert_eq!(calls, 2 + times.samples);
        assert_eq!(times.samples, Effort::QUICK.samples_max, "what takes no time never spends the budget");
        assert!(total > calls, "short work is repeated within a sample");
        let slow = sample(Effort::QUICK, |_| std::thread::sleep(Duration::from_millis(20)));
        assert_eq!(slow.samples, Effort::QUICK.samples_min);
        assert!(slow.milliseconds >= 20.0);
    }

    #[test]
    fn exponents_of_exact_laws_and_of_noise() {
        let square: Vec<(f64, f64)> = [1.0, 2.0, 5.0, 9.0].map(|x| (x, 3.0 * x * x)).to_vec();
        let law = PowerLaw::fit(&square).unwrap();
        assert!((law.exponent - 2.0).abs() < 1e-12 && (law.factor - 3.0).abs() < 1e-12 && law.r_squared > 1.0 - 1e-12);
        let flat = PowerLaw::fit(&[(1.0, 4.0), (10.0, 4.0)]).unwrap();
        assert_eq!((flat.exponent, flat.r_squared), (0.0, 1.0));
        let noisy = PowerLaw::fit(&[(1.0, 1.0), (2.0, 2.4), (4.0, 3.5), (8.0, 8.8)]).unwrap();
        assert!((noisy.exponent - 1.0).abs() < 0.1 && noisy.r_squared < 1.0 && noisy.r_squared > 0.95);
        for bad in [&[(1.0, 1.0)][..], &[(2.0, 1.0), (2.0, 3.0)], &[(1.0, 0.0), (2.0, 1.0)], &[]] {
            assert_eq!(PowerLaw::fit(bad), None);
        }
    }
}
