//! What the cluster's root says, as the index keeps it.
//!
//! Invariant: nothing is kept that the root has not signed for this cluster, or the key that it
//! named as the next one; of two statements about one thing the later stays, in whichever order
//! they come. What a root said before it was named is not known here to be the last of it: it
//! counts for nothing. A root that is required is followed by that key alone, and no member without a
//! certificate was left when either became required; before that another one can take its place,
//! for any member can name the first.

use ed25519_dalek::VerifyingKey;
use kiln_proto::{
    Digest, NodeId,
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
    let (named, floor) = next.as_ref().map_or((0, 0), |next| (next.serial, next.floor));
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
        (Says::Next { .. }, Speaker::Root) => {
            next.as_ref().map(|next| (next.serial, next.statement.clone()))
        }
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
    let below = match (&read.says, speaker) {
        (_, Speaker::Next) => Some(named),
        (Says::Signer(_), Speaker::Root) => Some(floor).filter(|floor| *floor > 0),
        _ => None,
    };
    if let Some(named) = below.filter(|named| serial <= *named) {
        return refuse(format!(
            "it is of before the statement {named}, which named that root, by its serial {serial}: \
             sign it again"
        ));
    }
    if read.says == (Says::Root { required: false })
        && speaker == Speaker::Next
        && table::trust(&*txn)?.is_required()
    {
        let why = "the present root is required, and so is the next one as it takes its place: \
                   sign it with --required";
        return refuse(why.into());
    }
    if let Says::Root { required: true } = read.says {
        let trust = table::trust(&*txn)?;
        let trust = if speaker == Speaker::Root { trust } else { trust.after(&key) };
        let Without { nodes, earlier } = without_certificate(txn, &trust)?;
        if !nodes.is_empty() {
            let earlier = match earlier.is_empty() {
                true => String::new(),
                false => format!(
                    "; without one for these keys too, what they signed misses: {}",
                    earlier.join(", ")
                ),
            };
            return refuse(format!(
                "nodes without a certificate: {}; all that they signed would miss: kiln signer \
                 issue for each, then kiln signer add, and this again{earlier}",
                nodes.join(", ")
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
                clear(txn, Table::NextCertificates)?;
            }
            match (speaker, next) {
                (Speaker::Root, _) => {}
                // It is to be none but itself, and what it said before it was named stays behind.
                (Speaker::Next, Some(next)) => {
                    txn.put((), &NextRootRecord { floor: next.serial, ..next })?;
                }
                (Speaker::Next | Speaker::Other, _) => txn.remove::<NextRootRecord>(()),
            }
            txn.put((), &RootRecord { key: root, serial, statement })?;
        }
        Says::Next { key } => {
            if next.is_none_or(|next| next.key != key) {
                clear(txn, Table::NextCertificates)?;
            }
            txn.put((), &NextRootRecord { key, serial, statement, floor })?;
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

/// Who misses a certificate.
struct Without {
    /// Nodes, by their present keys.
    nodes: Vec<String>,
    /// Earlier keys of nodes, in hexadecimal, as many as people read.
    earlier: Vec<String>,
}

/// Most earlier keys that a refusal names.
const MOST_NAMED: usize = 16;

/// The nodes that have not left, those that are away too, and were not revoked, whose present
/// key has no certificate in `trust` for them, unless nothing counts that is signed under it; and
/// their earlier keys. Whether one is valid now is not asked: there is no clock here.
fn without_certificate<V: View>(txn: &Txn<'_, V>, trust: &Trust) -> Result<Without, StateError> {
    let (revoked, keys) = (table::revocations(txn)?, table::keys(txn)?);
    let counts = |key: &[u8; 32]| {
        let record = keys.iter().find(|(of, _)| of == key);
        !record.is_some_and(|(_, of)| of.revoked.iter().any(|of| of.within.is_all()))
    };
    let misses = |id: NodeId, key: &[u8; 32]| {
        let public = VerifyingKey::from_bytes(key).ok();
        let certificate = public.as_ref().and_then(|key| trust.certificate(key));
        counts(key) && certificate.is_none_or(|of| of.says.node.is_some_and(|of| of != id))
    };
    let (mut nodes, mut earlier) = (Vec::new(), Vec::new());
    for (id, node) in table::nodes(txn)? {
        if node.left() || revoked.contains_key(&id) {
            continue;
        }
        let (signs, _) = keys::current(txn, id, node.key)?;
        if misses(id, &signs) {
            nodes.push(id.to_string());
        }
        let later = keys.iter().filter(|(_, of)| of.node == id && of.number > 0);
        let all = std::iter::once(&node.key).chain(later.map(|(key, _)| key));
        let before = all.filter(|key| **key != signs && misses(id, key));
        earlier.extend(before.map(|key| format!("{} of node {id}", hex::encode(key))));
    }
    if earlier.len() > MOST_NAMED {
        let more = earlier.len() - MOST_NAMED;
        earlier.truncate(MOST_NAMED);
        earlier.push(format!("{more} more (kiln signer list)"));
    }
    Ok(Without { nodes, earlier })
}
