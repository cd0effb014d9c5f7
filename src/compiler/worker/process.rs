//! One child process as the daemon sees it.
//!
//! Invariant: the group is killed while its leader is still unreaped, so that
//! no other process can have got its id; and whoever drops a [`Worker`] ends it.

use std::{
    ffi::OsString,
    fmt,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use kiln_proto::{Failure, FailureKind};
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::{
    io::{AsyncReadExt, BufReader, unix::AsyncFd},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{protocol, watch::Watched};

/// How much of a worker's stderr is kept.
const STDERR_KEPT: usize = 16 << 10;
/// A worker that closed its stdout should be gone at once.
const GRACE: Duration = Duration::from_secs(5);

/// How the names of workers' own folders begin.
const PRIVATE: &str = "job-";

/// A running worker.
pub(super) struct Worker {
    child: Child,
    group: Pid,
    /// Readable once the leader has ended, before it is reaped.
    ended: AsyncFd<OwnedFd>,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Arc<Mutex<Vec<u8>>>,
    reader: AbortOnDropHandle<()>,
    /// Its own folder, removed after it.
    folder: Option<tempfile::TempDir>,
    _alive: Alive,
}

/// A process that is counted while it lives.
struct Alive;

impl Alive {
    fn begin() -> Self {
        metrics::gauge!("kiln_compiler_processes").increment(1.0);
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        metrics::gauge!("kiln_compiler_processes").decrement(1.0);
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// The process ended.
    Ended(ExitStatus, String),
    /// It said something that is no answer.
    Garbage(String),
}

/// Where and how to start workers.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The `kiln` executable, or an interpreter.
    pub(crate) program: PathBuf,
    /// What it is started with.
    pub(crate) arguments: Vec<OsString>,
    /// All of its environment, besides `TMPDIR` and `LC_ALL`.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Working folder: empty but for what Kiln put there.
    pub(crate) folder: PathBuf,
    /// Each worker gets an empty folder of its own below `folder`, for the time it lives.
    pub(crate) private: bool,
}

/// How what workers are forked from is started, and where it listens.
#[derive(Debug, Clone)]
pub(crate) struct Forks {
    /// Told what workers are told first.
    pub(crate) launch: Launch,
    /// Its socket, removed after it.
    pub(crate) socket: PathBuf,
}

impl Worker {
    /// Starts a worker in a process group of its own, with none of our environment.
    pub(super) fn start(launch: &Launch) -> Result<Self, Failure> {
        Self::spawn(launch).map_err(|e| {
            let program = launch.program.display();
            Failure::new(FailureKind::Crashed, format!("start a worker, `{program}`: {e}"))
        })
    }

    fn spawn(launch: &Launch) -> std::io::Result<Self> {
        let own = match launch.private {
            true => Some(tempfile::Builder::new().prefix(PRIVATE).tempdir_in(&launch.folder)?),
            false => None,
        };
        let folder = own.as_ref().map_or(launch.folder.as_path(), |own| own.path());
        let mut child = Command::new(&launch.program)
            .args(&launch.arguments)
            .current_dir(folder)
            .env_clear()
            .env("TMPDIR", folder)
            .env("LC_ALL", "C")
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            // Reaps in the background where a worker is dropped.
            .kill_on_drop(true)
            .spawn()?;
        let gone = || std::io::Error::other("it ended at once");
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let group = pid.and_then(Pid::from_raw).ok_or_else(gone)?;
        let ended = rustix::process::pidfd_open(group, PidfdFlags::NONBLOCK)?;
        let stdin = child.stdin.take().ok_or_else(gone)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(gone)?);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let reader = child.stderr.take().ok_or_else(gone)?;
        let reader = AbortOnDropHandle::new(tokio::spawn(keep_tail(reader, Arc::clone(&kept))));
        // SAFETY: the descriptor is owned, and stays open and unchanged until deregistered.
        let ended = unsafe { AsyncFd::register(ended) }?;
        let (stderr, _alive) = (kept, Alive::begin());
        Ok(Self { child, group, ended, stdin, stdout, stderr, reader, folder: own, _alive })
    }

    /// Sends a message. Where that fails the worker has ended: ask
    /// [`receive`](Self::receive) why.
    pub(super) async fn send(&mut self, message: &[u8]) {
        if let Err(e) = protocol::send(&mut self.stdin, message).await {
            tracing::debug!(worker = ?self.group, "send to the worker: {e}");
        }
    }

    /// Waits for a message.
    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, Lost> {
        match self.read().await {
            Ok(message) => Ok(message),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.autopsy().await),
            Err(e) => Err(Lost::Garbage(e.to_string())),
        }
    }

    async fn read(&mut self) -> std::io::Result<Vec<u8>> {
        let Self { child, group, ended, stdout, .. } = self;
        let message = protocol::receive(stdout);
        tokio::pin!(message);
        tokio::select! {
            biased;
            message = &mut message => message,
            // What it started may hold the pipe open: only after their end is what
            // the pipe still has all there is.
            _ = ended.readable() => {
                kill(child, *group);
                message.await
            }
        }
    }

    /// Watches what its job takes; `memory_bytes` is the job's limit.
    pub(super) fn watched(&self, memory_bytes: u64) -> Watched {
        Watched::new(self.group, self.folder.as_ref().map(|own| own.path()), memory_bytes)
    }

    /// Whether it still runs: a spare may have died while it waited.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the group and reaps the leader.
    pub(super) async fn end(mut self) {
        kill(&self.child, self.group);
        if let Err(e) = self.child.wait().await {
            tracing::warn!(worker = ?self.group, "reap a worker: {e}");
        }
        // What a job wrote may be many files: not on a runtime thread.
        let folder = self.folder.take();
        let removing = move || drop(folder);
        if let Err(e) = tokio::task::spawn_blocking(removing).await {
            tracing::warn!(worker = ?self.group, "remove a worker's folder: {e}");
        }
    }

    async fn autopsy(&mut self) -> Lost {
        let by_itself = timeout(GRACE, self.ended.readable()).await.is_ok();
        kill(&self.child, self.group);
        if !by_itself {
            return Lost::Garbage("it closed its stdout and went on".into());
        }
        match self.child.wait().await {
            Ok(status) => {
                // The writers are dead, so the tail is complete in a moment.
                let _ = timeout(GRACE, &mut self.reader).await;
                let stderr = String::from_utf8_lossy(&self.stderr.lock()).trim().to_owned();
                Lost::Ended(status, stderr)
            }
            Err(e) => Lost::Garbage(format!("reap it: {e}")),
        }
    }
}

