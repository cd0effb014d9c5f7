//! What the ladder tells whoever watches the node.
//!
//! Invariant: nobody who listens holds up a request; one who is slow misses some.

use kiln_proto::{ArtifactKey, FailureKind};
use tokio::sync::broadcast;

use super::Rung;

/// Kept for a listener that is behind.
const KEPT: usize = 256;

/// Something that an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A compile was ended at its time limit, or its caller's deadline passed.
    TimedOut {
        /// What was compiled, if it came to a key.
        key: Option<ArtifactKey>,
        /// What was seen.
        message: String,
    },
    /// A request was answered by something else than was asked for.
    Fell {
        /// What was asked for, if it came to a key.
        wanted: Option<ArtifactKey>,
        /// What that failed of.
        kind: FailureKind,
        /// What answered.
        rung: Rung,
    },
    /// What was wanted is there at last.
    Replaced {
        /// Its key.
        wanted: ArtifactKey,
    },
    /// What was wanted is not tried any more, until it is asked for again.
    GaveUp {
        /// Its key.
        wanted: ArtifactKey,
        /// What it failed of the last time.
        message: String,
    },
}

/// Where events are told.
pub(in crate::manager) struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(KEPT).0)
    }
}

impl Events {
    /// From now on.
    pub(in crate::manager) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    pub(super) fn tell(&self, event: Event) {
        // An error: nobody listens.
        let _ = self.0.send(event);
    }
}
