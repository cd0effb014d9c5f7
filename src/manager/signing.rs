//! The key with which this node signs, as the cluster knows it.
//!
//! Invariant: what is signed here bears the key that this node's replica says is its present
//! one. Between the making of a new key and the cluster's word of it the node has both, so it
//! signs with the one or the other, and never with a key that nobody knows. One change at a time,
//! to its end, whether or not who asked for it waits.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use ed25519_dalek::{SigningKey, VerifyingKey};
use fail::fail_point;
use kiln_cluster::{Cluster, Index, NodeInfo};
use kiln_proto::{NodeId, NodeIdentity};

use super::Manager;
use crate::{
    error::Error,
    identity::{self, IdentityError},
};

/// How long the replica is waited for, at most.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How long it is not asked again whether the replica lags.
const PAUSE: Duration = Duration::from_secs(1);

/// The keys of this node whose private half it has.
pub struct Signing {
    /// This node.
    pub(super) node: NodeId,
    cluster: Arc<Cluster>,
    index: Index,
    folder: PathBuf,
    keys: ArcSwap<Vec<NodeIdentity>>,
    /// Held while a key follows another, by the task that sees to it.
    rotating: tokio::sync::Mutex<()>,
    /// When the replica was last waited for.
    caught_up: tokio::sync::Mutex<Option<Instant>>,
}

impl Signing {
    /// The keys in the data folder `folder`. Ends a change of them that the cluster knows of, and
    /// corrects the name of another membership.
    pub fn open(
        node: NodeId,
        cluster: Arc<Cluster>,
        folder: PathBuf,
    ) -> Result<Self, IdentityError> {
        let keys = ArcSwap::default();
        let (rotating, caught_up) = Default::default();
        let index = cluster.index();
        let signing = Self { node, cluster, index, folder, keys, rotating, caught_up };
        let next = identity::next(&signing.folder)?;
        if let Some(info) = signing.info() {
            identity::correct_name(&signing.folder, &info.key)?;
            let present = info.signing();
            if next.as_ref().is_some_and(|next| next.verifying_key() == present) {
                identity::finish(&signing.folder, &present)?;
            }
        }
        let now = identity::load_or_create(&signing.folder)?;
        signing.cluster.sign_with(now.clone());
        signing.have([Some(now), next].into_iter().flatten());
        Ok(signing)
    }

    fn have(&self, keys: impl Iterator<Item = SigningKey>) {
        let keys = keys.map(|key| NodeIdentity::new(self.node, key));
        self.keys.store(Arc::new(keys.collect()));
    }

    fn info(&self) -> Option<NodeInfo> {
        self.index.node(self.node)
    }

    /// The key that the replica says is the present one.
    fn present(&self) -> Option<VerifyingKey> {
        self.info().map(|info| info.signing())
    }

    /// What signs now.
    pub(super) fn current(&self) -> Result<NodeIdentity, Error> {
        let wanted = self.present();
        let keys = self.keys.load();
        let is_it = |known: &&NodeIdentity| wanted.is_none_or(|key| key == known.verifying_key());
        // A replica that has not heard of this node yet has heard of no change either.
        let found = keys.iter().find(is_it);
        found.cloned().ok_or_else(|| self.has_another(wanted.as_ref()))
    }

    /// That the private half of its present key is not here.
    fn has_another(&self, wanted: Option<&VerifyingKey>) -> Error {
        let wanted = wanted.map(|key| hex::encode(key.as_bytes())).unwrap_or_default();
        let why = format!(
            "its data folder has the private half of another key than the one that its replica \
             knows as this node's, {wanted}"
        );
        match self.cluster.status().leader {
            // It may lag behind a change of this very key.
            None => Error::Unavailable(format!("this node signs nothing now: {why}")),
            Some(_) => Error::NotStored(format!(
                "{why}: its replica may not have caught up yet. If this lasts though it has a \
                 leader, then restore signing.key, or give the node another key: kiln signer rotate"
            )),
        }
    }
}

/// What came of a change of this node's key.
#[derive(Debug)]
pub struct Rotated {
    /// The key that signs now, or is to.
    pub key: VerifyingKey,
    /// The one that signed until now.
    pub before: VerifyingKey,
    /// Whether another one signs now than when this was asked for.
    pub changed: bool,
}

impl Manager {
    /// What this node signs with. Its replica, where that knows another key than the disk has, may
    /// have just started and not be where the node was: it is waited for.
    pub(super) async fn signing(&self) -> Result<NodeIdentity, Error> {
        if self.identity.current().is_err() {
            self.catch_up_once().await;
        }
        self.identity.current()
    }

    /// [`Self::catch_up`] for what may be asked again and again, and may stay as it is: all who
    /// ask within [`PAUSE`] wait together, and once.
    pub(super) async fn catch_up_once(&self) {
        let mut last = self.identity.caught_up.lock().await;
        if last.is_none_or(|last| last.elapsed() >= PAUSE) {
            self.catch_up().await;
            *last = Some(Instant::now());
        }
    }

