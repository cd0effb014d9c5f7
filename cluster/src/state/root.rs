//! What the cluster's root says, as the index keeps it.
//!
//! Invariant: nothing is kept that the root has not signed for this cluster, or the key that it
//! named as the next one; of two statements about one thing the later stays, in whichever order
//! they come. A root that is required is followed by that key alone, and no member without a
//! certificate was left when either became required; before that another one can take its place,
//! for any member can name the first.

use ed25519_dalek::VerifyingKey;
use kiln_proto::{
    Digest,
    root::{Says, SignedStatement},
};

use super::{Event, keys, members};
use crate::{
    command::Response,
    table::{
        self, CertificateRecord, NextCertificateRecord, NextRootRecord, RootRecord, StateError,
        Table, Txn, View,
    },
    trust::Trust,
};

/// Whose word a statement is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaker {
    /// The root's, or that of the cluster's first.
    Root,
    /// That of the key that the root named.
    Next,
    /// Somebody's, while no root is required.
    Other,
}

/// Takes a statement of `root`. The first one that a cluster takes makes that its root, and
/// so does that of another one while none is required, and that of the one that the root named.
pub(super) fn say<V: View>(
    txn: &mut Txn<'_, V>,
    root: [u8; 32],
    statement: SignedStatement,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let refuse = |why: String| Ok(Response::Refused(why));
    let known = txn.get::<RootRecord>(())?;
    let next = txn.get::<NextRootRecord>(())?;
    let speaker = match &known {
        Some(known) if known.key != root => match &next {
            Some(next) if next.key == root => Speaker::Next,
            _ => Speaker::Other,
        },
        _ => Speaker::Root,
    };
    let theirs = |ours: Option<&RootRecord>| {
        let ours = ours.map(|known| hex::encode(known.key)).unwrap_or_default();
        let theirs = hex::encode(root);
        refuse(format!("the root of this cluster is {ours}, and not {theirs}"))
    };
    if speaker == Speaker::Other && table::trust(&*txn)?.is_required() {
        return theirs(known.as_ref());
    }
    let Ok(key) = VerifyingKey::from_bytes(&root) else {
        return refuse("the root is no ed25519 public key".into());
    };
    let read = match statement.verify(&key) {
        Ok(read) => read,
        Err(why) => return refuse(why.to_string()),
    };
    let (serial, ours) = (read.serial, members::counters(txn)?.cluster);
    if read.cluster != ours {
        return refuse(format!(
            "the statement is for the cluster {:016x}, and this one is {ours:016x}",
            read.cluster
        ));
    }
    let before = match (&read.says, speaker) {
        (Says::Root { .. }, Speaker::Root) => known.map(|known| (known.serial, known.statement)),
        (Says::Root { .. }, Speaker::Next | Speaker::Other) => None,
        (Says::Signer(_) | Says::Next { .. }, Speaker::Other) => return theirs(known.as_ref()),
        (Says::Signer(_) | Says::Next { .. }, Speaker::Root) if known.is_none() => {
            let why = "the cluster has no root: add what kiln signer root sign writes first";
            return refuse(why.into());
        }
        (Says::Next { .. }, Speaker::Next) => {
            return refuse("it is not the root yet: it says so itself before it names one".into());
        }
        (Says::Next { .. }, Speaker::Root) => next.map(|next| (next.serial, next.statement)),
        (Says::Signer(of), Speaker::Root) => {
            let known = txn.get::<CertificateRecord>(Digest::from_bytes(of.key))?;
            known.map(|known| (known.serial, known.statement))
        }
        (Says::Signer(of), Speaker::Next) => {
            let known = txn.get::<NextCertificateRecord>(Digest::from_bytes(of.key))?;
            known.map(|known| (known.0.serial, known.0.statement))
        }
    };
    match before {
        Some((_, same)) if same == statement => return Ok(Response::Changed(false)),
        Some((later, _)) if later >= serial => {
            return refuse(format!("the cluster has a later statement: {later}, not {serial}"));
        }
        _ => {}
    }
    if let Says::Root { required: true } = read.says {
        let trust = table::trust(&*txn)?;
        let trust = if speaker == Speaker::Root { trust } else { trust.after(&key) };
        let without = without_certificate(txn, &trust)?;
        if !without.is_empty() {
            return refuse(format!(
                "nodes without a certificate: {}; all that they signed would miss: kiln signer \
                 issue for each, then kiln signer add, and this again",
                without.join(", ")
            ));
        }
    }
    match read.says {
        Says::Root { .. } => {
            match speaker {
                Speaker::Root => {}
                Speaker::Next => follow(txn)?,
                // Another root has said nothing of them.
                Speaker::Other => clear(txn, Table::Certificates)?,
            }
            if speaker != Speaker::Root {
                txn.remove::<NextRootRecord>(());
                clear(txn, Table::NextCertificates)?;
            }
            txn.put((), &RootRecord { key: root, serial, statement })?;
        }
        Says::Next { key } => {
            clear(txn, Table::NextCertificates)?;
            txn.put((), &NextRootRecord { key, serial, statement })?;
        }
        Says::Signer(of) => {
            let (at, record) =
                (Digest::from_bytes(of.key), CertificateRecord { serial, statement });
            match speaker {
                Speaker::Next => txn.put(at, &NextCertificateRecord(record))?,
                Speaker::Root | Speaker::Other => txn.put(at, &record)?,
            }
        }
    }
    events.push(Event::TrustChanged);
    Ok(Response::Changed(true))
}

/// What the next root said of keys takes the place of what the root before said.
fn follow<V: View>(txn: &mut Txn<'_, V>) -> Result<(), StateError> {
    clear(txn, Table::Certificates)?;
    for (of, _) in txn.all(Table::NextCertificates)? {
        let Ok(of) = <[u8; 32]>::try_from(&*of).map(Digest::from_bytes) else { continue };
        if let Some(NextCertificateRecord(record)) = txn.get(of)? {
            txn.put(of, &record)?;
        }
    }
    Ok(())
}

/// Empties one of the tables of certificates.
fn clear<V: View>(txn: &mut Txn<'_, V>, table: Table) -> Result<(), StateError> {
    for (of, _) in txn.all(table)? {
        let Ok(of) = <[u8; 32]>::try_from(&*of).map(Digest::from_bytes) else { continue };
        match table {
            Table::NextCertificates => txn.remove::<NextCertificateRecord>(of),
            _ => txn.remove::<CertificateRecord>(of),
        }
    }
    Ok(())
}

/// The nodes that have not left, those that are away too, and were not revoked, whose present
/// key has no certificate in `trust` for them. Whether one is valid now is not asked: there is
/// no clock here.
fn without_certificate<V: View>(
    txn: &Txn<'_, V>,
    trust: &Trust,
) -> Result<Vec<String>, StateError> {
    let revoked = table::revocations(txn)?;
    let mut without = Vec::new();
    for (id, node) in table::nodes(txn)? {
        if node.left() || revoked.contains_key(&id) {
            continue;
        }
        let (signs, _) = keys::current(txn, id, node.key)?;
        let key = VerifyingKey::from_bytes(&signs).ok();
        let certificate = key.as_ref().and_then(|key| trust.certificate(key));
        if certificate.is_none_or(|of| of.says.node.is_some_and(|of| of != id)) {
            without.push(id.to_string());
        }
    }
    Ok(without)
}
