//! How an empty disk becomes a node: found a cluster, join one, or be told.
//!
//! Invariant: at most one cluster comes of one list of peers. A candidate accepts
//! one assignment in its life, durably; a cluster is founded only after all of
//! its first voters accepted, and they are over half of the peers, so two
//! foundings would need the same candidate twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::VerifyingKey;
use futures::future::join_all;
use openraft::{
    BasicNode,
    errors::{InitializeError, RaftError},
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::NotAdmitted,
    command::{Candidate, Command, NewNode, NodeFacts, Response},
    endorsement::Admitted,
    endorser::Endorser,
    error::ClusterError,
    identity::Identity,
    member::Member,
    peers::{Peers, frame, set_abstains, set_join_token, unframe},
    router::Router,
    rpc::{Answer, Assignment, Greeting, OfYou, Unanswered},
    secret::Secret,
    settings::{Joining, Start},
    store::{Owner, Store},
    versions::shares_a_port,
    watch::Watch,
};

/// Between two times that the peers are asked.
pub(crate) const INTERVAL: Duration = Duration::from_millis(300);

/// The peers' addresses as of now, in the order of the list; a name that does not resolve
/// yet has none.
pub(crate) async fn resolve(peers: &[String]) -> Result<Vec<String>, ClusterError> {
    let mut addresses: Vec<String> = Vec::new();
    let mut add = |address: String| {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    };
    for peer in peers {
        let Some(name) = peer.strip_prefix("dns:") else {
            add(peer.clone());
            continue;
        };
        if !name.contains(':') {
            return Err(ClusterError::invalid(format!("{peer:?} is not dns:NAME:PORT")));
        }
        match tokio::net::lookup_host(name).await {
            // Whichever order a server gives them in this time.
            Ok(found) => {
                let found: BTreeSet<String> = found.map(|address| address.to_string()).collect();
                found.into_iter().for_each(&mut add);
            }
            Err(e) => tracing::debug!(name, error = %e, "the peers' name does not resolve yet"),
        }
    }
    Ok(addresses)
}

/// What a candidate says and does to become a node.
pub(crate) struct Bootstrap {
    pub data_dir: PathBuf,
    pub store: Arc<Store>,
    pub watch: Arc<Watch>,
    pub member: Arc<Member>,
    pub router: Arc<Router>,
    pub peers: Arc<Peers>,
    pub facts: NodeFacts,
    pub key: VerifyingKey,
    pub endorser: Arc<Endorser>,
    /// Whether it may vote.
    pub voter: bool,
    pub joining: Joining,
    pub patience: Duration,
    pub identity: Mutex<Identity>,
    /// Whether a peer that answered calls this one on the port of its clients.
    pub shares_a_port: AtomicBool,
    /// Candidates seen when the peers were last asked.
    pub seen: Mutex<BTreeSet<Candidate>>,
    /// Held while an assignment is accepted.
    pub accepting: tokio::sync::Mutex<()>,
    pub stop: CancellationToken,
}

impl Bootstrap {
    /// What this node tells about itself when it joins.
    pub(crate) fn introduction(&self) -> NewNode {
        let candidate = self.identity.lock().candidate;
        let nodes = self.watch.nodes();
        // Its name stays that of the key that it joined with, whichever it signs with by now.
        let joined = nodes.values().find(|node| node.candidate == candidate).map(|node| node.key);
        let key = joined.unwrap_or(self.key).to_bytes();
        NewNode { candidate, facts: self.facts.clone(), key }
    }

    /// How this node introduces itself.
    pub(crate) fn greeting(&self) -> Greeting {
        let node = self.introduction();
        let owner = self.identity.lock().owner;
        let mut sees = self.seen.lock().clone();
        sees.insert(node.candidate);
        Greeting { node, owner, sees, abstains: !self.voter, of_you: None }
    }

    /// What a node should know about itself that may not be in its own replica.
    pub(crate) fn known_of(&self, candidate: &Candidate) -> Option<OfYou> {
        let nodes = self.watch.nodes();
        let node = nodes.values().find(|node| node.candidate == *candidate)?;
        match (node.left, node.away) {
            (true, _) => Some(OfYou::Left),
            (false, true) => Some(OfYou::Away),
            (false, false) => None,
        }
    }

