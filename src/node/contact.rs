//! When this node last heard of its cluster, as its next start wants to know.
//!
//! Invariant: what is read is never later than what was noted; where it cannot be read, or
//! lies in the future of the clock, nobody knows when it was.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::{Cluster, Index};
use tokio_util::sync::CancellationToken;

use crate::{access::Access, clock};

/// How often a node looks whether it hears of a leader.
const HEAR: Duration = Duration::from_secs(1);
/// In which a starting node hears which tokens were revoked while it was away.
const TOKENS: Duration = Duration::from_secs(10);
/// Between two notes.
const NOTE: Duration = Duration::from_secs(60);

/// The file with it.
pub(super) struct Contact(PathBuf);

impl Contact {
    /// Of the node with this data folder.
    pub(super) fn new(data_dir: &Path) -> Self {
        Self(data_dir.join("heard"))
    }

    /// How long ago that was; `None`: nobody knows.
    pub(super) fn ago(&self) -> Option<Duration> {
        let noted = fs::read_to_string(&self.0).ok()?.trim().parse::<u64>().ok()?;
        clock::unix_ms().checked_sub(noted).map(Duration::from_millis)
    }

    /// It is now. Blocks for as long as a small file is written.
    fn note(&self) -> io::Result<()> {
        let whole = self.0.with_extension("new");
        fs::write(&whole, clock::unix_ms().to_string())?;
        fs::rename(&whole, &self.0)
    }

    /// Tells `access`, until `stop`, that the cluster is heard of, and notes it for the next
    /// start.
    pub(super) async fn hear(
        self,
        access: Arc<Access>,
        cluster: Arc<Cluster>,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(HEAR);
        let mut noted: Option<Instant> = None;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            if !cluster.status().quorum {
                continue;
            }
            access.hear();
            if access.is_required() && noted.is_none_or(|at| at.elapsed() >= NOTE) {
                noted = Some(Instant::now());
                if let Err(error) = self.note() {
                    tracing::warn!(%error, "when the cluster was heard of is not noted for a restart");
                }
            }
        }
    }
}

/// Waits until this replica knows of what was revoked while the node was away, where a
/// leader can be asked.
pub(super) async fn hears_of_tokens(index: &Index) -> bool {
    let heard = tokio::time::timeout(TOKENS, index.barrier()).await;
    let heard = matches!(heard, Ok(Ok(())));
    if !heard {
        tracing::warn!(
            "the cluster does not say which tokens were revoked lately: they are judged by what this \
             node knew when it stopped, for access.offline from then on, and are refused after that"
        );
    }
    heard
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let folder = tempfile::tempdir().unwrap();
        let contact = Contact::new(folder.path());
        assert_eq!(contact.ago(), None);
        contact.note().unwrap();
        assert!(contact.ago().unwrap() < NOTE);
        for bad in [String::new(), "x".into(), (clock::unix_ms() + 3_600_000).to_string()] {
            fs::write(&contact.0, &bad).unwrap();
            assert_eq!(contact.ago(), None, "{bad:?}");
        }
        fs::write(&contact.0, (clock::unix_ms() - 7_200_000).to_string()).unwrap();
        assert!(contact.ago().unwrap() >= Duration::from_secs(7200));
    }
}
