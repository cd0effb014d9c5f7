//! What the cluster's root says, as the index keeps it.
//!
//! Invariant: a cluster has one root, for good; nothing is kept that it has not signed, and of
//! two statements about one thing the later stays, in whichever order they come.

use ed25519_dalek::VerifyingKey;
use kiln_proto::{
    Digest,
    root::{Says, SignedStatement},
};

use super::Event;
use crate::{
    command::Response,
    table::{CertificateRecord, RootRecord, StateError, Txn, View},
};

/// Takes a statement of `root`. The first one that a cluster takes makes that its root.
pub(super) fn say<V: View>(
    txn: &mut Txn<'_, V>,
    root: [u8; 32],
    statement: SignedStatement,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let refuse = |why: String| Ok(Response::Refused(why));
    let known = txn.get::<RootRecord>(())?;
    if let Some(known) = known.as_ref().filter(|known| known.key != root) {
        let (ours, theirs) = (hex::encode(known.key), hex::encode(root));
        return refuse(format!("the root of this cluster is {ours}, and not {theirs}"));
    }
    let Ok(key) = VerifyingKey::from_bytes(&root) else {
        return refuse("the root is no ed25519 public key".into());
    };
    let read = match statement.verify(&key) {
        Ok(read) => read,
        Err(why) => return refuse(why.to_string()),
    };
    let serial = read.serial;
    let before = match (&read.says, known) {
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
    match read.says {
        Says::Root { .. } => txn.put((), &RootRecord { key: root, serial, statement })?,
        Says::Signer(of) => {
            txn.put(Digest::from_bytes(of.key), &CertificateRecord { serial, statement })?;
        }
    }
    events.push(Event::TrustChanged);
    Ok(Response::Changed(true))
}
