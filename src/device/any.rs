//! The device of a search, a training, an embedding or a transport, whatever its kind. What callers do with a device goes
//! through here, so that a new kind of device is a variant and needs no change of theirs.

use std::borrow::Cow;

use super::cpu::Cpu;
use super::paged::Gpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::paged::Paged;
use super::{DeviceSpec, Executable, Precision};
use crate::error::Result;
use crate::graph::{Program, State, StoreLayout, Tensor};
use crate::machine::level_name;

/// A device with its store.
pub enum Device {
    /// The processor.
    Cpu(Box<Cpu>),
    /// A GPU.
    Gpu(Box<dyn Gpu>),
}

impl Device {
    /// Opens a device with a store of zeros, which stores feature maps in this precision. `threads` are those of the
    /// processor's kernels.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the store does not fit, [`crate::Error::Usage`] if this build or this machine does not
    /// have the device, if the device does not have the precision, or if the threads cannot be started.
    pub fn open(spec: &DeviceSpec, layout: &StoreLayout, threads: usize, precision: Precision) -> Result<Self> {
        precision.check(*spec)?;
        match spec {
            DeviceSpec::Cpu => Ok(Self::Cpu(Box::new(Cpu::new(layout, threads)?))),
            #[cfg(feature = "wgpu")]
            DeviceSpec::Wgpu(index) => {
                let gpu = super::wgpu::Wgpu::open(*index, super::wgpu::Options::default())?;
                Ok(Self::Gpu(Box::new(Paged::new(gpu, layout, precision)?)))
            }
            #[cfg(feature = "cuda")]
            DeviceSpec::Cuda { index, starting } => {
                let gpu = super::cuda::Cuda::open(index.unwrap_or(0), *starting)?;
                Ok(Self::Gpu(Box::new(Paged::new(gpu, layout, precision)?)))
            }
            #[allow(unreachable_patterns, reason = "every device may be built in")]
            _ => Err(spec.missing()),
        }
    }

    /// What computes, for people.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("cpu, {}, threads {}", level_name(cpu.level()), cpu.threads()),
            Self::Gpu(gpu) => gpu.name(),
        }
    }

    /// How matrices are multiplied, for people, where that hangs on the precision.
    pub fn products(&self) -> Option<String> {
        match self {
            Self::Cpu(_) => None,
            Self::Gpu(gpu) => gpu.products(),
        }
    }

    /// Elements that one more tensor may have, where a GPU tells what it has free.
    pub fn room(&self) -> Option<usize> {
        match self {
            Self::Cpu(_) => None,
            Self::Gpu(gpu) => gpu.room(),
        }
    }

    /// Values of a state: those of the processor where they stand, those of another device as a copy.
    ///
    /// # Errors
    /// Those of a device that fails.
    pub fn read(&mut self, state: State) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Cpu(cpu) => Ok(Cow::Borrowed(cpu.state(state))),
            Self::Gpu(gpu) => Ok(Cow::Owned(gpu.read(state)?)),
        }
    }

    /// Whether the first value of a state is other than zero.
    ///
    /// A run asks this after every program. A read-back waits for all launches before it, and the queue of a GPU would run
    /// dry at every step; but a flag stays raised once it is, and the optimisers that see it change nothing, so a device may
    /// answer from a copy that is some programs old.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn flag(&mut self, state: State) -> Result<bool> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.state(state)[0] != 0.0),
            Self::Gpu(gpu) => gpu.flag(state),
        }
    }

    /// Replaces all values of a state.
    ///
    /// # Errors
    /// As [`Device::read`].
    ///
    /// # Panics
    /// If the state has another number of values.
    pub fn write(&mut self, state: State, values: &[f32]) -> Result<()> {
        match self {
            Self::Cpu(cpu) => cpu.state_mut(state).copy_from_slice(values),
            Self::Gpu(gpu) => gpu.write(state, values)?,
        }
        Ok(())
    }

    /// Lets `put` write the values of a state in place, without a copy on the processor. What `put` leaves out is as it was
    /// there and zero on a device with memory of its own, where a failing `put` changes nothing.
    ///
    /// # Errors
    /// That of `put`, and as [`Device::read`].
    pub fn write_with<T>(&mut self, state: State, put: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<T> {
        match self {
            Self::Cpu(cpu) => put(cpu.state_mut(state)),
            Self::Gpu(gpu) => {
                let mut values = vec![0.0; state.shape.len()];
                let answer = put(&mut values)?;
                gpu.write(state, &values)?;
                Ok(answer)
            }
        }
    }

    /// Sets all values of a state.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn fill(&mut self, state: State, value: f32) -> Result<()> {
        match self {
            Self::Cpu(cpu) => cpu.state_mut(state).fill(value),
            Self::Gpu(gpu) => gpu.write(state, &vec![value; state.shape.len()])?,
        }
        Ok(())
    }

    /// Prepares a program for replays. The arena grows to the largest program, which loses results of earlier runs.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the arena does not fit, [`crate::Error::Usage`] naming an op that the device has no
    /// kernel for.
    pub fn prepare(&mut self, program: Program) -> Result<Executable> {
        match self {
            Self::Cpu(cpu) => cpu.prepare(program),
            Self::Gpu(gpu) => gpu.prepare(program),
        }
    }

    /// One replay; on a GPU it may still be under way afterwards.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn run(&mut self, exe: &Executable) -> Result<()> {
        match self {
            Self::Cpu(cpu) => cpu.run(exe),
            Self::Gpu(gpu) => gpu.run(exe)?,
        }
        Ok(())
    }

    /// Values of a tensor after a run, row by row. Arena tensors must be among the program's results.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn read_tensor(&mut self, exe: &Executable, tensor: Tensor) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.read(exe, tensor)),
            Self::Gpu(gpu) => gpu.read_tensor(exe, tensor),
        }
    }

    /// Runs op by op and names the op and the tensor of the first output that is not finite. The store is left as it
    /// was.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn find_non_finite(&mut self, exe: &Executable) -> Result<Option<String>> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.find_non_finite(exe)),
            Self::Gpu(gpu) => gpu.find_non_finite(exe),
        }
    }

    /// Waits until all replays are done, by reading a state, best one of few values.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn wait(&mut self, state: State) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Gpu(gpu) => gpu.read(state).map(|_| ()),
        }
    }

    /// Bytes that the device has allocated.
    pub fn peak_bytes(&self) -> usize {
        match self {
            Self::Cpu(cpu) => cpu.peak_bytes(),
            Self::Gpu(gpu) => gpu.bytes(),
        }
    }
}
