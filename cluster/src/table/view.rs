//! Typed reads and changes of tables of bytes.
//!
//! Invariant: every part of the state is a `(table, key) -> bytes` pair, so that
//! a snapshot, a comparison and the disk all see the same and whole state.

use std::collections::BTreeMap;

use kiln_proto::{ArtifactKey, Digest, NodeId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::codec::{self, Malformed};

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
    Wanted,
    Pieces,
    References,
    Uses,
    Revocations,
    Tokens,
    AuditHeads,
    Admissions,
    Roots,
    Certificates,
    SigningKeys,
    Published,
    NextRoots,
    NextCertificates,
}

impl Table {
    pub(crate) const ALL: [Self; 23] = [
        Self::Entries,
        Self::Epochs,
        Self::Blobs,
        Self::Leases,
        Self::Failures,
        Self::Nodes,
        Self::Counters,
        Self::Objects,
        Self::Sessions,
        Self::Wanted,
        Self::Pieces,
        Self::References,
        Self::Uses,
        Self::Revocations,
        Self::Tokens,
        Self::AuditHeads,
        Self::Admissions,
        Self::Roots,
        Self::Certificates,
        Self::SigningKeys,
        Self::Published,
        Self::NextRoots,
        Self::NextCertificates,
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
            Self::Wanted => "wanted",
            Self::Pieces => "pieces",
            Self::References => "references",
            Self::Uses => "uses",
            Self::Revocations => "revocations",
            Self::Tokens => "tokens",
            Self::AuditHeads => "audit_heads",
            Self::Admissions => "admissions",
            Self::Roots => "roots",
            Self::Certificates => "certificates",
            Self::SigningKeys => "signing_keys",
            Self::Published => "published",
            Self::NextRoots => "next_roots",
            Self::NextCertificates => "next_certificates",
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
    /// All pairs whose keys begin with `prefix`, in order.
    fn starting_with(&self, table: Table, prefix: &[u8]) -> Result<Pairs, StateError>;
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

impl RecordKey for (ArtifactKey, ArtifactKey) {
    type Bytes = [u8; 64];
    fn bytes(&self) -> [u8; 64] {
        let (first, second) = (self.0.as_bytes(), self.1.as_bytes());
        std::array::from_fn(|at| if at < 32 { first[at] } else { second[at - 32] })
    }
}

impl RecordKey for () {
    type Bytes = [u8; 0];
    fn bytes(&self) -> [u8; 0] {
        []
    }
}

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

    pub(crate) fn into_changes(self) -> Changes {
        self.changes
    }
}

/// What is there once the changes are written.
impl<V: View> View for Txn<'_, V> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>, StateError> {
        match self.changes.get(&(table, key.to_vec())) {
            Some(changed) => Ok(changed.clone()),
            None => Ok(self.base.get(table, key)?.map(|bytes| bytes.as_ref().to_vec())),
        }
    }

    fn all(&self, table: Table) -> Result<Pairs, StateError> {
        self.starting_with(table, &[])
    }

    fn starting_with(&self, table: Table, prefix: &[u8]) -> Result<Pairs, StateError> {
        let found = self.base.starting_with(table, prefix)?;
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> = found.into_iter().collect();
        let changed = self.changes.range((table, prefix.to_vec())..);
        for ((_, key), value) in
            changed.take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
        {
            match value {
                Some(value) => drop(found.insert(key.clone(), value.clone())),
                None => drop(found.remove(key)),
            }
        }
        Ok(found.into_iter().collect())
    }
}
