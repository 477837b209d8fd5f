//! Progress on standard error: a bar with ETA on a terminal, one line an epoch everywhere; and Ctrl-C.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use supernet::run::Observer;
use supernet::{Error, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// Makes the first Ctrl-C (or SIGTERM) raise the flag that is returned, and the second end the process at once.
pub fn stop_flag() -> Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; once more to stop at once, without a checkpoint");
    })
    .map_err(|e| Error::usage(format!("cannot watch for Ctrl-C: {e}")))?;
    Ok(&STOP)
}

/// Shows a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    epochs: usize,
    first: usize,
    start: Instant,
}

impl Progress {
    /// Nothing is shown until the run begins.
    pub fn new() -> Self {
        Self { bar: None, epochs: 0, first: 0, start: Instant::now() }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Observer for Progress {
    fn begin(&mut self, what: &str, epochs: usize, steps_per_epoch: usize, first_epoch: usize) {
        (self.epochs, self.first, self.start) = (epochs, first_epoch, Instant::now());
        self.line(&format!("{what}: {epochs} epochs of {steps_per_epoch} steps, from epoch {first_epoch}"));
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new((epochs * steps_per_epoch) as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} step {pos}/{len}, {elapsed} so far, {eta} to go")
            {
                bar.set_style(style);
            }
            bar.set_position((first_epoch * steps_per_epoch) as u64);
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, _epoch: usize, _step: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    fn epoch(&mut self, record: &Value) {
        let number = |key: &str| record[key].as_f64();
        let mut text = format!("epoch {}/{}", record["epoch"].as_u64().unwrap_or_default() + 1, self.epochs);
        for part in ["training", "validation", "test"] {
            let loss = number(&format!("{part}_loss"));
            if let (Some(loss), Some(accuracy)) = (loss, number(&format!("{part}_accuracy"))) {
                text += &format!("  {part} {loss:.4} / {:.2} %", 100.0 * accuracy);
            }
        }
        if let (Some(normal), Some(skips)) = (record["alpha_entropy"][0].as_f64(), number("skip_share")) {
            text += &format!("  entropy {normal:.3}  skips {:.0} %", 100.0 * skips);
        }
        let rate = number("learning_rate").unwrap_or_default();
        let speed = number("images_per_second").unwrap_or_default();
        let done = record["epoch"].as_u64().unwrap_or_default() as usize + 1;
        let each = self.start.elapsed().as_secs_f64() / (done - self.first).max(1) as f64;
        let left = each * (self.epochs - done) as f64;
        text += &format!("  rate {rate:.5}  {speed:.0} images/s  {left:.0} s to go");
        self.line(&text);
    }

    fn note(&mut self, text: &str) {
        self.line(&format!("note: {text}"));
    }
}
