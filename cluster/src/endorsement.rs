//! Who let a node in, and how it proves that to a replica that has not heard of it.
//!
//! ```text
//!  member ── Admitted { proof, roll } ──▶ a disk that it lets in, which keeps it
//!  node ── its proof, beside Raft's messages ──▶ a replica that hears no leader: Proof::proves
//! ```
//!
//! Whoever lets a disk in signs which node it is, and gives it its own proof with that: a chain
//! that goes back to nodes which a replica knows that was away for long. A replica without an
//! index judges by the roll of the members that it was given as it was let in.
//!
//! Invariant: a proof counts only where one of its endorsements bears the signature of a member
//! that the replica knows, and neither as one that left nor as one that was revoked, and each
//! later one that of the key which the one before it names. It says that a node was let in, and
//! not that it did not leave since: where a replica knows the node, its index decides.

use std::collections::BTreeMap;

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use kiln_proto::NodeId;
use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, Malformed},
    command::NewNode,
    signing::{KeyRevocation, NodeKey},
    store::Owner,
    versions,
    watch::{NodeInfo, Nodes},
};

/// What is signed: it keeps an endorsement's signature from being valid for anything else.
const FORMAT: &str = "kiln-endorsement-v1";
/// Most endorsements of one proof: the latest. A replica that knows none of those who signed
/// these was away while the members followed each other so often.
const MOST: usize = 16;

/// The keys of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keys {
    /// The one that it joined with: certificates name it by that.
    pub name: [u8; 32],
    /// The one that it signs with.
    pub signing: [u8; 32],
}

/// One member's word that a node was let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endorsement {
    node: NodeId,
    keys: Keys,
    by: NodeId,
    #[serde(with = "crate::codec::byte_string")]
    signature: Vec<u8>,
}

fn message(cluster: u64, node: NodeId, keys: &Keys, by: NodeId) -> Result<Vec<u8>, Malformed> {
    codec::encode(&(FORMAT, cluster, node, keys, by))
}

impl Endorsement {
    /// The word of the member `by`, which signs with `key`, for the node `owner`.
    pub(crate) fn sign(
        owner: Owner,
        keys: Keys,
        by: NodeId,
        key: &SigningKey,
    ) -> Result<Self, Malformed> {
        let Owner { cluster, node } = owner;
        let signature = key.sign(&message(cluster, node, &keys, by)?).to_bytes().to_vec();
        Ok(Self { node, keys, by, signature })
    }

    fn is_signed_by(&self, cluster: u64, key: &VerifyingKey) -> bool {
        let signature = Signature::from_slice(&self.signature);
        message(cluster, self.node, &self.keys, self.by).is_ok_and(|message| {
            signature.is_ok_and(|signature| key.verify_strict(&message, &signature).is_ok())
        })
    }
}

/// What a node shows of how it was let in: endorsements, the latest, its own, last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof(Vec<Endorsement>);

impl Proof {
    /// This proof of a member, with its word for another node behind it.
    pub(crate) fn with(&self, endorsement: Endorsement) -> Self {
        let mut all = self.0.clone();
        all.push(endorsement);
        all.drain(..all.len().saturating_sub(MOST));
        Self(all)
    }

    /// Whom it is of, and by which keys.
    pub(crate) fn of(&self) -> Option<(NodeId, Keys)> {
        self.0.last().map(|last| (last.node, last.keys))
    }

    /// Whether it proves to a replica, which knows the nodes of `roster`, that `node` was let in
    /// to the cluster; with the key `name`, where its certificate names one.
    pub(crate) fn proves(
        &self,
        cluster: u64,
        roster: &dyn Roster,
        node: NodeId,
        name: Option<[u8; 32]>,
    ) -> bool {
        let is_its = |(of, keys): (NodeId, Keys)| of == node && name.is_none_or(|n| n == keys.name);
        if self.0.len() > MOST || !self.of().is_some_and(is_its) {
            return false;
        }
        for (at, endorsement) in self.0.iter().enumerate().rev() {
            match roster.endorsing(endorsement.by) {
                Some(keys) if keys.is_empty() => return false,
                Some(keys) if keys.iter().any(|key| endorsement.is_signed_by(cluster, key)) => {
                    return true;
                }
                // Not known, or not by that key: it may sign with another one by now.
                Some(_) | None => {}
            }
            let before = at.checked_sub(1).and_then(|at| self.0.get(at));
            let before = before.filter(|before| before.node == endorsement.by);
            // Who has a key that was stolen lets nobody in, whoever said that it was the node's.
            if before.is_some_and(|b| roster.has_revoked(endorsement.by, &b.keys.signing)) {
                return false;
            }
            let signs = before.is_some_and(|before| {
                VerifyingKey::from_bytes(&before.keys.signing)
                    .is_ok_and(|key| endorsement.is_signed_by(cluster, &key))
            });
            if !signs {
                return false;
            }
        }
        false
    }
}

/// The nodes as a replica knows them.
pub(crate) trait Roster {
    /// Whether it knows of none at all.
    fn knows_nobody(&self) -> bool;
    /// The key by which certificates name a node that it knows.
    fn name(&self, node: NodeId) -> Option<[u8; 32]>;
    /// Whether that is the name of one.
    fn has_name(&self, name: &[u8; 32]) -> bool;
    /// The keys with which a node that it knows lets others in; none of one that left, or was
    /// revoked.
    fn endorsing(&self, node: NodeId) -> Option<Vec<VerifyingKey>>;
    /// Whether it knows `key` as one of that node which was revoked.
    fn has_revoked(&self, node: NodeId, key: &[u8; 32]) -> bool;
}

