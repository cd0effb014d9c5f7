//! The pool: how many compilers run, and those that wait warm.
//!
//! Invariant: at most as many jobs run as there are places, `queue` wait and [`SPARES`]
//! workers wait warm, whatever is asked; dropping the pool or the future of a job ends the
//! processes of both. Where there are fewer places than before, jobs that run end first.

use std::{
    collections::VecDeque,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kiln_proto::{Failure, FailureKind};
use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    dialect::Dialect,
    places::{Places, PoolUse, Slot},
    preloaded::Preloaded,
    process::{Lost, Worker},
};
use crate::compiler::{Limits, room};

/// Most workers that wait warm: each holds a loaded compiler in memory.
const SPARES: usize = 4;

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

/// Runs jobs through worker processes of one kind.
#[derive(Debug)]
pub(crate) struct Pool<T: Dialect> {
    dialect: Arc<T>,
    settings: PoolSettings,
    places: Places,
    waiting: AtomicUsize,
    running: AtomicUsize,
    spares: Arc<Mutex<Spares<T::Ready>>>,
    preloaded: Arc<Preloaded>,
}

/// The workers that wait warm, the oldest first.
#[derive(Debug)]
struct Spares<R> {
    waiting: VecDeque<Spare<R>>,
    /// Of the next one.
    number: u64,
}

/// A worker that waits warm, and the task that ends it when nobody comes.
#[derive(Debug)]
struct Spare<R> {
    number: u64,
    worker: AbortOnDropHandle<Result<(Worker, R), Failure>>,
    expiry: AbortOnDropHandle<()>,
}

impl<T: Dialect> Pool<T> {
    /// A pool of workers that are spoken to in `dialect`.
    pub(crate) fn new(dialect: T, settings: PoolSettings) -> Self {
        Self {
            dialect: Arc::new(dialect),
            places: Places::new(settings.workers),
            settings,
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            spares: Arc::new(Mutex::new(Spares { waiting: VecDeque::new(), number: 0 })),
            preloaded: Arc::default(),
        }
    }

    /// Jobs that could run at once from now on.
    pub(crate) fn free(&self) -> usize {
        self.places.free().saturating_sub(self.waiting.load(Ordering::Relaxed))
    }

    /// Returns when a job could run at once: after those that wait already.
    pub(crate) async fn until_free(&self) {
        drop(self.places.acquire().await);
    }

    /// How busy it is.
    pub(crate) fn load(&self) -> PoolUse {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let (workers, running) = self.places.load();
        PoolUse { workers, running, waiting }
    }

    /// From now on so many jobs may run at once.
    pub(crate) fn resize(&self, workers: NonZero<usize>) {
        self.places.resize(workers);
    }

    /// Asks a worker of its own what it is.
    pub(crate) async fn probe(dialect: &T) -> Result<T::Ready, Failure> {
        let (worker, ready) = start(dialect, &Preloaded::default()).await?;
        worker.end().await;
        Ok(ready)
    }

    /// Asks a new worker what it is, and keeps it warm.
    pub(crate) async fn look(&self) -> Result<T::Ready, Failure> {
        let (worker, ready) = start(&*self.dialect, &self.preloaded).await?;
        let told = ready.clone();
        let started = tokio::spawn(std::future::ready(Ok((worker, ready))));
        let mut spares = self.spares.lock();
        spares.waiting.clear();
        self.keep(&mut spares, started);
        Ok(told)
    }

    /// Starts workers that wait warm: as many as jobs run now, at least one. Needs a tokio
    /// runtime.
    pub(crate) fn warm_up(&self) {
        let running = self.running.load(Ordering::Relaxed);
        let mut spares = self.spares.lock();
        while spares.waiting.len() < running.clamp(1, SPARES) {
            let (dialect, preloaded) = (Arc::clone(&self.dialect), Arc::clone(&self.preloaded));
            let starting = async move { start(&*dialect, &preloaded).await };
            self.keep(&mut spares, tokio::spawn(starting));
        }
    }

    fn keep(
        &self,
        spares: &mut Spares<T::Ready>,
        starting: JoinHandle<Result<(Worker, T::Ready), Failure>>,
    ) {
        // Weak: the slot owns this task, and the pool alone owns the slot.
        let (slot, keep) = (Arc::downgrade(&self.spares), self.settings.keep_warm);
        let number = spares.number;
        let expiry = tokio::spawn(async move {
            tokio::time::sleep(keep).await;
            if let Some(slot) = slot.upgrade() {
                slot.lock().waiting.retain(|spare| spare.number != number);
            }
        });
        let worker = AbortOnDropHandle::new(starting);
        spares.waiting.push_back(Spare { number, worker, expiry: AbortOnDropHandle::new(expiry) });
        spares.number += 1;
    }

