//! Calls about signers, their keys, and the root.
//!
//! Invariant: a root that is required leaves no member without a certificate: such a
//! statement is refused before it would take a node's artifacts from the fleet.

use ed25519_dalek::VerifyingKey;
use kiln_cluster::{
    NodeInfo,
    signing::{Interval, NodeKey},
    trust::Trust,
};
use kiln_proto::{
    pb,
    root::{Says, SignedStatement, SignerCertificate},
};

use super::{guard::Asks, parts::Parts};
use crate::{clock, error::Error, manager::Rotated};

/// How far ahead of this node's clock a serial may be, in milliseconds.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Tells the cluster what its root says; false where it knew.
pub(super) async fn root_says(
    parts: &Parts,
    asks: &Asks,
    request: pb::RootSaysRequest,
) -> Result<bool, Error> {
    let invalid = |why: &str| Error::Invalid(why.into());
    let root = <[u8; 32]>::try_from(&*request.root).map_err(|_| invalid("a root has 32 bytes"))?;
    let root = VerifyingKey::from_bytes(&root).map_err(|_| invalid("the root is no public key"))?;
    let wire = request.statement.ok_or_else(|| invalid("no statement"))?;
    let signed = SignedStatement { bytes: wire.statement.into(), signature: wire.signature.into() };
    let read = signed.verify(&root).map_err(|e| Error::Invalid(e.to_string()))?;
    let now = clock::unix_ms();
    if read.serial > now.saturating_add(DAY_MS) {
        return Err(Error::Invalid(format!(
            "the statement has the serial {}, more than a day ahead of this node's clock ({now}): \
             nothing that is signed until then could follow it; see the clock of the machine that \
             signed it, or give --serial",
            read.serial
        )));
    }
    let (subject, detail) = match &read.says {
        Says::Root { required } => {
            if *required {
                all_certified(parts, &root)?;
            }
            let needed = if *required { "required" } else { "not required" };
            (root.to_bytes(), format!("certificates are {needed}"))
        }
        Says::Next { key } => (*key, "is to be the root".to_owned()),
        Says::Signer(of) => (of.key, format!("may sign in {}", of.namespaces.join(", "))),
    };
    let changed = parts.index.root_says(&root, signed).await?;
    if changed {
        let subject = hex::encode(subject);
        tracing::warn!(subject, detail, by = %asks.grant.who(), "the root says");
        parts.did(asks, "root_says", |event| event.of(subject).saying(detail));
    }
    Ok(changed)
}

/// Refuses while the key of a node that has not left, and may only be away, has no certificate
/// that counts now. What `apply` asks beside this is without a clock.
fn all_certified(parts: &Parts, root: &VerifyingKey) -> Result<(), Error> {
    let (trust, now) = (parts.index.trust(), clock::unix_ms());
    let is_root = trust.root().is_none_or(|known| known.key == *root);
    let trust = if is_root { trust } else { trust.after(root).into() };
    let all = parts.index.all_nodes().into_iter();
    let nodes = all.filter(|(_, node)| !node.left && node.revoked.is_none());
    let without = nodes.filter(|(id, node)| trust.judge(*id, &node.signing(), None, now).is_err());
    let without: Vec<String> = without.map(|(id, _)| id.to_string()).collect();
    match without.is_empty() {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "nodes without a certificate that counts: {}; all that they signed would miss: kiln \
             signer issue for each, then kiln signer add, and this again",
            without.join(", ")
        ))),
    }
}

/// Revokes a node, or one of its keys; tells how many artifacts went.
pub(super) async fn revoke(
    parts: &Parts,
    asks: &Asks,
    request: pb::RevokeSignerRequest,
) -> Result<u64, Error> {
    let pb::RevokeSignerRequest { node, reason, keep, key, after_unix_ms, before_unix_ms } =
        request;
    let by = asks.grant.who();
    if key.is_empty() {
        if after_unix_ms != 0 || before_unix_ms != 0 {
            return Err(Error::Invalid(
                "a node has keys, and a time is one of a key: name the key".into(),
            ));
        }
        let removed = parts.index.revoke(node, keep, reason.clone()).await?;
        parts.did(asks, "revoke_signer", |event| event.of(node).saying(reason.as_str()));
        tracing::warn!(signer = node, keep, removed, reason, %by, "a signer was revoked");
        return Ok(removed);
    }
    if node != 0 || keep {
        return Err(Error::Invalid(
            "name a node or a key; of a key, what stays is told by a time".into(),
        ));
    }
    let public = public(&key)?;
    let before = Some(before_unix_ms).filter(|end| *end != 0);
    if before.is_some_and(|end| end <= after_unix_ms) {
        return Err(Error::Invalid("the time ends before it begins".into()));
    }
    let within = Interval { after_unix_ms, before_unix_ms: before };
    let removed = parts.index.revoke_key(&public, within, reason.clone()).await?;
    let key = hex::encode(key);
    let detail = format!("published from {after_unix_ms} on, before {before_unix_ms}: {reason}");
    tracing::warn!(key, removed, detail, %by, "a key of a signer was revoked");
    parts.did(asks, "revoke_signer", |event| event.of(key).saying(detail));
    Ok(removed)
}

