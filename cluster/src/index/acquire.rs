//! The right to compile a key.
//!
//! Invariant: a call finds its own grant, however often it had to ask, and ends within its
//! deadline or the router's bound. A call that ends otherwise, or is dropped, leaves no lease
//! behind that nobody holds.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use kiln_proto::ArtifactKey;
use tokio::time::Instant;

use super::Index;
use crate::{
    error::ClusterError,
    leases::{Acquired, Tried},
    rpc::{Acquire, Outcome, TryAcquire, Unanswered},
    table::LeaseRecord,
};

impl Index {
    /// The artifact, the failure, or the right to compile `key`. Waits while
    /// another node compiles it, until `deadline`; `on_waiting` tells that once.
    /// `instead_of`: the epoch whose bytes the caller cannot reach, which is then no
    /// answer; what is published under the lease begins another one.
    pub async fn acquire(
        &self,
        key: &ArtifactKey,
        instead_of: Option<u64>,
        deadline: Instant,
        on_waiting: impl FnOnce() + Send,
    ) -> Result<Acquired, ClusterError> {
        // Until the lease is held: whoever drops this call leaves no lease behind.
        let asking = self.leases.ask(*key)?;
        let (node, request) = (asking.node, asking.request);
        let (mut on_waiting, waited) = (Some(on_waiting), AtomicBool::new(false));
        let mut waiting = || {
            waited.store(true, Ordering::Relaxed);
            if let Some(on_waiting) = on_waiting.take() {
                on_waiting();
            }
        };
        // Since when no leader held this call open.
        let mut since = Instant::now();
        let mut last = ClusterError::unavailable("no leader is known");
        loop {
            if let Some(found) = self.found(key, instead_of).await? {
                return Ok(found);
            }
            let wait_ms = deadline.saturating_duration_since(Instant::now()).as_millis();
            let wait_ms = u64::try_from(wait_ms).unwrap_or(u64::MAX);
            let asked = Acquire { key: *key, node, request, instead_of, wait_ms };
            let answer = match self.router.leader() {
                None => Err(Unanswered::NotLeader),
                Some(leader) => tokio::select! {
                    answer = self.router.acquire_at(leader, &asked, deadline, &mut waiting) => answer,
                    // This replica may hear of the end before the leader's answer is here.
                    found = self.wait_found(key, instead_of) => return found,
                    () = self.router.leader_changes(leader) => Err(Unanswered::NotLeader),
                    () = tokio::time::sleep_until(deadline) => return Err(ClusterError::Deadline),
                },
            };
            match answer {
                Ok(Outcome::Ready(entry)) => return Ok(Acquired::Ready(*entry)),
                Ok(Outcome::Failed(failure)) => return Ok(Acquired::Failed(failure)),
                Ok(Outcome::Granted(token)) => {
                    return Ok(Acquired::Granted(self.leases.hold(*key, token)));
                }
                Err(Unanswered::NotLeader) => {}
                Err(Unanswered::Refused(e @ ClusterError::Unavailable(_))) => last = e,
                Err(Unanswered::Refused(e)) => return Err(e),
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(ClusterError::Deadline);
            }
            if waited.swap(false, Ordering::Relaxed) {
                since = now;
            }
            if now >= self.router.give_up_at(since) {
                return Err(last);
            }
            self.router.pause().await?;
        }
    }

    /// What the local replica says about `key`, but for the epoch `instead_of`.
    async fn found(
        &self,
        key: &ArtifactKey,
        instead_of: Option<u64>,
    ) -> Result<Option<Acquired>, ClusterError> {
        let entry = self.replica.entry(key).await?;
        if let Some(entry) = entry.filter(|entry| Some(entry.epoch) != instead_of) {
            return Ok(Some(Acquired::Ready(entry)));
        }
        Ok(self.replica.failure(key).await?.map(Acquired::Failed))
    }

    /// Returns when the local replica says something about `key`.
    async fn wait_found(
        &self,
        key: &ArtifactKey,
        instead_of: Option<u64>,
    ) -> Result<Acquired, ClusterError> {
        let waiter = self.replica.waiter(*key);
        loop {
            let mut woken = pin!(waiter.notified());
            woken.as_mut().enable();
            if let Some(found) = self.found(key, instead_of).await? {
                return Ok(found);
            }
            woken.await;
        }
    }

    /// The artifact, the failure, or the right to compile `key`, at once: another's lease
    /// is not waited for. One that ends without an artifact is told as
    /// [`IndexEvent::Free`](crate::IndexEvent::Free) where `key` is a wanted piece.
    pub async fn try_acquire(&self, key: &ArtifactKey) -> Result<Tried, ClusterError> {
        match self.found(key, None).await? {
            Some(Acquired::Ready(entry)) => return Ok(Tried::Ready(entry)),
            Some(Acquired::Failed(failure)) => return Ok(Tried::Failed(failure)),
            Some(Acquired::Granted(lease)) => return Ok(Tried::Granted(lease)),
            None => {}
        }
        // If that lease is over by now, this replica will tell so when it hears of it.
        if self.replica.read::<LeaseRecord>(*key).await?.is_some() {
            return Ok(Tried::Held);
        }
        let asking = self.leases.ask(*key)?;
        let (node, request) = (asking.node, asking.request);
        Ok(match self.router.ask(TryAcquire { key: *key, node, request }).await? {
            Some(Outcome::Granted(token)) => Tried::Granted(self.leases.hold(*key, token)),
            Some(Outcome::Ready(entry)) => Tried::Ready(*entry),
            Some(Outcome::Failed(failure)) => Tried::Failed(failure),
            None => Tried::Held,
        })
    }
}