/// Kills the group of a leader that has not been reaped.
fn kill(leader: &Child, group: Pid) {
    // No id: it has been reaped, and the group may be somebody else's by now.
    if leader.id().is_some() {
        // The only error is that nobody is left in it.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        kill(&self.child, self.group);
    }
}

impl Lost {
    /// What that means for the compile.
    pub(super) fn into_failure(self) -> Failure {
        let (status, stderr) = match self {
            Self::Garbage(why) => {
                let why = format!("the worker process did not answer sensibly: {why}");
                return Failure::new(FailureKind::Crashed, why);
            }
            Self::Ended(status, stderr) => (status, stderr),
        };
        // What NVRTC's back end, C++, Rust and Python say when memory is refused.
        let exhausted = ["out of memory", "bad_alloc", "memory allocation of", "MemoryError"];
        let exhausted = exhausted.iter().any(|words| stderr.contains(words));
        let kind = match status.signal() {
            _ if exhausted => FailureKind::OutOfMemory,
            Some(signal) if signal == Signal::XCPU.as_raw() => FailureKind::Timeout,
            _ => FailureKind::Crashed,
        };
        let colon = if stderr.is_empty() { "" } else { ": " };
        Failure::new(kind, format!("the worker process ended by {status}{colon}{stderr}"))
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({:?})", self.group)
    }
}

async fn keep_tail(mut from: ChildStderr, kept: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        let mut kept = kept.lock();
        kept.extend_from_slice(&chunk[..read]);
        let surplus = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..surplus);
    }
}

/// Removes from `folder` the folders of workers whose daemon was killed. Only where no worker runs.
pub(crate) fn remove_left(folder: &Path) -> std::io::Result<()> {
    let all = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        all => all?,
    };
    for entry in all {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(PRIVATE.as_bytes()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A link `libnvrtc.so` in `folder`, and the search path that makes it the only
/// one found: cudarc opens that bare name, and some NVRTC find their builtins
/// by the search path alone.
pub(super) fn library_view(folder: &Path, library: &Path) -> std::io::Result<OsString> {
    let link = folder.join("libnvrtc.so");
    // One that is right stays: workers may be starting.
    if !std::fs::read_link(&link).is_ok_and(|to| to == library) {
        match std::fs::remove_file(&link) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => std::os::unix::fs::symlink(library, &link)?,
        }
    }
    let beside = library.parent().unwrap_or(Path::new("/"));
    std::env::join_paths([folder, beside]).map_err(std::io::Error::other)
}
