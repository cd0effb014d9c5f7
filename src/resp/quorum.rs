//! Whether it makes sense to ask the cluster.
//!
//! Invariant: a change of leaders is waited for; a cluster without one for
//! longer than that is not.

use std::{sync::Arc, time::Duration};

use kiln_cluster::Cluster;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Longer than an election takes.
const GRACE: Duration = Duration::from_secs(3);

/// Since when there is no quorum.
pub(super) struct Quorum(watch::Sender<Option<Instant>>);

impl Quorum {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Looks at `cluster` again and again until `stop`.
    pub(super) async fn follow(&self, cluster: Arc<Cluster>, stop: CancellationToken) {
        loop {
            let quorum = cluster.status().quorum;
            self.0.send_if_modified(|lost| {
                let changed = lost.is_some() == quorum;
                if changed {
                    *lost = (!quorum).then(Instant::now);
                }
                changed
            });
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Whether the quorum is gone for good, as far as one can tell.
    pub(super) fn is_lost(&self) -> bool {
        self.0.borrow().is_some_and(|since| since.elapsed() >= GRACE)
    }

    /// Returns when it is.
    pub(super) async fn lost(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let since = *changes.borrow_and_update();
            tokio::select! {
                () = async {
                    match since {
                        Some(since) => tokio::time::sleep_until(since + GRACE).await,
                        None => std::future::pending().await,
                    }
                } => return,
                // The sender lives as long as this does.
                _ = changes.changed() => {}
            }
        }
    }
}
