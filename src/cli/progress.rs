//! Progress on standard error: a bar over the whole run on a terminal, one line an epoch everywhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use supernet::run::Observer;

use super::output::duration;

const TEMPLATE: &str = "{prefix} {wide_bar} epoch {msg}, step {pos}/{len}, {elapsed} elapsed, ETA {eta}";

/// Watches a search or a training.
pub struct Progress {
    /// From the beginning of the run, on a terminal.
    bar: Option<ProgressBar>,
    run: Run,
}

/// Where the run is.
struct Run {
    epochs: usize,
    steps_per_epoch: usize,
    /// Steps that were done before this process.
    before: Option<usize>,
    done: usize,
    start: Instant,
}

impl Progress {
    /// Nothing is shown before the run begins or says something.
    pub fn new() -> Self {
        let run = Run { epochs: 0, steps_per_epoch: 0, before: None, done: 0, start: Instant::now() };
        Self { bar: None, run }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprint_line(text)),
            None => eprint_line(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A closed standard error must not end the run.
fn eprint_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

impl Run {
    fn total(&self) -> usize {
        self.epochs * self.steps_per_epoch
    }

    /// Seconds that are left at the pace of this process.
    fn eta(&self) -> Option<f64> {
        let own = self.done.checked_sub(self.before?).filter(|&own| own > 0)?;
        Some(self.start.elapsed().as_secs_f64() / own as f64 * (self.total() - self.done.min(self.total())) as f64)
    }
}

impl Observer for Progress {
    fn begin(&mut self, what: &str, epochs: usize, steps_per_epoch: usize, first_epoch: usize) {
        let done = first_epoch * steps_per_epoch;
        self.run = Run { epochs, steps_per_epoch, before: None, done, start: Instant::now() };
        let from = match first_epoch {
            0 => String::new(),
            _ if first_epoch >= epochs => ", all of them done before".into(),
            _ => format!(", continued in epoch {}", first_epoch + 1),
        };
        let of = if epochs == 1 { String::new() } else { format!("{epochs} epochs of ") };
        self.line(&format!("{what}: {of}{steps_per_epoch} steps{from}"));
        if std::io::stderr().is_terminal() {
            // Hidden until everything that it shows is set.
            let bar = ProgressBar::with_draw_target(Some(self.run.total() as u64), ProgressDrawTarget::hidden());
            bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what.to_string());
            bar.set_message(format!("{}/{epochs}", (first_epoch + 1).min(epochs)));
            bar.set_position(done as u64);
            bar.reset_eta();
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            bar.enable_steady_tick(Duration::from_millis(500));
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, epoch: usize, step: usize) {
        let run = &mut self.run;
        run.done = epoch * run.steps_per_epoch + step;
        // A run that is continued may start within an epoch.
        let first = run.before.is_none();
        run.before.get_or_insert(run.done.saturating_sub(1));
        if let Some(bar) = &self.bar {
            bar.set_position(run.done as u64);
            bar.set_message(format!("{}/{}", epoch + 1, run.epochs));
            if first {
                bar.reset_eta();
            }
        }
    }

    fn epoch(&mut self, record: &Value) {
        self.line(&epoch_line(record, self.run.epochs, self.run.eta()));
    }

    fn note(&mut self, text: &str) {
        self.line(&format!("note: {text}"));
    }
}

/// The line of one epoch, from the fields that its record has.
fn epoch_line(record: &Value, epochs: usize, eta: Option<f64>) -> String {
    let number = |key: &str| record[key].as_f64();
    let epoch = record["epoch"].as_u64().unwrap_or(0) + 1;
    let mut parts = vec![format!("epoch {epoch}/{epochs}")];
    for part in ["training", "validation", "test"] {
        let found = (number(&format!("{part}_loss")), number(&format!("{part}_accuracy")));
        if let (Some(loss), Some(accuracy)) = found {
            parts.push(format!("{part} loss {loss:.4} accuracy {:.2} %", 100.0 * accuracy));
        }
    }
    if let [normal, reduce] = record["alpha_entropy"].as_array().map_or(&[][..], Vec::as_slice) {
        let [normal, reduce] = [normal, reduce].map(|v| v.as_f64().unwrap_or(f64::NAN));
        parts.push(format!("alpha entropy {normal:.3} normal {reduce:.3} reduce"));
    }
    if let Some(share) = number("skip_share") {
        parts.push(format!("skips {:.0} %", 100.0 * share));
    }
    if let Some(rate) = number("learning_rate") {
        parts.push(format!("learning rate {rate:.5}"));
    }
    if let Some(speed) = number("images_per_second") {
        parts.push(format!("{speed:.0} images/s"));
    }
    if let Some(eta) = eta {
        parts.push(format!("ETA {}", duration(eta)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_show_what_the_record_has() {
        let record = json!({
            "epoch": 1, "training_loss": 1.5, "training_accuracy": 0.5, "validation_loss": 2.0,
            "validation_accuracy": 0.25, "alpha_entropy": [2.0794, 2.07], "skip_share": 0.125,
            "learning_rate": 0.025, "images_per_second": 1234.5,
        });
        assert_eq!(
            epoch_line(&record, 10, Some(75.0)),
            "epoch 2/10, training loss 1.5000 accuracy 50.00 %, validation loss 2.0000 accuracy 25.00 %, alpha entropy \
             2.079 normal 2.070 reduce, skips 12 %, learning rate 0.02500, 1234 images/s, ETA 1 min 15 s"
        );
        assert_eq!(epoch_line(&json!({"epoch": 0, "training_loss": null}), 1, None), "epoch 1/1");
    }
}
