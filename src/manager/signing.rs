//! The key with which this node signs, as the cluster knows it.
//!
//! Invariant: what is signed here bears the key that this node's replica says is its present
//! one. Between the making of a new key and the cluster's word of it the node has both, so it
//! signs with the one or the other, and never with a key that nobody knows.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use ed25519_dalek::{SigningKey, VerifyingKey};
use kiln_cluster::Index;
use kiln_proto::{NodeId, NodeIdentity};

use super::Manager;
use crate::{
    error::Error,
    identity::{self, IdentityError},
};

/// The keys of this node whose private half it has.
pub struct Signing {
    /// This node.
    pub(super) node: NodeId,
    index: Index,
    folder: PathBuf,
    keys: ArcSwap<Vec<NodeIdentity>>,
    /// Held while a key follows another.
    rotating: tokio::sync::Mutex<()>,
}

impl Signing {
    /// The keys in the data folder `folder`. Ends a change of them that the cluster knows of.
    pub fn open(node: NodeId, index: Index, folder: PathBuf) -> Result<Self, IdentityError> {
        let keys = ArcSwap::default();
        let rotating = tokio::sync::Mutex::default();
        let signing = Self { node, index, folder, keys, rotating };
        let next = identity::next(&signing.folder)?;
        let present = signing.present();
        if let Some(next) = &next
            && present == Some(next.verifying_key())
        {
            identity::finish(&signing.folder)?;
        }
        let now = identity::load_or_create(&signing.folder)?;
        signing.have([Some(now), next].into_iter().flatten());
        Ok(signing)
    }

    fn have(&self, keys: impl Iterator<Item = SigningKey>) {
        let keys = keys.map(|key| NodeIdentity::new(self.node, key));
        self.keys.store(Arc::new(keys.collect()));
    }

    /// The key that the replica says is the present one.
    fn present(&self) -> Option<VerifyingKey> {
        self.index.node(self.node).map(|info| info.signing())
    }

    /// What signs now.
    fn current(&self) -> Result<NodeIdentity, Error> {
        let wanted = self.present();
        let keys = self.keys.load();
        let is_it = |known: &&NodeIdentity| wanted.is_none_or(|key| key == known.verifying_key());
        // A replica that has not heard of this node yet has heard of no change either.
        let found = keys.iter().find(is_it);
        found.cloned().ok_or_else(|| {
            let wanted = wanted.map(|key| hex::encode(key.as_bytes())).unwrap_or_default();
            Error::NotStored(format!(
                "this node signs with the key {wanted}, and its data folder has only older ones: \
                 restore signing.key, or empty the data folder and let it join anew"
            ))
        })
    }
}

/// What came of a change of this node's key.
pub struct Rotated {
    /// The key that signs now, or is to.
    pub key: VerifyingKey,
    /// The one that signed until now.
    pub before: VerifyingKey,
}

impl Manager {
    /// What this node signs with.
    pub(super) fn signing(&self) -> Result<NodeIdentity, Error> {
        self.identity.current()
    }

    /// The key with which this node is to sign next, made and on its disk; it signs nothing yet.
    pub async fn next_key(&self) -> Result<Rotated, Error> {
        let _one = self.identity.rotating.lock().await;
        let key = self.make_next().await?.verifying_key();
        Ok(Rotated { key, before: self.signing()?.verifying_key() })
    }

    async fn make_next(&self) -> Result<SigningKey, Error> {
        let (folder, present) = (self.identity.folder.clone(), self.identity.present());
        let preparing = move || match identity::next(&folder)? {
            // One that the cluster took before this node could note it.
            Some(next) if Some(next.verifying_key()) == present => {
                identity::finish(&folder)?;
                identity::prepare(&folder)
            }
            _ => identity::prepare(&folder),
        };
        let prepared = tokio::task::spawn_blocking(preparing).await;
        let next = prepared.map_err(|e| Error::Storage(e.to_string()))?.map_err(|e| storage(&e))?;
        let now = self.signing()?;
        // Both, before the cluster hears of it.
        self.identity
            .keys
            .store(Arc::new(vec![now, NodeIdentity::new(self.identity.node, next.clone())]));
        Ok(next)
    }

    /// Gives this node a new key. What the one before signed is believed as before. Refused where
    /// nobody would believe the new one.
    pub async fn rotate(&self) -> Result<Rotated, Error> {
        let _one = self.identity.rotating.lock().await;
        let before = self.signing()?.verifying_key();
        let key = self.make_next().await?.verifying_key();
        if let Err(why) = self.believes(self.identity.node, &key, None) {
            let (key, node) = (hex::encode(key.as_bytes()), self.identity.node);
            return Err(Error::Invalid(format!(
                "this node goes on with its present key, for its next one would not be believed: \
                 {why}. Where the root's key is: kiln signer issue {key} --node {node} ..., then \
                 here kiln signer rotate --certificate FILE"
            )));
        }
        self.index.rotate_key(&key).await?;
        let folder = self.identity.folder.clone();
        let finished = tokio::task::spawn_blocking(move || identity::finish(&folder)).await;
        finished.map_err(|e| Error::Storage(e.to_string()))?.map_err(|e| storage(&e))?;
        Ok(Rotated { key, before })
    }
}

fn storage(e: &IdentityError) -> Error {
    Error::Storage(e.to_string())
}