    /// Becomes the node that the assignment says, durably, with what it is given, and starts Raft.
    pub(crate) async fn accept(
        &self,
        assignment: Assignment,
        admitted: Option<Admitted>,
    ) -> Result<(), ClusterError> {
        let _one_at_a_time = self.accepting.lock().await;
        let name = self.introduction().key;
        {
            let mut identity = self.identity.lock();
            if identity.candidate != assignment.candidate {
                return Err(ClusterError::invalid("meant for another disk"));
            }
            match identity.owner {
                Some(owner) if owner == assignment.owner => {}
                Some(_) => return Err(ClusterError::invalid("this disk has another identity")),
                None => {
                    // Once: whoever repeats an assignment may be anybody.
                    match admitted {
                        Some(admitted) => self.endorser.keep(assignment.owner, name, admitted)?,
                        None => self.endorser.forget()?,
                    }
                    identity.become_node(&self.data_dir, &self.store, assignment.owner)?;
                }
            }
        }
        match self.member.running() {
            Ok(_) => Ok(()),
            Err(_) => self.start_member(assignment.owner).await,
        }
    }

    /// Starts Raft as `owner`, whose identity is durable.
    pub(crate) async fn start_member(&self, owner: Owner) -> Result<(), ClusterError> {
        self.member.start(owner, &self.store, &self.watch).await
    }

    /// Finds this empty disk its place; returns when Raft runs.
    pub(crate) async fn find_place(&self, start: &Start) -> Result<(), ClusterError> {
        loop {
            let started = self.member.started();
            if self.member.running().is_ok() {
                return Ok(());
            }
            let addresses = resolve(start.peers()).await?;
            let greetings = self.ask_peers(&addresses).await;
            let members = greetings.iter().filter(|(_, g)| g.owner.is_some());
            let mut refused = None;
            for (address, _) in members {
                match self.join_at(address).await {
                    Ok(()) => return Ok(()),
                    Err(e @ ClusterError::Storage(_)) => return Err(e),
                    // Another member may know more than the one that refuses.
                    Err(e @ (ClusterError::Invalid(_) | ClusterError::NotAdmitted(_))) => {
                        refused.get_or_insert(e);
                    }
                    Err(e) => tracing::debug!(address, error = %e, "could not join yet"),
                }
            }
            if let Some(e) = refused {
                return Err(e);
            }
            if let Start::Expect { voters, .. } = start
                && let Some(founders) = self.founders(*voters, &addresses, greetings)?
            {
                return self.found(founders).await;
            }
            tokio::select! {
                () = started => {}
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.stop.cancelled() => {
                    return Err(ClusterError::unavailable("this node stops"));
                }
            }
        }
    }

    /// Whoever answers at the peers' addresses, but for this node.
    pub(crate) async fn ask_peers(&self, addresses: &[String]) -> Vec<(String, Greeting)> {
        let mine = self.identity.lock().candidate;
        let greetings =
            addresses.iter().map(async |address| match self.peers.hello(address, mine).await {
                Ok(greeting) => Some((address.clone(), greeting)),
                Err(e) => {
                    tracing::debug!(address, error = %e, "no answer from a peer");
                    None
                }
            });
        let mut found: Vec<_> = join_all(greetings).await.into_iter().flatten().collect();
        found.retain(|(_, greeting)| greeting.node.candidate != mine);
        if found.iter().any(|(_, greeting)| shares_a_port(&greeting.node.facts.version)) {
            self.shares_a_port.store(true, Ordering::Relaxed);
        }
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
            addresses.iter().map(String::as_str).chain([mine.facts.members()]).collect();
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
        let mut founders: Vec<NewNode> = first.iter().map(founder).collect();
        // Ids as the operator lists the nodes: whoever reads "node 2" finds it. Of those that
        // are not listed under their own address, the order is the candidates'.
        founders.sort_by_key(|node| {
            addresses.iter().position(|a| *a == node.facts.members()).unwrap_or(usize::MAX)
        });
        Ok(Some(founders))
    }

    /// Founds a cluster of `founders`, of which this node is one.
    async fn found(&self, founders: Vec<NewNode>) -> Result<(), ClusterError> {
        let mut cluster = [0; 8];
        getrandom::fill(&mut cluster).map_err(ClusterError::unavailable)?;
        // Never zero: that is the name of no cluster.
        let cluster = u64::from_le_bytes(cluster) | 1;
        self.store.set_founders(&founders)?;
        let candidate = self.identity.lock().candidate;
        let place = (1..).zip(&founders).find(|(_, founder)| founder.candidate == candidate);
        let (node, _) = place.ok_or_else(|| ClusterError::invalid("no founder of its cluster"))?;
        let admitted = Some(Admitted::of_founders(&founders));
        self.accept(Assignment { candidate, owner: Owner { cluster, node } }, admitted).await?;
        self.finish_founding().await
    }

