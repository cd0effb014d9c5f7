//! The calls of this node that ask for a lease, and the grants that none of them takes.
//!
//! A call may end while its grant is under way: its client left, its time was up, or another
//! answer came first. The log grants the lease all the same, to nobody.
//! Invariant: a lease that this node's replica tells it was granted is held by somebody, or
//! awaited by a call, or given back at once: whoever waits for the key does not wait until it
//! runs out.

use std::{collections::HashSet, sync::Arc};

use kiln_proto::{ArtifactKey, NodeId, Token};
use parking_lot::Mutex;

use super::Leases;
use crate::{deadlines::Grant, error::ClusterError};

/// The requests that are awaited.
#[derive(Default)]
pub(super) struct Awaited(Mutex<HashSet<u64>>);

/// A call that asks for a lease. Keep it until the lease is held.
pub(crate) struct Asking {
    leases: Arc<Leases>,
    key: ArtifactKey,
    /// This node.
    pub node: NodeId,
    /// Names the call to the cluster.
    pub request: u64,
}

impl Drop for Asking {
    fn drop(&mut self) {
        // First: what is granted after this line is seen to be nobody's when it is applied.
        self.leases.awaited.0.lock().remove(&self.request);
        let deadlines = self.leases.replica.deadlines();
        if let Some(token) = deadlines.granted_to(&self.key, self.node, self.request) {
            self.leases.release_unheld(self.key, token);
        }
    }
}

impl Leases {
    /// Begins a call that asks for `key`.
    pub(crate) fn ask(self: &Arc<Self>, key: ArtifactKey) -> Result<Asking, ClusterError> {
        let node = self.router.owner()?.node;
        let mut request = [0; 8];
        getrandom::fill(&mut request).map_err(ClusterError::unavailable)?;
        let request = u64::from_le_bytes(request);
        self.awaited.0.lock().insert(request);
        Ok(Asking { leases: Arc::clone(self), key, node, request })
    }

    /// Gives back what is granted to this node and awaited by nobody, until the node stops.
    pub(crate) async fn give_unawaited_back(self: Arc<Self>) {
        let mut granted = self.granted.lock().await;
        loop {
            let grant = tokio::select! {
                grant = granted.recv() => grant,
                () = self.stop.cancelled() => return,
            };
            let Some(Grant { key, token, node, request }) = grant else { return };
            let ours = self.router.owner().is_ok_and(|me| me.node == node);
            let awaited = || self.awaited.0.lock().contains(&request);
            // One that is over was given back by its holder, or used.
            if ours && !awaited() && self.replica.deadlines().is_live(&key, token) {
                self.release_unheld(key, token);
            }
        }
    }

    /// Gives a lease back, unless it is held here.
    fn release_unheld(&self, key: ArtifactKey, token: Token) {
        if !self.held.lock().contains_key(&(key, token)) {
            tracing::debug!(key = %key.short(), %token, "nobody waits for this lease any more");
            self.release(key, token);
        }
    }
}
