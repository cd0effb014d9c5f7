//! Node-local single flight: one task a key, any number of callers.
//!
//! Invariant: while a key is in flight, every caller on this node watches the
//! same task; the task goes on when callers leave, and its place is free again
//! when it ends, however it ends.

use std::{collections::HashMap, future::Future, sync::Arc};

use kiln_proto::{ArtifactKey, Token};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Answer;
use crate::error::Error;

/// How far a flight is.
#[derive(Debug, Clone)]
pub enum Stage {
    /// Asking the cluster.
    Acquiring,
    /// Another node holds the lease.
    Waiting,
    /// This node compiles under the token.
    Compiling(Token),
    /// Over.
    Landed(Box<Result<Answer, Error>>),
}

/// The flights of one node.
#[derive(Clone, Default)]
pub struct Flights(Arc<Mutex<HashMap<ArtifactKey, watch::Receiver<Stage>>>>);

/// Where a flight tells how far it is.
pub struct Progress(watch::Sender<Stage>);

impl Progress {
    /// Tells all callers.
    pub fn tell(&self, stage: Stage) {
        self.0.send_replace(stage);
    }
}

impl Flights {
    /// Boards the flight of `key`, or starts it with `fly`. True: it was started here.
    pub fn board<F>(
        &self,
        key: ArtifactKey,
        fly: impl FnOnce(Arc<Progress>) -> F,
    ) -> (watch::Receiver<Stage>, bool)
    where
        F: Future<Output = Result<Answer, Error>> + Send + 'static,
    {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&key) {
            return (flight.clone(), false);
        }
        let (sender, receiver) = watch::channel(Stage::Acquiring);
        flights.insert(key, receiver.clone());
        drop(flights);
        let progress = Arc::new(Progress(sender));
        let place = Place { flights: self.clone(), key };
        let flight = fly(progress.clone());
        tokio::spawn(async move {
            let landed = flight.await;
            // Callers that come after this line find the artifact in the tiers.
            drop(place);
            progress.tell(Stage::Landed(Box::new(landed)));
        });
        (receiver, true)
    }

    /// Keys in flight now.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A flight's entry; gone with the task, a panicking one too.
struct Place {
    flights: Flights,
    key: ArtifactKey,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
    }
}
