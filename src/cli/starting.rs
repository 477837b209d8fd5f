//! How a CUDA device starts kernels: flags of whatever runs programs again and again.

use clap::Args;
use supernet::device::{DeviceSpec, Starting};

/// Ways to leave out what makes starting cheap.
#[derive(Args)]
pub struct StartingFlags {
    /// On a CUDA device: start launch by launch instead of replaying captured graphs, for debuggers. Results are the same.
    #[arg(long)]
    no_capture: bool,
    /// On a CUDA device: bring no kernel up before the one before it has ended. Results are the same.
    #[arg(long)]
    no_overlap: bool,
}

impl StartingFlags {
    /// The same device, which starts kernels as the flags say.
    pub fn of(&self, device: DeviceSpec) -> DeviceSpec {
        device.with_starting(Starting { capture: !self.no_capture, overlap: !self.no_overlap })
    }
}
