//! Calls about signers and the root.
//!
//! Invariant: a root that is required leaves no member without a certificate: such a
//! statement is refused before it would take a node's artifacts from the fleet.

use ed25519_dalek::VerifyingKey;
use kiln_proto::{
    pb,
    root::{Says, SignedStatement, SignerCertificate},
};

use super::{guard::Asks, parts::Parts};
use crate::{clock, error::Error};

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
                all_certified(parts)?;
            }
            let needed = if *required { "required" } else { "not required" };
            (root.to_bytes(), format!("certificates are {needed}"))
        }
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
fn all_certified(parts: &Parts) -> Result<(), Error> {
    let (trust, now) = (parts.index.trust(), clock::unix_ms());
    let all = parts.index.all_nodes().into_iter();
    let nodes = all.filter(|(_, node)| !node.left && node.revoked.is_none());
    let without = nodes.filter(|(id, node)| trust.judge(*id, &node.key, None, now).is_err());
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

/// Every node that ever was a member, and what is said of its key.
pub(super) fn signers(parts: &Parts) -> pb::SignersResponse {
    let trust = parts.index.trust();
    let signers = parts.index.all_nodes().into_iter().map(|(node, info)| pb::SignerStatus {
        node,
        key: info.key.to_bytes().to_vec().into(),
        left: info.left,
        certificate: trust.certificate(&info.key).map(|of| certificate(&of.says)),
        unbelieved: parts.manager.believes(node, None).err().unwrap_or_default(),
        revocation: info.revoked.map(|revoked| pb::SignerRevocation {
            reason: revoked.reason,
            by: revoked.by,
            at_unix_ms: revoked.at_unix_ms,
            keep: revoked.keep,
        }),
    });
    pb::SignersResponse {
        signers: signers.collect(),
        root: trust.root().map(|root| root.key.to_bytes().to_vec().into()).unwrap_or_default(),
        root_required: trust.is_required(),
        cluster: parts.cluster.status().cluster.unwrap_or_default(),
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
