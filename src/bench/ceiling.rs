//! What the machine can do at best: multiply-adds in registers, copies at several sizes, and what an empty op costs.
//! A kernel's roofline (Williams, Waterman & Patterson 2009) is the lesser of the arithmetic ceiling and of its
//! arithmetic intensity times the bandwidth.

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};

use super::measure::{self, Effort};
use crate::cpu::ceiling::burst;
use crate::cpu::micro::Level;
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::graph::{Graph, Output, Program, Shape, StoreLayout};
use crate::ops::Cost;
use crate::ops::elementwise::Fill;

/// Bytes that are copied or read, source and destination together: from a core's cache to far beyond any.
pub(super) const COPIES: [usize; 6] = [256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20];
/// The largest in a hurry.
pub(super) const QUICK_LARGEST: usize = 64 << 20;
/// Empty ops in the program that measures dispatch.
pub(super) const EMPTY_OPS: usize = 256;

/// Rate of moving bytes within a working set: of copying or of reading alone, whichever is higher, for a kernel may read
/// much and write little.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Bytes of source and destination.
    pub bytes: usize,
    /// GB/s, read and written together.
    pub gigabytes_per_second: f64,
}

/// The machine's ceilings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// GFLOP/s of multiply-adds on one thread of the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops_one: Option<f64>,
    /// The same on all threads of the measurement. There is no kernel that measures it on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// Copies on one thread of the processor, by size.
    pub copy_one: Vec<Bandwidth>,
    /// Copies on all threads of the measurement, by size.
    pub copy: Vec<Bandwidth>,
    /// Nanoseconds of an op that does nothing, within a program.
    pub op_nanoseconds: f64,
    /// Nanoseconds of replaying a program of one such op.
    pub replay_nanoseconds: f64,
}

impl Ceilings {
    /// Measures them with so many threads.
    ///
    /// # Errors
    /// [`Error::Usage`] if the threads cannot be started, [`Error::Memory`] if there is no room for the copies.
    pub fn measure(threads: usize, quick: bool) -> Result<Self> {
        let effort = Effort::new(quick);
        let (one, all) = (pool(1)?, pool(threads)?);
        let level = Level::detect();
        let copies = |pool: &ThreadPool| {
            let sizes = COPIES.map(|bytes| if quick { bytes.min(QUICK_LARGEST) } else { bytes });
            sizes.map(|bytes| copy(pool, bytes, effort)).to_vec()
        };
        let (op_nanoseconds, replay_nanoseconds) = dispatch(threads, effort)?;
        Ok(Self {
            gflops_one: Some(arithmetic(&one, level, effort)),
            gflops: Some(arithmetic(&all, level, effort)),
            copy_one: copies(&one),
            copy: copies(&all),
            op_nanoseconds,
            replay_nanoseconds,
        })
    }

    /// Bandwidth that bounds a working set: the best that was measured with as many bytes or more, and with the next
    /// smaller size, since part of the set may stay in a nearer cache.
    pub fn bandwidth(&self, bytes: f64) -> f64 {
        let next_smaller = self.copy.iter().rposition(|b| b.bytes as f64 <= bytes).unwrap_or(0);
        self.copy[next_smaller.min(self.copy.len())..].iter().map(|b| b.gigabytes_per_second).fold(0.0, f64::max)
    }

    /// Seconds that a cost takes at the least: the longer of its arithmetic, where its ceiling is known, and of its traffic. Ops that touch more than
    /// one thread's cache holds are judged by the shared cache or by memory.
    pub fn floor_seconds(&self, cost: Cost) -> f64 {
        let arithmetic = self.gflops.map_or(0.0, |gflops| cost.flops / (gflops * 1e9).max(f64::MIN_POSITIVE));
        let traffic = cost.bytes / (self.bandwidth(cost.bytes) * 1e9).max(f64::MIN_POSITIVE);
        arithmetic.max(traffic)
    }

    /// Share of the roofline that a measured time reaches: 1 is the ceiling.
    pub fn share(&self, cost: Cost, seconds: f64) -> f64 {
        self.floor_seconds(cost) / seconds.max(f64::MIN_POSITIVE)
    }
}

fn pool(threads: usize) -> Result<ThreadPool> {
    let built = ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    built.map_err(|e| Error::usage(format!("cannot start {threads} threads: {e}")))
}

/// GFLOP/s of all threads of a pool.
fn arithmetic(pool: &ThreadPool, level: Level, effort: Effort) -> f64 {
    let flops: f64 = pool.broadcast(|_| burst(level)).iter().sum();
    let times = measure::sample(effort, |repeats| {
        pool.broadcast(|_| (0..repeats).for_each(|_| _ = burst(level)));
    });
    // The fastest, not the median: a ceiling is what was reached at all.
    flops / (times.milliseconds_min * 1e-3) * 1e-9
}

