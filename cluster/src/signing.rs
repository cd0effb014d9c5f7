//! The keys that a node signs with over its time, and when what was published under one of
//! them counts no more.
//!
//! Invariant: a time in here is the leader's, written into the log entry that it is about. What
//! a signer says of the time counts for nothing: a thief of its key would say what helps him. One
//! leader's clock may be ahead of the next one's: the order of the log is believed before them.

use std::fmt;

use ed25519_dalek::VerifyingKey;
use kiln_proto::{ArtifactKey, Digest, Manifest, ManifestError, NodeId, SignedManifest};
use serde::{Deserialize, Serialize};

use crate::{
    command::{Change, Command, OrderedWrite, Publication},
    error::ClusterError,
    watch::{NodeInfo, Nodes},
};

/// Most keys of one node after its first: a signature is tried by each of them.
pub const MOST_KEYS: u32 = 8;
/// Most intervals for which one key is revoked.
pub const MOST_INTERVALS: usize = 16;
/// For how long what was signed under a key that another one followed is taken: what was under
/// way. In milliseconds, by clocks that differ by no more.
const UNDER_WAY_MS: u64 = 5 * 60 * 1000;

/// A part of time, by the leaders' clocks, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Its first moment.
    pub after_unix_ms: u64,
    /// The first moment behind it; `None`: it has no end.
    pub before_unix_ms: Option<u64>,
}

impl Interval {
    /// Whether it has the moment.
    pub fn has(&self, unix_ms: u64) -> bool {
        unix_ms >= self.after_unix_ms && self.before_unix_ms.is_none_or(|end| unix_ms < end)
    }

    /// Whether it has each moment of the other one.
    pub fn covers(&self, other: &Self) -> bool {
        let ends = |of: &Self| of.before_unix_ms.unwrap_or(u64::MAX);
        self.after_unix_ms <= other.after_unix_ms && ends(self) >= ends(other)
    }

    /// Whether it has every moment.
    pub fn is_all(&self) -> bool {
        self.after_unix_ms == 0 && self.before_unix_ms.is_none()
    }
}

/// That what was published under a key in some time counts no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRevocation {
    /// When it was published.
    pub within: Interval,
    /// Why, as was said.
    pub reason: String,
    /// The node that was asked for it.
    pub by: NodeId,
    /// When it was asked for, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

/// Why nothing counts that is published, after these revocations of its key, when a leader's
/// clock says `unix_ms`: whatever that clock says, it is no earlier than they were.
pub(crate) fn refused_at(revoked: &[KeyRevocation], unix_ms: u64) -> Option<&KeyRevocation> {
    let noted = noted_at(revoked, unix_ms);
    let refuses =
        |of: &&KeyRevocation| of.within.has(unix_ms.max(of.at_unix_ms)) || of.within.has(noted);
    revoked.iter().find(refuses)
}

/// The time that is noted of what is published then: no earlier than those revocations.
pub(crate) fn noted_at(revoked: &[KeyRevocation], unix_ms: u64) -> u64 {
    revoked.iter().map(|of| of.at_unix_ms).fold(unix_ms, u64::max)
}

/// What a leader has verified: a publication's manifest, and the key that signed it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verified {
    pub manifest: Manifest,
    pub key: VerifyingKey,
}

/// One of a node's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeKey {
    /// The public key.
    pub key: VerifyingKey,
    /// Since when it signs, in milliseconds since the Unix epoch; 0: since it joined.
    pub since_unix_ms: u64,
    /// When what was published under it counts no more.
    pub revoked: Vec<KeyRevocation>,
}

impl NodeKey {
    /// Whether nothing under it counts, whenever it was published.
    pub fn is_revoked(&self) -> bool {
        self.revoked.iter().any(|revoked| revoked.within.is_all())
    }
}

impl NodeInfo {
    /// The keys of a node that signs with the one that it joined with.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn only(key: VerifyingKey) -> Vec<NodeKey> {
        vec![NodeKey { key, since_unix_ms: 0, revoked: Vec::new() }]
    }

    /// The key with which it signs now: the last of its keys.
    pub fn signing(&self) -> VerifyingKey {
        self.keys.last().map_or(self.key, |last| last.key)
    }

    /// When another key followed this one of its keys, in milliseconds since the Unix epoch.
    pub fn retired_unix_ms(&self, key: &VerifyingKey) -> Option<u64> {
        let at = self.keys.iter().position(|of| of.key == *key)?;
        self.keys.get(at + 1).map(|next| next.since_unix_ms)
    }

    /// Checks a manifest by each of its keys; tells the one that signed it. What was signed under
    /// a key that is revoked for all time is as if it were signed by nobody.
    pub fn verify(
        &self,
        signed: &SignedManifest,
        wanted: &ArtifactKey,
    ) -> Result<(Manifest, VerifyingKey), ManifestError> {
        let mut last = None;
        for of in self.keys.iter().rev().filter(|of| !of.is_revoked()) {
            match signed.verify(&of.key, wanted) {
                Ok(manifest) => return Ok((manifest, of.key)),
                // Of another key; any other mistake is the manifest's own.
                Err(e @ ManifestError::Signature { .. }) => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or(ManifestError::Signature { signer: signed.signer }))
    }

    /// Whether a leader takes what is published under this one of its keys. A key that another one
    /// followed is taken for a while around that moment: a leader with a clock far ahead that wrote
    /// it makes the while no longer for those that come after.
    pub(crate) fn may_publish(
        &self,
        key: &VerifyingKey,
        node: NodeId,
        unix_ms: u64,
    ) -> Result<(), ClusterError> {
        let refuse = |why: String| Err(ClusterError::Invalid(why));
        let Some(of) = self.keys.iter().find(|of| of.key == *key) else {
            return refuse(format!("this is no key of node {node}"));
        };
        if let Some(revoked) = refused_at(&of.revoked, unix_ms) {
            return refuse(refusal(node, &revoked.reason));
        }
        match self.retired_unix_ms(key) {
            Some(end) if unix_ms.abs_diff(end) >= UNDER_WAY_MS => refuse(format!(
                "node {node} signs with another key by now: what bears the old one is not taken"
            )),
            _ => Ok(()),
        }
    }
}

