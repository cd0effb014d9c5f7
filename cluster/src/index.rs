//! The handle on the index: local reads, and writes through the leader.
//!
//! Invariant: a read answers from this node's replica without any hop. An entry
//! is immutable within its epoch, so a stale hit is right and a stale miss only
//! costs an acquire.

mod acquire;
mod admission;
mod keys;
mod objects;
mod pieces;
mod root;
mod tokens;
mod uses;

use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use kiln_proto::{ArtifactKey, Digest, Failure, NodeId, SignedManifest, Token};
use tokio::{sync::broadcast, time::Instant};

use crate::{
    command::{Asked, Change, Command, Publication, Response, Revocation},
    entry::{Entry, Published, Put, PutMode, Retired},
    error::ClusterError,
    leases::{Lease, Leases},
    replica::Replica,
    router::Router,
    rpc::{Fail, Failed, ReadIndex},
    table::EpochRecord,
    watch::{IndexEvent, NodeInfo},
    writer::{Writer, Written},
    writes::Turn,
};

/// Most entries of one scan.
const MOST_SCANNED: usize = 10_000;

/// The handle that the rest of the node holds.
#[derive(Clone)]
pub struct Index {
    replica: Arc<Replica>,
    router: Arc<Router>,
    leases: Arc<Leases>,
    writer: Arc<Writer>,
}

impl Index {
    pub(crate) fn new(
        replica: Arc<Replica>,
        router: Arc<Router>,
        leases: Arc<Leases>,
        writer: Arc<Writer>,
    ) -> Self {
        Self { replica, router, leases, writer }
    }

    /// The artifact of `key` in the local replica. Waits for the disk only where the key
    /// was not used lately.
    pub async fn lookup(&self, key: &ArtifactKey) -> Result<Option<Entry>, ClusterError> {
        self.replica.entry(key).await
    }

    /// The artifact of `key`, after every publication acknowledged before this call.
    pub async fn lookup_linearizable(
        &self,
        key: &ArtifactKey,
    ) -> Result<Option<Entry>, ClusterError> {
        self.barrier().await?;
        self.lookup(key).await
    }

    /// The live negative entry of `key` in the local replica.
    pub async fn failure(&self, key: &ArtifactKey) -> Result<Option<Failure>, ClusterError> {
        self.replica.failure(key).await
    }

    /// Commits an artifact under `lease`, whose pack is durable on this node. The
    /// first commit of an epoch wins. Ends the lease unless an error is returned. What is
    /// stitched of pieces is [`ClusterError::NoPiece`] while one has no artifact of its pack.
    /// `also`: other nodes on whose disks the pack is.
    pub async fn publish(
        &self,
        lease: &Lease,
        manifest: SignedManifest,
        also: Vec<NodeId>,
    ) -> Result<Published, ClusterError> {
        let published = self.publish_as(lease.key(), lease.token(), manifest, also).await;
        if matches!(published, Ok(_) | Err(ClusterError::StaleToken)) {
            self.leases.used(lease);
        }
        published
    }

    /// [`Index::publish`] for who knows a lease by its token alone.
    pub async fn publish_as(
        &self,
        key: &ArtifactKey,
        token: Token,
        manifest: SignedManifest,
        also: Vec<NodeId>,
    ) -> Result<Published, ClusterError> {
        let (publication, pieces) = self.publication(*key, token, manifest)?;
        let command = match pieces.is_empty() {
            true => Command::Commit { publication, also },
            false => Command::CommitWhole { publication, also, pieces },
        };
        let (index, response) = self.router.write(command).await?;
        let committed = match response {
            Response::Committed => true,
            Response::Existing => false,
            Response::Stale => return Err(ClusterError::StaleToken),
            Response::NoPiece(piece) => return Err(ClusterError::NoPiece(piece)),
            Response::Refused(why) => return Err(ClusterError::Invalid(why)),
            other => return Err(ClusterError::unexpected(&other)),
        };
        let Some(entry) = self.committed(key, index).await? else {
            return Err(ClusterError::unavailable("removed right after its commit"));
        };
        Ok(if committed { Published::Committed(entry) } else { Published::Existing(entry) })
    }

    /// Takes the next turn of `key` at this node: of several writes of one key, the one
    /// with the latest turn counts, whichever is carried out first. Take it when the
    /// write arrives.
    pub fn turn(&self, key: &ArtifactKey, mode: PutMode) -> Result<Turn, ClusterError> {
        self.writer.turn(key, mode == PutMode::Replace)
    }

