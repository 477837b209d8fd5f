//! What commands print on standard output: one JSON object, or a report for people.

use std::io::Write;

use serde::Serialize;
use supernet::{Error, Result};

/// A report for people: labels and values, aligned.
#[derive(Default)]
pub struct Lines(Vec<(String, String)>);

impl Lines {
    /// Adds a line.
    pub fn add(mut self, label: impl Into<String>, value: impl ToString) -> Self {
        self.0.push((label.into(), value.to_string()));
        self
    }

    /// Adds a line if there is a value.
    pub fn add_some(self, label: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.add(label, value),
            None => self,
        }
    }
}

impl std::fmt::Display for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.0.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        self.0.iter().try_for_each(|(label, value)| writeln!(f, "{label:width$}  {value}"))
    }
}

/// Prints a report in the form that was asked for. A reader that closed the pipe is no failure.
pub fn print<R: Serialize>(json: bool, report: &R, lines: impl FnOnce(&R) -> Lines) -> Result<()> {
    print_text(json, report, |report| lines(report).to_string())
}

/// The same for a report for people that is more than lines.
pub fn print_text<R: Serialize>(json: bool, report: &R, text: impl FnOnce(&R) -> String) -> Result<()> {
    let text = if json {
        let object = serde_json::to_string(report).map_err(std::io::Error::from);
        object.map_err(Error::io("standard output", "encode the report for"))? + "\n"
    } else {
        text(report)
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output", "write to")(error))
        }
        _ => Ok(()),
    }
}

/// Bytes in MiB.
pub fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}

/// A share in percent.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A count in millions.
pub fn millions(count: f64) -> String {
    format!("{:.3} M", count / 1e6)
}

/// A time in seconds, minutes and hours.
pub fn duration(seconds: f64) -> String {
    if !(0.0..3.6e8).contains(&seconds) {
        return "unknown".into();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// A count with its digits in groups of three.
pub fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(1_930_618), "1,930,618");
        assert_eq!(grouped(61), "61");
        assert_eq!(duration(59.0), "59.0 s");
        assert_eq!(duration(61.4), "1 min 01 s");
        assert_eq!(duration(7_320.0), "2 h 02 min");
        assert_eq!(duration(f64::NAN), "unknown");
    }
}
