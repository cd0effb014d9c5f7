//! Which commands a leader proposes: the checks that `apply` cannot make.
//!
//! Invariant: a check reads only the request and the registered nodes; it decides
//! whether a command is proposed, never what it does.

use kiln_proto::{ArtifactKey, Digest, Manifest, NodeId};

use crate::{
    admission::Admission,
    command::{Change, Command, NewNode, OrderedWrite, Publication, Revocation},
    error::ClusterError,
    signing::{KeyChange, Verified},
    watch::Nodes,
    writes::MOST_OPEN,
};

/// Largest encoded manifest, in bytes: it is in every replica and its log.
const MOST_MANIFEST: usize = 4 << 20;
/// Most keys and packs in one report.
const MOST_REPORTED: usize = 100_000;
/// Most other nodes that a publication is copied to.
const MOST_COPIES: usize = 16;
/// Longest reason of a revocation, in bytes: it is kept with each artifact that goes.
const LONGEST_REASON: usize = 1024;
/// Longest text that a command carries, in bytes.
pub(crate) const LONGEST_MESSAGE: usize = 64 << 10;

/// Whether the member `from` of a cluster of `nodes` may have `command` proposed.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check(nodes: &Nodes, from: NodeId, command: &Command) -> Result<(), ClusterError> {
    judge(nodes, from, command).map(drop)
}

/// What was verified of `command`, if it publishes, where the member `from` of a cluster of `nodes`
/// may have it proposed: a manifest is verified once, by each of its signer's keys at most.
pub(crate) fn judge(
    nodes: &Nodes,
    from: NodeId,
    command: &Command,
) -> Result<Option<Verified>, ClusterError> {
    let mut verified = None;
    let own = |node: NodeId| match node == from {
        true => Ok(()),
        false => Err(ClusterError::invalid(format!("node {from} speaks for node {node}"))),
    };
    let bounded = |size: usize, what: &str| match size > MOST_REPORTED {
        true => Err(ClusterError::invalid(format!("{size} {what} in one command"))),
        false => Ok(()),
    };
    match command {
        Command::Commit { publication, also } => {
            own(publication.node)?;
            check_holders(also)?;
            let of = check_publication(nodes, publication)?;
            check_pieces(&verified.insert(of).manifest, &[])
        }
        Command::CommitWhole { publication, also, pieces } => {
            own(publication.node)?;
            check_holders(also)?;
            let of = check_publication(nodes, publication)?;
            check_pieces(&verified.insert(of).manifest, pieces)
        }
        Command::Write(write) => {
            own(write.node)?;
            verified = check_write(nodes, write)?;
            Ok(())
        }
        Command::Report { node, report } => {
            // Who made another node keep packs vouches for that, as a publication does.
            let vouches = report.hits.is_empty() && report.lost.is_empty();
            let member = nodes.get(node).is_some_and(|node| node.is_member());
            if !(vouches && member && !report.gained.is_empty()) {
                own(*node)?;
            }
            bounded(report.hits.len() + report.gained.len() + report.lost.len(), "reports")
        }
        Command::Use { node, hits, .. } => {
            own(*node)?;
            bounded(hits.len(), "uses")
        }
        Command::Want(wanted) => {
            own(wanted.node)?;
            wanted.check().map_err(ClusterError::Invalid)
        }
        Command::RetireAbsent { asked, .. } => bounded(asked.nodes.len(), "nodes"),
        Command::Revoke(revocation) => {
            own(revocation.by)?;
            check_revocation(nodes, revocation)
        }
        Command::IssueToken { token, node, .. } => {
            own(*node)?;
            token.check().map_err(ClusterError::Invalid)
        }
        Command::RevokeToken { end, .. } => {
            own(end.node)?;
            bounded_text(&end.by)
        }
        Command::Admission(Admission::Issue { token, node, .. }) => {
            own(*node)?;
            token.check().map_err(ClusterError::Invalid)
        }
        Command::Admission(Admission::Need { node, .. }) => own(*node),
        Command::NoteAudit { node, .. } | Command::RootSays { node, .. } => own(*node),
        Command::Keys(KeyChange::Rotate { node, key, .. }) => {
            own(*node)?;
            check_key(key)
        }
        Command::Keys(KeyChange::Revoke { key, revocation }) => {
            own(revocation.by)?;
            check_key(key)?;
            check_reason(&revocation.reason)
        }
        Command::Facts { node, .. }
        | Command::SetVoter { node, .. }
        | Command::OpenSession { node, .. } => own(*node),
        Command::Found { .. } => match nodes.is_empty() {
            true => Ok(()),
            false => Err(ClusterError::invalid("the cluster is founded already")),
        },
        Command::Expire { .. }
        | Command::SetPinned { .. }
        | Command::SetVoters { .. }
        | Command::StoreObject { .. }
        | Command::AdoptObject { .. }
        | Command::LoseObject { .. }
        | Command::CondemnObject { .. }
        | Command::ForgetObject { .. } => Ok(()),
        // The leader's own, by requests of their own.
        Command::Join(_)
        | Command::Stamped(_)
        | Command::Admission(Admission::Admit { .. })
        | Command::Leave(_)
        | Command::SetAway(_)
        | Command::Acquire { .. }
        | Command::AcquireAgain { .. }
        | Command::Fail { .. }
        | Command::Lift { .. }
        // Of earlier versions.
        | Command::Publish(_)
        | Command::Put { .. }
        | Command::Tombstone { .. }
        | Command::Retire { .. }
        | Command::MarkStored { .. }
        | Command::Condemn { .. }
        | Command::Forget { .. } => {
            Err(ClusterError::invalid(format!("\"{command}\" is not proposed on request")))
        }
    }?;
    Ok(verified)
}

