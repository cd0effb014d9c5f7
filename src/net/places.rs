//! The places of a port, and which of its connections gives its own up.
//!
//! Invariant: there are never more places than were given. Where the port says so, whoever
//! comes last gets one: the connection on which nothing moved for the longest is told to end.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What one that is told to end has for it: others wait meanwhile.
const ENDING: Duration = Duration::from_secs(1);

/// What becomes of one more connection than there are places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// It is closed.
    Refuse,
    /// The one that is idle longest ends, and it has its place.
    EndIdlest,
}

/// The places of one port.
#[derive(Clone)]
pub(super) struct Places {
    port: &'static str,
    free: Arc<Semaphore>,
    full: Full,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    by: HashMap<u64, (Instant, CancellationToken)>,
}

/// A place, held for as long as a connection lives.
pub(super) struct Seat {
    id: u64,
    places: Places,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// Of `port`, as metrics name it.
    pub(super) fn new(port: &'static str, most: usize, full: Full) -> Self {
        Self { port, free: Arc::new(Semaphore::new(most)), full, taken: Arc::default() }
    }

    /// A place for one more connection, if it gets one. Counts each that finds none free.
    pub(super) async fn take(&self) -> Option<Seat> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let port = self.port;
                metrics::counter!("kiln_refused_connections_total", "port" => port).increment(1);
                tracing::debug!(port, "too many connections: one is closed");
                if self.full == Full::Refuse {
                    return None;
                }
                self.end_idlest();
                timeout(ENDING, self.free.clone().acquire_owned()).await.ok()?.ok()?
            }
        };
        let ends = CancellationToken::new();
        let ended = Box::pin(ends.clone().cancelled_owned());
        let mut taken = self.taken.lock();
        let id = taken.next;
        taken.next += 1;
        taken.by.insert(id, (Instant::now(), ends));
        drop(taken);
        Some(Seat { id, places: self.clone(), ended, _permit: permit })
    }

    fn end_idlest(&self) {
        let mut taken = self.taken.lock();
        let idlest = taken.by.iter().min_by_key(|(id, (moved, _))| (*moved, **id));
        if let Some(id) = idlest.map(|(id, _)| *id)
            && let Some((_, ends)) = taken.by.remove(&id)
        {
            ends.cancel();
        }
    }
}

impl Seat {
    /// Bytes came or went.
    pub(super) fn moved(&self) {
        if self.places.full == Full::EndIdlest
            && let Some((moved, _)) = self.places.taken.lock().by.get_mut(&self.id)
        {
            *moved = Instant::now();
        }
    }

    /// Ready once the connection has to end.
    pub(super) fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.ended.as_mut().poll(context)
    }

    /// Returns once the connection has to end.
    pub(super) async fn ended(&mut self) {
        self.ended.as_mut().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.places.taken.lock().by.remove(&self.id);
    }
}
