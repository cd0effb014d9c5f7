//! How one kind of worker is started and spoken to.
//!
//! Invariant: a conversation is hello, ready, one job, done; either answer may be
//! a failure, and anything else is no answer.

use std::{io, path::PathBuf, time::Duration};

use kiln_proto::Failure;

use super::{
    process::{Forks, Launch, library_view},
    protocol::{self, Answer, Compiled, Program, Ready, Setup},
};
use crate::compiler::Limits;

/// One kind of worker: NVRTC's, Inductor's.
pub(crate) trait Dialect: std::fmt::Debug + Send + Sync + 'static {
    /// What a worker says of itself once its compiler is loaded.
    type Ready: Clone + Send + Sync + 'static;
    /// What it is asked to do.
    type Job: Sync;
    /// What comes of it.
    type Done: Send;

    /// How long loading may take.
    const START_LIMIT: Duration;
    /// What a job is, for messages.
    const WORK: &'static str = "compile";

    /// How a worker is started.
    fn launch(&self) -> &Launch;
    /// The process that workers can be forked from.
    fn forks(&self) -> Option<&Forks> {
        None
    }
    /// What is loaded, for messages.
    fn subject(&self) -> String;
    /// The first message.
    fn hello(&self) -> io::Result<Vec<u8>>;
    /// The first answer.
    fn ready(&self, message: &[u8]) -> io::Result<Answer<Self::Ready>>;
    /// Whether such a worker may do `job`.
    fn fits(&self, ready: &Self::Ready, job: &Self::Job) -> Result<(), Failure>;
    /// The second message.
    fn job(&self, job: &Self::Job, limits: &Limits) -> io::Result<Vec<u8>>;
    /// The second answer.
    fn done(&self, message: Vec<u8>) -> io::Result<Answer<Self::Done>>;
}

/// Workers that load NVRTC: `kiln worker`.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    launch: Launch,
    setup: Setup,
}

impl Nvrtc {
    /// Workers that are `program worker`, run in `folder`, which must exist and
    /// be theirs alone, with the library that `setup` names.
    pub(crate) fn new(program: PathBuf, folder: PathBuf, setup: Setup) -> io::Result<Self> {
        let libraries = library_view(&folder, &setup.library)?;
        let environment =
            vec![("LD_LIBRARY_PATH".into(), libraries), ("CUDA_CACHE_DISABLE".into(), "1".into())];
        let arguments = vec!["worker".into()];
        let launch = Launch { program, arguments, environment, folder, private: true };
        Ok(Self { launch, setup })
    }
}

impl Dialect for Nvrtc {
    type Ready = Ready;
    type Job = Program;
    type Done = Compiled;

    /// Loading NVRTC and one empty compile take 0.3 s on an idle core.
    const START_LIMIT: Duration = Duration::from_secs(60);

    fn launch(&self) -> &Launch {
        &self.launch
    }

    fn subject(&self) -> String {
        self.setup.library.display().to_string()
    }

    fn hello(&self) -> io::Result<Vec<u8>> {
        protocol::encode(&self.setup)
    }

    fn ready(&self, message: &[u8]) -> io::Result<Answer<Ready>> {
        protocol::decode(message)
    }

    fn fits(&self, _: &Ready, _: &Program) -> Result<(), Failure> {
        Ok(())
    }

    fn job(&self, job: &Program, limits: &Limits) -> io::Result<Vec<u8>> {
        let mut job = job.clone();
        job.memory_bytes = limits.memory_bytes;
        // NVRTC computes in one thread: only a worker that the wall clock missed
        // gets this far.
        job.cpu_seconds = limits.time.as_secs().saturating_mul(2).saturating_add(10);
        protocol::encode(&job)
    }

    fn done(&self, message: Vec<u8>) -> io::Result<Answer<Compiled>> {
        protocol::decode(&message)
    }
}
