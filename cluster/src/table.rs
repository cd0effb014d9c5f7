//! The replicated state as tables of typed records.
//!
//! Invariant: every part of the state is a `(table, key) -> bytes` pair, so that
//! a snapshot, a comparison and the disk all see the same and whole state.

use std::{collections::BTreeMap, sync::Arc};

use kiln_proto::{ArtifactKey, Digest, Failure, NodeId, SignedManifest, Token};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    codec::{self, Malformed},
    command::{Candidate, NodeFacts},
};

/// The tables; each is a column family on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Table {
    Entries,
    Epochs,
    Blobs,
    Leases,
    Failures,
    Nodes,
    Counters,
    Objects,
    Sessions,
}

impl Table {
    pub(crate) const ALL: [Self; 9] = [
        Self::Entries,
        Self::Epochs,
        Self::Blobs,
        Self::Leases,
        Self::Failures,
        Self::Nodes,
        Self::Counters,
        Self::Objects,
        Self::Sessions,
    ];

    /// The column family's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::Epochs => "epochs",
            Self::Blobs => "blobs",
            Self::Leases => "leases",
            Self::Failures => "failures",
            Self::Nodes => "nodes",
            Self::Counters => "counters",
            Self::Objects => "objects",
            Self::Sessions => "sessions",
        }
    }
}

/// Why the state could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("read {0}: {1}")]
    Read(&'static str, #[source] rocksdb::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("an entry without its pack's record")]
    NoPack,
    /// Only where the reader did not want to wait for the disk.
    #[error("{0} has it on disk, if at all")]
    NotInMemory(&'static str),
}

/// Keys with their values.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Read access to the state.
pub(crate) trait View {
    /// The bytes under `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>, StateError>;
    /// All pairs of a table that is known to be small.
    fn all(&self, table: Table) -> Result<Pairs, StateError>;
}

/// A type that lives in one table.
pub(crate) trait Record: Serialize + DeserializeOwned {
    type Key: RecordKey;
    const TABLE: Table;
}

/// Fixed-size keys whose byte order is their order.
pub(crate) trait RecordKey: Copy {
    type Bytes: AsRef<[u8]>;
    fn bytes(&self) -> Self::Bytes;
}

impl RecordKey for ArtifactKey {
    type Bytes = [u8; 32];
    fn bytes(&self) -> [u8; 32] {
        *self.as_bytes()
    }
}

impl RecordKey for Digest {
    type Bytes = [u8; 32];
    fn bytes(&self) -> [u8; 32] {
        *self.as_bytes()
    }
}

impl RecordKey for NodeId {
    type Bytes = [u8; 8];
    fn bytes(&self) -> [u8; 8] {
        self.to_be_bytes()
    }
}

impl RecordKey for () {
    type Bytes = [u8; 0];
    fn bytes(&self) -> [u8; 0] {
        []
    }
}

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
    /// Reported uses of the entries that name it.
    pub hits: u64,
    /// Sorted; hints.
    pub holders: Vec<NodeId>,
}
record!(BlobRecord in Blobs by Digest);

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

/// Reads one record.
pub(crate) fn read<R: Record>(view: &impl View, key: R::Key) -> Result<Option<R>, StateError> {
    let key = key.bytes();
    let bytes = view.get(R::TABLE, key.as_ref())?;
    Ok(bytes.map(|b| codec::decode(b.as_ref())).transpose()?)
}

/// Changes not yet written, by table and key; `None` removes.
pub(crate) type Changes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// A view with changes on top.
pub(crate) struct Txn<'a, V> {
    base: &'a V,
    changes: Changes,
}

impl<'a, V: View> Txn<'a, V> {
    pub(crate) fn new(base: &'a V) -> Self {
        Self { base, changes: Changes::new() }
    }

    pub(crate) fn get<R: Record>(&self, key: R::Key) -> Result<Option<R>, StateError> {
        let at = (R::TABLE, key.bytes().as_ref().to_vec());
        match self.changes.get(&at) {
            Some(Some(bytes)) => Ok(Some(codec::decode(bytes)?)),
            Some(None) => Ok(None),
            None => read(self.base, key),
        }
    }

    pub(crate) fn put<R: Record>(&mut self, key: R::Key, record: &R) -> Result<(), StateError> {
        let bytes = codec::encode(record)?;
        self.changes.insert((R::TABLE, key.bytes().as_ref().to_vec()), Some(bytes));
        Ok(())
    }

    pub(crate) fn remove<R: Record>(&mut self, key: R::Key) {
        self.changes.insert((R::TABLE, key.bytes().as_ref().to_vec()), None);
    }

    /// All nodes by id.
    pub(crate) fn nodes(&self) -> Result<BTreeMap<NodeId, NodeRecord>, StateError> {
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> =
            self.base.all(Table::Nodes)?.into_iter().collect();
        for ((table, key), value) in &self.changes {
            match value {
                _ if *table != Table::Nodes => {}
                Some(value) => drop(found.insert(key.clone(), value.clone())),
                None => drop(found.remove(key)),
            }
        }
        decode_nodes(found)
    }

    pub(crate) fn into_changes(self) -> Changes {
        self.changes
    }
}

/// All nodes of `view` by id.
pub(crate) fn nodes(view: &impl View) -> Result<BTreeMap<NodeId, NodeRecord>, StateError> {
    decode_nodes(view.all(Table::Nodes)?)
}

fn decode_nodes(
    pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
) -> Result<BTreeMap<NodeId, NodeRecord>, StateError> {
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
        let id = key.iter().fold(0, |id, byte| id << 8 | NodeId::from(*byte));
        Ok((id, codec::decode(&value)?))
    };
    pairs.into_iter().map(decode).collect()
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
    }
}
