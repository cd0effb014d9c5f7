//! How an empty disk becomes a node: found a cluster, join one, or be told.
//!
//! Invariant: at most one cluster comes of one list of peers. A candidate accepts
//! one assignment in its life, durably; a cluster is founded only after all of
//! its first voters accepted, and they are over half of the peers, so two
//! foundings would need the same candidate twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use openraft::{
    BasicNode,
    errors::{InitializeError, RaftError},
};
use serde::{Deserialize, Serialize};

use crate::{
    command::{Candidate, Command, NewNode, NodeFacts, Response},
    core::Core,
    error::ClusterError,
    leader::{Answer, Reply, Request},
    membership::{assign, greet},
    peers::{frame, say_abstains, unframe},
    settings::Start,
    store::Owner,
};

/// Between two looks at the peers.
const LOOK: Duration = Duration::from_millis(300);

/// How a node answers to `Hello`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Greeting {
    pub node: NewNode,
    /// Its id and cluster, once it has them.
    pub owner: Option<Owner>,
    /// The candidates that it saw, itself included.
    pub sees: BTreeSet<Candidate>,
    /// Whether it asks for no vote: said beside the body, see [`say_abstains`].
    #[serde(skip)]
    pub abstains: bool,
}

/// What a candidate is told to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub candidate: Candidate,
    pub owner: Owner,
}

/// The peers' addresses as of now; a name that does not resolve yet has none.
async fn resolve(peers: &[String]) -> Result<Vec<String>, ClusterError> {
    let mut addresses = BTreeSet::new();
    for peer in peers {
        let Some(name) = peer.strip_prefix("dns:") else {
            addresses.insert(peer.clone());
            continue;
        };
        if !name.contains(':') {
            return Err(ClusterError::invalid(format!("{peer:?} is not dns:NAME:PORT")));
        }
        match tokio::net::lookup_host(name).await {
            Ok(found) => addresses.extend(found.map(|address| address.to_string())),
            Err(e) => tracing::debug!(name, error = %e, "the peers' name does not resolve yet"),
        }
    }
    Ok(addresses.into_iter().collect())
}

impl Core {
    /// How this node introduces itself.
    pub(crate) fn greeting(&self) -> Greeting {
        let node = self.introduction();
        let owner = self.identity.lock().owner;
        let mut sees = self.seen.lock().clone();
        sees.insert(node.candidate);
        Greeting { node, owner, sees, abstains: !self.voter }
    }

    /// Becomes the node that the assignment says, durably, and starts Raft.
    pub(crate) async fn accept(&self, assignment: Assignment) -> Result<(), ClusterError> {
        let _one_at_a_time = self.accepting.lock().await;
        {
            let mut identity = self.identity.lock();
            if identity.candidate != assignment.candidate {
                return Err(ClusterError::invalid("meant for another disk"));
            }
            match identity.owner {
                Some(owner) if owner == assignment.owner => {}
                Some(_) => return Err(ClusterError::invalid("this disk has another identity")),
                None => identity.become_node(&self.data_dir, &self.store, assignment.owner)?,
            }
        }
        match self.member.get() {
            Some(_) => Ok(()),
            None => self.run_raft(assignment.owner).await,
        }
    }

    /// Finds this empty disk its place; returns when Raft runs.
    pub(crate) async fn find_place(self: &Arc<Self>, start: &Start) -> Result<(), ClusterError> {
        loop {
            let assigned = self.assigned.notified();
            if self.member.get().is_some() {
                return Ok(());
            }
            let addresses = resolve(start.peers()).await?;
            let greetings = self.look_around(&addresses).await;
            let members = greetings.iter().filter(|(_, g)| g.owner.is_some());
            for (address, _) in members {
                match self.join_at(address).await {
                    Ok(()) => return Ok(()),
                    Err(e @ (ClusterError::Invalid(_) | ClusterError::Storage(_))) => {
                        return Err(e);
                    }
                    Err(e) => tracing::debug!(address, error = %e, "could not join yet"),
                }
            }
            if let Start::Expect { voters, .. } = start
                && let Some(founders) = self.founders(*voters, &addresses, greetings)?
            {
                return self.found(founders).await;
            }
            tokio::select! {
                () = assigned => {}
                () = tokio::time::sleep(LOOK) => {}
                () = self.stop.cancelled() => {
                    return Err(ClusterError::unavailable("this node stops"));
                }
            }
        }
    }

