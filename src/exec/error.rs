//! Why an artifact does not run here.

use std::path::PathBuf;

use cudarc::driver::DriverError;
use kiln_native::plan::CallError;
use kiln_proto::{Failure, FailureKind};

/// Each variant says what the caller should do.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Run it where there is a GPU.
    #[error("no CUDA driver on this machine: libcuda.so.1 cannot be loaded")]
    NoDriver,
    /// Run it where there is a GPU.
    #[error("the CUDA driver finds no device {device}: {error}")]
    NoDevice {
        /// Which was asked for.
        device: usize,
        /// What the driver says.
        error: DriverError,
    },
    /// Compile for this device.
    #[error(
        "the artifact is for {target}; device {ordinal} ({device}) is sm_{compute}: compile with --target sm_{compute}"
    )]
    WrongDevice {
        /// What it was compiled for.
        target: String,
        /// Which device.
        ordinal: usize,
        /// The device's name.
        device: String,
        /// Its compute capability, times ten.
        compute: u32,
    },
    /// Run it where there is more memory, or with smaller inputs.
    #[error("the device has no {bytes} bytes for {what}: {free} of {total} are free")]
    OutOfMemory {
        /// What they are for.
        what: String,
        /// How many were asked for.
        bytes: u64,
        /// How many are left.
        free: u64,
        /// How many the device has.
        total: u64,
    },
    /// Fetch the artifact again: `kiln get KEY -o DIR`.
    #[error("{path}: {why}")]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Use the version that wrote it, or compile again.
    #[error("{path}: {why}")]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Which version it says, and which are read.
        why: String,
    },
    /// Run it in Python.
    #[error("{what}; only Python with torch runs that: kiln_torch.load({dir:?})")]
    NeedsTorch {
        /// What of it: the artifact, or some pieces.
        what: String,
        /// Its folder.
        dir: PathBuf,
    },
    /// As the error of that piece says; compiled alone again, it fits as before.
    #[error("{name}: {error}")]
    Piece {
        /// Its position, and its key where that is known.
        name: String,
        /// What is wrong with it.
        error: Box<ExecError>,
    },
    /// As the error says; what the steps before gave is in the file.
    #[error("{error}; after {steps} steps: what was said until then is in {path}")]
    Ended {
        /// Steps that ended well, and the one that did not.
        steps: usize,
        /// The file.
        path: PathBuf,
        /// Why it did not go on.
        error: Box<ExecError>,
    },
    /// Give other inputs.
    #[error("{0}")]
    Inputs(String),
    /// The interpreter cannot run the program.
    #[error("{0}")]
    Program(Failure),
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The driver failed in the middle: a broken kernel, or a broken device.
    #[error("CUDA failed ({action}): {error}")]
    Driver {
        /// What was being done.
        action: &'static str,
        /// What the driver says.
        error: DriverError,
    },
}

impl ExecError {
    /// What kind of failure it is, where it is one that has a code.
    pub fn failure(&self) -> Option<FailureKind> {
        match self {
            Self::WrongDevice { .. } | Self::OtherVersion { .. } => Some(FailureKind::Incompatible),
            Self::Program(failure) => Some(failure.kind),
            Self::Piece { error, .. } | Self::Ended { error, .. } => error.failure(),
            Self::NoDriver
            | Self::NoDevice { .. }
            | Self::OutOfMemory { .. }
            | Self::Artifact { .. }
            | Self::NeedsTorch { .. }
            | Self::Inputs(_)
            | Self::File { .. }
            | Self::Driver { .. } => None,
        }
    }
}

impl From<CallError> for ExecError {
    fn from(error: CallError) -> Self {
        Self::Inputs(error.to_string())
    }
}

impl From<Failure> for ExecError {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::InvalidInput => Self::Inputs(failure.message),
            _ => Self::Program(failure),
        }
    }
}

/// Adds what was being done to the driver's errors.
pub(super) trait During<T> {
    fn during(self, action: &'static str) -> Result<T, ExecError>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, action: &'static str) -> Result<T, ExecError> {
        self.map_err(|error| ExecError::Driver { action, error })
    }
}
