//! Entries of a backup become this cluster's own.
//!
//! Invariant: an entry counts only under a signature that is right by the backup's
//! own list of signers, and not of one whom this cluster revoked, whatever the backup calls
//! it; this node then signs it anew, as the one that vouches for it here. A key that has an
//! artifact keeps it.

use std::collections::HashMap;

use ed25519_dalek::VerifyingKey;
use kiln_cluster::Index;
use kiln_proto::{Manifest, NodeId, SignedManifest, pb};

use crate::{error::Error, manager::Manager};

/// Restores what it can, and counts.
pub(super) async fn restore(
    manager: &Manager,
    index: &Index,
    request: pb::RestoreRequest,
) -> Result<pb::RestoreResponse, Error> {
    let known = index.all_nodes().into_iter();
    let revoked: Vec<VerifyingKey> = known
        .filter(|(_, node)| node.revoked.as_ref().is_some_and(|r| !r.keep))
        .map(|(_, node)| node.key)
        .collect();
    let named = request.signers.iter().filter_map(|s| Some((s.node, key(&s.key)?)));
    let signers: HashMap<NodeId, VerifyingKey> =
        named.filter(|(_, key)| !revoked.contains(key)).collect();
    let mut done = pb::RestoreResponse::default();
    for entry in request.entries {
        let stored = entry.stored.then_some(entry.generation);
        let pinned = entry.pinned;
        let Some(manifest) = entry.manifest.and_then(|signed| verified(signed, &signers)) else {
            done.refused += 1;
            continue;
        };
        // Who restores signs anew: not for a key that the root does not let sign this.
        let by = signers.get(&manifest.producer);
        if !by.is_some_and(|key| manager.believes_key(manifest.producer, key, &manifest.namespace))
        {
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
    signers: &HashMap<NodeId, VerifyingKey>,
) -> Option<Manifest> {
    let signed = SignedManifest::from(signed);
    let key = signed.read_unverified().ok()?.key;
    signed.verify(signers.get(&signed.signer)?, &key).ok()
}
