//! This node's part in letting others in: its own proof, and its word for those that it lets in.
//!
//! Invariant: what it shows is what its disk has; it is replaced only by a proof of this very
//! node, which its own index can judge.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

use crate::{
    command::NewNode,
    endorsement::{Admitted, Endorsement, Keys, Proof},
    error::ClusterError,
    peers::Peers,
    store::{Owner, Store},
    watch::Nodes,
};

/// Endorses whom this node lets in.
pub(crate) struct Endorser {
    store: Arc<Store>,
    /// They are shown its proof.
    peers: Arc<Peers>,
    key: Mutex<SigningKey>,
    /// What this node was given; `None`: it was let in by a member of an earlier version.
    own: ArcSwapOption<Admitted>,
    changed: Notify,
}

impl Endorser {
    /// Of a node that signs with `key`; its proof is in `store`.
    pub(crate) fn open(
        store: Arc<Store>,
        peers: Arc<Peers>,
        key: SigningKey,
    ) -> Result<Self, ClusterError> {
        let (own, changed) = (ArcSwapOption::empty(), Notify::new());
        let endorser = Self { store, peers, key: Mutex::new(key), own, changed };
        if let Some(own) = endorser.store.admitted()? {
            endorser.show(own)?;
        }
        Ok(endorser)
    }

    fn show(&self, own: Admitted) -> Result<(), ClusterError> {
        self.peers.set_proof(&own.proof)?;
        self.own.store(Some(Arc::new(own)));
        Ok(())
    }

    /// From now on this node signs with `key`.
    pub(crate) fn sign_with(&self, key: SigningKey) {
        *self.key.lock() = key;
        self.changed.notify_waiters();
    }

    /// Returns when this node signs with another key, if that is after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Keeps what this node was given, which is let in as `owner` and named by the key `name`;
    /// durable with its identity.
    pub(crate) fn keep(
        &self,
        owner: Owner,
        name: [u8; 32],
        given: Admitted,
    ) -> Result<(), ClusterError> {
        let is_ours = |(node, keys): (_, Keys)| (node, keys.name) == (owner.node, name);
        if given.proof.of().is_some_and(|of| !is_ours(of)) {
            return Err(ClusterError::invalid("the proof that this node was given is another's"));
        }
        self.store.set_admitted(&given)?;
        self.show(given)
    }

    /// Forgets what an earlier try to be let in, which came to nothing, gave this node.
    pub(crate) fn forget(&self) -> Result<(), ClusterError> {
        self.store.clear_admitted()?;
        self.peers.clear_proof();
        self.own.store(None);
        Ok(())
    }

    /// Takes a new proof of this node, which is `owner`, where it is one to who knows `nodes`;
    /// whether it was.
    pub(crate) fn renew(
        &self,
        owner: Owner,
        nodes: &Nodes,
        proof: Proof,
    ) -> Result<bool, ClusterError> {
        if !proof.proves(owner.cluster, nodes, owner.node, None) {
            return Ok(false);
        }
        let roll = self.own().map(|own| own.roll.clone()).unwrap_or_default();
        let own = Admitted { proof, roll };
        self.store.set_admitted(&own)?;
        self.store.sync()?;
        self.show(own)?;
        Ok(true)
    }

    /// What this node was given as it was let in; `None`: by a member of an earlier version.
    pub(crate) fn own(&self) -> Option<Arc<Admitted>> {
        self.own.load_full()
    }

    /// Whether those who know the members that let this node in, `owner`, know by its proof the key
    /// that it signs with: else whom it lets in may prove nothing to them.
    pub(crate) fn is_endorsed(&self, owner: Owner) -> bool {
        let signing = self.key.lock().verifying_key().to_bytes();
        let keys = self.own().and_then(|own| match own.proof.of() {
            Some((_, keys)) => Some(keys),
            None => own.roll.keys(owner.node),
        });
        keys.is_some_and(|keys| keys.signing == signing)
    }

    /// Whether this node, which is `owner`, still proves to who knows `nodes` that it was let in;
    /// a founder has nothing to prove by.
    pub(crate) fn convinces(&self, owner: Owner, nodes: &Nodes) -> bool {
        self.own().is_none_or(|own| {
            let has_none = own.proof.of().is_none();
            has_none || own.proof.proves(owner.cluster, nodes, owner.node, None)
        })
    }

    /// What `node`, which was let in as `owner`, is given by this one, `me`.
    pub(crate) fn endorse(
        &self,
        me: Owner,
        nodes: &Nodes,
        owner: Owner,
        node: &NewNode,
    ) -> Result<Admitted, ClusterError> {
        let known = nodes.get(&owner.node).filter(|known| known.key.as_bytes() == &node.key);
        let signing = known.map_or(node.key, |known| known.signing().to_bytes());
        let keys = Keys { name: node.key, signing };
        let word = Endorsement::sign(owner, keys, me.node, &self.key.lock())?;
        let proof = self.own().map(|own| own.proof.clone()).unwrap_or_default();
        Ok(Admitted::by(proof.with(word), nodes))
    }
}