fn check_write(nodes: &Nodes, write: &OrderedWrite) -> Result<Option<Verified>, ClusterError> {
    if write.supersedes.len() > MOST_OPEN {
        return Err(ClusterError::invalid("more writes than a node may have under way"));
    }
    match &write.change {
        Change::Put { publication, also, .. } => {
            check_holders(also)?;
            if publication.node != write.node {
                return Err(ClusterError::invalid("a put of another node's artifact"));
            }
            let verified = check_publication(nodes, publication)?;
            match verified.manifest.replaceable() {
                true => Ok(Some(verified)),
                false => Err(ClusterError::invalid("this key needs a lease")),
            }
        }
        Change::Remove { reason, .. } if reason.len() > LONGEST_MESSAGE => {
            Err(ClusterError::invalid("the reason is too long"))
        }
        Change::Remove { .. } | Change::Withdraw { .. } | Change::Nothing => Ok(None),
    }
}

fn check_holders(nodes: &[NodeId]) -> Result<(), ClusterError> {
    match nodes.len() <= MOST_COPIES {
        true => Ok(()),
        false => Err(ClusterError::invalid("more copies than a publication makes")),
    }
}

/// A manifest is signed by the registered key of a present node, and is for
/// the key and the pack that it is published for.
fn check_publication(nodes: &Nodes, publication: &Publication) -> Result<Verified, ClusterError> {
    let manifest = &publication.manifest;
    if manifest.bytes.len() > MOST_MANIFEST {
        let size = manifest.bytes.len();
        return Err(ClusterError::invalid(format!("a manifest of {size} bytes")));
    }
    let signer = nodes.get(&manifest.signer).filter(|node| !node.left).ok_or_else(|| {
        ClusterError::invalid(format!("node {} is not registered", manifest.signer))
    })?;
    check_signer(nodes, manifest.signer)?;
    let verified = signer.verify(manifest, &publication.key);
    let (signed, key) = verified.map_err(ClusterError::invalid)?;
    let same = manifest.signer == publication.node
        && signed.pack_digest == publication.pack
        && signed.pack_size == publication.pack_size
        && signed.compile_seconds.to_bits() == publication.compile_seconds.to_bits();
    if same {
        Ok(Verified { manifest: signed, key })
    } else {
        Err(ClusterError::invalid("it differs from its manifest"))
    }
}

/// Whether what `node` signs is taken.
pub(crate) fn check_signer(nodes: &Nodes, node: NodeId) -> Result<(), ClusterError> {
    match nodes.get(&node).and_then(|info| info.revoked.as_ref()) {
        None => Ok(()),
        Some(revoked) => Err(ClusterError::invalid(format!(
            "node {node}'s signature was revoked: {}",
            revoked.reason
        ))),
    }
}

