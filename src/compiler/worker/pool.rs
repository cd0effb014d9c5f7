//! The pool: how many compilers run, and one that waits warm.
//!
//! Invariant: at most `workers` jobs run and `queue` wait, whatever is asked;
//! dropping the pool or the future of a job ends the processes of both.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kiln_proto::{Failure, FailureKind};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    process::{Launch, Worker, library_view},
    protocol::{Compiled, Program, Ready, Setup},
};
use crate::compiler::Limits;

/// Loading NVRTC and one empty compile take 0.3 s on an idle core.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Bounds on a node's compilers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// Compiles at once; the number of cores.
    pub workers: NonZero<usize>,
    /// Compiles that wait for a worker; more are refused.
    pub queue: usize,
    /// How long a worker waits warm after start and after each compile.
    #[serde(with = "humantime_serde")]
    pub keep_warm: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        let one = NonZero::<usize>::MIN;
        Self {
            workers: thread::available_parallelism().unwrap_or(one),
            queue: 1024,
            keep_warm: Duration::from_secs(600),
        }
    }
}

/// Runs programs through worker processes of one toolchain.
#[derive(Debug)]
pub(crate) struct Pool {
    launch: Launch,
    setup: Setup,
    settings: PoolSettings,
    slots: Semaphore,
    waiting: AtomicUsize,
    spare: Arc<Mutex<Option<Spare>>>,
}

/// The worker that waits warm, and the task that ends it when nobody comes.
#[derive(Debug)]
struct Spare {
    worker: AbortOnDropHandle<Result<Worker, Failure>>,
    expiry: AbortOnDropHandle<()>,
}

impl Pool {
    /// A pool whose workers are `program worker`, run in `folder`, which must
    /// exist and be the pool's alone, with the library that `setup` names.
    pub(crate) fn new(
        program: PathBuf,
        folder: PathBuf,
        setup: Setup,
        settings: PoolSettings,
    ) -> Result<Self, Failure> {
        let libraries = library_view(&folder, &setup.library).map_err(|e| {
            let at = folder.display();
            Failure::new(FailureKind::ToolchainMissing, format!("prepare {at}: {e}"))
        })?;
        Ok(Self {
            launch: Launch { program, folder, libraries },
            setup,
            slots: Semaphore::new(settings.workers.get()),
            settings,
            waiting: AtomicUsize::new(0),
            spare: Arc::new(Mutex::new(None)),
        })
    }

    /// Asks a worker of its own about the toolchain of `setup`.
    pub(crate) async fn probe(
        program: &Path,
        folder: &Path,
        setup: Setup,
    ) -> Result<Ready, Failure> {
        let (program, folder) = (program.to_owned(), folder.to_owned());
        let pool = Self::new(program, folder, setup, PoolSettings::default())?;
        let (worker, ready) = start(&pool.launch, &pool.setup).await?;
        worker.end().await;
        Ok(ready)
    }

    /// Starts the worker that waits warm, unless one does. Needs a tokio runtime.
    pub(crate) fn warm_up(&self) {
        let mut spare = self.spare.lock();
        if spare.is_none() {
            let (launch, setup) = (self.launch.clone(), self.setup.clone());
            let starting =
                tokio::spawn(async move { start(&launch, &setup).await.map(|(worker, _)| worker) });
            // Weak: the slot owns this task, and the pool alone owns the slot.
            let (slot, keep) = (Arc::downgrade(&self.spare), self.settings.keep_warm);
            let expiry = tokio::spawn(async move {
                tokio::time::sleep(keep).await;
                let expired = slot.upgrade().and_then(|slot| slot.lock().take());
                drop(expired);
            });
            *spare = Some(Spare {
                worker: AbortOnDropHandle::new(starting),
                expiry: AbortOnDropHandle::new(expiry),
            });
        }
    }

    /// Runs one program within `limits`; `stop` ends it.
    pub(crate) async fn run(
        &self,
        mut program: Program,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Compiled, Failure> {
        program.memory_bytes = limits.memory_bytes;
        // NVRTC computes in one thread: only a worker that the wall clock missed
        // gets this far.
        program.cpu_seconds = limits.time.as_secs().saturating_mul(2).saturating_add(10);
        let compile = async {
            let _slot = self.slot().await?;
            self.run_now(&program, limits).await
        };
        tokio::select! {
            answer = compile => answer,
            () = stop.cancelled() => {
                Err(Failure::new(FailureKind::Crashed, "the compile was cancelled"))
            }
        }
    }

    async fn slot(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Failure> {
        if let Ok(slot) = self.slots.try_acquire() {
            return Ok(slot);
        }
        let _place = Place::take(&self.waiting, self.settings.queue).ok_or_else(|| {
            let PoolSettings { workers, queue, .. } = &self.settings;
            let why = format!(
                "all {workers} compilers of this node are busy and {queue} requests wait: try \
                 again later, or another node"
            );
            Failure::new(FailureKind::ToolchainMissing, why)
        })?;
        let closed = |_| Failure::new(FailureKind::Crashed, "the pool is closed");
        self.slots.acquire().await.map_err(closed)
    }

    async fn run_now(&self, program: &Program, limits: &Limits) -> Result<Compiled, Failure> {
        let mut worker = self.take().await?;
        let compile = async {
            worker.send(program).await;
            // The next one loads while this one compiles.
            self.warm_up();
            worker.receive().await
        };
        let answer = timeout(limits.time, compile).await;
        worker.end().await;
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(lost)) => Err(lost.into_failure()),
            Err(_) => {
                let why = format!("the compile was ended after {:?}, its limit", limits.time);
                Err(Failure::new(FailureKind::Timeout, why))
            }
        }
    }

    /// The spare if it is well, else a new worker.
    async fn take(&self) -> Result<Worker, Failure> {
        let spare = self.spare.lock().take();
        if let Some(Spare { worker, expiry }) = spare {
            drop(expiry);
            match worker.await {
                Ok(Ok(mut worker)) => match worker.is_alive() {
                    true => return Ok(worker),
                    false => tracing::warn!("the spare compiler process had ended"),
                },
                Ok(Err(failure)) => tracing::warn!("start a spare compiler process: {failure}"),
                Err(e) => tracing::warn!("start a spare compiler process: {e}"),
            }
        }
        start(&self.launch, &self.setup).await.map(|(worker, _)| worker)
    }
}

/// Starts a worker and waits until it has loaded its toolchain.
async fn start(launch: &Launch, setup: &Setup) -> Result<(Worker, Ready), Failure> {
    let mut worker = Worker::start(launch)?;
    worker.send(setup).await;
    match timeout(START_LIMIT, worker.receive()).await {
        Ok(Ok(Ok(ready))) => Ok((worker, ready)),
        Ok(Ok(Err(failure))) => Err(failure),
        Ok(Err(lost)) => Err(lost.into_failure()),
        Err(_) => {
            let library = setup.library.display();
            let why = format!("{library} was not loaded within {START_LIMIT:?}");
            Err(Failure::new(FailureKind::ToolchainMissing, why))
        }
    }
}

/// One place in the queue, given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |n| (n < most).then_some(n + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
