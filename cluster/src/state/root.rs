//! What the cluster's root says, as the index keeps it.
//!
//! Invariant: nothing is kept that the root has not signed for this cluster, and of two
//! statements about one thing the later stays, in whichever order they come. A root that is
//! required is the cluster's for good, and no member without a certificate was left when it
//! became so; before that another one can take its place, for any member can name the first.

use ed25519_dalek::VerifyingKey;
use kiln_proto::{
    Digest,
    root::{Says, SignedStatement},
};

use super::{Event, members};
use crate::{
    command::Response,
    table::{self, CertificateRecord, RootRecord, StateError, Table, Txn, View},
};

/// Takes a statement of `root`. The first one that a cluster takes makes that its root, and
/// so does that of another one while none is required.
pub(super) fn say<V: View>(
    txn: &mut Txn<'_, V>,
    root: [u8; 32],
    statement: SignedStatement,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let refuse = |why: String| Ok(Response::Refused(why));
    let known = txn.get::<RootRecord>(())?;
    let other = known.as_ref().filter(|known| known.key != root).map(|known| known.key);
    let theirs = |ours: [u8; 32]| {
        let (ours, theirs) = (hex::encode(ours), hex::encode(root));
        refuse(format!("the root of this cluster is {ours}, and not {theirs}"))
    };
    if let Some(ours) = other
        && table::trust(&*txn)?.is_required()
    {
        return theirs(ours);
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
    let before = match (&read.says, known) {
        (Says::Root { .. }, _) if other.is_some() => None,
        (Says::Signer(_), Some(known)) if other.is_some() => return theirs(known.key),
        (Says::Root { .. }, known) => known.map(|known| (known.serial, known.statement)),
        (Says::Signer(_), None) => {
            let why = "the cluster has no root: add what kiln signer root sign writes first";
            return refuse(why.into());
        }
        (Says::Signer(of), Some(_)) => {
            let known = txn.get::<CertificateRecord>(Digest::from_bytes(of.key))?;
            known.map(|known| (known.serial, known.statement))
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
        let without = without_certificate(txn, &key, ours)?;
        if !without.is_empty() {
            return refuse(format!(
                "nodes without a certificate: {}; all that they signed would miss: kiln signer \
                 issue for each, then kiln signer add, and this again",
                without.join(", ")
            ));
        }
    }
    if other.is_some() {
        // Another root has said nothing of them.
        for (of, _) in txn.all(Table::Certificates)? {
            if let Ok(of) = <[u8; 32]>::try_from(&*of) {
                txn.remove::<CertificateRecord>(Digest::from_bytes(of));
            }
        }
    }
    match read.says {
        Says::Root { .. } => txn.put((), &RootRecord { key: root, serial, statement })?,
        Says::Signer(of) => {
            txn.put(Digest::from_bytes(of.key), &CertificateRecord { serial, statement })?;
        }
    }
    events.push(Event::TrustChanged);
    Ok(Response::Changed(true))
}

/// The nodes that have not left, those that are away too, and were not revoked, of whose keys
/// `root` has said nothing for them. Whether a certificate is valid now is not asked: there is
/// no clock here.
fn without_certificate<V: View>(
    txn: &Txn<'_, V>,
    root: &VerifyingKey,
    cluster: u64,
) -> Result<Vec<String>, StateError> {
    let revoked = table::revocations(txn)?;
    let mut without = Vec::new();
    for (id, node) in table::nodes(txn)? {
        if node.left() || revoked.contains_key(&id) {
            continue;
        }
        let record = txn.get::<CertificateRecord>(Digest::from_bytes(node.key))?;
        let read = record.and_then(|record| record.statement.verify(root).ok());
        let is_its_own = read.is_some_and(|read| match read.says {
            Says::Signer(of) => read.cluster == cluster && of.node.is_none_or(|of| of == id),
            Says::Root { .. } => false,
        });
        if !is_its_own {
            without.push(id.to_string());
        }
    }
    Ok(without)
}
