//! Requests find the leader: here, over the network, or not at all.
//!
//! Invariant: every request ends. It is repeated through a change of leaders, and
//! given up once no leader with a quorum was heard of for [`Timings::patience`];
//! a node that has been alone for longer than that says so at once. Commands are
//! written so that repeating them is harmless.

use std::{sync::Arc, time::Duration};

use kiln_proto::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    command::{Command, Response},
    error::ClusterError,
    leader::Leader,
    member::Member,
    peers::{Peers, frame, to_target, unframe},
    requests::{self, Lead},
    rpc::{Acquire, Answer, Outcome, Progress, Request, Unanswered, Write},
    settings::Timings,
    step::step,
    store::Owner,
    versions,
};

/// Between two tries, unless the leader changes sooner.
const PAUSE: Duration = Duration::from_millis(50);

/// The way to the leader, wherever it is.
pub(crate) struct Router {
    member: Arc<Member>,
    leader: Arc<Leader>,
    peers: Arc<Peers>,
    timings: Timings,
    stop: CancellationToken,
}

impl Router {
    pub(crate) fn new(
        leader: Arc<Leader>,
        peers: Arc<Peers>,
        timings: Timings,
        stop: CancellationToken,
    ) -> Self {
        Self { member: Arc::clone(&leader.member), leader, peers, timings, stop }
    }

    /// This node's id and cluster, once it has them.
    pub(crate) fn owner(&self) -> Result<Owner, ClusterError> {
        Ok(self.member.running()?.owner)
    }

    /// The leader as this node knows it.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.member.leader()
    }

    /// Returns when this node knows of another leader than `known`.
    pub(crate) async fn leader_changes(&self, known: NodeId) {
        self.member.leader_changes(known).await;
    }

    /// When a request that started at `started` gives up on finding a leader.
    pub(crate) fn give_up_at(&self, started: Instant) -> Instant {
        self.member.give_up_at(started)
    }

    /// How long one request is waited for.
    pub(crate) fn patience(&self) -> Duration {
        self.timings.patience
    }

    /// Asks the leader, wherever it is.
    pub(crate) async fn ask<A: Lead>(&self, request: A) -> Result<A::Reply, ClusterError> {
        self.ask_untraced(request).instrument(step("ask the leader")).await
    }

    async fn ask_untraced<A: Lead>(&self, request: A) -> Result<A::Reply, ClusterError> {
        self.member.running()?;
        let started = Instant::now();
        let mut last = ClusterError::unavailable("no leader is known");
        loop {
            let answer = match self.leader() {
                None => Err(Unanswered::NotLeader),
                Some(leader) => {
                    tokio::select! {
                        answer = self.ask_node(leader, request.clone()) => answer,
                        () = self.leader_changes(leader) => Err(Unanswered::NotLeader),
                    }
                }
            };
            match answer {
                Ok(reply) => return Ok(reply),
                Err(Unanswered::NotLeader) => {}
                Err(Unanswered::Refused(e @ ClusterError::Unavailable(_))) => last = e,
                Err(Unanswered::Refused(e)) => return Err(e),
            }
            if Instant::now() + PAUSE >= self.give_up_at(started) {
                return Err(last);
            }
            self.pause().await?;
        }
    }

    async fn ask_node<A: Lead>(&self, node: NodeId, request: A) -> Answer<A::Reply> {
        let me = self.owner()?;
        if node == me.node {
            return requests::answer(&self.leader, me.node, request).await;
        }
        let asking = self.ask_peer::<A>(Owner { node, ..me }, request.into());
        match tokio::time::timeout(self.timings.patience, asking).await {
            Ok(Ok(answer)) => answer.map_err(Unanswered::of_another_node),
            Ok(Err(status)) => Err(ClusterError::unavailable(status.message()).into()),
            Err(_) => Err(ClusterError::unavailable("the leader does not answer").into()),
        }
    }

    /// Asks one node, which answers only if it leads.
    pub(crate) async fn ask_peer<A: Lead>(
        &self,
        target: Owner,
        request: Request,
    ) -> Result<Answer<A::Reply>, tonic::Status> {
        let mut client = self.peers.at(&self.member.address_of(target.node)?)?;
        let from = self.member.running().map_or(0, |running| running.owner.node);
        let answer = client.ask(to_target(frame(&request)?, from, target)).await?;
        unframe(answer.get_ref())
    }

    /// Waits at `leader` for the artifact, the lease or the failure of a key, until
    /// `deadline`; `waiting` is called while another node holds the lease.
    pub(crate) async fn acquire_at(
        &self,
        leader: NodeId,
        asked: &Acquire,
        deadline: Instant,
        mut waiting: impl FnMut() + Send,
    ) -> Answer<Outcome> {
        let me = self.owner()?;
        if leader == me.node {
            return self.leader.acquire(asked, deadline, waiting).await;
        }
        let asking = async {
            let target = Owner { node: leader, ..me };
            let mut client = self.peers.at(&self.member.address_of(leader)?)?;
            let mut events =
                client.acquire(to_target(frame(asked)?, me.node, target)).await?.into_inner();
            while let Some(event) = events.message().await? {
                match unframe(&event)? {
                    Progress::Ended(answer) => {
                        return Ok(answer.map_err(Unanswered::of_another_node));
                    }
                    Progress::Waiting => waiting(),
                }
            }
            Err(tonic::Status::unavailable("the leader ended the call"))
        };
        match asking.await {
            Ok(answer) => answer,
            Err(status) => Err(ClusterError::unavailable(status.message()).into()),
        }
    }

    /// Waits a moment, or until a leader is known where none is.
    pub(crate) async fn pause(&self) -> Result<(), ClusterError> {
        let known = async {
            if self.leader().is_some() {
                return std::future::pending().await;
            }
            let mut leadership = self.member.leadership()?;
            // A new receiver calls what it has not seen a change: only a leader ends this.
            while self.leader().is_none() {
                leadership.changed().await.map_err(ClusterError::unavailable)?;
            }
            Ok(())
        };
        tokio::select! {
            known = known => known,
            () = tokio::time::sleep(PAUSE) => Ok(()),
            () = self.stop.cancelled() => Err(ClusterError::unavailable("this node stops")),
        }
    }

    /// Proposes `command` at the leader; the answer and its log index.
    pub(crate) async fn write(&self, command: Command) -> Result<(u64, Response), ClusterError> {
        // A leader of an earlier version could not read it, nor say so.
        versions::check(&self.leader.replica.nodes(), &command)?;
        let written = self.ask(Write(command)).await?;
        Ok((written.index, written.response))
    }
}