    /// Brings a founding that this node began to its end, also after a restart.
    pub(crate) async fn finish_founding(&self) -> Result<(), ClusterError> {
        let Some(founders) = self.store.founders()? else { return Ok(()) };
        let running = self.member.running()?;
        let me = running.owner;
        let ids = || (1u64..).zip(&founders);
        let admitted = Admitted::of_founders(&founders);
        for (node, founder) in ids().filter(|(node, _)| *node != me.node) {
            let owner = Owner { node, ..me };
            let address = founder.facts.members();
            let (candidate, patience) = (founder.candidate, self.patience);
            let assign = || self.peers.assign(address, candidate, owner, &admitted, patience);
            while let Err(e) = assign().await {
                tracing::warn!(
                    address, error = %e,
                    "a founding voter does not answer: all must before the cluster exists"
                );
                self.router.pause().await?;
            }
        }
        let voters: BTreeMap<_, _> =
            ids().map(|(node, f)| (node, BasicNode::new(f.facts.members()))).collect();
        match running.raft.initialize(voters).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(e) => return Err(ClusterError::invalid(e)),
        }
        loop {
            let nodes = founders.clone();
            match self.router.write(Command::Found { cluster: me.cluster, nodes }).await {
                Ok((_, Response::Done | Response::Refused(_))) => break,
                Ok((_, other)) => return Err(ClusterError::unexpected(&other)),
                Err(ClusterError::Unavailable(why)) => {
                    tracing::debug!(why, "the new cluster has no leader yet");
                    self.router.pause().await?;
                }
                Err(e) => return Err(e),
            }
        }
        self.store.clear_founders()
    }

    /// The token with which this node asks to be let in. A file that is missing or empty has
    /// none: founders are started with the name of one before there can be a token in it.
    async fn join_token(&self) -> Result<Option<(u64, Secret)>, ClusterError> {
        let Some(file) = &self.joining.token_file else { return Ok(None) };
        let text = match tokio::fs::read_to_string(file).await {
            Ok(text) if text.trim().is_empty() => return Ok(None),
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                let why = format!("read the join token {}: {e}", file.display());
                return Err(ClusterError::Invalid(why));
            }
        };
        // Not repeated: it may be another secret.
        let token = Secret::read(text.trim()).ok_or_else(|| {
            ClusterError::invalid(format!(
                "what {} has is no join token: a token is kiln_ID_SECRET, as kiln token create \
                 --role join printed it",
                file.display()
            ))
        })?;
        Ok(Some(token))
    }

    /// A refusal of this node, with what it can do about it.
    fn explained(&self, refused: ClusterError) -> ClusterError {
        match (refused, &self.joining.token_file) {
            (ClusterError::NotAdmitted(NotAdmitted::NoToken), Some(file)) => {
                ClusterError::invalid(format!(
                    "joining this cluster needs a token, and the file of the join token {} is not \
                     there, or is empty: put a token in it (kiln token create --role join)",
                    file.display()
                ))
            }
            (refused, _) => refused,
        }
    }

    /// Joins the cluster of the member at `address`.
    async fn join_at(&self, address: &str) -> Result<(), ClusterError> {
        let candidate = self.introduction().candidate;
        let (owner, admitted) = self.ask_to_join(address).await?;
        self.accept(Assignment { candidate, owner }, admitted).await
    }

    /// Asks the member at `address` to let this disk in: which node it is, and what it is given
    /// with that. A disk that was let in before is answered the same, and given it anew.
    pub(crate) async fn ask_to_join(
        &self,
        address: &str,
    ) -> Result<(Owner, Option<Admitted>), ClusterError> {
        let node = self.introduction();
        let token = self.join_token().await?;
        let asking = async {
            let mut introduction = tonic::Request::new(frame(&node)?);
            set_abstains(introduction.metadata_mut(), !self.voter);
            if let Some((id, secret)) = &token {
                set_join_token(introduction.metadata_mut(), *id, secret);
            }
            let answer = self.peers.at(address)?.join(introduction).await?.into_inner();
            Ok((unframe::<Answer<Owner>>(&answer)?, answer.admitted))
        };
        let asked = tokio::time::timeout(self.patience * 2, asking).await?;
        let (answer, admitted) =
            asked.map_err(|status: tonic::Status| ClusterError::unavailable(status.message()))?;
        match answer.map_err(Unanswered::of_another_node) {
            Ok(owner) => {
                let admitted = Admitted::decode(&admitted).map_err(ClusterError::invalid)?;
                Ok((owner, admitted))
            }
            Err(Unanswered::Refused(e)) => Err(self.explained(e)),
            Err(Unanswered::NotLeader) => {
                Err(ClusterError::unavailable("that node knows no leader"))
            }
        }
    }
}
