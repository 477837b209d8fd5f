//! Names of devices: `cpu`, `wgpu`, `cuda`, the latter two with a number where a machine has several.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which device computes. Settings keep any name, so that a run can go on where there is another device; whether this
/// build has it is checked where a user names it and where it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceSpec {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU by way of Vulkan, Metal or Direct3D; without a number the fastest.
    Wgpu(Option<usize>),
    /// An NVIDIA GPU.
    Cuda {
        /// Without a number the first.
        index: Option<usize>,
        /// How it starts kernels.
        starting: Starting,
    },
}

/// How a CUDA device starts the kernels of a program. For whoever looks for a fault or measures: results are the same, and no
/// name of a device and no settings tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starting {
    /// Programs are replayed as CUDA graphs, not launch by launch.
    pub capture: bool,
    /// A kernel is brought up while the one before it ends, where device and driver can.
    pub overlap: bool,
}

impl Default for Starting {
    fn default() -> Self {
        Self { capture: true, overlap: true }
    }
}

/// Kinds of devices, and whether this build has them.
const KINDS: [(&str, bool); 3] = [("cpu", true), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))];

/// The kinds that this build has.
fn built() -> String {
    KINDS.iter().filter(|kind| kind.1).map(|kind| kind.0).collect::<Vec<_>>().join(", ")
}

impl DeviceSpec {
    fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu(_) => "wgpu",
            Self::Cuda { .. } => "cuda",
        }
    }

    /// Whether it is the processor, as settings assume where they name no device.
    pub fn is_cpu(&self) -> bool {
        *self == Self::Cpu
    }

    /// The same device, which starts kernels so; others than CUDA's have no choice.
    pub fn with_starting(self, starting: Starting) -> Self {
        match self {
            Self::Cuda { index, .. } => Self::Cuda { index, starting },
            other => other,
        }
    }

    /// Refuses a device that this build does not have.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the engine that is missing.
    pub fn check(self) -> Result<()> {
        match KINDS.contains(&(self.kind(), true)) {
            true => Ok(()),
            false => Err(self.missing()),
        }
    }

    /// The error of a device that this build does not have.
    pub(super) fn missing(self) -> Error {
        let (kind, built) = (self.kind(), built());
        Error::usage(format!(
            "device `{self}`: this build has {built}; there is no {kind} engine in it: build with --features {kind}"
        ))
    }

    /// Reads a name of any build.
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        let cuda = |index| Self::Cuda { index, starting: Starting::default() };
        match text.split_once(':') {
            None if text == "cpu" => Some(Self::Cpu),
            None if text == "wgpu" => Some(Self::Wgpu(None)),
            None if text == "cuda" => Some(cuda(None)),
            Some(("wgpu", n)) => number(n).map(|n| Self::Wgpu(Some(n))),
            Some(("cuda", n)) => number(n).map(|n| cuda(Some(n))),
            _ => None,
        }
    }
}

impl TryFrom<String> for DeviceSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let unknown = || {
            let built = built();
            Error::usage(format!("device `{text}`: expected cpu, wgpu, wgpu:N, cuda or cuda:N; this build has {built}"))
        };
        Self::parse(&text).ok_or_else(unknown)
    }
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let spec = Self::try_from(text.to_string())?;
        spec.check()?;
        Ok(spec)
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> Self {
        spec.to_string()
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wgpu(Some(n)) | Self::Cuda { index: Some(n), .. } => write!(f, "{}:{n}", self.kind()),
            _ => f.write_str(self.kind()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for text in ["cpu", "wgpu", "wgpu:0", "wgpu:12", "cuda", "cuda:1"] {
            let spec = DeviceSpec::try_from(text.to_string()).unwrap();
            assert_eq!(spec.to_string(), text);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<DeviceSpec>(&json).unwrap(), spec);
        }
    }

    #[test]
    fn only_cuda_has_a_choice_of_starting() {
        let [usual, captured, overlapping] =
            [(true, true), (true, false), (false, true)].map(|(capture, overlap)| Starting { capture, overlap });
        for (text, heeds) in [("cpu", false), ("wgpu:1", false), ("cuda", true), ("cuda:2", true)] {
            let spec = DeviceSpec::try_from(text.to_string()).unwrap();
            for other in [captured, overlapping] {
                let without = spec.with_starting(other);
                assert_eq!((without != spec, without.with_starting(usual)), (heeds, spec));
                assert_eq!(without.to_string(), text, "settings do not tell");
            }
        }
    }

    #[test]
    fn bad_names_say_what_is_possible() {
        for text in ["", "gpu", "CPU", "cpu:0", "wgpu:", "cuda:-1", "cuda:+1", "cuda:x", "wgpu:1:2"] {
            let message = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(
                message.contains("expected cpu, wgpu, wgpu:N") && message.contains("this build has cpu"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_built_is_named() {
        for (kind, built) in KINDS {
            let spec = kind.parse::<DeviceSpec>();
            assert_eq!(spec.is_ok(), built);
            if let Err(error) = spec {
                assert!(error.to_string().contains(&format!("no {kind} engine")), "{error}");
            }
        }
    }
}
