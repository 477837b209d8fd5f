//! What programs need of a device, told without opening it.

use super::pages::{Placed, Store};
use super::{DeviceSpec, Precision};
use crate::error::{Error, Result};
use crate::graph::{Program, StoreLayout};

/// Most elements of a page of a CUDA device: 12 GiB, which holds the costs of 50,000 points on either side. Offsets are
/// unsigned 32-bit numbers in records and kernels; the quarter of their range that is left over is for what kernels add to
/// them before they find that it lies beyond a tensor. Addresses and bytes are 64-bit numbers everywhere.
pub const CUDA_PAGE: usize = 3 << 30;
/// The same of any WebGPU device: the 128 MiB that each can bind at once. Many bind more.
pub const WGPU_PAGE: usize = (128 << 20) / 4;

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The arena, which the programs share.
    pub arena: usize,
    /// States and arena.
    pub all: usize,
}

/// A kind of device, and how it stores feature maps.
pub type On = (DeviceSpec, Precision);

fn page(spec: DeviceSpec) -> Option<usize> {
    match spec {
        DeviceSpec::Cpu => None,
        DeviceSpec::Wgpu(_) => Some(WGPU_PAGE),
        DeviceSpec::Cuda { .. } => Some(CUDA_PAGE),
    }
}

/// Memory that programs need together.
///
/// # Errors
/// [`Error::Memory`] naming a tensor that any device of the kind may have to refuse, [`Error::Usage`] naming an op that it
/// has no kernel for.
pub fn memory((spec, precision): On, programs: &[&Program], layout: &StoreLayout) -> Result<Memory> {
    match page(spec) {
        None => {
            let arena = programs.iter().map(|p| p.arena_bytes()).max().unwrap_or(0);
            Ok(Memory { arena, all: arena + layout.bytes() })
        }
        Some(page) => paged(page, precision, programs, layout),
    }
}

fn paged(page: usize, precision: Precision, programs: &[&Program], layout: &StoreLayout) -> Result<Memory> {
    let store = Store::in_precision(layout, page, precision)?;
    let mut arena = 0;
    for program in programs {
        arena = arena.max(Placed::new(program, &store)?.arena());
    }
    let bytes = |pages: &[usize]| 4 * pages.iter().sum::<usize>();
    let arena = bytes(&store.arena_pages(arena));
    Ok(Memory { arena, all: arena + bytes(&store.pages) })
}

/// Launches of a replay: on a GPU as they are after merging; the processor runs one op after the other.
///
/// # Errors
/// As [`memory`].
pub fn launches((spec, precision): On, program: &Program, layout: &StoreLayout) -> Result<usize> {
    let Some(page) = page(spec) else { return Ok(program.cost().launches) };
    let store = Store::in_precision(layout, page, precision)?;
    Ok(Placed::new(program, &store)?.launches(program, &store).len())
}

/// Refuses more memory than a limit, and tells how much there will be. A device that is opened later may bind more at once
/// than its kind grants, so nothing is refused for the size of its pages.
///
/// # Errors
/// [`Error::Memory`] with the numbers and what to change, and as [`memory`].
pub fn check(on: On, programs: &[&Program], layout: &StoreLayout, limit: Option<usize>) -> Result<usize> {
    let needed = if on.0.is_cpu() { memory(on, programs, layout)? } else { paged(CUDA_PAGE, on.1, programs, layout)? };
    needed.check(limit)?;
    Ok(needed.all)
}

impl Memory {
    /// Refuses more than a limit.
    ///
    /// # Errors
    /// [`Error::Memory`] with the numbers and what to change.
    pub fn check(self, limit: Option<usize>) -> Result<()> {
        let mib = |bytes: usize| bytes as f64 / (1024.0 * 1024.0);
        match limit {
            Some(limit) if self.all > limit => Err(Error::Memory(format!(
                "this configuration needs {:.1} MiB ({:.1} MiB arena, {:.1} MiB state) but the limit is {:.1} MiB: lower \
                 --batch, --channels, --layers or --size, or raise --memory-limit",
                mib(self.all),
                mib(self.arena),
                mib(self.all - self.arena),
                mib(limit)
            ))),
            _ => Ok(()),
        }
    }
}
