//! Packs and the object store: what the index knows of the two.
//!
//! Invariant: a pack is condemned only while no entry and no open lease refers to it, and
//! each name that it had in the object store is condemned, deleted and forgotten by itself.

use kiln_proto::{Digest, NodeId};

use super::{Index, MOST_SCANNED};
use crate::{
    command::{AccessReport, Command},
    entry::PackState,
    error::ClusterError,
    table::{BlobRecord, Table},
    watch::NodeInfo,
};

impl Index {
    /// Notes that the object store has this generation of `pack`; false where it is not
    /// the present one.
    pub async fn mark_stored(&self, pack: &Digest, generation: u64) -> Result<bool, ClusterError> {
        self.changed(Command::StoreObject { pack: *pack, generation }).await
    }

    /// Notes that a reader found no object of this generation of `pack`, or a corrupt one:
    /// a holder uploads it again. False where it is not the present one.
    pub async fn mark_lost(&self, pack: &Digest, generation: u64) -> Result<bool, ClusterError> {
        self.changed(Command::LoseObject { pack: *pack, generation }).await
    }

    /// Notes that the object store has `pack` under the name that a backup gives.
    pub async fn adopt_object(&self, pack: &Digest, generation: u64) -> Result<bool, ClusterError> {
        self.changed(Command::AdoptObject { pack: *pack, generation }).await
    }

    /// Announces that this generation of `pack` will be deleted from the object store;
    /// false while an entry or an open lease refers to it.
    pub async fn condemn(&self, pack: &Digest, generation: u64) -> Result<bool, ClusterError> {
        self.changed(Command::CondemnObject { pack: *pack, generation }).await
    }

    /// Notes that a condemned generation of `pack` is deleted.
    pub async fn forget(&self, pack: &Digest, generation: u64) -> Result<(), ClusterError> {
        self.changed(Command::ForgetObject { pack: *pack, generation }).await.map(drop)
    }

    /// What the local replica knows of a pack.
    pub async fn pack(&self, pack: &Digest) -> Result<Option<PackState>, ClusterError> {
        self.replica.pack(pack).await
    }

    /// [`Index::pack`] for a thread that may wait for the disk. Blocks.
    pub fn blocking_pack(&self, pack: &Digest) -> Result<Option<PackState>, ClusterError> {
        self.replica.blocking_pack(pack)
    }

    /// Which of the holders that are still members this node is, the first being 0, where
    /// a pack waits to be uploaded: an entry names it, and the object store is not known
    /// to have it. `None`: it does not wait, or this node is not among its holders.
    pub async fn upload_rank(&self, pack: &Digest) -> Result<Option<usize>, ClusterError> {
        let me = self.router.owner()?.node;
        let blob: Option<BlobRecord> = self.replica.read(*pack).await?;
        let Some(blob) = blob.filter(|b| b.entries > 0 && !b.stored && !b.condemned) else {
            return Ok(None);
        };
        let nodes = self.replica.nodes();
        let mut present =
            blob.holders.iter().filter(|id| nodes.get(id).is_some_and(|node| !node.left));
        Ok(present.position(|id| *id == me))
    }

    /// The other members that are believed to have `pack`, where an entry names it and the
    /// object store is not known to have it; `None`: it needs no node. From the local replica.
    pub async fn needed_copies(&self, pack: &Digest) -> Result<Option<Vec<NodeId>>, ClusterError> {
        let me = self.router.owner()?.node;
        let blob: Option<BlobRecord> = self.replica.read(*pack).await?;
        let Some(blob) = blob.filter(|blob| blob.entries > 0 && !blob.stored) else {
            return Ok(None);
        };
        let nodes = self.replica.nodes();
        let other = |id: &NodeId| *id != me && nodes.get(id).is_some_and(NodeInfo::is_member);
        Ok(Some(blob.holders.into_iter().filter(other).collect()))
    }

    /// Notes that the member `node` keeps `packs`, which this node made it fetch.
    pub async fn vouch(&self, node: NodeId, packs: Vec<Digest>) -> Result<(), ClusterError> {
        let report = AccessReport { gained: packs, ..AccessReport::default() };
        self.router.write(Command::Report { node, report }).await.map(drop)
    }

    /// Up to `limit` condemned packs with the generations that are, from the local
    /// replica. Reads all packs. Blocks.
    pub fn blocking_condemned(&self, limit: usize) -> Result<Vec<(Digest, u64)>, ClusterError> {
        let (mut found, mut start) = (Vec::new(), Vec::new());
        while found.len() < limit {
            let pairs = self.replica.scan(Table::Blobs, &start, MOST_SCANNED)?;
            let Some((last, _)) = pairs.last() else { break };
            start = [last.as_slice(), &[0]].concat();
            for (pack, value) in &pairs {
                let blob: BlobRecord = crate::codec::decode(value)?;
                if blob.condemned {
                    let pack = Digest::try_from(pack.as_slice()).map_err(ClusterError::storage)?;
                    let state = self.replica.blocking_pack(&pack)?.filter(|state| state.condemned);
                    found.extend(state.map(|state| (pack, state.generation)));
                }
            }
        }
        found.truncate(limit);
        Ok(found)
    }
}
