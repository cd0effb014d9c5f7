//! Requests find the leader: here, over the network, or not at all.
//!
//! Invariant: every request ends. It is repeated through a change of leaders, and
//! given up once no leader with a quorum was heard of for [`Timings::patience`];
//! a node that has been alone for longer than that says so at once. Commands are
//! written so that repeating them is harmless.
//!
//! [`Timings::patience`]: crate::Timings::patience

use std::{sync::Arc, time::Duration};

use kiln_proto::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use crate::{
    command::{Command, Response},
    core::Core,
    error::ClusterError,
    leader::{Answer, Reply, Request},
    peers::{frame, to_target, unframe},
    store::Owner,
};

/// Between two tries, unless the leader changes sooner.
const PAUSE: Duration = Duration::from_millis(50);

impl Core {
    /// When a request that started at `started` gives up on finding a leader.
    pub(crate) fn give_up_at(&self, started: Instant) -> Instant {
        let soonest = started + self.timings.heartbeat * 2;
        soonest.max(self.last_contact() + self.timings.patience)
    }

    /// Asks the leader, wherever it is.
    pub(crate) async fn ask(self: &Arc<Self>, request: Request) -> Result<Reply, ClusterError> {
        self.member()?;
        let started = Instant::now();
        let mut last = ClusterError::unavailable("no leader is known");
        loop {
            let answer = match self.leader() {
                None => Answer::NotLeader,
                Some(leader) => {
                    tokio::select! {
                        answer = self.ask_node(leader, request.clone()) => answer,
                        () = self.leader_changes(leader) => Answer::NotLeader,
                    }
                }
            };
            match answer {
                Answer::Done(reply) => return Ok(reply),
                Answer::NotLeader => {}
                Answer::Refused(e @ ClusterError::Unavailable(_)) => last = e,
                Answer::Refused(e) => return Err(e),
            }
            if Instant::now() + PAUSE >= self.give_up_at(started) {
                return Err(last);
            }
            self.pause().await?;
        }
    }

    async fn ask_node(self: &Arc<Self>, node: NodeId, request: Request) -> Answer<Reply> {
        let me = match self.member() {
            Ok(member) => member.owner,
            Err(e) => return Answer::Refused(e),
        };
        if node == me.node {
            return self.lead(request).await;
        }
        let patience = self.timings.patience;
        let asked = tokio::time::timeout(patience, self.ask_peer(Owner { node, ..me }, &request));
        match asked.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => Answer::Refused(ClusterError::unavailable(status.message())),
            Err(_) => Answer::Refused(ClusterError::unavailable("the leader does not answer")),
        }
    }

    /// Asks one node, which answers only if it leads.
    pub(crate) async fn ask_peer(
        &self,
        target: Owner,
        request: &Request,
    ) -> Result<Answer<Reply>, tonic::Status> {
        let mut client = self.peers.at(&self.address_of(target.node)?)?;
        let answer = client.ask(to_target(frame(request)?, target)).await?;
        unframe(answer.get_ref())
    }

    /// Where a node is: by its facts, or by the membership before those are known.
    pub(crate) fn address_of(&self, node: NodeId) -> Result<String, tonic::Status> {
        let in_membership = || {
            let metrics = self.metrics()?;
            let node = metrics.membership_config.membership().get_node(&node)?;
            Some(node.addr.clone())
        };
        let unknown = || tonic::Status::unavailable(format!("node {node} has no known address"));
        self.peers.address(node).or_else(in_membership).ok_or_else(unknown)
    }

    /// Returns when this node knows of another leader than `known`.
    pub(crate) async fn leader_changes(&self, known: NodeId) {
        let Some(member) = self.member.get() else { return };
        let mut leadership = member.raft.server_metrics();
        while leadership.borrow_watched().current_leader == Some(known) {
            if leadership.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits a moment, or until the leader changes.
    pub(crate) async fn pause(&self) -> Result<(), ClusterError> {
        let changed = async {
            match self.leader() {
                Some(_) => std::future::pending().await,
                None => {
                    let mut leadership = self.member()?.raft.server_metrics();
                    leadership.changed().await.map_err(ClusterError::unavailable)
                }
            }
        };
        tokio::select! {
            changed = changed => changed,
            () = tokio::time::sleep(PAUSE) => Ok(()),
            () = self.stop.cancelled() => Err(ClusterError::unavailable("this node stops")),
        }
    }

    /// Proposes `command` at the leader; the answer and its log index.
    pub(crate) async fn write(
        self: &Arc<Self>,
        command: Command,
    ) -> Result<(u64, Response), ClusterError> {
        match self.ask(Request::Write(command)).await? {
            Reply::Written { index, response } => Ok((index, response)),
            other => Err(ClusterError::invalid(format!("an answer out of place: {other:?}"))),
        }
    }
}