/// How a publication under a revoked key is refused.
pub(crate) fn refusal(node: NodeId, reason: &str) -> String {
    format!(
        "the key with which node {node} signs was revoked: {reason}; kiln signer rotate, at that \
         node, gives it another one"
    )
}

/// A change of the keys. Grows at its end alone, as [`Command`] does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KeyChange {
    /// From now on the node signs with this key. The leader writes the time.
    Rotate { node: NodeId, key: [u8; 32], at_unix_ms: u64 },
    /// What was published under a key in some time counts no more. The leader writes the time.
    Revoke { key: [u8; 32], revocation: KeyRevocation },
}

impl KeyChange {
    /// The leader's word of the time.
    pub(crate) fn stamp(&mut self, unix_ms: u64) {
        match self {
            Self::Rotate { at_unix_ms, .. }
            | Self::Revoke { revocation: KeyRevocation { at_unix_ms, .. }, .. } => {
                *at_unix_ms = unix_ms;
            }
        }
    }
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rotate { node, key, .. } => {
                write!(f, "node {node} signs with {}", Digest::from_bytes(*key).short())
            }
            Self::Revoke { key, .. } => {
                write!(f, "revoke the key {}", Digest::from_bytes(*key).short())
            }
        }
    }
}

/// A publication, the key that signed it, and when the leader proposed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stamped {
    /// The key under which the leader verified the manifest.
    pub by: [u8; 32],
    /// By the leader's clock, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    pub what: Publishes,
}

/// What publishes an artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Publishes {
    /// [`Command::Commit`].
    Commit { publication: Publication, also: Vec<NodeId> },
    /// [`Command::CommitWhole`].
    CommitWhole { publication: Publication, also: Vec<NodeId>, pieces: Vec<(ArtifactKey, Digest)> },
    /// [`Command::Write`] of a [`Change::Put`].
    Write(OrderedWrite),
}

impl Publishes {
    /// What it publishes, if it is a command that does; else that command.
    pub(crate) fn of(command: Command) -> Result<Self, Box<Command>> {
        match command {
            Command::Commit { publication, also } => Ok(Self::Commit { publication, also }),
            Command::CommitWhole { publication, also, pieces } => {
                Ok(Self::CommitWhole { publication, also, pieces })
            }
            Command::Write(write) if matches!(write.change, Change::Put { .. }) => {
                Ok(Self::Write(write))
            }
            other => Err(other.into()),
        }
    }

    pub(crate) fn publication(&self) -> Option<&Publication> {
        match self {
            Self::Commit { publication, .. }
            | Self::CommitWhole { publication, .. }
            | Self::Write(OrderedWrite { change: Change::Put { publication, .. }, .. }) => {
                Some(publication)
            }
            Self::Write(_) => None,
        }
    }
}

impl From<Publishes> for Command {
    fn from(what: Publishes) -> Self {
        match what {
            Publishes::Commit { publication, also } => Self::Commit { publication, also },
            Publishes::CommitWhole { publication, also, pieces } => {
                Self::CommitWhole { publication, also, pieces }
            }
            Publishes::Write(write) => Self::Write(write),
        }
    }
}

