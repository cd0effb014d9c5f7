//! Python's workers: how they are started, and the messages (`worker.proto`).
//!
//! Invariant: a worker runs the sources that are in this binary, isolated (`-I`):
//! neither the daemon's environment nor a folder of the caller's adds to it.

use std::{ffi::OsString, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use kiln_native::Portable;
use kiln_proto::{Failure, FailureKind, Fingerprint, convert, pb};
use prost::Message;

use super::source;
use crate::compiler::{
    LAUNCHER, Limits,
    worker::{Answer, Dialect, Forks, Launch},
};

/// What a compiler and its libraries are found by.
const PASSED_ON: [&str; 6] = [
    "PATH",
    "LD_LIBRARY_PATH",
    "CXX",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
];

/// What a worker compiles.
#[derive(Debug, Clone)]
pub(in crate::compiler) enum Program {
    /// An archive as it was exported.
    Archive(Bytes),
    /// A piece: a graph, and the data of its constants.
    Graph(Arc<Portable>),
}

/// One program to compile.
#[derive(Debug, Clone)]
pub(in crate::compiler) struct Job {
    /// What the worker must be.
    pub(in crate::compiler) fingerprint: Fingerprint,
    /// What is compiled.
    pub(in crate::compiler) program: Program,
    /// Inductor's configuration, merged: values are JSON.
    pub(in crate::compiler) options: Vec<(String, String)>,
    /// Every symbolic size, where it is fixed.
    pub(in crate::compiler) runtime_shape: Option<u64>,
    /// `cpu` or `cuda`.
    pub(in crate::compiler) device: &'static str,
    /// Compute capability times ten; 0 for the CPU.
    pub(in crate::compiler) compute: u32,
}

/// What came of it.
#[derive(Debug)]
pub(in crate::compiler) struct Done {
    /// Path and bytes of each file.
    pub(in crate::compiler) files: Vec<(String, Bytes)>,
    /// Seconds within the compiler.
    pub(in crate::compiler) seconds: f64,
    /// Warnings.
    pub(in crate::compiler) log: String,
}

/// Workers that load torch.
#[derive(Debug)]
pub(super) struct Snake {
    interpreter: PathBuf,
    launch: Launch,
    forks: Forks,
}

impl Snake {
    /// Workers of `interpreter`, each in a folder of its own below `folder`, launched by
    /// `program`, which is `kiln`. What they are forked from ends when it was of no use for
    /// `keep`.
    pub(super) fn new(
        program: PathBuf,
        interpreter: PathBuf,
        folder: PathBuf,
        keep: Duration,
    ) -> Self {
        let passed = PASSED_ON.iter();
        let environment: Vec<(OsString, OsString)> =
            passed.filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect();
        let mut arguments = vec![LAUNCHER.into(), interpreter.clone().into_os_string()];
        arguments.extend(["-I", "-B", "-c", source::BOOTSTRAP].map(OsString::from));
        let socket = folder.join("forks");
        let launch = Launch { program, arguments, environment, folder, private: true };
        let mut server = launch.clone();
        let seconds = keep.as_secs_f64().to_string();
        server.arguments.extend(["--fork-server".into(), seconds.into()]);
        Self { interpreter, launch, forks: Forks { launch: server, socket } }
    }
}

impl Dialect for Snake {
    type Ready = Vec<Fingerprint>;
    type Job = Job;
    type Done = Done;

    /// Importing torch for the first time after a boot takes half a minute, and
    /// finding out what the CPU has compiles a few small programs.
    const START_LIMIT: Duration = Duration::from_secs(240);

    fn launch(&self) -> &Launch {
        &self.launch
    }

    fn forks(&self) -> Option<&Forks> {
        Some(&self.forks)
    }

    fn subject(&self) -> String {
        format!("torch of {}", self.interpreter.display())
    }

    fn hello(&self) -> io::Result<Vec<u8>> {
        source::modules()
    }

    fn ready(&self, message: &[u8]) -> io::Result<Answer<Vec<Fingerprint>>> {
        let ready = match answer(message)? {
            pb::worker_answer::Answer::Ready(ready) => ready,
            other => return refused(other),
        };
        let compilers = ready.compilers.into_iter().map(convert::fingerprint);
        Ok(Ok(compilers.collect::<Result<_, _>>().map_err(io::Error::other)?))
    }

    fn fits(&self, ready: &Vec<Fingerprint>, job: &Job) -> Result<(), Failure> {
        if ready.contains(&job.fingerprint) {
            return Ok(());
        }
        let here: Vec<String> = ready.iter().map(ToString::to_string).collect();
        let why =
            format!("the key asks for {}, this node has {}", job.fingerprint, here.join(", "));
        Err(Failure::new(FailureKind::ToolchainMissing, why))
    }

    fn job(&self, job: &Job, limits: &Limits) -> io::Result<Vec<u8>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let options = job.options.iter();
        let (archive, graph, constants) = match &job.program {
            Program::Archive(archive) => (archive.clone(), Bytes::new(), Bytes::new()),
            Program::Graph(portable) => {
                let Portable { graph, constants } = &**portable;
                (Bytes::new(), graph.clone().into(), constants.clone().into())
            }
        };
        let compile = pb::WorkerCompile {
            compiler: job.fingerprint.compiler.clone(),
            archive,
            graph,
            constants,
            options: options
                .map(|(name, value)| pb::Field { name: name.clone(), value: value.clone() })
                .collect(),
            runtime_shape: job.runtime_shape,
            device: job.device.to_owned(),
            compute: job.compute,
            memory_bytes: limits.memory_bytes,
            // Autotuning keeps every core busy: only what the wall clock missed gets this far.
            cpu_seconds: limits.time.as_secs().saturating_mul(2 * cores).saturating_add(10),
        };
        Ok(compile.encode_to_vec())
    }

    fn done(&self, message: Vec<u8>) -> io::Result<Answer<Done>> {
        let done = match answer_owned(message)? {
            pb::worker_answer::Answer::Done(done) => done,
            other => return refused(other),
        };
        let files = done.files.into_iter().map(|file| (file.path, file.data)).collect();
        Ok(Ok(Done { files, seconds: done.seconds, log: done.log }))
    }
}

fn answer(message: &[u8]) -> io::Result<pb::worker_answer::Answer> {
    answer_owned(message.to_vec())
}

/// Files are shared with the message, not copied.
fn answer_owned(message: Vec<u8>) -> io::Result<pb::worker_answer::Answer> {
    let read = pb::WorkerAnswer::decode(Bytes::from(message)).map_err(io::Error::other)?;
    read.answer.ok_or_else(|| io::Error::other("an answer of another version"))
}

fn refused<T>(answer: pb::worker_answer::Answer) -> io::Result<Answer<T>> {
    match answer {
        pb::worker_answer::Answer::Failed(failed) => {
            Ok(Err(convert::failure(failed).map_err(io::Error::other)?))
        }
        _ => Err(io::Error::other("an answer out of place")),
    }
}
