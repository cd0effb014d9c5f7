//! What nodes report of artifacts: how often they were used, and who has them.
//!
//! Invariant: a report is a hint; nothing that is promised rests on one.

use kiln_proto::ArtifactKey;

use super::Index;
use crate::{
    command::{AccessReport, Command},
    entry::Usage,
    error::ClusterError,
    versions,
};

impl Index {
    /// Reports what this node used, gained and lost since the last report. Hints:
    /// counts may be doubled when a leader changes.
    pub async fn report(&self, mut report: AccessReport) -> Result<(), ClusterError> {
        if report == AccessReport::default() {
            return Ok(());
        }
        let node = self.router.owner()?.node;
        let mut hits = std::mem::take(&mut report.hits);
        let used = |hits| Command::Use { node, hits, at_unix_ms: 0 };
        if !versions::count_by_key(&self.replica.nodes()) {
            std::mem::swap(&mut report.hits, &mut hits);
        }
        if report != AccessReport::default() {
            self.router.write(Command::Report { node, report }).await?;
        }
        match hits.is_empty() {
            true => Ok(()),
            false => self.router.write(used(hits)).await.map(drop),
        }
    }

    /// How often the artifact of `key` was used, as the local replica knows it.
    pub async fn usage(&self, key: &ArtifactKey) -> Result<Usage, ClusterError> {
        self.replica.usage(key).await
    }
}
