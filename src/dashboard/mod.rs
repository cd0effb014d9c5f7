//! The dashboard: what the cluster is about, on one page.
//!
//! ```text
//! local (this node's figures) + samples -> figures -> peers (asked by gRPC) ->
//! history, top, reasons -> collect: one View a second, while somebody looks
//! ```
//!
//! [`Dashboard::shown`] is the [`View`] for whoever asks once, [`Dashboard::watch`] for
//! whoever goes on looking; the page itself lies in `ui/`, see [`files`].
//!
//! Invariant: nobody who looks holds up a request, and what a look costs does not grow
//! with the number of those who look; where nobody looks, no node is asked.

mod artifact;
mod changes;
mod collect;
pub mod files;
mod history;
mod local;
mod peers;
mod reasons;
mod sample;
mod samples;
mod sources;
mod top;
pub mod view;
mod watched;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::ClusterError;
use kiln_proto::ArtifactKey;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use self::{artifact::ArtifactView, sources::Sources, view::View};
use self::{changes::Changes, collect::Collector, local::Local, samples::Samples, view::Figures};

/// Between two views.
const EVERY: Duration = Duration::from_secs(1);
/// A view that is older is put together anew for whoever asks once.
const FRESH: Duration = Duration::from_millis(1500);
/// How long whoever asks once waits for a fresh one.
const PATIENCE: Duration = Duration::from_secs(5);
/// For so long after a question views are put together, so that the next one is quick.
const LINGER: Duration = Duration::from_secs(10);
/// Who watches at once.
const WATCHERS: usize = 32;

/// A view, as it is told.
#[derive(Debug)]
pub struct Shown {
    /// When it was put together.
    pub at: Instant,
    /// The whole of it.
    pub view: View,
    /// As JSON, with the last few points of its history alone.
    pub news: String,
}

/// The dashboard of one node.
pub struct Dashboard {
    sources: Arc<Sources>,
    local: Local,
    changes: Changes,
    shown: watch::Sender<Option<Arc<Shown>>>,
    asked: Mutex<Option<Instant>>,
    wake: Notify,
    watchers: Arc<Semaphore>,
}

/// Somebody who goes on looking.
pub struct Watcher {
    shown: watch::Receiver<Option<Arc<Shown>>>,
    _place: OwnedSemaphorePermit,
}

impl Dashboard {
    /// Samples, follows and collects from now on, in tasks that `spawn` starts, until `stop`.
    pub fn start(
        sources: Sources,
        stop: &CancellationToken,
        mut spawn: impl FnMut(futures::future::BoxFuture<'static, ()>),
    ) -> Arc<Self> {
        let (sources, samples) = (Arc::new(sources), Arc::<Samples>::default());
        let dashboard = Arc::new(Self {
            sources: sources.clone(),
            local: Local::new(sources.clone(), samples.clone()),
            changes: Changes::default(),
            shown: watch::Sender::default(),
            asked: Mutex::default(),
            wake: Notify::new(),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
        });
        spawn(Box::pin(samples::run(sources.clone(), samples, stop.clone())));
        let (following, index, stopped) = (dashboard.clone(), sources.index.clone(), stop.clone());
        spawn(Box::pin(async move { following.changes.run(index, stopped).await }));
        let (collecting, stopped) = (dashboard.clone(), stop.clone());
        spawn(Box::pin(async move { collecting.collect(stopped).await }));
        dashboard
    }

    /// What this node tells of itself: no other one is asked.
    pub fn figures(&self, samples_after: u64) -> Figures {
        self.local.figures(samples_after)
    }

    /// The view as of now, or the last one there is where a new one takes too long. `None`:
    /// there is none yet. The first one after a while may not know yet of a silent node
    /// whether it is gone; one that is `settled` does, and takes some seconds more for it.
    pub async fn shown(&self, settled: bool) -> Option<Arc<Shown>> {
        *self.asked.lock() = Some(Instant::now());
        let mut shown = self.shown.subscribe();
        self.wake.notify_one();
        let fresh = |shown: &Option<Arc<Shown>>| {
            let good = |view: &View| !settled || view.is_settled();
            shown.as_ref().is_some_and(|shown| shown.at.elapsed() < FRESH && good(&shown.view))
        };
        // An old one is better than none.
        drop(tokio::time::timeout(PATIENCE, shown.wait_for(fresh)).await);
        shown.borrow().clone()
    }

    /// What is known of `key`; `None`: nothing at all.
    pub async fn artifact(&self, key: &ArtifactKey) -> Result<Option<ArtifactView>, ClusterError> {
        ArtifactView::of(key, &self.sources, &self.changes).await
    }

    /// Begins to watch; `None`: enough do so already.
    pub fn watch(&self) -> Option<Watcher> {
        let place = self.watchers.clone().try_acquire_owned().ok()?;
        let mut shown = self.shown.subscribe();
        // The one that is there may be an old one.
        shown.mark_unchanged();
        self.wake.notify_one();
        Some(Watcher { shown, _place: place })
    }

    /// Whether somebody looks.
    fn is_looked_at(&self) -> bool {
        let asked = *self.asked.lock();
        self.shown.receiver_count() > 0 || asked.is_some_and(|asked| asked.elapsed() < LINGER)
    }

    /// Puts views together while somebody looks, until `stop`.
    async fn collect(&self, stop: CancellationToken) {
        let mut collector = Collector::default();
        while !stop.is_cancelled() {
            if !self.is_looked_at() {
                tokio::select! {
                    () = self.wake.notified() => collector.begin_anew(),
                    () = stop.cancelled() => return,
                }
            }
            let began = Instant::now();
            let view = tokio::select! {
                view = collector.view(&self.sources, &self.local) => view,
                () = stop.cancelled() => return,
            };
            match Shown::new(view) {
                Ok(shown) => drop(self.shown.send_replace(Some(Arc::new(shown)))),
                Err(e) => tracing::warn!(error = %e, "a view has no JSON"),
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY.saturating_sub(began.elapsed())) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

impl Shown {
    fn new(view: View) -> Result<Self, serde_json::Error> {
        let news = serde_json::to_string(&collect::news(&view))?;
        Ok(Self { at: Instant::now(), view, news })
    }
}

impl Watcher {
    /// The next view; `None`: there will be none. Whoever asks late gets the latest.
    pub async fn next(&mut self) -> Option<Arc<Shown>> {
        loop {
            self.shown.changed().await.ok()?;
            if let Some(shown) = self.shown.borrow_and_update().clone() {
                return Some(shown);
            }
        }
    }
}
