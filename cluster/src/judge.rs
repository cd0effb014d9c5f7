//! Which commands a leader proposes: the checks that `apply` cannot make.
//!
//! Invariant: a check reads only the request and the registered nodes; it decides
//! whether a command is proposed, never what it does.

use kiln_proto::{Manifest, NodeId};

use crate::{
    command::{Change, Command, NewNode, OrderedWrite, Publication},
    error::ClusterError,
    watch::Nodes,
    writes::MOST_OPEN,
};

/// Largest encoded manifest, in bytes: it is in every replica and its log.
const MOST_MANIFEST: usize = 4 << 20;
/// Most keys and packs in one report.
const MOST_REPORTED: usize = 100_000;
/// Most other nodes that a publication is copied to.
const MOST_COPIES: usize = 16;
/// Longest text that a command carries, in bytes.
pub(crate) const LONGEST_MESSAGE: usize = 64 << 10;

/// Whether `command` may be proposed in a cluster of `nodes`.
pub(crate) fn check(nodes: &Nodes, command: &Command) -> Result<(), ClusterError> {
    match command {
        Command::Commit { publication, also } => {
            check_holders(also)?;
            check_publication(nodes, publication).map(drop)
        }
        Command::Write(write) => check_write(nodes, write),
        Command::RetireAbsent { asked, .. } if asked.nodes.len() > MOST_REPORTED => {
            Err(ClusterError::invalid("more nodes than there are"))
        }
        Command::Report { report, .. } => {
            let size = report.hits.len() + report.gained.len() + report.lost.len();
            match size > MOST_REPORTED {
                true => Err(ClusterError::invalid(format!("a report of {size} items"))),
                false => Ok(()),
            }
        }
        Command::Tombstone { reason, .. } if reason.len() > LONGEST_MESSAGE => {
            Err(ClusterError::invalid("the reason is too long"))
        }
        _ => Ok(()),
    }
}

fn check_write(nodes: &Nodes, write: &OrderedWrite) -> Result<(), ClusterError> {
    if write.supersedes.len() > MOST_OPEN {
        return Err(ClusterError::invalid("more writes than a node may have under way"));
    }
    match &write.change {
        Change::Put { publication, also, .. } => {
            check_holders(also)?;
            match check_publication(nodes, publication)?.replaceable() {
                true => Ok(()),
                false => Err(ClusterError::invalid("this key needs a lease")),
            }
        }
        Change::Remove { reason, .. } if reason.len() > LONGEST_MESSAGE => {
            Err(ClusterError::invalid("the reason is too long"))
        }
        Change::Remove { .. } | Change::Withdraw { .. } | Change::Nothing => Ok(()),
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
fn check_publication(nodes: &Nodes, publication: &Publication) -> Result<Manifest, ClusterError> {
    let manifest = &publication.manifest;
    if manifest.bytes.len() > MOST_MANIFEST {
        let size = manifest.bytes.len();
        return Err(ClusterError::invalid(format!("a manifest of {size} bytes")));
    }
    let signer = nodes.get(&manifest.signer).filter(|node| !node.left).ok_or_else(|| {
        ClusterError::invalid(format!("node {} is not registered", manifest.signer))
    })?;
    let signed = manifest.verify(&signer.key, &publication.key).map_err(ClusterError::invalid)?;
    let same = signed.pack_digest == publication.pack
        && signed.pack_size == publication.pack_size
        && signed.compile_seconds.to_bits() == publication.compile_seconds.to_bits();
    if same { Ok(signed) } else { Err(ClusterError::invalid("it differs from its manifest")) }
}

/// Whether a node may be registered.
pub(crate) fn check_node(node: &NewNode) -> Result<(), ClusterError> {
    ed25519_dalek::VerifyingKey::from_bytes(&node.key).map_err(ClusterError::invalid)?;
    if node.facts.grpc.is_empty() {
        return Err(ClusterError::invalid("a node needs an address"));
    }
    Ok(())
}