fn check_revocation(nodes: &Nodes, revocation: &Revocation) -> Result<(), ClusterError> {
    if !nodes.contains_key(&revocation.signer) {
        let why = format!("there was never a node {}", revocation.signer);
        return Err(ClusterError::invalid(why));
    }
    check_reason(&revocation.reason)
}

fn check_key(key: &[u8; 32]) -> Result<(), ClusterError> {
    let read = ed25519_dalek::VerifyingKey::from_bytes(key);
    read.map(drop).map_err(|_| ClusterError::invalid("the key is no ed25519 public key"))
}

fn check_reason(reason: &str) -> Result<(), ClusterError> {
    match (1..=LONGEST_REASON).contains(&reason.len()) {
        true => Ok(()),
        false => Err(ClusterError::invalid("a reason has 1 to 1024 bytes")),
    }
}

fn bounded_text(text: &str) -> Result<(), ClusterError> {
    match text.len() <= LONGEST_REASON {
        true => Ok(()),
        false => Err(ClusterError::invalid("who asked is named in at most 1024 bytes")),
    }
}

/// A whole is committed with the pieces that its manifest names, and nothing else is.
fn check_pieces(manifest: &Manifest, pieces: &[(ArtifactKey, Digest)]) -> Result<(), ClusterError> {
    let named = manifest.pieces.iter().map(|piece| (piece.key, piece.pack));
    match named.eq(pieces.iter().copied()) {
        true => Ok(()),
        false => Err(ClusterError::invalid("its pieces are not those of its manifest")),
    }
}

