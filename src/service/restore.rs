//! Entries of a backup become this cluster's own.
//!
//! Invariant: an entry counts only under a signature that is right by the backup's
//! own list of signers, and not of one whom this cluster revoked, whatever the backup calls
//! it; this node then signs it anew, as the one that vouches for it here. A key that has an
//! artifact keeps it.

use std::collections::HashMap;

use ed25519_dalek::VerifyingKey;
use kiln_cluster::{Index, signing::NodeKey};
use kiln_proto::{Manifest, NodeId, SignedManifest, pb};

use crate::{error::Error, manager::Manager};

/// Restores what it can, and counts.
pub(super) async fn restore(
    manager: &Manager,
    index: &Index,
    request: pb::RestoreRequest,
) -> Result<pb::RestoreResponse, Error> {
    let known = index.all_nodes().into_iter();
    // A key that is revoked for some time alone: when a backup's entry was published is in it by
    // nobody's word but the signer's.
    let revoked: Vec<VerifyingKey> = known
        .flat_map(|(_, node)| {
            let all = node.revoked.as_ref().is_some_and(|r| !r.keep);
            let gone = move |of: &NodeKey| all || !of.revoked.is_empty();
            node.keys.into_iter().filter(gone).map(|of| of.key)
        })
        .collect();
    let named = request.signers.iter().filter_map(|s| Some((s.node, key(&s.key)?)));
    let mut signers: HashMap<NodeId, Vec<VerifyingKey>> = HashMap::new();
    for (node, key) in named.filter(|(_, key)| !revoked.contains(key)) {
        signers.entry(node).or_default().push(key);
    }
    let mut done = pb::RestoreResponse::default();
    for entry in request.entries {
        let stored = entry.stored.then_some(entry.generation);
        let pinned = entry.pinned;
        let verified = entry.manifest.and_then(|signed| verified(signed, &signers));
        let Some((manifest, by)) = verified else {
            done.refused += 1;
            continue;
        };
        // Who restores signs anew: not for a key that the root does not let sign this.
        if !manager.believes_key(manifest.producer, &by, &manifest.namespace) {
            done.refused += 1;
            continue;
        }
        match manager.restore(manifest, stored, pinned).await {
            Ok(true) => done.restored += 1,
            Ok(false) => done.known += 1,
            // A whole whose pieces were refused, or are other ones by now.
            Err(Error::PieceGone(_)) => done.refused += 1,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn key(bytes: &[u8]) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()
}

fn verified(
    signed: pb::SignedManifest,
    signers: &HashMap<NodeId, Vec<VerifyingKey>>,
) -> Option<(Manifest, VerifyingKey)> {
    let signed = SignedManifest::from(signed);
    let key = signed.read_unverified().ok()?.key;
    let verify = |by: &VerifyingKey| Some((signed.verify(by, &key).ok()?, *by));
    signers.get(&signed.signer)?.iter().find_map(verify)
}
