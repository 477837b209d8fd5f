//! The few statistics of a comparison.

use serde::{Deserialize, Serialize};

/// Mean and spread of a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many numbers.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (n - 1); 0 for one number.
    pub deviation: f64,
    /// 95 % interval of the mean by Student's t; None for one number.
    pub interval: Option<[f64; 2]>,
}

/// The 97.5 % point of Student's t by degrees of freedom, from 1.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// That point beyond the table by the first term of its expansion around the normal distribution's.
fn t_quantile(freedom: usize) -> f64 {
    let z: f64 = 1.959964;
    T.get(freedom - 1).copied().unwrap_or(z + (z.powi(3) + z) / (4.0 * freedom as f64))
}

/// Mean of numbers; NaN without any.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean, deviation and interval; None without numbers.
pub fn summary(values: &[f64]) -> Option<Summary> {
    let (count, mean) = (values.len(), mean(values));
    if count == 0 {
        return None;
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let deviation = if count == 1 { 0.0 } else { (squares / (count - 1) as f64).sqrt() };
    let half = (count > 1).then(|| t_quantile(count - 1) * deviation / (count as f64).sqrt());
    Some(Summary { count, mean, deviation, interval: half.map(|half| [mean - half, mean + half]) })
}

/// Mean of each value with the `window - 1` before it, of fewer where there are not so many.
pub fn smoothed(series: &[f64], window: usize) -> Vec<f64> {
    (0..series.len()).map(|i| mean(&series[(i + 1).saturating_sub(window)..=i])).collect()
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: f64| values.iter().filter(|&&w| w < v).count() as f64;
    let equal = |v: f64| values.iter().filter(|&&w| w == v).count() as f64;
    values.iter().map(|&v| below(v) + (equal(v) + 1.0) / 2.0).collect()
}

/// Spearman's rank correlation; None if a side does not vary.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let product =
        |x: &[f64], mx: f64, y: &[f64], my: f64| -> f64 { x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum() };
    let norm = (product(&a, mean_a, &a, mean_a) * product(&b, mean_b, &b, mean_b)).sqrt();
    (norm > 0.0).then(|| product(&a, mean_a, &b, mean_b) / norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_by_hand() {
        // Mean 2, deviation 1, t of 2 degrees 4.303: half width 4.303 / sqrt(3).
        let s = summary(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((s.count, s.mean, s.deviation), (3, 2.0, 1.0));
        assert!((s.interval.unwrap()[1] - 2.0 - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(summary(&[5.0]).unwrap().interval, None);
        assert!(summary(&[]).is_none());
        // Tabulated: 2.021 at 40 degrees, 1.984 at 100.
        assert!((t_quantile(40) - 2.021).abs() < 2e-3 && (t_quantile(100) - 1.984).abs() < 1e-3);
    }

    #[test]
    fn a_rank_correlation_with_ties_by_hand() {
        assert_eq!(rank_correlation(&[1.0, 2.0, 9.0], &[30.0, 20.0, 10.0]), Some(-1.0));
        // Ranks (1, 2.5, 2.5) and (1, 2, 3): 1.5 / sqrt(1.5 * 2).
        let r = rank_correlation(&[1.0, 4.0, 4.0], &[1.0, 2.0, 3.0]).unwrap();
        assert!((r - 1.5 / 3f64.sqrt()).abs() < 1e-12, "{r}");
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn a_window_is_shorter_at_the_start() {
        assert_eq!(smoothed(&[1.0, 3.0, 5.0, 7.0], 3), [1.0, 2.0, 3.0, 5.0]);
    }
}