/// Rate of copying one half of a working set onto the other, or of reading all of it.
fn copy(pool: &ThreadPool, bytes: usize, effort: Effort) -> Bandwidth {
    let len = bytes / 2 / size_of::<u64>();
    let part = len.div_ceil(pool.current_num_threads());
    let (from, mut to) = (vec![1u64; len], vec![0u64; len]);
    let times = measure::sample(effort, |repeats| {
        pool.install(|| {
            to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| {
                for _ in 0..repeats {
                    std::hint::black_box(&mut *to).copy_from_slice(std::hint::black_box(from));
                }
            });
        });
    });
    let part = bytes / size_of::<u64>() / pool.current_num_threads();
    let both: Vec<u64> = vec![1; part.max(1) * pool.current_num_threads()];
    let reads = measure::sample(effort, |repeats| {
        pool.install(|| {
            both.par_chunks(part.max(1)).for_each(|part| {
                for _ in 0..repeats {
                    // Many independent chains, so that loads and not latencies are measured.
                    let mut sums = [0u64; 64];
                    for block in std::hint::black_box(part).chunks_exact(64) {
                        sums.iter_mut().zip(block).for_each(|(sum, &value)| *sum ^= value);
                    }
                    std::hint::black_box(sums);
                }
            });
        });
    });
    let fastest = times.milliseconds_min.min(reads.milliseconds_min) * 1e-3;
    Bandwidth { bytes, gigabytes_per_second: bytes as f64 / fastest * 1e-9 }
}

/// Nanoseconds of an empty op in a program, and of replaying one alone.
fn dispatch(threads: usize, effort: Effort) -> Result<(f64, f64)> {
    let mut layout = StoreLayout::new();
    let state = layout.add("one number", Shape::vector(1));
    let mut cpu = Cpu::new(&layout, threads)?;
    let mut time = |ops: usize| -> Result<f64> {
        let mut graph = Graph::new();
        let out = graph.state(state);
        for _ in 0..ops {
            graph.push(Fill { value: 0.0 }, vec![], vec![Output::from(out)]);
        }
        let exe = cpu.prepare(Program::new("empty ops", graph, &[out]))?;
        let times = measure::sample(effort, |repeats| (0..repeats).for_each(|_| cpu.run(&exe)));
        Ok(times.milliseconds * 1e6)
    };
    let (many, single) = (time(EMPTY_OPS)?, time(1)?);
    Ok(((many - single).max(0.0) / (EMPTY_OPS - 1) as f64, single))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceilings() -> Ceilings {
        let copy = [(1_000, 100.0), (1_000_000, 10.0)];
        let copy: Vec<_> = copy.map(|(bytes, gigabytes_per_second)| Bandwidth { bytes, gigabytes_per_second }).to_vec();
        Ceilings {
            gflops_one: Some(50.0),
            gflops: Some(100.0),
            copy_one: copy.clone(),
            copy,
            op_nanoseconds: 1.0,
            replay_nanoseconds: 2.0,
        }
    }

    #[test]
    fn the_roofline_is_the_lesser_of_both() {
        let c = ceilings();
        let bound_by_traffic = Cost { flops: 1_000.0, bytes: 1_000.0, launches: 1 };
        assert!((c.floor_seconds(bound_by_traffic) - 1e-8).abs() < 1e-20, "1000 bytes at 100 GB/s");
        let bound_by_arithmetic = Cost { flops: 1e6, bytes: 1_000.0, launches: 1 };
        assert!((c.floor_seconds(bound_by_arithmetic) - 1e-5).abs() < 1e-17);
        assert!((c.share(bound_by_arithmetic, 2e-5) - 0.5).abs() < 1e-12);
        assert_eq!(c.bandwidth(1_001.0), 100.0, "a part of it may be in the nearer cache");
        assert_eq!(c.bandwidth(1_000_000.0), 10.0);
        assert_eq!(c.bandwidth(1e12), 10.0);
        let unknown = Ceilings { gflops: None, ..c };
        assert!((unknown.floor_seconds(bound_by_arithmetic) - 1e-8).abs() < 1e-20, "of its traffic alone");
    }

    #[test]
    fn the_machine_has_ceilings() {
        let c = Ceilings::measure(2, true).unwrap();
        assert!(
            c.gflops > Some(0.0) && c.gflops_one > Some(0.0) && c.op_nanoseconds >= 0.0 && c.replay_nanoseconds > 0.0
        );
        assert_eq!((c.copy.len(), c.copy_one.len()), (COPIES.len(), COPIES.len()));
        assert!(c.copy.iter().chain(&c.copy_one).all(|b| b.gigabytes_per_second > 0.0));
    }
}
