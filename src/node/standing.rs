//! Whether a member's certificate is still one of a member.
//!
//! Invariant: a certificate that names a node that left or was removed, or one whose
//! signature was revoked with all that it signed, or the key of such a node, opens the
//! members' port no more; connections that it opened before end. A node that leaves has
//! [`GRACE`] for the end of its leaving. One that names neither is any member's.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::{Caller, Index, IndexEvent, NodeInfo};
use kiln_proto::NodeId;
use parking_lot::Mutex;
use tokio::sync::{broadcast::error::RecvError, watch};
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Identity};

/// What a node has between its last command and the end of its connections: its own call to
/// leave comes over one of them.
const GRACE: Duration = Duration::from_secs(15);

/// Why a certificate is none of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    Left(NodeId),
    Revoked(NodeId),
}

impl Gone {
    /// The reason in metrics.
    const fn why(self) -> &'static str {
        match self {
            Self::Left(_) => "left",
            Self::Revoked(_) => "revoked",
        }
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left(node) => write!(f, "node {node} is no member any more"),
            Self::Revoked(node) => write!(f, "node {node}'s signature was revoked"),
        }
    }
}

/// The nodes that are gone, as this node's replica learns of them.
pub(super) struct Standing {
    index: Index,
    access: Arc<Access>,
    /// Since when this node knows that they left; `None`: since before it started.
    left: Mutex<BTreeMap<NodeId, Option<Instant>>>,
    changes: watch::Sender<()>,
}

impl Standing {
    pub(super) fn new(index: Index, access: Arc<Access>) -> Self {
        let nodes = index.all_nodes().into_iter();
        let left = nodes.filter(|(_, info)| info.left).map(|(id, _)| (id, None)).collect();
        Self { index, access, left: Mutex::new(left), changes: watch::Sender::new(()) }
    }

    /// Follows the index until `stop`.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        let mut events = self.index.events();
        loop {
            {
                let mut left = self.left.lock();
                for (id, info) in self.index.all_nodes() {
                    if info.left {
                        left.entry(id).or_insert_with(|| Some(Instant::now()));
                    }
                }
            }
            self.changes.send_replace(());
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = stop.cancelled() => return,
                };
                match event {
                    Ok(IndexEvent::NodesChanged | IndexEvent::Reset)
                    | Err(RecvError::Lagged(_)) => break,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }

    /// Whether whoever has this certificate is gone.
    pub(super) fn judge(&self, caller: &Caller) -> Result<(), Gone> {
        if caller.node.is_none() && caller.key.is_none() {
            return Ok(());
        }
        let nodes = self.index.all_nodes();
        judge(&nodes, caller, |node| {
            let left = self.left.lock();
            left.get(&node).is_some_and(|since| since.is_none_or(|at| at.elapsed() >= GRACE))
        })
    }

    /// Returns once whoever has this certificate is gone.
    pub(super) async fn gone(&self, caller: &Caller) -> Gone {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if let Err(gone) = self.judge(caller) {
                return gone;
            }
            if caller.node.is_none() && caller.key.is_none() {
                std::future::pending::<()>().await;
            }
            tokio::select! {
                // Its sender is this.
                _ = changes.changed() => {}
                () = tokio::time::sleep(GRACE) => {}
            }
        }
    }

    /// Counts a connection that ends for that.
    pub(super) fn refused(&self, caller: &Caller, gone: Gone) {
        let why = gone.why();
        metrics::counter!("kiln_refused_peers_total", "why" => why).increment(1);
        tracing::debug!(from = ?caller.from, why, "a peer is refused: {gone}");
        let (Gone::Left(node) | Gone::Revoked(node)) = gone;
        let from =
            caller.from.map_or_else(String::new, |from| format!("connection from {}", from.ip()));
        self.access.tell_of_refusal(why, "members", &from, &Identity::Member(Some(node)));
    }
}

fn judge(
    nodes: &[(NodeId, NodeInfo)],
    caller: &Caller,
    is_over: impl Fn(NodeId) -> bool,
) -> Result<(), Gone> {
    let of_key = |info: &NodeInfo| caller.key.is_some_and(|key| info.key.to_bytes() == key);
    let named = |(id, info): &&(NodeId, NodeInfo)| caller.node == Some(*id) || of_key(info);
    let mut left = None;
    let mut member = false;
    for (id, info) in nodes.iter().filter(named) {
        if info.revoked.as_ref().is_some_and(|revoked| !revoked.keep) {
            return Err(Gone::Revoked(*id));
        }
        if info.left && is_over(*id) {
            left = Some(*id);
        } else {
            member = true;
        }
    }
    // A key may be that of a node that left and came back with another id; an id is one's own.
    match left {
        Some(id) if !member || caller.node == Some(id) => Err(Gone::Left(id)),
        _ => Ok(()),
    }
}
