//! Compiles in pieces: what they wait for, and what is stitched of what.
//!
//! Invariant: a list is wanted under the lease of its whole, and only for as long as that
//! lease lives.

use std::sync::Arc;

use kiln_proto::ArtifactKey;

use super::Index;
use crate::{
    command::{Command, Response},
    error::ClusterError,
    leases::Lease,
    wanted::Wanted,
};

impl Index {
    /// Asks all nodes for the pieces of the whole that `lease` is for, until it ends. Asked
    /// again under the same lease, the later list counts.
    pub async fn want(&self, lease: &Lease, wanted: Wanted) -> Result<(), ClusterError> {
        let node = self.router.owner()?.node;
        if (wanted.whole, wanted.token, wanted.node) != (*lease.key(), lease.token(), node) {
            return Err(ClusterError::invalid("the list is not for this lease of this node"));
        }
        wanted.check().map_err(ClusterError::Invalid)?;
        let (index, response) = self.router.write(Command::Want(wanted)).await?;
        match response {
            Response::Done => self.wait_applied(index).await,
            Response::Stale => Err(ClusterError::StaleToken),
            Response::Refused(why) => Err(ClusterError::Invalid(why)),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// The wholes that are stitched of `piece`, by the local replica. Blocks.
    pub fn blocking_wholes(&self, piece: &ArtifactKey) -> Result<Vec<ArtifactKey>, ClusterError> {
        self.replica.blocking_wholes(piece)
    }

    /// The lists of pieces that wholes wait for, as the local replica has them: the oldest
    /// first.
    pub fn wanted(&self) -> Arc<[Arc<Wanted>]> {
        self.replica.wanted()
    }
}