    /// Whoever answers at the peers' addresses, but for this node.
    async fn look_around(&self, addresses: &[String]) -> Vec<(String, Greeting)> {
        let mine = self.identity.lock().candidate;
        let greetings = addresses.iter().map(async |address| match greet(self, address).await {
            Ok(greeting) => Some((address.clone(), greeting)),
            Err(e) => {
                tracing::debug!(address, error = %e, "no answer from a peer");
                None
            }
        });
        let mut found: Vec<_> = join_all(greetings).await.into_iter().flatten().collect();
        found.retain(|(_, greeting)| greeting.node.candidate != mine);
        // Who founds a cluster votes in it.
        found.retain(|(_, greeting)| greeting.owner.is_some() || !greeting.abstains);
        let mut seen = self.seen.lock();
        seen.clear();
        let candidates = found.iter().filter(|(_, greeting)| greeting.owner.is_none());
        seen.extend(candidates.map(|(_, greeting)| greeting.node.candidate));
        found
    }

    /// The first nodes of a new cluster, if it is this one that founds it now.
    fn founders(
        &self,
        voters: usize,
        addresses: &[String],
        greetings: Vec<(String, Greeting)>,
    ) -> Result<Option<Vec<NewNode>>, ClusterError> {
        if voters == 0 {
            return Err(ClusterError::invalid("a cluster has at least one voter"));
        }
        let mine = self.introduction();
        let distinct: BTreeSet<&str> =
            addresses.iter().map(String::as_str).chain([mine.facts.grpc.as_str()]).collect();
        // Names and numbers of one address count twice, so only the list itself is judged.
        let listed = addresses.len().max(1).min(distinct.len());
        if voters * 2 <= listed {
            return Err(ClusterError::invalid(format!(
                "{voters} voters are not over half of {listed} peers: two halves of them \
                 could found two clusters"
            )));
        }
        let candidates: BTreeMap<Candidate, (NewNode, BTreeSet<Candidate>)> = greetings
            .into_iter()
            .filter(|(_, greeting)| greeting.owner.is_none())
            .map(|(_, greeting)| (greeting.node.candidate, (greeting.node, greeting.sees)))
            .collect();
        let mut known: BTreeSet<Candidate> = candidates.keys().copied().collect();
        known.insert(mine.candidate);
        let first: BTreeSet<Candidate> = known.iter().copied().take(voters).collect();
        let mine_to_found = first.len() == voters && first.first() == Some(&mine.candidate);
        let agreed = first
            .iter()
            .filter_map(|candidate| candidates.get(candidate))
            .all(|(_, sees)| sees.iter().copied().take(voters).collect::<BTreeSet<_>>() == first);
        if !mine_to_found || !agreed {
            return Ok(None);
        }
        let founder = |candidate: &Candidate| match candidates.get(candidate) {
            Some((node, _)) => node.clone(),
            None => mine.clone(),
        };
        Ok(Some(first.iter().map(founder).collect()))
    }

    /// Founds a cluster of `founders`, this node first.
    async fn found(self: &Arc<Self>, founders: Vec<NewNode>) -> Result<(), ClusterError> {
        let mut cluster = [0; 8];
        getrandom::fill(&mut cluster).map_err(ClusterError::unavailable)?;
        // Never zero: that is the name of no cluster.
        let cluster = u64::from_le_bytes(cluster) | 1;
        self.store.set_founders(&founders)?;
        let candidate = founders.first().map_or_else(Candidate::default, |f| f.candidate);
        self.accept(Assignment { candidate, owner: Owner { cluster, node: 1 } }).await?;
        self.finish_founding().await
    }