    /// Waits until this node's replica has what the cluster had decided by now; where nobody says
    /// so in time, what it has must do.
    pub(super) async fn catch_up(&self) {
        let caught_up = tokio::time::timeout(CATCH_UP, self.index.barrier()).await;
        if !matches!(caught_up, Ok(Ok(()))) {
            tracing::debug!(?caught_up, "this node's replica may lag behind");
        }
    }

    /// The key with which this node is to sign next, made and on its disk; it signs nothing yet.
    pub async fn next_key(self: &Arc<Self>) -> Result<Rotated, Error> {
        self.alone(|manager| async move { manager.show_next().await }).await
    }

    /// Gives this node a new key. What the one before signed is believed as before. Refused where
    /// nobody would believe the new one, or where it would not be `wanted`; where that one signs
    /// already, nothing changes: who did not hear the answer asks again.
    pub async fn rotate(self: &Arc<Self>, wanted: Option<VerifyingKey>) -> Result<Rotated, Error> {
        self.alone(move |manager| async move { manager.change_key(wanted).await }).await
    }

    /// Runs `change` in a task of its own, one at a time: it goes on to its end where the caller
    /// does not wait for it, and until then no other one begins.
    async fn alone<F>(
        self: &Arc<Self>,
        change: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<Rotated, Error>
    where
        F: Future<Output = Result<Rotated, Error>> + Send + 'static,
    {
        let manager = Arc::clone(self);
        let changing = async move {
            let _one = manager.identity.rotating.lock().await;
            change(Arc::clone(&manager)).await
        };
        tokio::spawn(changing).await.map_err(|e| Error::Storage(e.to_string()))?
    }

    async fn show_next(&self) -> Result<Rotated, Error> {
        self.catch_up_once().await;
        let key = self.make_next().await?.verifying_key();
        Ok(Rotated { key, before: self.present_key()?, changed: false })
    }

    /// The present key, also where its private half is lost.
    fn present_key(&self) -> Result<VerifyingKey, Error> {
        match self.identity.present() {
            Some(key) => Ok(key),
            None => Ok(self.identity.current()?.verifying_key()),
        }
    }

    async fn make_next(&self) -> Result<SigningKey, Error> {
        let (folder, present) = (self.identity.folder.clone(), self.identity.present());
        let next = blocking(move || {
            // One that the cluster took before this node could note it.
            if let (Some(next), Some(present)) = (identity::next(&folder)?, present)
                && next.verifying_key() == present
            {
                identity::finish(&folder, &present)?;
            }
            identity::prepare(&folder)
        });
        let next = next.await?;
        // Those that it has and this one, before the cluster hears of it: which of them is the
        // present one a replica that lags does not know.
        let new = NodeIdentity::new(self.identity.node, next.clone());
        let keys = self.identity.keys.load();
        let others = keys.iter().filter(|of| of.verifying_key() != new.verifying_key()).cloned();
        self.identity.keys.store(Arc::new(others.chain([new.clone()]).collect()));
        Ok(next)
    }

    async fn change_key(&self, wanted: Option<VerifyingKey>) -> Result<Rotated, Error> {
        self.catch_up_once().await;
        let before = self.present_key()?;
        let folder = self.identity.folder.clone();
        if wanted == Some(before) {
            let now = blocking(move || {
                identity::finish(&folder, &before)?;
                identity::load_or_create(&folder)
            });
            self.identity.cluster.sign_with(now.await?);
            let info = self.identity.info();
            let earlier = info.and_then(|info| info.keys.iter().rev().nth(1).map(|of| of.key));
            let before = earlier.unwrap_or(before);
            return Ok(Rotated { key: self.present_key()?, before, changed: false });
        }
        if let Some(wanted) = wanted {
            let folder = folder.clone();
            let next = blocking(move || identity::next(&folder)).await?;
            let next = next.map(|key| key.verifying_key());
            if next != Some(wanted) {
                return Err(not_next(&wanted, next.as_ref()));
            }
        }
        let key = self.make_next().await?.verifying_key();
        if let Err(why) = self.believes(self.identity.node, &key, None) {
            let (key, node) = (hex::encode(key.as_bytes()), self.identity.node);
            return Err(Error::Invalid(format!(
                "this node goes on with its present key, for its next one would not be believed: \
                 {why}. Where the root's key is: kiln signer issue {key} --node {node} ..., then \
                 here kiln signer rotate --certificate FILE"
            )));
        }
        fail_point!("rotate.asked");
        self.index.rotate_key(&key).await?;
        fail_point!("rotate.committed");
        let now = blocking(move || {
            identity::finish(&folder, &key)?;
            identity::load_or_create(&folder)
        });
        self.identity.cluster.sign_with(now.await?);
        Ok(Rotated { key, before, changed: true })
    }
}

fn not_next(wanted: &VerifyingKey, next: Option<&VerifyingKey>) -> Error {
    let next = next.map_or("none".into(), |key| hex::encode(key.as_bytes()));
    Error::Invalid(format!(
        "this node goes on with its present key: {} is to follow it, and the next key that it made \
         is {next} (kiln signer rotate --next shows it)",
        hex::encode(wanted.as_bytes())
    ))
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IdentityError> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::Storage(e.to_string()))?.map_err(|e| Error::Storage(e.to_string()))
}