/// Writes key and time into a publication, which the leader has `verified`; anything else stays.
pub(crate) fn stamp(
    nodes: &Nodes,
    command: Command,
    verified: Option<&Verified>,
    unix_ms: u64,
) -> Result<Command, ClusterError> {
    let what = match Publishes::of(command) {
        Ok(what) => what,
        Err(other) => return Ok(*other),
    };
    let unsigned = || ClusterError::invalid("a publication that nobody has verified");
    let Verified { manifest, key: by } = verified.ok_or_else(unsigned)?;
    let node = manifest.producer;
    let unknown = || ClusterError::invalid(format!("node {node} is not registered"));
    nodes.get(&node).ok_or_else(unknown)?.may_publish(by, node, unix_ms)?;
    Ok(Command::Stamped(Stamped { by: by.to_bytes(), at_unix_ms: unix_ms, what }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::authorize::{
        judge,
        tests::{nodes, publication},
    };

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    /// Node 1 signs with the key of seed 7 since 1000, and joined with that of seed 1.
    fn rotated() -> NodeInfo {
        let mut node = nodes().remove(&1).unwrap();
        let key = key(7).verifying_key();
        node.keys.push(NodeKey { key, since_unix_ms: 1000, revoked: Vec::new() });
        node
    }

    fn revoked(after_unix_ms: u64, before_unix_ms: Option<u64>) -> Vec<KeyRevocation> {
        let within = Interval { after_unix_ms, before_unix_ms };
        vec![KeyRevocation { within, reason: "stolen".into(), by: 2, at_unix_ms: 5000 }]
    }

    #[test]
    fn each_key_of_a_node_verifies_what_it_signed_but_for_one_that_is_revoked_for_all_time() {
        let mut node = rotated();
        let verify = |node: &NodeInfo, seed: u8| {
            let of = publication(1, &key(seed), "", Vec::new());
            node.verify(&of.manifest, &of.key).map(|(_, by)| by)
        };
        assert_eq!(node.signing(), key(7).verifying_key());
        for seed in [1, 7] {
            assert_eq!(verify(&node, seed).unwrap(), key(seed).verifying_key());
        }
        assert!(verify(&node, 2).is_err(), "another node's");
        node.keys[0].revoked = revoked(2000, None);
        assert!(verify(&node, 1).is_ok(), "what it signed before is good");
        node.keys[0].revoked = revoked(0, None);
        assert!(verify(&node, 1).is_err() && verify(&node, 7).is_ok());
    }

    #[test]
    fn a_leader_takes_the_present_key_and_for_a_while_the_one_before() {
        let mut node = rotated();
        let judge = |node: &NodeInfo, seed: u8, at| {
            node.may_publish(&key(seed).verifying_key(), 1, at).is_ok()
        };
        assert!(judge(&node, 7, 1000) && judge(&node, 7, u64::MAX));
        assert!(judge(&node, 1, 1000 + UNDER_WAY_MS - 1), "what was under way");
        assert!(!judge(&node, 1, 1000 + UNDER_WAY_MS), "a thief's");
        assert!(!judge(&node, 2, 1000), "no key of it");
        node.keys[1].revoked = revoked(2000, Some(6000));
        for (at, good) in [(1999, false), (5999, false), (6000, true)] {
            assert_eq!(judge(&node, 7, at), good, "{at}");
        }
    }

    #[test]
    fn a_clock_far_ahead_as_a_key_follows_lets_a_thief_of_the_old_one_in_no_longer() {
        let mut node = rotated();
        let of = key(1).verifying_key();
        node.keys[1].since_unix_ms = 10 * UNDER_WAY_MS;
        assert!(node.may_publish(&of, 1, 10 * UNDER_WAY_MS + 1).is_ok(), "by that clock");
        assert!(node.may_publish(&of, 1, 1000).is_err(), "by one that is right");
        assert!(node.may_publish(&of, 1, 10 * UNDER_WAY_MS - 1).is_ok(), "a little behind");
    }

    #[test]
    fn what_comes_after_a_revocation_is_no_earlier_whatever_clock_a_leader_has() {
        let open = revoked(4000, None);
        for at in [0, 3999, 4000, u64::MAX] {
            assert!(refused_at(&open, at).is_some(), "{at}");
        }
        // Over as it was revoked.
        let over = revoked(2000, Some(3000));
        for at in [0, 2500, 9000] {
            assert!(refused_at(&over, at).is_none(), "{at}");
        }
        assert_eq!((noted_at(&over, 2500), noted_at(&over, 9000)), (5000, 9000));
    }

    #[test]
    fn who_leads_notes_the_key_that_signed_and_not_what_is_said_of_it() {
        let mut all = nodes();
        all.insert(1, rotated());
        for seed in [1, 7] {
            let publication = publication(1, &key(seed), "", Vec::new());
            let command = Command::Commit { publication, also: Vec::new() };
            let verified = judge(&all, 1, &command).unwrap();
            let stamped = stamp(&all, command, verified.as_ref(), 1001).unwrap();
            let Command::Stamped(stamped) = stamped else {
                panic!("it publishes");
            };
            let by = key(seed).verifying_key().to_bytes();
            assert_eq!((stamped.by, stamped.at_unix_ms), (by, 1001));
        }
        let of_another = publication(1, &key(2), "", Vec::new());
        let command = Command::Commit { publication: of_another, also: Vec::new() };
        assert!(judge(&all, 1, &command).is_err(), "no key of it");
        assert!(stamp(&all, command, None, 1001).is_err(), "nobody has verified it");
        let other = Command::SetAway(2);
        assert_eq!(stamp(&all, other.clone(), None, 1001), Ok(other));
    }
}