/// Whether a node may be registered.
pub(crate) fn check_node(node: &NewNode) -> Result<(), ClusterError> {
    ed25519_dalek::VerifyingKey::from_bytes(&node.key).map_err(ClusterError::invalid)?;
    if node.facts.grpc.is_empty() {
        return Err(ClusterError::invalid("a node needs an address"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use ed25519_dalek::SigningKey;
    use kiln_proto::{
        ArtifactKey, Components, Digest, FileEntry, Fingerprint, NodeIdentity, PieceRef, Target,
        Token, claimed_components,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        command::{AccessReport, NodeFacts},
        watch::NodeInfo,
    };

    pub(crate) fn nodes() -> Nodes {
        let node = |id: u64| {
            let key = SigningKey::from_bytes(&[id as u8; 32]).verifying_key();
            let (facts, candidate) = (NodeFacts::default(), [id as u8; 16]);
            let (left, away, eligible, revoked) = (false, false, true, None);
            let keys = NodeInfo::only(key);
            (id, NodeInfo { facts, key, keys, left, away, eligible, revoked, candidate })
        };
        (1..=3).map(node).collect()
    }

    #[test]
    fn nobody_speaks_for_another_node() {
        let fence = OrderedWrite {
            node: 1,
            session: Token(5),
            sequence: 1,
            floor: 1,
            supersedes: Vec::new(),
            change: Change::Nothing,
        };
        for command in [
            Command::Facts { node: 1, facts: NodeFacts::default() },
            Command::SetVoter { node: 1, voter: false },
            Command::OpenSession { node: 1, nonce: 7 },
            Command::Report { node: 1, report: AccessReport::default() },
            Command::Use { node: 1, hits: Vec::new(), at_unix_ms: 0 },
            Command::Write(fence),
        ] {
            assert_eq!(check(&nodes(), 1, &command), Ok(()), "{command}");
            let refused = check(&nodes(), 2, &command);
            assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{command}: {refused:?}");
        }
    }

    #[test]
    fn a_node_vouches_for_what_another_one_keeps_and_for_nothing_else() {
        let gained = AccessReport { gained: vec![Digest::of(b"x")], ..AccessReport::default() };
        let lost = AccessReport { lost: vec![Digest::of(b"y")], ..gained.clone() };
        let used =
            AccessReport { hits: vec![(ArtifactKey::from_bytes([1; 32]), 1)], ..gained.clone() };
        let judge = |node, report: &AccessReport| {
            check(&nodes(), 2, &Command::Report { node, report: report.clone() })
        };
        assert_eq!(judge(1, &gained), Ok(()));
        for report in [&lost, &used] {
            assert!(judge(1, report).is_err(), "{report:?}");
            assert_eq!(judge(2, report), Ok(()));
        }
        assert!(judge(9, &gained).is_err(), "no member");
    }

    #[test]
    fn what_only_the_leader_decides_is_not_proposed_on_request() {
        let (key, pack) = (ArtifactKey::from_bytes([1; 32]), Digest::of(b"x"));
        for command in [
            Command::Found { cluster: 5, nodes: Vec::new() },
            Command::Leave(2),
            Command::SetAway(2),
            Command::Acquire { key, node: 1, request: 1 },
            Command::AcquireAgain { key, node: 1, request: 1, epoch: 1 },
            Command::Lift { key, token: Token(1) },
            Command::Tombstone { key, reason: String::new() },
            Command::Retire { key, epoch: 1 },
            Command::MarkStored { pack },
            Command::Condemn { pack },
            Command::Forget { pack },
        ] {
            let refused = check(&nodes(), 1, &command);
            assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{command}: {refused:?}");
        }
        let nobody = Nodes::default();
        let found = Command::Found { cluster: 5, nodes: Vec::new() };
        assert_eq!(check(&nobody, 1, &found), Ok(()));
    }

    /// What node `node`, whose key is `key`, publishes in `namespace`.
    pub(crate) fn publication(
        node: NodeId,
        key: &SigningKey,
        namespace: &str,
        pieces: Vec<PieceRef>,
    ) -> Publication {
        let fingerprint = Fingerprint::new("native", [("nvrtc", "13.0")]);
        let target = Target::cubin(90);
        let claimed = claimed_components(&fingerprint, &target, namespace);
        let components = Components::new(claimed.into());
        let digest = Digest::of(b"pack");
        let manifest = Manifest {
            key: components.key(),
            namespace: namespace.into(),
            components,
            fingerprint,
            target,
            files: vec![FileEntry { path: "f".into(), offset: 0, size: 4, digest }],
            pack_digest: digest,
            pack_size: 4,
            producer: node,
            compile_seconds: 1.0,
            created_unix_ms: 1,
            label: String::new(),
            pieces,
            check: None,
        };
        Publication {
            key: manifest.key,
            token: Token(3),
            node,
            pack: digest,
            pack_size: 4,
            compile_seconds: 1.0,
            manifest: Arc::new(NodeIdentity::new(node, key.clone()).sign(manifest).unwrap()),
        }
    }

    /// The members would not agree which wholes go with which pieces.
    #[test]
    fn a_whole_is_committed_with_the_pieces_of_its_manifest() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let piece = PieceRef {
            key: ArtifactKey::from_bytes([7; 32]),
            pack: Digest::of(b"piece"),
            pack_size: 5,
        };
        let signed = |pieces: Vec<PieceRef>| publication(1, &key, "", pieces);
        let commit = |publication| Command::Commit { publication, also: Vec::new() };
        let whole = |publication, pieces| {
            let also = Vec::new();
            Command::CommitWhole { publication, also, pieces }
        };
        let named = vec![(piece.key, piece.pack)];
        for command in [commit(signed(vec![])), whole(signed(vec![piece]), named.clone())] {
            assert_eq!(check(&nodes(), 1, &command), Ok(()), "{command}");
        }
        for command in [
            commit(signed(vec![piece])),
            whole(signed(vec![piece]), Vec::new()),
            whole(signed(vec![piece]), vec![(piece.key, Digest::of(b"another"))]),
            whole(signed(vec![]), named),
        ] {
            let refused = check(&nodes(), 1, &command);
            assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{command}: {refused:?}");
        }
    }

    proptest! {
        /// Whatever is asked for a node that is not the one that asks is refused.
        #[test]
        fn any_command_is_judged(commands in crate::state::tests::commands()) {
            for command in commands {
                let judged = check(&nodes(), 9, &command);
                let for_all = matches!(
                    command,
                    Command::Expire { .. }
                        | Command::SetPinned { .. }
                        | Command::RetireAbsent { .. }
                        | Command::StoreObject { .. }
                        | Command::LoseObject { .. }
                        | Command::CondemnObject { .. }
                        | Command::ForgetObject { .. }
                );
                prop_assert_eq!(judged.is_ok(), for_all, "{}", command);
            }
        }
    }
}
