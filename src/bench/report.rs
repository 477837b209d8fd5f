//! The one form of a result: what was measured, on which machine, under which ceilings, and what changed since an earlier
//! result; and tables for people.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::ceiling::Ceilings;
use super::compare::Change;
use super::kernels::KernelResult;
use super::measure::Times;
use crate::device::Precision;
use crate::machine::Machine;

/// A name and the times of what it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// How long it took.
    #[serde(flatten)]
    pub times: Times,
}

/// A whole result. `details` holds what only one kind of bench has, beside the other keys.
#[derive(Clone, Debug, Serialize)]
pub struct Report<Case, Details> {
    /// `kernels`, `step` or `loader`.
    pub bench: &'static str,
    /// Where and with what.
    pub machine: Machine,
    /// Whether samples were few and short: such figures are for a look, not for quoting.
    pub quick: bool,
    /// What was measured.
    pub cases: Vec<Case>,
    /// What changed since the result of `--compare`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Change>>,
    /// The rest.
    #[serde(flatten)]
    pub details: Details,
}

/// What only the kernels' result has.
#[derive(Clone, Debug, Serialize)]
pub struct KernelDetails {
    /// How maps are stored and matrices multiplied.
    pub precision: Precision,
    /// How matrices are multiplied, where that hangs on the precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<String>,
    /// Largest error relative to the reference.
    pub tolerance: f64,
    /// What the machine can do.
    pub ceilings: Ceilings,
    /// Names of the cases that disagree with the reference.
    pub failed: Vec<String>,
    /// What the device has no room for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// A case that the device cannot run.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Result of the kernels.
pub type KernelReport = Report<KernelResult, KernelDetails>;

/// Rows of text in aligned columns; the first column to the left, the others to the right.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with a header.
    pub fn new(header: &[&str]) -> Self {
        Self(vec![header.iter().map(ToString::to_string).collect()])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| self.0.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.0 {
            let mut line = String::new();
            for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let _ = if i == 0 { write!(line, "{cell:width$}") } else { write!(line, "  {cell:>width$}") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Milliseconds with as many digits as mean something.
pub fn milliseconds(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0} ms"),
        v if v >= 1.0 => format!("{v:.2} ms"),
        v => format!("{:.2} us", v * 1e3),
    }
}

/// The machine and its ceilings.
pub fn ceilings(machine: &Machine, c: &Ceilings) -> String {
    let copies = |list: &[super::ceiling::Bandwidth]| {
        let one = |b: &super::ceiling::Bandwidth| {
            let kib = b.bytes >> 10;
            let size = if kib < 1024 { format!("{kib} KiB") } else { format!("{} MiB", kib >> 10) };
            format!("{:.0} GB/s in {size}", b.gigabytes_per_second)
        };
        list.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let (line, threads, copy) = (machine.line(), machine.threads, copies(&c.copy));
    let (op, replay) = (c.op_nanoseconds, c.replay_nanoseconds * 1e-3);
    let both = match (c.gflops_one, c.gflops) {
        (Some(one), Some(all)) => format!(
            "multiply-adds  {one:.0} GFLOP/s on 1 thread, {all:.0} on {threads}\ncopy           1 thread: {}; {threads} \
             threads: {copy}",
            copies(&c.copy_one)
        ),
        _ => format!("multiply-adds  not measured: floors are those of the traffic alone\ncopy           {copy}"),
    };
    format!("{line}\n{both}\ndispatch       {op:.0} ns an op, {replay:.1} us a replay\n")
}

/// The result of the kernels as text.
pub fn kernels(report: &KernelReport) -> String {
    let mut table =
        Table::new(&["kernel", "median", "+-", "launches", "GFLOP/s", "GB/s", "flop/byte", "of the ceiling"]);
    for case in &report.cases {
        let Measured { name, times } = &case.measured;
        if case.passed {
            table.row(vec![
                name.clone(),
                milliseconds(times.milliseconds),
                format!("{:.1} %", 100.0 * times.spread()),
                case.launches.to_string(),
                format!("{:.1}", case.gflops),
                format!("{:.1}", case.gigabytes_per_second),
                format!("{:.1}", case.intensity),
                format!("{:.0} %", 100.0 * case.roofline_share),
            ]);
        } else {
            let off = format!("off by {:.1e}", case.parity_error);
            table.row(vec![name.clone(), "WRONG".into(), off, "not timed".into()]);
        }
    }
    let mut text = format!("{}\n{table}", ceilings(&report.machine, &report.details.ceilings));
    let KernelDetails { precision, tolerance, products, .. } = &report.details;
    if !precision.is_full() {
        let products = products.as_ref().map_or(String::new(), |products| format!(", products {products}"));
        let _ = writeln!(text, "\nprecision {precision}{products}; to agree is to be off by at most {tolerance:e}");
    }
    if report.details.failed.is_empty() {
        let _ = writeln!(text, "\nall {} agree with the f64 reference", report.cases.len());
    } else {
        let _ = writeln!(
            text,
            "\n{} of {} DISAGREE with the f64 reference",
            report.details.failed.len(),
            report.cases.len()
        );
    }
    for Skipped { name, reason } in &report.details.skipped {
        let _ = writeln!(text, "{name}: not on this device: {reason}");
    }
    text + &quick_note(report.quick) + &report.changes.as_deref().map(changes).unwrap_or_default()
}

/// A reminder under quick results.
pub fn quick_note(quick: bool) -> String {
    if quick { "quick: few and short samples, for a look only\n".into() } else { String::new() }
}

/// What changed, as text.
pub fn changes(changes: &[Change]) -> String {
    let mut table = Table::new(&["since then", "before", "now", "speed-up", "verdict"]);
    for change in changes {
        table.row(vec![
            change.name.clone(),
            milliseconds(change.before.milliseconds),
            milliseconds(change.now.milliseconds),
            format!("{:.2}x", change.speed_up),
            change.verdict.to_string(),
        ]);
    }
    let real = changes.iter().filter(|c| c.verdict.is_real()).count();
    format!("\n{table}{real} of {} changed by more than the noise of both\n", changes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["a", "number"]);
        table.row(vec!["longer".into(), "1".into()]);
        table.row(vec!["b".into()]);
        assert_eq!(table.to_string(), "a       number\nlonger       1\nb\n");
    }

    #[test]
    fn times_read_well() {
        assert_eq!(milliseconds(2231.4), "2231 ms");
        assert_eq!(milliseconds(2.345), "2.35 ms");
        assert_eq!(milliseconds(0.0123), "12.30 us");
    }
}
