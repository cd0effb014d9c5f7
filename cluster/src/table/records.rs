//! The records of the tables.
//!
//! Invariant: a record's bytes never change their meaning: what an earlier version wrote is
//! read as it was meant. So fields are not added to a record; another table is.

use std::{collections::BTreeMap, sync::Arc};

use kiln_proto::{
    ArtifactKey, Digest, Failure, NodeId, SignedManifest, Token, root::SignedStatement,
};
use serde::{Deserialize, Serialize};

use super::view::{Record, RecordKey, StateError, Table, View};
use crate::{
    admission::Admissions,
    codec::{self, Malformed},
    command::{Candidate, NodeFacts},
    signing::KeyRevocation,
    tokens::{AuditHead, TokenInfo},
    trust::Trust,
    wanted::Wanted,
};

macro_rules! record {
    ($name:ident in $table:ident by $key:ty) => {
        impl Record for $name {
            type Key = $key;
            const TABLE: Table = Table::$table;
        }
    };
}

/// The artifact of a key in its present epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EntryRecord {
    pub epoch: u64,
    /// The token under which it was committed.
    pub token: Token,
    pub pinned: bool,
    /// Publications with other bytes than the committed ones.
    pub differing: u64,
    pub pack: Digest,
    pub pack_size: u64,
    pub compile_seconds: f64,
    #[serde(with = "crate::codec::manifest")]
    pub manifest: Arc<SignedManifest>,
}
record!(EntryRecord in Entries by ArtifactKey);

/// The last epoch of a key that was ended, and the pack it had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochRecord {
    pub epoch: u64,
    pub pack: Digest,
    pub reason: String,
    /// The next epoch's artifact is protected from the start.
    pub pinned: bool,
}
record!(EpochRecord in Epochs by ArtifactKey);

/// What the index knows of a pack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BlobRecord {
    /// Entries that name it.
    pub entries: u64,
    /// Open leases of keys whose last artifact it was.
    pub leases: u64,
    pub stored: bool,
    pub condemned: bool,
    /// Reported uses of the entries that name it, by commands of version 0.1: what is
    /// used counts for its key now, in [`UseRecord`].
    pub hits: u64,
    /// Sorted; hints.
    pub holders: Vec<NodeId>,
}
record!(BlobRecord in Blobs by Digest);

/// How often the artifact of a key was used, whatever its bytes were. A key that nobody
/// used, and one without an artifact, has no record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UseRecord {
    pub hits: u64,
    /// When a use was last reported, by the leader's clock.
    pub last_unix_ms: u64,
}
record!(UseRecord in Uses by ArtifactKey);

/// The pack's object in the object store. A pack without a record, published before
/// there were any, has generation 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectRecord {
    /// Part of the object's name: some bits of the cluster's name, then the log index
    /// of the command that first published the pack, or again after it was condemned.
    pub generation: u64,
}
record!(ObjectRecord in Objects by Digest);

/// A node's present session of ordered writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    pub session: Token,
    /// Names the request that opened it.
    pub nonce: u64,
    /// All writes below are over.
    pub floor: u64,
    /// Writes at or above the floor that are over, in order, and whether each one
    /// changed anything.
    pub done: Vec<(u64, bool)>,
}
record!(SessionRecord in Sessions by NodeId);

/// What the artifact of a key is stitched of. One that is whole itself has no record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PiecesRecord {
    /// By position: the piece's key, and the pack that the whole was made with.
    pub pieces: Vec<(ArtifactKey, Digest)>,
}
record!(PiecesRecord in Pieces by ArtifactKey);

/// That a whole is stitched of a piece: under the piece's key and then the whole's, so
/// that no record grows with the wholes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReferenceRecord {
    /// The piece's pack.
    pub pack: Digest,
}
record!(ReferenceRecord in References by (ArtifactKey, ArtifactKey));

/// The live lease of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub token: Token,
    pub node: NodeId,
    pub request: u64,
    /// The key's last pack, which the lease keeps from being condemned.
    pub pack: Option<Digest>,
}
record!(LeaseRecord in Leases by ArtifactKey);

record!(Wanted in Wanted by ArtifactKey);

/// A negative entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FailureRecord {
    /// The token of the lease that failed: names this very failure.
    pub token: Token,
    pub failure: Failure,
    /// The leader's clock; only a leader acts on it.
    pub until_unix_ms: u64,
}
record!(FailureRecord in Failures by ArtifactKey);

/// What a node is to the cluster. Disks written before there was an abstainer
/// have a flag here, whose bytes are those of the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// A voter, or a learner that may become one.
    Eligible,
    /// Gone for good.
    Left,
    /// A learner for ever: it asked for no vote.
    Abstains,
    /// Away, and another node has its address: out of Raft's membership until it says
    /// where it is. It may become a voter then.
    Away,
    /// The same of a node that abstains.
    AwayAbstains,
}

