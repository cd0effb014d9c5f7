//! The list call: a page of the index, of one namespace or of all.
//!
//! Invariant: a page that is not the last one has as many entries as were asked for,
//! however far apart those of the namespace are; only what is answered stays in memory.

use kiln_cluster::{Entry, Index};
use kiln_proto::{ArtifactKey, pb};
use tokio_util::sync::CancellationToken;

use super::wire;
use crate::error::Error;

/// Most entries in one page of a listing.
const LONGEST_PAGE: u32 = 1000;
/// Entries that are read at once.
const READ: usize = 1024;

/// What to list.
pub(super) struct Listing {
    after: Option<ArtifactKey>,
    prefix: String,
    /// Entries of all namespaces where it is empty.
    namespace: String,
    limit: usize,
}

impl TryFrom<pb::ListRequest> for Listing {
    type Error = Error;

    fn try_from(request: pb::ListRequest) -> Result<Self, Error> {
        let pb::ListRequest { prefix, namespace, limit, after } = request;
        let after = match after.is_empty() {
            true => None,
            false => Some(kiln_proto::convert::key("after", &after)?),
        };
        let limit = if limit == 0 { LONGEST_PAGE } else { limit.min(LONGEST_PAGE) };
        Ok(Self { after, prefix, namespace, limit: limit as usize })
    }
}

impl Listing {
    /// Reads the page. Blocks: run it on a blocking thread; `stop` ends it early.
    pub(super) fn read(
        self,
        index: &Index,
        stop: &CancellationToken,
    ) -> Result<pb::ListResponse, Error> {
        let mut after = self.after;
        let mut found: Vec<Entry> = Vec::new();
        while found.len() <= self.limit && !stop.is_cancelled() {
            let page = index.blocking_scan(after.as_ref(), &self.prefix, READ)?;
            let Some(last) = page.last() else { break };
            after = Some(last.key);
            let room = self.limit + 1 - found.len();
            found.extend(page.into_iter().filter(|entry| self.wants(entry)).take(room));
        }
        let more = found.len() > self.limit;
        found.truncate(self.limit);
        Ok(pb::ListResponse { entries: found.iter().map(wire::entry).collect(), more })
    }

    fn wants(&self, entry: &Entry) -> bool {
        let of_it =
            || entry.manifest.read_unverified().is_ok_and(|m| m.namespace == self.namespace);
        self.namespace.is_empty() || of_it()
    }
}
