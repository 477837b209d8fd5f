//! Learning-rate schedules. Rates change once an epoch.

/// Cosine annealing from `first` to `last` over `epochs` epochs, at the start of `epoch`:
/// `last + (first - last) (1 + cos(pi epoch / epochs)) / 2`.
pub fn cosine(first: f64, last: f64, epoch: usize, epochs: usize) -> f64 {
    let phase = std::f64::consts::PI * epoch as f64 / epochs.max(1) as f64;
    last + 0.5 * (first - last) * (1.0 + phase.cos())
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn matches_the_logs_of_the_published_code() {
        assert_eq!(format!("{:.6e}", cosine(0.025, 0.001, 49, 50)), "1.023679e-3");
        assert_eq!(format!("{:.6e}", cosine(0.025, 0.0, 410, 600)), "5.692012e-3");
        assert_eq!(cosine(0.025, 0.001, 0, 50), 0.025);
    }
}