/// A node, also after it left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub candidate: Candidate,
    pub facts: NodeFacts,
    pub key: [u8; 32],
    pub standing: Standing,
}

impl NodeRecord {
    pub(crate) fn left(&self) -> bool {
        self.standing == Standing::Left
    }

    pub(crate) fn away(&self) -> bool {
        matches!(self.standing, Standing::Away | Standing::AwayAbstains)
    }
}
record!(NodeRecord in Nodes by NodeId);

/// Why a node's signatures count no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RevocationRecord {
    /// Whether what it signed before is trusted still.
    pub keep: bool,
    pub reason: String,
    /// The node that was asked for it.
    pub by: NodeId,
    /// By the leader's clock.
    pub at_unix_ms: u64,
}
record!(RevocationRecord in Revocations by NodeId);

/// A token of clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord(pub TokenInfo);
record!(TokenRecord in Tokens by u64);

/// How far a node's audit log has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditHeadRecord(pub AuditHead);
record!(AuditHeadRecord in AuditHeads by NodeId);

/// What joining takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AdmissionsRecord(pub Admissions);
record!(AdmissionsRecord in Admissions by ());

/// The cluster's root, and its last statement about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootRecord {
    pub key: [u8; 32],
    pub serial: u64,
    pub statement: SignedStatement,
}
record!(RootRecord in Roots by ());

/// The root's last statement about a key, under that key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CertificateRecord {
    pub serial: u64,
    pub statement: SignedStatement,
}
record!(CertificateRecord in Certificates by Digest);

/// The key that is to be the root, as the root has said; or the root's own, which is to be none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NextRootRecord {
    pub key: [u8; 32],
    pub serial: u64,
    pub statement: SignedStatement,
    /// The serial of the statement that named the present root; 0: none did. What that root says
    /// has a higher one: what it said of keys before may have been replaced, which nobody knows.
    pub floor: u64,
}
record!(NextRootRecord in NextRoots by ());

/// The last statement about a key of the one that is to be the root, under that key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NextCertificateRecord(pub CertificateRecord);
record!(NextCertificateRecord in NextCertificates by Digest);

/// A key with which a node signs, or signed, under that key. A node's first one has none until
/// it is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub node: NodeId,
    /// How many keys the node had before it.
    pub number: u32,
    /// By the leader's clock.
    pub since_unix_ms: u64,
    pub revoked: Vec<KeyRevocation>,
}
record!(KeyRecord in SigningKeys by Digest);

/// When the artifact of a key was published, and under which key. What was published before
/// every member could note that has no record. The time is by the leader's clock, and no earlier
/// than that of the revocations of that key which come before it in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublishedRecord {
    pub by: [u8; 32],
    pub at_unix_ms: u64,
}
record!(PublishedRecord in Published by ArtifactKey);

/// Numbers of the whole cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// The cluster's name; 0 before it is founded.
    pub cluster: u64,
    /// Voters to strive for.
    pub voters: u64,
    /// The next node's id.
    pub next_node: NodeId,
    pub entries: u64,
    pub differing: u64,
}
record!(Counters in Counters by ());

/// All nodes of `view` by id.
pub(crate) fn nodes(view: &impl View) -> Result<BTreeMap<NodeId, NodeRecord>, StateError> {
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
        let id = key.iter().fold(0, |id, byte| id << 8 | NodeId::from(*byte));
        Ok((id, codec::decode(&value)?))
    };
    view.all(Table::Nodes)?.into_iter().map(decode).collect()
}

/// The entries whose keys begin with the byte `first`, in the order of their keys.
pub(crate) fn entries_starting_with(
    view: &impl View,
    first: u8,
) -> Result<Vec<(ArtifactKey, EntryRecord)>, StateError> {
    view.starting_with(Table::Entries, &[first])?.into_iter().map(by_key).collect()
}

/// The live leases, in the order of their keys.
pub(crate) fn leases(view: &impl View) -> Result<Vec<(ArtifactKey, LeaseRecord)>, StateError> {
    view.all(Table::Leases)?.into_iter().map(by_key).collect()
}

fn by_key<R: Record>((key, value): (Vec<u8>, Vec<u8>)) -> Result<(ArtifactKey, R), StateError> {
    codec::exact_length::<R>(&key, 32)?;
    let key = ArtifactKey::from_bytes(std::array::from_fn(|at| key[at]));
    Ok((key, codec::decode(&value)?))
}