fn public(key: &[u8]) -> Result<VerifyingKey, Error> {
    let key = <[u8; 32]>::try_from(key).ok();
    let key = key.and_then(|key| VerifyingKey::from_bytes(&key).ok());
    key.ok_or_else(|| Error::Invalid("the key is no public key".into()))
}

/// Gives this node a new key to sign with, or only makes it.
pub(super) async fn rotate(
    parts: &Parts,
    asks: &Asks,
    request: pb::RotateSignerRequest,
) -> Result<pb::RotateSignerResponse, Error> {
    let pb::RotateSignerRequest { only_make, node, key } = request;
    if node != 0 && node != parts.node {
        return Err(Error::Invalid(format!(
            "this is node {}, and the key of node {node} is to change: ask that node",
            parts.node
        )));
    }
    let wanted = match key.is_empty() {
        true => None,
        false => Some(public(&key)?),
    };
    let rotated = match only_make {
        true => parts.manager.next_key().await?,
        false => parts.manager.rotate(wanted).await?,
    };
    let Rotated { key, before, changed } = rotated;
    let bytes = |key: VerifyingKey| key.to_bytes().to_vec().into();
    if changed {
        let new = hex::encode(key.as_bytes());
        tracing::warn!(key = new, by = %asks.grant.who(), "this node signs with a new key");
        parts.did(asks, "rotate_signer", |event| event.of(parts.node).saying(new));
    }
    Ok(pb::RotateSignerResponse { node: parts.node, key: bytes(key), before: bytes(before) })
}

/// Every key of every node that ever was a member, and what is said of it.
pub(super) fn signers(parts: &Parts) -> pb::SignersResponse {
    let trust = parts.index.trust();
    let next = trust.next_root().map(|root| trust.after(root));
    let nodes = parts.index.all_nodes().into_iter();
    let signers = nodes.flat_map(|(node, info)| {
        let rows = info.keys.iter().map(|of| status(parts, (&trust, &next), node, &info, of));
        rows.collect::<Vec<_>>()
    });
    pb::SignersResponse {
        signers: signers.collect(),
        root: trust.root().map(|root| root.key.to_bytes().to_vec().into()).unwrap_or_default(),
        root_required: trust.is_required(),
        cluster: parts.cluster.status().cluster.unwrap_or_default(),
        next_root: trust.next_root().map(|key| key.to_bytes().to_vec().into()).unwrap_or_default(),
    }
}

fn status(
    parts: &Parts,
    (trust, next): (&Trust, &Option<Trust>),
    node: u64,
    info: &NodeInfo,
    of: &NodeKey,
) -> pb::SignerStatus {
    let key_revocations = of.revoked.iter().map(|revoked| pb::KeyRevocation {
        after_unix_ms: revoked.within.after_unix_ms,
        before_unix_ms: revoked.within.before_unix_ms.unwrap_or_default(),
        reason: revoked.reason.clone(),
        by: revoked.by,
        at_unix_ms: revoked.at_unix_ms,
    });
    pb::SignerStatus {
        node,
        key: of.key.to_bytes().to_vec().into(),
        left: info.left,
        certificate: trust.certificate(&of.key).map(|of| certificate(&of.says)),
        unbelieved: parts.manager.believes(node, &of.key, None).err().unwrap_or_default(),
        revocation: info.revoked.as_ref().map(|revoked| pb::SignerRevocation {
            reason: revoked.reason.clone(),
            by: revoked.by,
            at_unix_ms: revoked.at_unix_ms,
            keep: revoked.keep,
        }),
        since_unix_ms: of.since_unix_ms,
        until_unix_ms: info.retired_unix_ms(&of.key).unwrap_or_default(),
        key_revocations: key_revocations.collect(),
        certified_next: next.as_ref().is_some_and(|next| next.certificate(&of.key).is_some()),
    }
}

/// What clients check manifests by.
pub(super) fn believed(parts: &Parts) -> Vec<pb::Signer> {
    let trust = parts.index.trust();
    let signer = |(node, key): (u64, VerifyingKey)| pb::Signer {
        node,
        key: key.to_bytes().to_vec().into(),
        certificate: trust.certificate(&key).map(|of| pb::SignedStatement {
            statement: of.signed.bytes.clone().into(),
            signature: of.signed.signature.clone().into(),
        }),
    };
    parts.manager.signers().into_iter().map(signer).collect()
}

fn certificate(says: &SignerCertificate) -> pb::SignerCertificate {
    pb::SignerCertificate {
        key: says.key.to_vec().into(),
        node: says.node.unwrap_or_default(),
        name: says.name.clone(),
        namespaces: says.namespaces.clone(),
        not_before_unix_ms: says.not_before_unix_ms,
        not_after_unix_ms: says.not_after_unix_ms.unwrap_or_default(),
    }
}
