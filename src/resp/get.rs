//! GET, and the single flight behind it.
//!
//! Invariant: of all clients that miss a key in a family that waits, one holds
//! its lease and is answered at once; each other one is answered when that one
//! SETs, leaves or takes too long, or when the cluster cannot say, and never waits while
//! something else of its own is due: a further request behind the GET, the rest of a
//! transaction, or the SET of a key that it holds. Its connection may be that of many
//! compilers, of which each says one thing at a time: the SET would stand behind the wait.

use std::{pin::pin, time::Duration};

use kiln_cluster::{Acquired, ClusterError, Entry};
use kiln_proto::ArtifactKey;
use tokio::{sync::Notify, time::Instant};

use super::{
    connection::{Connection, Ended},
    counters::Count,
    families::{Family, Outcome, family_of},
    misses::Missed,
    values::Opened,
};
use crate::cache::Blob;

/// How often a GET starts over because the bytes of an entry are gone.
const ATTEMPTS: usize = 3;

/// How a wait ended.
enum Waited {
    Acquired(Result<Acquired, ClusterError>),
    /// Without an answer: something else is due, or the cluster cannot answer.
    Cut,
}

impl Connection {
    /// The value of `name`, which may be another client's SET to come.
    pub(super) async fn get(&mut self, name: &[u8]) -> Result<Option<Blob>, Ended> {
        let key = self.key(name);
        let found = match self.values.known(&key, &self.session.namespace) {
            Some(blob) => Some(blob),
            None => self.get_slowly(&key, name).await?,
        };
        if found.is_none() {
            self.values.parts.manager.recent().missed_value(&key, name);
        }
        self.values.count(if found.is_some() { Count::Hits } else { Count::Misses });
        Ok(found)
    }

    async fn get_slowly(&mut self, key: &ArtifactKey, name: &[u8]) -> Result<Option<Blob>, Ended> {
        let (values, namespace) = (self.values.clone(), self.session.namespace.clone());
        if let Some(blob) = values.local(key, &namespace).await {
            return Ok(Some(blob));
        }
        if !self.session.may_write() {
            // Who cannot SET takes nobody's turn.
            return Ok(values.anywhere(key, &namespace).await);
        }
        if self.misses.holds(key, &values) {
            return Ok(None);
        }
        if self.misses.contains(key) {
            // It missed the key before and has no right to it any more: another has.
            return Ok(values.anywhere(key, &namespace).await);
        }
        let family = family_of(name);
        let wait = values.families.wait(name, &family);
        if wait.is_zero() {
            let found = values.anywhere(key, &namespace).await;
            if found.is_none() {
                // Whether a SET follows is worth knowing for the next time.
                let until = Instant::now() + values.families.longest();
                self.misses.insert(*key, Missed::new(family, until, None), &values).await;
            }
            return Ok(found);
        }
        self.acquire(key, family, wait).await
    }

    /// The value, or the lease of `key`, after a wait for whoever holds it.
    async fn acquire(
        &mut self,
        key: &ArtifactKey,
        family: Family,
        wait: Duration,
    ) -> Result<Option<Blob>, Ended> {
        let values = self.values.clone();
        if values.is_cut_off() {
            return Ok(None);
        }
        if values.parts.manager.gate().check().is_err() {
            // No lease is taken by a node that leaves.
            return Ok(values.anywhere(key, &self.session.namespace).await);
        }
        let began = Instant::now();
        for _ in 0..ATTEMPTS {
            let (acquired, waited) = self.wait_for(key, began + wait).await?;
            if waited {
                values.count(Count::Waits);
                values.parts.counters.waited(began.elapsed().as_secs_f64());
            }
            match acquired {
                Waited::Acquired(Ok(Acquired::Granted(lease))) => {
                    values.count(Count::Leases);
                    let missed = Missed::new(family, Instant::now() + wait, Some(lease));
                    self.misses.insert(*key, missed, &values).await;
                    return Ok(None);
                }
                Waited::Acquired(Ok(Acquired::Ready(entry))) => {
                    match self.open_and_count(&entry, waited, &family).await {
                        Opened::Here(blob) => return Ok(Some(blob)),
                        Opened::Retired => {}
                        Opened::Unreachable => return Ok(None),
                    }
                }
                Waited::Acquired(Err(ClusterError::Deadline)) if waited => {
                    values.families.count(&family, Outcome::Unfilled);
                    return Ok(None);
                }
                Waited::Acquired(Err(error)) => {
                    tracing::debug!(key = %key.short(), %error, "a GET that missed asked in vain");
                    return Ok(None);
                }
                Waited::Acquired(Ok(Acquired::Failed(_))) | Waited::Cut => return Ok(None),
            }
        }
        Ok(None)
    }

    async fn open_and_count(&mut self, entry: &Entry, waited: bool, family: &Family) -> Opened {
        let opened = self.values.open(entry, &self.session.namespace).await;
        if waited && matches!(opened, Opened::Here(_)) {
            self.values.count(Count::WaitHits);
            self.values.families.count(family, Outcome::Filled);
        }
        opened
    }

    /// Acquires `key`; whether another client holds it. Watches this client meanwhile.
    async fn wait_for(
        &mut self,
        key: &ArtifactKey,
        deadline: Instant,
    ) -> Result<(Waited, bool), Ended> {
        let values = self.values.clone();
        let waiting_began = Notify::new();
        let acquire =
            values.parts.index.acquire(key, None, deadline, || waiting_began.notify_one());
        let mut acquire = pin!(acquire);
        let mut waits = false;
        loop {
            // Answers to earlier requests must not wait for this one.
            if waits {
                self.flush().await?;
            }
            let more = self.decoder.has_more();
            if waits && (more || self.executing.is_some() || self.misses.has_leases()) {
                return Ok((Waited::Cut, waits));
            }
            tokio::select! {
                acquired = &mut acquire => return Ok((Waited::Acquired(acquired), waits)),
                () = waiting_began.notified(), if !waits => waits = true,
                read = self.socket.read(self.decoder.space()), if !more => {
                    if read? == 0 {
                        return Err(Ended::Client);
                    }
                }
                () = values.parts.manager.gate().closed() => return Ok((Waited::Cut, waits)),
                () = values.quorum.lost() => return Ok((Waited::Cut, waits)),
                () = self.stop.cancelled() => return Err(Ended::Stopped),
            }
        }
    }
}
