//! An entry of a backup, taken over without its bytes.
//!
//! Invariant: it goes in as a compile does, under a lease, so that a key that was
//! compiled meanwhile keeps its artifact.

use std::time::Duration;

use kiln_cluster::{Acquired, Published};
use kiln_proto::Manifest;
use tokio::time::Instant;

use super::Manager;
use crate::error::Error;

/// How long another's compile of the same key is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

impl Manager {
    /// Commits `manifest`, whose signature was checked, under this node's signature;
    /// tells whether its key was free. `stored`: its bytes
    /// are in the object tier, as this generation.
    pub async fn restore(
        &self,
        manifest: Manifest,
        stored: Option<u64>,
        pinned: bool,
    ) -> Result<bool, Error> {
        let inside = self.gate.enter()?;
        let (key, pack) = (manifest.key, manifest.pack_digest);
        // This node signs, and has not run it.
        let manifest = Manifest { check: None, ..manifest };
        let signed = self.signing().await?.sign(manifest);
        let signed = signed.map_err(|e| Error::Invalid(e.to_string()))?;
        let deadline = Instant::now() + PATIENCE;
        let lease = match self.index.acquire(&key, None, deadline, || {}).await? {
            Acquired::Granted(lease) => lease,
            Acquired::Ready(_) | Acquired::Failed(_) => return Ok(false),
        };
        let _writing = inside.write()?;
        let published = self.index.publish(&lease, signed, Vec::new()).await?;
        if let Published::Existing(_) = published {
            return Ok(false);
        }
        if let Some(generation) = stored {
            self.index.adopt_object(&pack, generation).await?;
        }
        if pinned {
            self.index.set_pinned(&key, true).await?;
        }
        Ok(true)
    }
}
