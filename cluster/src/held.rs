//! The leases that this node holds, and the heartbeats that keep them alive.
//!
//! Invariant: a lease is told lost only when the state says so, never because a
//! leader cannot be reached: publications are fenced by the token in any case,
//! and a new leader gives every lease a full time to live.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
};

use kiln_proto::{ArtifactKey, Token};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    command::Command,
    core::Core,
    leader::{Reply, Request},
};

/// Heartbeats in one time to live.
const HEARTBEATS: u32 = 4;

/// The leases of this node.
#[derive(Default)]
pub(crate) struct Held {
    leases: Mutex<HashMap<(ArtifactKey, Token), watch::Sender<bool>>>,
    added: Notify,
}

/// The cluster-wide right to compile one key. Heartbeats go on while it lives;
/// dropping it gives the right back.
pub struct Lease {
    key: ArtifactKey,
    token: Token,
    lost: watch::Receiver<bool>,
    core: Weak<Core>,
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
        let Some(core) = self.core.upgrade() else { return };
        if core.held.remove(&self.key, self.token) {
            core.release(self.key, self.token);
        }
    }
}

impl Held {
    /// Forgets a lease; whether it was still held.
    fn remove(&self, key: &ArtifactKey, token: Token) -> bool {
        let lost = self.leases.lock().remove(&(*key, token));
        lost.is_some_and(|lost| !lost.send_replace(true))
    }

    /// Forgets all leases of `key`.
    fn remove_all(&self, key: &ArtifactKey) {
        let mut leases = self.leases.lock();
        for (_, lost) in leases.extract_if(|(held, _), _| held == key) {
            lost.send_replace(true);
        }
    }

    fn list(&self) -> Vec<(ArtifactKey, Token)> {
        self.leases.lock().keys().copied().collect()
    }
}

impl Core {
    /// Holds a lease that was granted to this node.
    pub(crate) fn hold(self: &Arc<Self>, key: ArtifactKey, token: Token) -> Lease {
        let mut leases = self.held.leases.lock();
        let lost = leases.entry((key, token)).or_insert_with(|| watch::channel(false).0);
        let lost = lost.subscribe();
        drop(leases);
        self.held.added.notify_one();
        Lease { key, token, lost, core: Arc::downgrade(self) }
    }

    /// Notes that a lease was used up: there is nothing to give back.
    pub(crate) fn lease_is_over(&self, lease: &Lease) {
        self.held.remove(&lease.key, lease.token);
    }

    /// Notes that a put ended every lease of `key`: there is nothing to give back.
    pub(crate) fn leases_are_over(&self, key: &ArtifactKey) {
        self.held.remove_all(key);
    }

    /// Gives a lease back in the background. If that fails, it runs out.
    pub(crate) fn release(self: &Arc<Self>, key: ArtifactKey, token: Token) {
        let core = Arc::clone(self);
        let release = async move {
            if let Err(e) = core.write(Command::Expire { key, token }).await {
                tracing::debug!(key = %key.short(), error = %e, "a lease is left to run out");
            }
        };
        // A lease may be dropped where no runtime is left to release it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(release, &runtime);
        }
    }

    /// Sends heartbeats until the node stops.
    pub(crate) async fn keep_leases(self: Arc<Self>) {
        let interval = self.timings.lease_ttl / HEARTBEATS;
        loop {
            let held = self.held.list();
            let next = async {
                match held.is_empty() {
                    true => self.held.added.notified().await,
                    false => tokio::time::sleep(interval).await,
                }
            };
            tokio::select! {
                () = next => {}
                () = self.stop.cancelled() => return,
            }
            self.renew(self.held.list()).await;
        }
    }

    async fn renew(self: &Arc<Self>, leases: Vec<(ArtifactKey, Token)>) {
        if leases.is_empty() {
            return;
        }
        match self.ask(Request::Renew(leases.clone())).await {
            Ok(Reply::Renewed(live)) => {
                for ((key, token), live) in leases.into_iter().zip(live) {
                    // A grant that the leader has not told this node of yet is in nobody's list.
                    if !live && self.held.remove(&key, token) {
                        tracing::warn!(key = %key.short(), %token, "a lease was lost");
                    }
                }
            }
            Ok(other) => tracing::error!(?other, "an answer out of place"),
            Err(e) => tracing::debug!(error = %e, "heartbeats of leases did not arrive"),
        }
    }
}
