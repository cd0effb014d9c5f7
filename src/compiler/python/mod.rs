//! The node's Python: an interpreter that has torch, looked at once and then used
//! through a pool of worker processes.
//!
//! Invariants: the daemon starts Python as a child and never unpickles or imports
//! what it makes; what a worker says it is is compared with the key's fingerprint
//! before it gets a job, so a torch that was exchanged under a running node
//! compiles nothing under its predecessor's keys.
//!
//! Each worker compiles one program: a compile leaves caches, patches and threads in its
//! process, and what one tenant's program did there would be next to the next tenant's.
//! Importing torch takes seconds, so workers are forks of a process that did it and does
//! nothing else; where that is not there, the next one loads while this one works.

mod dialect;
mod probe;
mod source;

use std::{num::NonZero, path::Path, sync::Arc};

use kiln_proto::{Failure, FailureKind, Fingerprint};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::dialect::Snake;
pub(super) use self::dialect::{Done, Job, Program};
use super::{Limits, PoolSettings, PoolUse, worker::Pool};

/// Which Python, and how many of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PythonSettings {
    /// An interpreter that has torch; none: this node has no Inductor.
    pub interpreter: Option<std::path::PathBuf>,
    /// How many compile at once.
    pub pool: PoolSettings,
}

/// What is known of the interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Its first look is not over.
    Looking,
    /// What it compiles with.
    Known(Vec<Fingerprint>),
    /// Why it is of no use.
    Missing(Failure),
}

/// One interpreter and its workers.
#[derive(Debug)]
pub(super) struct Python {
    state: watch::Sender<State>,
    pool: Option<Arc<Pool<Snake>>>,
    _look: Option<AbortOnDropHandle<()>>,
}

impl Python {
    /// Starts to look at the interpreter, in the background: what it was the last
    /// time is believed until then. `program` is the `kiln` executable; `folder` is for
    /// workers alone.
    pub(super) fn start(settings: &PythonSettings, program: &Path, folder: &Path) -> Arc<Self> {
        let (pool, known) = match prepare(settings, program, folder) {
            Ok(prepared) => prepared,
            Err(failure) => {
                let (state, _) = watch::channel(State::Missing(failure));
                return Arc::new(Self { state, pool: None, _look: None });
            }
        };
        let last = known.read();
        let (state, _) = watch::channel(last.map_or(State::Looking, State::Known));
        let pool = Arc::new(pool);
        let look = tokio::spawn({
            let (pool, state) = (Arc::clone(&pool), state.clone());
            async move {
                let found = match pool.look().await {
                    Ok(found) => {
                        known.write(&found);
                        for fingerprint in &found {
                            tracing::info!(%fingerprint, "found Inductor");
                        }
                        State::Known(found)
                    }
                    Err(failure) => {
                        tracing::warn!("this node has no Inductor: {failure}");
                        let kind = match failure.kind {
                            FailureKind::ToolchainMissing => failure.kind,
                            // Whatever became of it: there is no toolchain here.
                            _ => FailureKind::ToolchainMissing,
                        };
                        State::Missing(Failure::new(kind, failure.message))
                    }
                };
                state.send_if_modified(|state| {
                    let changed = *state != found;
                    *state = found;
                    changed
                });
            }
        });
        Arc::new(Self { state, pool: Some(pool), _look: Some(AbortOnDropHandle::new(look)) })
    }

    /// Returns once the first look is over.
    pub(super) async fn settled(&self) {
        let mut state = self.state.subscribe();
        // An error means that nobody will ever tell: then what is known is all.
        let _ = state.wait_for(|state| *state != State::Looking).await;
    }

    /// The toolchain of the compiler `name`, or why there is none.
    pub(super) fn fingerprint(&self, name: &str) -> Result<Fingerprint, Failure> {
        let missing = |why: String| Failure::new(FailureKind::ToolchainMissing, why);
        match &*self.state.borrow() {
            State::Looking => Err(missing("torch is still being looked at: try again".into())),
            State::Missing(failure) => Err(failure.clone()),
            State::Known(all) => all
                .iter()
                .find(|fingerprint| fingerprint.compiler == name)
                .cloned()
                .ok_or_else(|| missing(format!("the torch of `compile.python` has no {name}"))),
        }
    }

    /// Wakes when another look gave something new.
    pub(super) fn changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.state.subscribe();
        async move {
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Jobs that could run at once from now on.
    pub(super) fn free(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| pool.free())
    }

    /// Returns when a job could run at once.
    pub(super) async fn until_free(&self) {
        match &self.pool {
            Some(pool) => pool.until_free().await,
            None => std::future::pending().await,
        }
    }

    /// How busy its workers are; `None`: there is no interpreter.
    pub(super) fn load(&self) -> Option<PoolUse> {
        self.pool.as_ref().map(|pool| pool.load())
    }

    /// So many jobs at once from now on; whether there is an interpreter.
    pub(super) fn resize(&self, workers: NonZero<usize>) -> bool {
        self.pool.as_ref().map(|pool| pool.resize(workers)).is_some()
    }

    /// Runs a job in a worker of its own.
    pub(super) async fn run(
        &self,
        job: &Job,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Done, Failure> {
        match &self.pool {
            Some(pool) => pool.run(job, limits, stop).await,
            None => Err(self.fingerprint(&job.fingerprint.compiler).err().unwrap_or_else(|| {
                Failure::new(FailureKind::ToolchainMissing, "this node has no Python")
            })),
        }
    }
}

/// The pool, and where the last look is remembered.
fn prepare(
    settings: &PythonSettings,
    program: &Path,
    folder: &Path,
) -> Result<(Pool<Snake>, probe::Remembered), Failure> {
    let missing = |why: String| Failure::new(FailureKind::ToolchainMissing, why);
    let interpreter = settings.interpreter.as_ref().ok_or_else(|| {
        missing(
            "this node has no Inductor: set `compile.python` (KILN_COMPILE_PYTHON) to a Python \
             interpreter that has torch"
                .into(),
        )
    })?;
    let unusable = |e: std::io::Error| {
        missing(format!("`compile.python`, {}, cannot be used: {e}", interpreter.display()))
    };
    // Absolute, but not resolved: a virtual environment is known by the link's own place.
    let interpreter = std::path::absolute(interpreter).map_err(unusable)?;
    let remembered = probe::Remembered::new(&interpreter, folder).map_err(unusable)?;
    let jobs = folder.join("python");
    // What workers of a killed daemon left.
    match std::fs::remove_dir_all(&jobs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, folder = %jobs.display(), "what a killed node left stays");
        }
        _ => {}
    }
    std::fs::create_dir_all(&jobs).map_err(unusable)?;
    let jobs = std::path::absolute(jobs).map_err(unusable)?;
    let keep = settings.pool.keep_warm;
    let workers = Snake::new(program.to_owned(), interpreter, jobs, keep);
    Ok((Pool::new(workers, settings.pool.clone()), remembered))
}
