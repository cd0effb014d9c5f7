//! What daemon and checking child say to each other.
//!
//! Invariant: a file's name comes from an artifact, so the child writes none outside of
//! its own folder, whatever it is called.

use std::{ffi::OsString, io, path::Path, time::Duration};

use bytes::Bytes;
use kiln_proto::Failure;
use serde::{Deserialize, Serialize};

use crate::compiler::{
    Limits,
    worker::{Answer, Dialect, Launch, Octets, decode, encode},
};

/// The first argument of a child that checks.
pub(super) const COMMAND: &str = "checker";
/// What a child needs to find the driver and the devices that its daemon may use.
const OF_DEVICES: [&str; 3] = ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"];

/// Files that travel.
pub(super) type Files = Vec<(String, Octets)>;

/// One artifact, and the program that it should be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) files: Files,
    pub(super) pieces: Vec<Files>,
    /// The program's eager artifact.
    pub(super) reference: Files,
    /// Longest that the interpreter may take for its part.
    pub(super) patience: Duration,
    /// Most memory of tensors.
    pub(super) memory_bytes: u64,
    /// Backstop for the daemon's wall clock, in seconds of processor time.
    pub(super) cpu_seconds: u64,
}

/// What the child found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Found {
    Passed {
        relative_error: f64,
        limit: f64,
    },
    Wrong {
        output: String,
        relative_error: f64,
        limit: f64,
    },
    /// The artifact does not run, for this reason.
    Broken(String),
    /// It was not run, for this reason.
    Not(String),
}

pub(super) fn octets(files: impl IntoIterator<Item = (String, Bytes)>) -> Files {
    files.into_iter().map(|(name, bytes)| (name, Octets(bytes))).collect()
}

/// Children that are `program checker`.
#[derive(Debug)]
pub(super) struct Checks(Launch);

impl Checks {
    pub(super) fn new(program: &Path, folder: &Path) -> Self {
        let environment: Vec<(OsString, OsString)> = OF_DEVICES
            .iter()
            .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
            .collect();
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        Self(Launch {
            program: program.to_owned(),
            arguments: vec![COMMAND.into()],
            environment,
            folder,
            private: true,
        })
    }
}

impl Dialect for Checks {
    type Ready = ();
    type Job = Job;
    type Done = Found;

    /// It has nothing to load.
    const START_LIMIT: Duration = Duration::from_secs(60);
    const WORK: &'static str = "check";

    fn launch(&self) -> &Launch {
        &self.0
    }

    fn subject(&self) -> String {
        "the process that checks".to_owned()
    }

    fn hello(&self) -> io::Result<Vec<u8>> {
        encode(&())
    }

    fn ready(&self, message: &[u8]) -> io::Result<Answer<()>> {
        decode(message)
    }

    fn fits(&self, (): &(), _: &Job) -> Result<(), Failure> {
        Ok(())
    }

    fn job(&self, job: &Job, limits: &Limits) -> io::Result<Vec<u8>> {
        let mut job = job.clone();
        // The interpreter computes in several threads: only a child that the wall clock
        // missed gets this far.
        job.cpu_seconds = limits.time.as_secs().saturating_mul(256).saturating_add(10);
        encode(&job)
    }

    fn done(&self, message: Vec<u8>) -> io::Result<Answer<Found>> {
        decode(&message)
    }
}
