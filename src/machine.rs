//! What is known of the machine: times mean nothing without it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::cpu::micro::Level;
use crate::device::Device;

/// The machine that a result was measured on, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor, where the system tells it.
    pub cpu: String,
    /// Instruction set of the kernels.
    pub level: String,
    /// The device that was measured, where it is not the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Threads that can run at once.
    pub cores: usize,
    /// Threads that the measurement used.
    pub threads: usize,
    /// Memory in bytes, where the system tells it.
    pub memory_bytes: Option<usize>,
    /// Operating system and architecture.
    pub system: String,
    /// Version of this program.
    pub version: String,
    /// Day of the measurement, UTC.
    pub date: String,
}

impl Machine {
    /// This machine, now, with so many threads.
    pub fn here(threads: usize) -> Self {
        Self {
            cpu: model_name().unwrap_or_else(|| "unknown".into()),
            level: level_name(Level::detect()).into(),
            device: None,
            cores: cores(),
            threads,
            memory_bytes: memory("MemTotal:"),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            version: env!("CARGO_PKG_VERSION").into(),
            date: today(),
        }
    }

    /// This machine with a device that is measured.
    pub fn with(device: &Device, threads: usize) -> Self {
        let named = matches!(device, Device::Gpu(_)).then(|| device.name());
        Self { device: named, ..Self::here(threads) }
    }

    /// The first thing that makes times of two machines incomparable: its name, then theirs and ours.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let device = |machine: &Self| machine.device.clone().unwrap_or_else(|| "cpu".into());
        let pairs = [
            ("device", device(self), device(other)),
            ("processor", self.cpu.clone(), other.cpu.clone()),
            ("instruction set", self.level.clone(), other.level.clone()),
            ("cores", self.cores.to_string(), other.cores.to_string()),
            ("threads", self.threads.to_string(), other.threads.to_string()),
        ];
        pairs.into_iter().find(|(_, a, b)| a != b)
    }

    /// What was measured, in few words.
    pub fn title(&self) -> String {
        self.device.clone().unwrap_or_else(|| format!("{}, {} threads", self.cpu, self.threads))
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let memory = self.memory_bytes.map_or(String::new(), |b| format!(", {:.0} GiB", b as f64 / f64::from(1 << 30)));
        let Self { cpu, level, cores, threads, version, date, .. } = self;
        let device = self.device.as_ref().map_or(String::new(), |device| format!("{device}; "));
        format!("{device}{cpu}, {level}, {cores} cores{memory}, {threads} threads; supernet {version}, {date}")
    }
}

/// Threads that can run at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Name of an instruction set.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::Portable => "portable",
        Level::Avx2 => "avx2",
        Level::Avx512 => "avx512",
    }
}

/// Model of the processor, where the system tells it.
pub fn model_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// A line of the system's memory table, in bytes.
pub fn memory(label: &str) -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(label))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib << 10)
}

/// The day, `YYYY-MM-DD`, UTC.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days after 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last of its year; 400 years have 146,097 days.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (789, (1972, 2, 29)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_453, (2025, 12, 31)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn machines_differ_by_what_changes_times() {
        let here = Machine::here(2);
        let later = Machine { date: "1999-01-01".into(), version: "0".into(), ..here.clone() };
        assert_eq!(here.difference(&later), None);
        let other = Machine { threads: 3, ..here.clone() };
        assert_eq!(here.difference(&other), Some(("threads", "2".into(), "3".into())));
        assert!(here.line().contains("2 threads"));
    }
}