/// Whether what was signed lately counts.
fn is_good(revoked: &[KeyRevocation]) -> bool {
    revoked.iter().all(|of| of.within.before_unix_ms.is_some())
}

impl Roster for Nodes {
    fn knows_nobody(&self) -> bool {
        self.is_empty()
    }

    fn name(&self, node: NodeId) -> Option<[u8; 32]> {
        self.get(&node).map(|info| info.key.to_bytes())
    }

    fn has_name(&self, name: &[u8; 32]) -> bool {
        self.values().any(|info| info.key.as_bytes() == name)
    }

    fn endorsing(&self, node: NodeId) -> Option<Vec<VerifyingKey>> {
        let NodeInfo { left, revoked, keys, .. } = self.get(&node)?;
        let good = keys.iter().filter(|of| is_good(&of.revoked)).map(|of| of.key);
        Some(if *left || revoked.is_some() { Vec::new() } else { good.collect() })
    }

    fn has_revoked(&self, node: NodeId, key: &[u8; 32]) -> bool {
        let is_it = |of: &NodeKey| of.key.as_bytes() == key && !is_good(&of.revoked);
        self.get(&node).is_some_and(|info| info.keys.iter().any(is_it))
    }
}

/// The members as another one knew them: what a replica judges by that has no index yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roll(BTreeMap<NodeId, Keys>);

impl Roll {
    /// The present nodes. While one of them runs a version that endorses nobody, nobody is on
    /// the roll: whom that one lets in could prove nothing.
    fn of(nodes: &Nodes) -> Self {
        if !versions::all_endorse(nodes) {
            return Self::default();
        }
        // Nor who signs with a key that was revoked.
        let signs = |info: &NodeInfo| {
            info.revoked.is_none() && info.keys.last().is_none_or(|of| is_good(&of.revoked))
        };
        let present = nodes.iter().filter(|(_, info)| !info.left && signs(info));
        let keys = |info: &NodeInfo| Keys {
            name: info.key.to_bytes(),
            signing: info.signing().to_bytes(),
        };
        Self(present.map(|(id, info)| (*id, keys(info))).collect())
    }

    /// The keys of a node on it.
    pub(crate) fn keys(&self, node: NodeId) -> Option<Keys> {
        self.0.get(&node).copied()
    }
}

impl Roster for Roll {
    fn knows_nobody(&self) -> bool {
        self.0.is_empty()
    }

    fn name(&self, node: NodeId) -> Option<[u8; 32]> {
        self.0.get(&node).map(|keys| keys.name)
    }

    fn has_name(&self, name: &[u8; 32]) -> bool {
        self.0.values().any(|keys| keys.name == *name)
    }

    fn endorsing(&self, node: NodeId) -> Option<Vec<VerifyingKey>> {
        let Keys { name, signing } = self.0.get(&node)?;
        let keys = [signing, name].map(VerifyingKey::from_bytes);
        Some(keys.into_iter().flatten().collect())
    }

    fn has_revoked(&self, _: NodeId, _: &[u8; 32]) -> bool {
        false
    }
}

/// What a replica knows by its index and, of nodes that the index has not heard of, by the roll that
/// it was given: a newcomer that reads the log from its start knows its leader by that alone.
pub(crate) struct Known<'a> {
    pub index: &'a Nodes,
    pub roll: Option<&'a Roll>,
}

impl Roster for Known<'_> {
    fn knows_nobody(&self) -> bool {
        self.index.knows_nobody() && self.roll.is_none_or(Roster::knows_nobody)
    }

    fn name(&self, node: NodeId) -> Option<[u8; 32]> {
        self.index.name(node).or_else(|| self.roll?.name(node))
    }

    fn has_name(&self, name: &[u8; 32]) -> bool {
        self.index.has_name(name) || self.roll.is_some_and(|roll| roll.has_name(name))
    }

    fn endorsing(&self, node: NodeId) -> Option<Vec<VerifyingKey>> {
        self.index.endorsing(node).or_else(|| self.roll?.endorsing(node))
    }

    fn has_revoked(&self, node: NodeId, key: &[u8; 32]) -> bool {
        self.index.has_revoked(node, key)
    }
}

/// What a disk is given as it is let in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admitted {
    /// Its proof; empty for a founder, which every member knows.
    pub proof: Proof,
    /// Those who were members then.
    pub roll: Roll,
}

impl Admitted {
    /// What the first nodes of a cluster, ids from 1, have of each other.
    pub(crate) fn of_founders(founders: &[NewNode]) -> Self {
        let keys = |founder: &NewNode| Keys { name: founder.key, signing: founder.key };
        let roll = (1..).zip(founders).map(|(id, founder)| (id, keys(founder)));
        Self { proof: Proof::default(), roll: Roll(roll.collect()) }
    }

    /// What a node is given by a member that knows `nodes`, and whose proof with its word for that
    /// node behind it is `proof`.
    pub(crate) fn by(proof: Proof, nodes: &Nodes) -> Self {
        Self { proof, roll: Roll::of(nodes) }
    }

    /// As it is sent.
    pub(crate) fn encode(&self) -> Result<Bytes, Malformed> {
        codec::encode(self).map(Bytes::from)
    }

    /// What was sent; `None`: nothing, as by a member of an earlier version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        match bytes.is_empty() {
            true => Ok(None),
            false => codec::decode(bytes).map(Some),
        }
    }
}

#[cfg(test)]
mod tests;