    /// Commits an artifact of a replaceable key ([`kiln_proto::Manifest::replaceable`])
    /// without a lease; its pack is durable on this node. The last put counts; a
    /// live lease of the key ends, and its waiters get this artifact. `also`: other nodes
    /// on whose disks the pack is.
    pub async fn put(
        &self,
        mut turn: Turn,
        manifest: SignedManifest,
        mode: PutMode,
        also: Vec<NodeId>,
    ) -> Result<Put, ClusterError> {
        let key = manifest.read_unverified().map_err(ClusterError::invalid)?.key;
        if key != *turn.key() {
            return Err(ClusterError::invalid("the turn is for another key"));
        }
        let create = mode == PutMode::Create;
        let (publication, _) = self.publication(key, Token(0), manifest)?;
        let change = Change::Put { publication, create, also };
        let (index, response) = match self.writer.write(&mut turn, change).await? {
            Written::Answered(index, response) => (index, response),
            Written::Superseded => return Ok(Put::Superseded),
        };
        drop(turn);
        let put = match response {
            Response::Committed | Response::Repeated(true) => Put::Committed,
            Response::Unchanged => Put::Unchanged,
            Response::Existing => Put::Existing,
            Response::Repeated(false) if create => Put::Existing,
            Response::Repeated(false) => return Ok(Put::Superseded),
            other => return Err(ClusterError::unexpected(&other)),
        };
        self.leases.all_used(&key);
        let entry = self.committed(&key, index).await?;
        // What has no entry any more was removed right after it.
        Ok(entry.map_or(Put::Superseded, put))
    }

    /// Removes the wrong artifact of `key` from the whole fleet; on return this node serves
    /// it no more. False when this call removed nothing: there was nothing, or a later
    /// write of this node replaced it. Writes of this node that arrived before and are not
    /// committed never will be.
    pub async fn tombstone(&self, key: &ArtifactKey, reason: String) -> Result<bool, ClusterError> {
        let mut turn = self.turn(key, PutMode::Replace)?;
        let change = Change::Remove { key: *key, reason };
        match self.writer.write(&mut turn, change).await? {
            Written::Answered(index, Response::Changed(changed) | Response::Repeated(changed)) => {
                self.wait_applied(index).await?;
                Ok(changed)
            }
            Written::Answered(_, other) => Err(ClusterError::unexpected(&other)),
            // What there was to remove is gone once what came later is over.
            Written::Superseded => {
                let over = tokio::time::timeout(self.router.patience(), async {
                    turn.give_way().over().await;
                    self.barrier().await
                });
                let unknown = "a later write of the key has no outcome yet";
                over.await.map_err(|_| ClusterError::unavailable(unknown))??;
                Ok(false)
            }
        }
    }

    /// What `manifest` says, as a command has it, and what it is stitched of.
    fn publication(
        &self,
        key: ArtifactKey,
        token: Token,
        manifest: SignedManifest,
    ) -> Result<(Publication, Vec<(ArtifactKey, Digest)>), ClusterError> {
        let node = self.router.owner()?.node;
        let signed = manifest.read_unverified().map_err(ClusterError::invalid)?;
        let pieces = signed.pieces.iter().map(|piece| (piece.key, piece.pack)).collect();
        let publication = Publication {
            key,
            token,
            node,
            pack: signed.pack_digest,
            pack_size: signed.pack_size,
            compile_seconds: signed.compile_seconds,
            manifest: Arc::new(manifest),
        };
        Ok((publication, pieces))
    }

    /// The entry of `key` as of `index`, or later: whoever published here finds it here.
    async fn committed(
        &self,
        key: &ArtifactKey,
        index: u64,
    ) -> Result<Option<Entry>, ClusterError> {
        if !self.replica.wait_applied(index, Instant::now() + self.router.patience()).await {
            return Err(ClusterError::unavailable("committed, and not yet in this replica"));
        }
        self.lookup(key).await
    }

    /// Ends `lease` with a failure. One that follows from the request is told to
    /// all waiters and remembered; after another one the next waiter is granted.
    pub async fn fail(&self, lease: &Lease, failure: Failure) -> Result<(), ClusterError> {
        let (key, token) = (*lease.key(), lease.token());
        let failed = self.router.ask(Fail { key, token, failure }).await?;
        self.leases.used(lease);
        match failed {
            Failed::Ended => Ok(()),
            Failed::Stale => Err(ClusterError::StaleToken),
        }
    }

    /// Gives back every lease that this node holds: who waits for one of them need not
    /// wait until it runs out. Returns when the cluster knows, or cannot be told.
    pub async fn give_leases_back(&self) {
        self.leases.give_all_back().await;
    }

    /// Pins or unpins `key`; false when it has no artifact.
    pub async fn set_pinned(&self, key: &ArtifactKey, pinned: bool) -> Result<bool, ClusterError> {
        self.changed(Command::SetPinned { key: *key, pinned }).await
    }

