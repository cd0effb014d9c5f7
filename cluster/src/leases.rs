//! The leases that this node holds, and the heartbeats that keep them alive.
//!
//! Invariant: a lease is told lost only when the state says so, never because a
//! leader cannot be reached: publications are fenced by the token in any case,
//! and a new leader gives every lease a full time to live.

mod asking;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use kiln_proto::{ArtifactKey, Failure, Token};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::asking::Awaited;
use crate::{
    command::Command, deadlines::Grant, entry::Entry, replica::Replica, router::Router, rpc::Renew,
};

/// Heartbeats in one time to live.
const HEARTBEATS: u32 = 4;

/// The leases of this node.
pub(crate) struct Leases {
    held: Mutex<HashMap<(ArtifactKey, Token), watch::Sender<bool>>>,
    added: Notify,
    awaited: Awaited,
    /// What the replica was told of; one task takes it.
    granted: tokio::sync::Mutex<mpsc::UnboundedReceiver<Grant>>,
    replica: Arc<Replica>,
    router: Arc<Router>,
    interval: Duration,
    tasks: TaskTracker,
    /// Those of `tasks` that give a lease back.
    releases: TaskTracker,
    stop: CancellationToken,
}

/// The cluster-wide right to compile one key. Heartbeats go on while it lives;
/// dropping it gives the right back.
pub struct Lease {
    key: ArtifactKey,
    token: Token,
    lost: watch::Receiver<bool>,
    leases: Weak<Leases>,
}

/// How an acquire ended.
#[derive(Debug)]
pub enum Acquired {
    /// The key has an artifact.
    Ready(Entry),
    /// The caller compiles, and publishes or fails under this lease.
    Granted(Lease),
    /// The compile failed a while ago, and would again.
    Failed(Failure),
}

/// How a try to acquire a key ended.
#[derive(Debug)]
pub enum Tried {
    /// The caller compiles, and publishes or fails under this lease.
    Granted(Lease),
    /// Another call's lease is live.
    Held,
    /// The key has an artifact.
    Ready(Entry),
    /// The compile failed a while ago, and would again.
    Failed(Failure),
}

impl Lease {
    /// The key.
    pub fn key(&self) -> &ArtifactKey {
        &self.key
    }

    /// The fencing number.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Whether the lease ended: published, failed, or expired.
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Returns when the lease ended: stop the compile.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // An error means that the node stops, and with it every lease.
        drop(lost.wait_for(|lost| *lost).await);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).field("token", &self.token).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(leases) = self.leases.upgrade() else { return };
        if leases.forget(&self.key, self.token) {
            leases.release(self.key, self.token);
        }
    }
}

impl Leases {
    /// No leases yet, each of which will live for `ttl` without heartbeats. `granted`: those
    /// that `replica` applies.
    pub(crate) fn new(
        replica: Arc<Replica>,
        granted: mpsc::UnboundedReceiver<Grant>,
        router: Arc<Router>,
        ttl: Duration,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let interval = ttl / HEARTBEATS;
        let releases = TaskTracker::new();
        // Closed ones track as well; their wait ends whenever nothing is under way.
        releases.close();
        let (held, added, awaited) = (Mutex::default(), Notify::new(), Awaited::default());
        let granted = tokio::sync::Mutex::new(granted);
        Self { held, added, awaited, granted, replica, router, interval, tasks, releases, stop }
    }

    /// Holds a lease that was granted to this node.
    pub(crate) fn hold(self: &Arc<Self>, key: ArtifactKey, token: Token) -> Lease {
        let mut held = self.held.lock();
        let lost = held.entry((key, token)).or_insert_with(|| watch::channel(false).0);
        let lost = lost.subscribe();
        drop(held);
        self.added.notify_one();
        Lease { key, token, lost, leases: Arc::downgrade(self) }
    }

    /// Notes that a lease was used up: there is nothing to give back.
    pub(crate) fn used(&self, lease: &Lease) {
        self.forget(&lease.key, lease.token);
    }

    /// Notes that a put ended every lease of `key`: there is nothing to give back.
    pub(crate) fn all_used(&self, key: &ArtifactKey) {
        let mut held = self.held.lock();
        for (_, lost) in held.extract_if(|(held, _), _| held == key) {
            lost.send_replace(true);
        }
    }

    /// Forgets a lease; whether it was still held.
    fn forget(&self, key: &ArtifactKey, token: Token) -> bool {
        let lost = self.held.lock().remove(&(*key, token));
        lost.is_some_and(|lost| !lost.send_replace(true))
    }

    /// How many are held.
    pub(crate) fn count(&self) -> usize {
        self.held.lock().len()
    }

    fn list(&self) -> Vec<(ArtifactKey, Token)> {
        self.held.lock().keys().copied().collect()
    }

    /// Gives a lease back in the background. If that fails, it runs out.
    fn release(&self, key: ArtifactKey, token: Token) {
        let router = Arc::clone(&self.router);
        let release = async move {
            if let Err(e) = router.write(Command::Expire { key, token }).await {
                tracing::debug!(key = %key.short(), error = %e, "a lease is left to run out");
            }
        };
        // A lease may be dropped where no runtime is left to release it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(self.releases.track_future(release), &runtime);
        }
    }

    /// Ends every lease that this node holds, and returns when the cluster was told of
    /// these and of those that ended before.
    pub(crate) async fn give_all_back(&self) {
        for (key, token) in self.list() {
            if self.forget(&key, token) {
                self.release(key, token);
            }
        }
        self.releases.wait().await;
    }

    /// Sends heartbeats until the node stops.
    pub(crate) async fn send_heartbeats(self: Arc<Self>) {
        loop {
            let held = self.list();
            let next = async {
                match held.is_empty() {
                    true => self.added.notified().await,
                    false => tokio::time::sleep(self.interval).await,
                }
            };
            tokio::select! {
                () = next => {}
                () = self.stop.cancelled() => return,
            }
            self.renew(self.list()).await;
        }
    }

    async fn renew(&self, leases: Vec<(ArtifactKey, Token)>) {
        if leases.is_empty() {
            return;
        }
        match self.router.ask(Renew(leases.clone())).await {
            Ok(live) => {
                for ((key, token), live) in leases.into_iter().zip(live) {
                    // A grant that the leader has not told this node of yet is in nobody's list.
                    if !live && self.forget(&key, token) {
                        tracing::warn!(key = %key.short(), %token, "a lease was lost");
                    }
                }
            }
            Err(e) => tracing::debug!(error = %e, "heartbeats of leases did not arrive"),
        }
    }
}