    /// Runs one job within `limits`; `stop` ends it. One that has too little memory beside
    /// others runs once more alone, with that of all of them.
    pub(crate) async fn run(
        &self,
        job: &T::Job,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<T::Done, Failure> {
        let compile = async {
            match self.begin().await?.run(job, limits).await {
                Err(why) if why.kind == FailureKind::OutOfMemory => {
                    self.run_alone(job, limits, why).await
                }
                done => done,
            }
        };
        tokio::select! {
            answer = compile => answer,
            () = stop.cancelled() => {
                Err(Failure::new(FailureKind::Crashed, "the compile was cancelled"))
            }
        }
    }

    /// Runs a job with nothing beside it, in the memory of all that could be. `why`: what it
    /// failed of beside others, and fails of where there is no more memory.
    async fn run_alone(
        &self,
        job: &T::Job,
        limits: &Limits,
        why: Failure,
    ) -> Result<T::Done, Failure> {
        if self.places.load().0 == 1 || limits.memory_bytes == 0 {
            return Err(why);
        }
        let (_slot, places) = self.places.acquire_all().await;
        let all = limits.memory_bytes.saturating_mul(places as u64);
        // Some of what is left is the daemon's.
        let memory_bytes = room::left().map_or(all, |left| all.min(left / 10 * 9));
        if memory_bytes <= limits.memory_bytes {
            return Err(why);
        }
        tracing::info!(memory_bytes, "a {} was out of memory: once more, alone", T::WORK);
        let (worker, ready) = self.worker().await?;
        let limits = Limits { memory_bytes, ..limits.clone() };
        let done = Begun { pool: self, worker, ready, _slot }.run(job, &limits).await;
        done.map_err(|again| match again.kind {
            FailureKind::OutOfMemory => {
                let alone =
                    format!("{}; alone on its node with {memory_bytes} bytes too", again.message);
                Failure::new(again.kind, alone)
            }
            _ => again,
        })
    }

    /// Waits for a place and a worker that is ready. Where this fails no job was begun.
    pub(crate) async fn begin(&self) -> Result<Begun<'_, T>, Failure> {
        let slot = self.slot().await?;
        let (worker, ready) = self.worker().await?;
        Ok(Begun { pool: self, worker, ready, _slot: slot })
    }

    async fn slot(&self) -> Result<Slot<'_>, Failure> {
        if let Some(slot) = self.places.try_acquire() {
            return Ok(slot);
        }
        let _place = Place::acquire(&self.waiting, self.settings.queue).ok_or_else(|| {
            let (queue, (workers, _)) = (self.settings.queue, self.places.load());
            let why = format!(
                "all {workers} compilers of this node are busy and {queue} requests wait: try \
                 again later, or another node"
            );
            Failure::new(FailureKind::Busy, why)
        })?;
        Ok(self.places.acquire().await)
    }

    /// The oldest spare if it is well, else a new worker.
    async fn worker(&self) -> Result<(Worker, T::Ready), Failure> {
        let spare = self.spares.lock().waiting.pop_front();
        if let Some(Spare { worker, expiry, .. }) = spare {
            drop(expiry);
            match worker.await {
                Ok(Ok((mut worker, ready))) => match worker.is_alive() {
                    true => return Ok((worker, ready)),
                    false => tracing::warn!("the spare compiler process had ended"),
                },
                Ok(Err(failure)) => tracing::warn!("start a spare compiler process: {failure}"),
                Err(e) => tracing::warn!("start a spare compiler process: {e}"),
            }
        }
        start(&*self.dialect, &self.preloaded).await
    }
}

/// A worker that has its place among the jobs, and none of them yet.
pub(crate) struct Begun<'p, T: Dialect> {
    pool: &'p Pool<T>,
    worker: Worker,
    ready: T::Ready,
    _slot: Slot<'p>,
}

impl<T: Dialect> Begun<'_, T> {
    /// Runs one job within `limits`.
    pub(crate) async fn run(self, job: &T::Job, limits: &Limits) -> Result<T::Done, Failure> {
        let Self { pool, mut worker, ready, _slot } = self;
        // One job, however many places it has.
        let _running = Place::acquire(&pool.running, usize::MAX);
        pool.dialect.fits(&ready, job)?;
        let message = pool.dialect.job(job, limits).map_err(not_encodable)?;
        let watched = worker.watched(limits.memory_bytes);
        let work = async {
            worker.send(&message).await;
            // The next ones load while this one works.
            pool.warm_up();
            worker.receive().await
        };
        let exceeds = watched.exceeds();
        let answer = tokio::select! {
            answer = timeout(limits.time, work) => Ok(answer),
            why = exceeds => Err(why),
        };
        worker.end().await;
        match answer? {
            Ok(Ok(message)) => pool.dialect.done(message).map_err(not_encodable)?,
            Ok(Err(lost)) => Err(lost.into_failure()),
            Err(_) => {
                let why = format!("the {} was ended after {:?}, its limit", T::WORK, limits.time);
                Err(Failure::new(FailureKind::Timeout, why))
            }
        }
    }
}

/// Starts a worker and waits until it has loaded its compiler.
async fn start<T: Dialect>(
    dialect: &T,
    preloaded: &Preloaded,
) -> Result<(Worker, T::Ready), Failure> {
    preloaded.ensure(dialect).await;
    let mut worker = Worker::start(dialect.launch())?;
    worker.send(&dialect.hello().map_err(not_encodable)?).await;
    match timeout(T::START_LIMIT, worker.receive()).await {
        Ok(Ok(message)) => Ok((worker, dialect.ready(&message).map_err(not_encodable)??)),
        Ok(Err(lost)) => Err(lost.into_failure()),
        Err(_) => {
            let (subject, limit) = (dialect.subject(), T::START_LIMIT);
            let why = format!("{subject} was not loaded within {limit:?}: try again later");
            Err(Failure::new(FailureKind::Busy, why))
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_encodable(e: std::io::Error) -> Failure {
    Lost::Garbage(e.to_string()).into_failure()
}

/// One more of those that are counted, until it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn acquire(waiting: &'a AtomicUsize, most: usize) -> Option<Self> {
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