    /// Ends `epoch` of `key`, whose bytes are nowhere: all of `asked` said so. The key
    /// may be compiled again; on return the local replica knows what became of it.
    pub async fn retire(
        &self,
        key: &ArtifactKey,
        epoch: u64,
        asked: Asked,
    ) -> Result<Retired, ClusterError> {
        let command = Command::RetireAbsent { key: *key, epoch, asked };
        let (index, response) = self.router.write(command).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Changed(_) => Ok(Retired::Over),
            Response::NotProven => Ok(Retired::NotProven),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// Waits until the local replica has all that was acknowledged before this call.
    pub async fn barrier(&self) -> Result<(), ClusterError> {
        self.wait_applied(self.router.ask(ReadIndex).await?).await
    }

    /// Up to `limit` entries in key order, strictly after `after`, whose key
    /// starts with the hex digits `prefix`. Blocks.
    pub fn blocking_scan(
        &self,
        after: Option<&ArtifactKey>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Entry>, ClusterError> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if prefix.len() > 64 || !prefix.bytes().all(digits) {
            return Err(ClusterError::invalid("a prefix is up to 64 lower-case hex digits"));
        }
        let mut first = [0; 32];
        hex::decode_to_slice(format!("{prefix:0<64}"), &mut first)
            .map_err(ClusterError::invalid)?;
        let mut start = first.to_vec();
        if let Some(after) = after {
            // The least key after it.
            start = start.max([&after.as_bytes()[..], &[0]].concat());
        }
        let within = |key: &ArtifactKey| key.to_string().starts_with(prefix);
        self.replica.entries(&start, limit.min(MOST_SCANNED), within)
    }

    /// Why the last artifact of a key is no more; `None` where it never had one that ended.
    pub async fn ended(&self, key: &ArtifactKey) -> Result<Option<String>, ClusterError> {
        let epoch: Option<EpochRecord> = self.replica.read(*key).await?;
        Ok(epoch.map(|epoch| epoch.reason))
    }

    /// A node, also one that left: its manifests stay verifiable.
    pub fn node(&self, id: NodeId) -> Option<NodeInfo> {
        self.replica.nodes().get(&id).cloned()
    }

    /// Whose signatures count: the keys of every node that ever was a member, but for those
    /// that were revoked with all that they signed.
    pub fn signers(&self) -> Vec<(NodeId, VerifyingKey)> {
        let nodes = self.replica.nodes();
        let trusted = nodes.iter().filter(|(_, node)| node.revoked.as_ref().is_none_or(|r| r.keep));
        let keys = trusted.flat_map(|(id, node)| node.keys.iter().map(move |of| (*id, of)));
        keys.filter(|(_, of)| !of.is_revoked()).map(|(id, of)| (id, of.key)).collect()
    }

    /// Every node that ever was a member.
    pub fn all_nodes(&self) -> Vec<(NodeId, NodeInfo)> {
        self.replica.nodes().iter().map(|(id, node)| (*id, node.clone())).collect()
    }

    /// From now on nothing that the node `signer` signed becomes an artifact; and without
    /// `keep`, what it signed before is removed. Returns how many artifacts were, once the
    /// local replica has none of them.
    pub async fn revoke(
        &self,
        signer: NodeId,
        keep: bool,
        reason: String,
    ) -> Result<u64, ClusterError> {
        let by = self.router.owner()?.node;
        let revocation = Revocation { signer, keep, reason, by, at_unix_ms: 0 };
        let (index, response) = self.router.write(Command::Revoke(revocation)).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Removed(removed) => Ok(removed),
            Response::Refused(why) => Err(ClusterError::Invalid(why)),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// All nodes that are members now.
    pub fn nodes(&self) -> Vec<(NodeId, NodeInfo)> {
        let nodes = self.replica.nodes();
        let present = nodes.iter().filter(|(_, node)| node.is_member());
        present.map(|(id, node)| (*id, node.clone())).collect()
    }

    /// The log index up to which the local replica has applied.
    pub fn applied(&self) -> u64 {
        self.replica.applied()
    }

    /// How many leases live by the local replica, and of at most `most` the key, the node
    /// that holds it and the token.
    pub fn leases(&self, most: usize) -> (usize, Vec<(ArtifactKey, NodeId, Token)>) {
        self.replica.deadlines().leases(most)
    }

    /// Whether `token` is the live one of `key` in the local replica.
    pub fn is_live(&self, key: &ArtifactKey, token: Token) -> bool {
        self.replica.deadlines().is_live(key, token)
    }

    /// Changes as the local replica applies them. A subscriber that falls behind
    /// is told so by the channel, and looks again.
    pub fn events(&self) -> broadcast::Receiver<IndexEvent> {
        self.replica.events()
    }

    async fn wait_applied(&self, index: u64) -> Result<(), ClusterError> {
        match self.replica.wait_applied(index, Instant::now() + self.router.patience()).await {
            true => Ok(()),
            false => Err(ClusterError::unavailable("this node's replica is far behind")),
        }
    }

    async fn changed(&self, command: Command) -> Result<bool, ClusterError> {
        match self.router.write(command).await?.1 {
            Response::Changed(changed) => Ok(changed),
            other => Err(ClusterError::unexpected(&other)),
        }
    }
}
