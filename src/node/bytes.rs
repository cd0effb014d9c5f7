//! The node as its byte paths see it.
//!
//! Invariant: a peer gets only what this node has itself, so that a request is
//! never forwarded in a circle; a client on this machine gets what the manager can get.

use std::sync::Arc;

use kiln_cluster::Cluster;
use kiln_proto::{ArtifactKey, Digest, MAX_PACK_BYTES, NodeId, SignedManifest, pb};

use crate::{
    access::{Access, Denied, Grant, Identity, Role, Shown},
    cache::{Blob, Presence, TierError, Tiers},
    error::{self, Error},
    manager::{Fetcher, Manager},
    transfer::{PeerAddress, Provider, Refusal},
};

/// Tiers for peers, the manager for clients.
pub(super) struct NodeBytes {
    pub(super) cluster: Arc<Cluster>,
    pub(super) tiers: Arc<Tiers>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) manager: Arc<Manager>,
    /// Tenant of clients on the unix socket that name none.
    pub(super) namespace: String,
    /// Who may ask for what.
    pub(super) access: Arc<Access>,
}

impl NodeBytes {
    /// Refuses, and counts, who may not.
    async fn may(
        &self,
        asks: &Shown,
        what: &str,
        allowed: impl FnOnce(&Grant) -> Result<(), Denied> + Send,
    ) -> Result<(), Refusal> {
        if let Some(bearer) = &asks.bearer {
            self.access.freshen(bearer, None).await;
        }
        let judged = self.access.judge(asks);
        let who = judged.as_ref().map_or(Identity::Anyone, |grant| grant.who().clone());
        judged.and_then(|grant| allowed(&grant)).map_err(|denied| {
            self.access.refused(denied, "socket", what, &who);
            match denied.is_passing() {
                true => Refusal::Busy,
                // As the gRPC port says it: the code, its kind and the words.
                false => {
                    let (code, kind) = error::code_of(denied);
                    Refusal::Denied(format!("{code} {kind}: {denied}"))
                }
            }
        })
    }
}

#[tonic::async_trait]
impl Provider for NodeBytes {
    async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, Refusal> {
        match self.tiers.get_local(digest).await {
            Ok(Some((blob, _))) => Ok(Some(blob)),
            // "Not here" makes others give the blob up: it is said only when proven. A
            // bad copy is none: the peer asks the next holder.
            Ok(None) | Err(TierError::Corrupt { .. }) => match self.tiers.presence(digest) {
                Presence::Absent => Ok(None),
                Presence::Here | Presence::Unknown => Err(Refusal::Busy),
            },
            Err(TierError::Memory { .. }) => Err(Refusal::Busy),
            Err(e) => Err(Refusal::Failed(e.to_string())),
        }
    }

    fn node(&self) -> NodeId {
        self.fetcher.node()
    }

    async fn keep(&self, digest: &Digest, size: u64, from: PeerAddress<'_>) -> Result<(), Refusal> {
        if size > MAX_PACK_BYTES {
            return Err(Refusal::BadRequest(format!("{size} bytes are too many")));
        }
        let kept = self.fetcher.keep(digest, size, from).await;
        kept.map_err(|e| Refusal::Failed(e.to_string()))
    }

    async fn may_read_all(&self, asks: &Shown) -> Result<(), Refusal> {
        self.may(asks, "blob", |grant| grant.needs_all(Role::Read)).await
    }

    async fn artifact(
        &self,
        asks: &Shown,
        key: &ArtifactKey,
        namespace: &str,
        look: bool,
    ) -> Result<(SignedManifest, Blob, pb::Tier), Refusal> {
        if self.cluster.has_left() {
            return Err(Refusal::Failed(Error::Left.to_string()));
        }
        let namespace = if namespace.is_empty() { &self.namespace } else { namespace };
        self.may(asks, "artifact", |grant| grant.reads(namespace)).await?;
        let found = match look {
            true => self.manager.view(key, namespace).await,
            false => self.manager.load(key, namespace).await,
        };
        match found {
            Ok(found) => {
                let origin = found.origin.unwrap_or_default();
                Ok((SignedManifest::clone(&found.signed), found.pack, origin))
            }
            Err(Error::NotFound(_)) => Err(Refusal::NotFound),
            Err(Error::Invalid(why)) => Err(Refusal::BadRequest(why)),
            Err(e) => Err(Refusal::Failed(e.to_string())),
        }
    }
}