/// The revoked signers by id.
pub(crate) fn revocations(
    view: &impl View,
) -> Result<BTreeMap<NodeId, RevocationRecord>, StateError> {
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
        let id = key.iter().fold(0, |id, byte| id << 8 | NodeId::from(*byte));
        Ok((id, codec::decode(&value)?))
    };
    view.all(Table::Revocations)?.into_iter().map(decode).collect()
}

/// All tokens by id, also those that are good no more.
pub(crate) fn tokens(view: &impl View) -> Result<BTreeMap<u64, TokenInfo>, StateError> {
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
        let id = key.iter().fold(0, |id, byte| id << 8 | u64::from(*byte));
        Ok((id, codec::decode::<TokenRecord>(&value)?.0))
    };
    view.all(Table::Tokens)?.into_iter().map(decode).collect()
}

/// The records of signing keys, by key.
pub(crate) fn keys(view: &impl View) -> Result<Vec<([u8; 32], KeyRecord)>, StateError> {
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
        codec::exact_length::<KeyRecord>(&key, 32)?;
        Ok((std::array::from_fn(|at| key[at]), codec::decode(&value)?))
    };
    view.all(Table::SigningKeys)?.into_iter().map(decode).collect()
}

/// What joining takes.
pub(crate) fn admissions(view: &impl View) -> Result<Admissions, StateError> {
    let record: Option<AdmissionsRecord> = super::read(view, ())?;
    Ok(record.unwrap_or_default().0)
}

/// What the root says.
pub(crate) fn trust(view: &impl View) -> Result<Trust, StateError> {
    let counters: Option<Counters> = super::read(view, ())?;
    let cluster = counters.unwrap_or_default().cluster;
    let root = super::view::read::<RootRecord>(view, ())?;
    let certificates = view.all(Table::Certificates)?.into_iter();
    let certificates = certificates.map(|(_, value)| codec::decode::<CertificateRecord>(&value));
    let next = super::view::read::<NextRootRecord>(view, ())?;
    let coming = view.all(Table::NextCertificates)?.into_iter();
    let coming = coming.map(|(_, value)| codec::decode::<NextCertificateRecord>(&value));
    let coming =
        coming.map(|record| Ok::<_, Malformed>(record?.0)).collect::<Result<Vec<_>, _>>()?;
    let trust = Trust::of(cluster, root, certificates.collect::<Result<Vec<_>, _>>()?);
    Ok(trust.with_next(cluster, next, coming))
}

/// The wholes that are stitched of `piece`, in the order of their keys.
pub(crate) fn wholes_of(
    view: &impl View,
    piece: ArtifactKey,
) -> Result<Vec<ArtifactKey>, StateError> {
    let pairs = view.starting_with(Table::References, piece.as_bytes())?;
    let whole = |(key, _): (Vec<u8>, Vec<u8>)| {
        codec::exact_length::<ReferenceRecord>(&key, 64)?;
        Ok(ArtifactKey::from_bytes(std::array::from_fn(|at| key[32 + at])))
    };
    pairs.into_iter().map(whole).collect()
}

/// Whether `key` and `value` are what `table` holds.
pub(crate) fn check(table: Table, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
    fn pair<R: Record>(key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        codec::decode::<R>(value)?;
        codec::exact_length::<R>(key, size_of::<<R::Key as RecordKey>::Bytes>())
    }
    match table {
        Table::Entries => pair::<EntryRecord>(key, value),
        Table::Epochs => pair::<EpochRecord>(key, value),
        Table::Blobs => pair::<BlobRecord>(key, value),
        Table::Leases => pair::<LeaseRecord>(key, value),
        Table::Failures => pair::<FailureRecord>(key, value),
        Table::Nodes => pair::<NodeRecord>(key, value),
        Table::Counters => pair::<Counters>(key, value),
        Table::Objects => pair::<ObjectRecord>(key, value),
        Table::Sessions => pair::<SessionRecord>(key, value),
        Table::Wanted => pair::<Wanted>(key, value),
        Table::Pieces => pair::<PiecesRecord>(key, value),
        Table::References => pair::<ReferenceRecord>(key, value),
        Table::Uses => pair::<UseRecord>(key, value),
        Table::Revocations => pair::<RevocationRecord>(key, value),
        Table::Tokens => pair::<TokenRecord>(key, value),
        Table::AuditHeads => pair::<AuditHeadRecord>(key, value),
        Table::Admissions => pair::<AdmissionsRecord>(key, value),
        Table::Roots => pair::<RootRecord>(key, value),
        Table::Certificates => pair::<CertificateRecord>(key, value),
        Table::SigningKeys => pair::<KeyRecord>(key, value),
        Table::Published => pair::<PublishedRecord>(key, value),
        Table::NextRoots => pair::<NextRootRecord>(key, value),
        Table::NextCertificates => pair::<NextCertificateRecord>(key, value),
    }
}
