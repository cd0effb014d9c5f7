//! The replicated state as tables of typed records.
//!
//! Invariant: whoever reads or changes the state does it by these types; what a record's
//! bytes are is known here alone.

mod records;
mod view;

pub(crate) use self::{
    records::{
        AdmissionsRecord, AuditHeadRecord, BlobRecord, CertificateRecord, Counters, EntryRecord,
        EpochRecord, FailureRecord, KeyRecord, LeaseRecord, NextCertificateRecord, NextRootRecord,
        NodeRecord, ObjectRecord, PiecesRecord, PublishedRecord, ReferenceRecord, RevocationRecord,
        RootRecord, SessionRecord, Standing, TokenRecord, UseRecord, admissions, check,
        entries_starting_with, keys, leases, nodes, revocations, tokens, trust, wholes_of,
    },
    view::{Changes, Pairs, Record, RecordKey, StateError, Table, Txn, View, read},
};
