//! Whether a member's certificate is still one of a member.
//!
//! Invariant: a certificate that names a node that left or was removed, or one whose
//! signature was revoked with all that it signed, or the key of such a node, opens the
//! members' port no more; connections that it opened before end. A node that leaves keeps them
//! until Raft counts on it no more and its own call to leave is answered: [`ANSWER`] after that,
//! and [`GRACE`] in any case. One that names neither is any member's.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::{Caller, Cluster, Index, IndexEvent, NodeInfo, tell_of_unproved};
use kiln_proto::NodeId;
use parking_lot::Mutex;
use tokio::sync::{broadcast::error::RecvError, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, Denied, Identity},
    net::tls::{SILENT, Witness},
};

/// What a node has once Raft counts on it no more: its own call to leave, which comes over one of
/// its connections, is answered then, and another one may have led meanwhile.
const ANSWER: Duration = Duration::from_secs(2);
/// What it has in any case after the log says that it left. Until the membership has changed the
/// cluster may need its vote for that, and the leader waits for the change before it answers; a
/// call to leave waits as long (`service::departure`).
const GRACE: Duration = Duration::from_secs(15);
/// Between two looks whether Raft counts on it.
const LOOK: Duration = Duration::from_millis(500);

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

/// A node that left.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// Since when this node knows that; `None`: since before it started.
    since: Option<Instant>,
    /// Since when this node knows that Raft counts on it no more.
    out: Option<Instant>,
}

impl Left {
    /// Whether its connections end at `now`, when Raft `counts` on it or not.
    fn is_over(&mut self, now: Instant, counts: impl FnOnce() -> bool) -> bool {
        let Some(since) = self.since else { return true };
        if self.out.is_none() && !counts() {
            self.out = Some(now);
        }
        let passed = |at: Instant, time| now.saturating_duration_since(at) >= time;
        passed(since, GRACE) || self.out.is_some_and(|out| passed(out, ANSWER))
    }
}

/// The nodes that are gone, as this node's replica learns of them.
pub(super) struct Standing {
    cluster: Arc<Cluster>,
    index: Index,
    access: Arc<Access>,
    left: Mutex<BTreeMap<NodeId, Left>>,
    changes: watch::Sender<()>,
}

impl Standing {
    pub(super) fn new(cluster: Arc<Cluster>, access: Arc<Access>) -> Self {
        let index = cluster.index();
        let gone = index.all_nodes().into_iter().filter(|(_, info)| info.left);
        let left = gone.map(|(id, _)| (id, Left { since: None, out: None })).collect();
        Self { cluster, index, access, left: Mutex::new(left), changes: watch::Sender::new(()) }
    }

    /// Writes down the connections that the members' port does not take. Who says nothing may be a
    /// probe of the port.
    pub(super) fn witness(&self) -> Witness {
        let access = self.access.clone();
        Witness(Arc::new(move |why, from| {
            if why != SILENT {
                let from = from.map_or_else(String::new, |from| from.ip().to_string());
                let what = format!("connection from {from}");
                access.tell_of_refusal(why, "members", &what, &Identity::Anyone);
            }
        }))
    }

    /// Follows the index until `stop`.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        let mut events = self.index.events();
        loop {
            {
                let mut left = self.left.lock();
                for (id, info) in self.index.all_nodes() {
                    if info.left {
                        let since = Some(Instant::now());
                        left.entry(id).or_insert(Left { since, out: None });
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
            let mut left = self.left.lock();
            let counts = || self.cluster.counts_on(node);
            left.get_mut(&node).is_some_and(|of| of.is_over(Instant::now(), counts))
        })
    }

    /// Returns once whoever has this certificate has joined, as far as this node's replica knows.
    pub(super) async fn joined(&self, caller: &Caller) {
        let mut changes = self.changes.subscribe();
        while !self.index.has_joined(caller) {
            // Its sender is this.
            let _ = changes.changed().await;
        }
    }

    /// Whether who has not joined is refused, and not only counted.
    pub(super) fn needs_proof(&self) -> bool {
        self.cluster.needs_proof()
    }

    /// Counts a connection that is given bytes though its node has not joined.
    pub(super) fn unproved(&self, caller: &Caller) {
        tell_of_unproved("bytes", &from(caller));
    }

    /// Counts a connection that ends because its node has not joined.
    pub(super) fn stranger(&self, caller: &Caller) {
        let why = Denied::NotJoined.why();
        metrics::counter!("kiln_refused_peers_total", "why" => why).increment(1);
        let what = from(caller);
        self.access.tell_of_refusal(why, "members", &what, &Identity::Member(caller.node));
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
                () = tokio::time::sleep(LOOK), if self.is_leaving(caller) => {}
            }
        }
    }

    /// Whether a node that this certificate names has left.
    fn is_leaving(&self, caller: &Caller) -> bool {
        self.index.all_nodes().iter().any(|(id, info)| info.left && is_named(caller, *id, info))
    }

    /// Counts a connection that ends for that.
    pub(super) fn refused(&self, caller: &Caller, gone: Gone) {
        let why = gone.why();
        metrics::counter!("kiln_refused_peers_total", "why" => why).increment(1);
        tracing::debug!(from = ?caller.from, why, "a peer is refused: {gone}");
        let (Gone::Left(node) | Gone::Revoked(node)) = gone;
        self.access.tell_of_refusal(why, "members", &from(caller), &Identity::Member(Some(node)));
    }
}

/// Which connection it is, for people.
fn from(caller: &Caller) -> String {
    caller.from.map_or_else(String::new, |from| format!("connection from {}", from.ip()))
}

/// Whether the certificate of `caller` names that node, or its key.
fn is_named(caller: &Caller, id: NodeId, info: &NodeInfo) -> bool {
    caller.node == Some(id) || caller.key == Some(info.key.to_bytes())
}

fn judge(
    nodes: &[(NodeId, NodeInfo)],
    caller: &Caller,
    is_over: impl Fn(NodeId) -> bool,
) -> Result<(), Gone> {
    let named = |(id, info): &&(NodeId, NodeInfo)| is_named(caller, *id, info);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_left_keeps_its_connections_until_its_leaving_is_answered_and_no_longer() {
        let (began, step) = (Instant::now(), Duration::from_millis(1));
        let left = || Left { since: Some(began), out: None };
        // The membership changes at once, as it does where there is a quorum.
        let mut at_once = left();
        assert!(!at_once.is_over(began, || false));
        assert!(!at_once.is_over(began + ANSWER - step, || false));
        assert!(at_once.is_over(began + ANSWER, || false));
        let mut late = left();
        let changed = began + 3 * ANSWER;
        assert!(!late.is_over(changed - step, || true), "its vote may be needed for that");
        assert!(!late.is_over(changed, || false));
        assert!(!late.is_over(changed + ANSWER - step, || false));
        assert!(late.is_over(changed + ANSWER, || false));
        let mut never = left();
        assert!(!never.is_over(began + GRACE - step, || true));
        assert!(never.is_over(began + GRACE, || true), "whatever becomes of it");
        assert!(Left { since: None, out: None }.is_over(began, || true), "long ago");
    }
}