    /// Brings a founding that this node began to its end, also after a restart.
    pub(crate) async fn finish_founding(self: &Arc<Self>) -> Result<(), ClusterError> {
        let Some(founders) = self.store.founders()? else { return Ok(()) };
        let member = self.member()?;
        let me = member.owner;
        let ids = || (1u64..).zip(&founders);
        for (node, founder) in ids().filter(|(node, _)| *node != me.node) {
            let owner = Owner { node, ..me };
            let assignment = Assignment { candidate: founder.candidate, owner };
            while let Err(e) = assign(self, &founder.facts.grpc, &assignment).await {
                tracing::warn!(
                    address = founder.facts.grpc, error = %e,
                    "a founding voter does not answer: all must before the cluster exists"
                );
                self.pause().await?;
            }
        }
        let voters: BTreeMap<_, _> =
            ids().map(|(node, f)| (node, BasicNode::new(&f.facts.grpc))).collect();
        match member.raft.initialize(voters).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(e) => return Err(ClusterError::invalid(e)),
        }
        loop {
            let nodes = founders.clone();
            match self.write(Command::Found { cluster: me.cluster, nodes }).await {
                Ok((_, Response::Done | Response::Refused(_))) => break,
                Ok((_, other)) => {
                    return Err(ClusterError::invalid(format!(
                        "an answer out of place: {other:?}"
                    )));
                }
                Err(ClusterError::Unavailable(why)) => {
                    tracing::debug!(why, "the new cluster has no leader yet");
                    self.pause().await?;
                }
                Err(e) => return Err(e),
            }
        }
        self.store.clear_founders()
    }

    /// Joins the cluster of the member at `address`.
    async fn join_at(self: &Arc<Self>, address: &str) -> Result<(), ClusterError> {
        let node = self.introduction();
        let candidate = node.candidate;
        let asking = async {
            let mut introduction = tonic::Request::new(frame(&node)?);
            say_abstains(introduction.metadata_mut(), !self.voter);
            let answer = self.peers.at(address)?.join(introduction).await?;
            unframe::<Answer<Reply>>(answer.get_ref())
        };
        let asked = tokio::time::timeout(self.timings.patience * 2, asking).await?;
        match asked.map_err(|status| ClusterError::unavailable(status.message()))? {
            Answer::Done(Reply::Joined(owner)) => {
                self.accept(Assignment { candidate, owner }).await
            }
            Answer::Refused(e) => Err(e),
            _ => Err(ClusterError::unavailable("that node knows no leader")),
        }
    }

    /// After a restart: tells the cluster where this node is by now, and learns
    /// from the peers where they are.
    pub(crate) async fn come_back(self: Arc<Self>, peers: Vec<String>) {
        let Ok(member) = self.member() else { return };
        let me = member.owner;
        loop {
            let mut members = Vec::new();
            for (address, greeting) in self.look_around_quietly(&peers).await {
                match greeting.owner {
                    Some(owner) if owner.cluster == me.cluster => {
                        self.peers.set_address(owner.node, &address);
                        members.push(owner);
                    }
                    _ => {}
                }
            }
            let nodes = self.watch.nodes();
            let registered = nodes.get(&me.node);
            // Compilers are told by who looks for them: here it is about being found.
            let found = |facts: &NodeFacts| {
                let compilers = self.facts.compilers.clone();
                NodeFacts { compilers, ..facts.clone() } == self.facts
            };
            if registered.is_some_and(|node| node.left || found(&node.facts)) {
                return;
            }
            if registered.is_some() && self.tell_facts(me, members).await {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Tells the leader where this node is, also where it is not known who leads: a
    /// leader cannot reach a node that moved, so the node hears of no new one.
    async fn tell_facts(self: &Arc<Self>, me: Owner, members: Vec<Owner>) -> bool {
        let facts = self.facts.clone();
        let request = Request::Write(Command::Facts { node: me.node, facts });
        for member in members {
            let asked =
                tokio::time::timeout(self.timings.patience, self.ask_peer(member, &request));
            match asked.await {
                Ok(Ok(Answer::Done(_))) => return true,
                Ok(Ok(Answer::NotLeader)) => {}
                other => tracing::debug!(node = member.node, ?other, "the facts are not told yet"),
            }
        }
        // None of the peers leads: whoever did when this node stopped may.
        match self.leader() {
            Some(_) => self.ask(request).await.is_ok(),
            None => false,
        }
    }

    async fn look_around_quietly(&self, peers: &[String]) -> Vec<(String, Greeting)> {
        match resolve(peers).await {
            Ok(addresses) => self.look_around(&addresses).await,
            Err(e) => {
                tracing::warn!(error = %e, "the peers cannot be asked");
                Vec::new()
            }
        }
    }
}
