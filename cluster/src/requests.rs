//! How the leader answers each request.
//!
//! Invariant: a node that does not lead answers nothing but that.

use std::future::Future;

use kiln_proto::{ArtifactKey, NodeId, Token};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    admission::{Admission, NotAdmitted, Word},
    authorize,
    command::{Candidate, Command, NewNode, Response, Revocation},
    error::ClusterError,
    leader::Leader,
    membership,
    pb::Frame,
    peers::frame,
    rpc::{
        Add, Admit, Answer, Ask, Fail, Failed, Join, Outcome, ReadIndex, Remove, Renew, Request,
        TryAcquire, Unanswered, Write, Written,
    },
    signing,
    state::may_return,
    store::Owner,
    table::LeaseRecord,
    tokens::{AuditHead, TokenEnd},
    versions,
    wanted::Wanted,
    watch::Nodes,
};

/// Most lists of wanted pieces at once.
const MOST_LISTS: usize = 1024;

/// A request that a [`Leader`] answers.
pub(crate) trait Lead: Ask {
    /// The answer of `leader`, which believes to be one, to the member `from`.
    fn lead(
        self,
        leader: &Leader,
        from: NodeId,
    ) -> impl Future<Output = Answer<Self::Reply>> + Send;
}

/// Answers the request of the member `from` if this node leads.
pub(crate) async fn answer<A: Lead>(leader: &Leader, from: NodeId, request: A) -> Answer<A::Reply> {
    match leader.member.leads() {
        true => request.lead(leader, from).await,
        false => Err(Unanswered::NotLeader),
    }
}

/// The answer to any request, as it is sent.
pub(crate) async fn serve(
    leader: &Leader,
    from: NodeId,
    request: Request,
) -> Result<Frame, Status> {
    match request {
        Request::Write(request) => frame(&answer(leader, from, request).await),
        Request::Fail(request) => frame(&answer(leader, from, request).await),
        Request::Renew(request) => frame(&answer(leader, from, request).await),
        Request::ReadIndex(request) => frame(&answer(leader, from, request).await),
        Request::Join(request) => frame(&answer(leader, from, request).await),
        Request::Add(request) => frame(&answer(leader, from, request).await),
        Request::Remove(request) => frame(&answer(leader, from, request).await),
        Request::TryAcquire(request) => frame(&answer(leader, from, request).await),
        Request::Admit(request) => frame(&answer(leader, from, request).await),
    }
}

impl Lead for Write {
    async fn lead(mut self, leader: &Leader, from: NodeId) -> Answer<Written> {
        let nodes = leader.replica.nodes();
        let verified = authorize::judge(&nodes, from, &self.0)?;
        versions::check(&nodes, &self.0)?;
        let now = leader.replica.deadlines().now_unix_ms();
        leader.replica.trust().check(&self.0, verified.as_ref(), now)?;
        if let Command::Facts { facts, .. } = &self.0 {
            versions::admit(leader.replica.needs().as_ref(), facts)?;
        }
        if let Command::Expire { key, token } = &self.0 {
            check_holder(leader, from, key, *token).await?;
        }
        if let Command::Want(wanted) = &self.0 {
            check_room(leader, wanted)?;
        }
        if let Command::Use { at_unix_ms, .. }
        | Command::Revoke(Revocation { at_unix_ms, .. })
        | Command::IssueToken { at_unix_ms, .. }
        | Command::RevokeToken { end: TokenEnd { at_unix_ms, .. }, .. }
        | Command::Admission(Admission::Issue { at_unix_ms, .. })
        | Command::NoteAudit { head: AuditHead { at_unix_ms, .. }, .. } = &mut self.0
        {
            *at_unix_ms = now;
        }
        if let Command::Keys(change) = &mut self.0 {
            change.stamp(now);
        }
        let command = match versions::stamp(&nodes) {
            true => signing::stamp(&nodes, self.0, verified.as_ref(), now)?,
            false => self.0,
        };
        leader.propose(command).await
    }
}

/// Only the node that holds a lease ends it before its time.
async fn check_holder(
    leader: &Leader,
    from: NodeId,
    key: &ArtifactKey,
    token: Token,
) -> Result<(), ClusterError> {
    let lease: Option<LeaseRecord> = leader.replica.read(*key).await?;
    match lease.is_some_and(|lease| lease.token == token && lease.node != from) {
        true => Err(ClusterError::invalid("the lease is another node's")),
        false => Ok(()),
    }
}

/// Every list is in every replica's memory.
fn check_room(leader: &Leader, wanted: &Wanted) -> Result<(), ClusterError> {
    let lists = leader.replica.wanted();
    match lists.len() < MOST_LISTS || lists.iter().any(|list| list.whole == wanted.whole) {
        true => Ok(()),
        false => Err(ClusterError::unavailable("too many compiles in pieces are under way")),
    }
}

impl Lead for Fail {
    /// A failure that any node would have is remembered; another one only ends
    /// the lease, so that the next waiter tries.
    async fn lead(self, leader: &Leader, from: NodeId) -> Answer<Failed> {
        let Self { key, token, mut failure } = self;
        check_holder(leader, from, &key, token).await?;
        let deadlines = leader.replica.deadlines();
        let command = if failure.kind.follows_from_request() && deadlines.takes_failures() {
            let until_unix_ms = deadlines.until_unix_ms(failure.kind);
            if failure.message.len() > authorize::LONGEST_MESSAGE {
                let cut = failure.message.floor_char_boundary(authorize::LONGEST_MESSAGE);
                failure.message.truncate(cut);
            }
            Command::Fail { key, token, failure, until_unix_ms }
        } else {
            Command::Expire { key, token }
        };
        match leader.propose(command).await?.response {
            Response::Done | Response::Changed(_) => Ok(Failed::Ended),
            Response::Stale => Ok(Failed::Stale),
            other => Err(ClusterError::unexpected(&other).into()),
        }
    }
}

impl Lead for Renew {
    async fn lead(self, leader: &Leader, from: NodeId) -> Answer<Vec<bool>> {
        if leader.counting_for().is_none() {
            return Err(Unanswered::NotLeader);
        }
        let (now, deadlines) = (Instant::now(), leader.replica.deadlines());
        let renew = |(key, token)| deadlines.renew(&key, token, from, now);
        Ok(self.0.into_iter().map(renew).collect())
    }
}

impl Lead for TryAcquire {
    async fn lead(self, leader: &Leader, from: NodeId) -> Answer<Option<Outcome>> {
        if self.node != from {
            return Err(ClusterError::invalid("a lease is for the node that asks for it").into());
        }
        leader.try_acquire(self).await
    }
}

impl Lead for ReadIndex {
    async fn lead(self, leader: &Leader, _: NodeId) -> Answer<u64> {
        leader.read_index().await
    }
}

impl Lead for Join {
    async fn lead(self, leader: &Leader, _: NodeId) -> Answer<Owner> {
        self.admit(leader, None).await
    }
}

impl Lead for Admit {
    async fn lead(self, leader: &Leader, _: NodeId) -> Answer<Owner> {
        match self.by {
            Word::Token { .. } => self.join.admit(leader, Some(self.by)).await,
            // A member cannot vouch for an admin: who asks for that asks to [`Add`].
            Word::Admin => {
                Err(ClusterError::invalid("an admin's word is for an address: add it").into())
            }
        }
    }
}

impl Join {
    /// Registers a candidate, by the word of somebody where joining needs one. Only a node
    /// that follows is given a vote, and it cannot follow before it has its id: so the
    /// cluster learns first that it abstains. Two commands that members of every version
    /// read, rather than one that some do not.
    async fn admit(self, leader: &Leader, by: Option<Word>) -> Answer<Owner> {
        authorize::check_node(&self.node)?;
        let me = leader.member.running()?.owner;
        if leader.replica.counters().is_none() {
            return Err(ClusterError::unavailable("the cluster is being founded").into());
        }
        let mut caught_up = false;
        let command = loop {
            if let Some((node, eligible)) = known(&leader.replica.nodes(), &self.node)? {
                // Whoever repeats this makes no more entries of it.
                if self.abstains && eligible {
                    leader.propose(Command::SetVoter { node, voter: false }).await?;
                }
                return Ok(Owner { node, ..me });
            }
            // Who is a node already was judged then: its key may be another one by now.
            let now = leader.replica.deadlines().now_unix_ms();
            leader.replica.trust().check_newcomer(&self.node, now)?;
            versions::admit(leader.replica.needs().as_ref(), &self.node.facts)?;
            match command_of(leader, self.node.clone(), by) {
                // Who was just elected may not have applied yet what lets it in.
                Err(ClusterError::NotAdmitted(_)) if !caught_up => catch_up(leader).await?,
                command => break command?,
            }
            caught_up = true;
        };
        versions::check(&leader.replica.nodes(), &command)?;
        let node = match leader.propose(command).await?.response {
            Response::Node(node) => node,
            Response::NotAdmitted(why) => return Err(ClusterError::NotAdmitted(why).into()),
            Response::NotFounded => {
                return Err(ClusterError::unavailable("the cluster is not founded yet").into());
            }
            Response::Refused(why) => return Err(ClusterError::Invalid(why).into()),
            other => return Err(ClusterError::unexpected(&other).into()),
        };
        if self.abstains {
            leader.propose(Command::SetVoter { node, voter: false }).await?;
        }
        leader.housekeeping.notify_one();
        Ok(Owner { node, ..me })
    }
}

/// The node that a candidate is already, and whether it may be given a vote. Who repeats a join
/// that the log would answer so changes nothing.
fn known(nodes: &Nodes, candidate: &NewNode) -> Result<Option<(NodeId, bool)>, ClusterError> {
    let Some((id, known)) = nodes.iter().find(|(_, n)| n.candidate == candidate.candidate) else {
        return Ok(None);
    };
    may_return(known.left, known.key.to_bytes() == candidate.key).map_err(ClusterError::invalid)?;
    Ok(Some((*id, known.eligible)))
}

/// Waits until this leader has applied all that was acknowledged before.
async fn catch_up(leader: &Leader) -> Answer<()> {
    let index = leader.read_index().await?;
    let deadline = Instant::now() + leader.timings.patience;
    match leader.replica.wait_applied(index, deadline).await {
        true => Ok(()),
        false => Err(ClusterError::unavailable("the leader has not read its log yet").into()),
    }
}

/// How `node` is let in. Who would be refused by the log is refused here: what anybody can
/// send makes no entries of it.
fn command_of(leader: &Leader, node: NewNode, by: Option<Word>) -> Result<Command, ClusterError> {
    let admissions = leader.replica.admissions();
    let nodes = leader.replica.nodes();
    if !versions::joining_needs_token(admissions.needs_token, leader.join_needs_token, &nodes) {
        return Ok(Command::Join(node));
    }
    let at_unix_ms = leader.replica.deadlines().now_unix_ms();
    let allowed = match by {
        None => Err(NotAdmitted::NoToken),
        Some(Word::Admin) => Ok(Word::Admin),
        Some(by @ Word::Token { id, digest }) => {
            admissions.judge(id, &digest, at_unix_ms).map(|()| by)
        }
    };
    let by = allowed.map_err(ClusterError::NotAdmitted)?;
    Ok(Command::Admission(Admission::Admit { node, by, at_unix_ms }))
}

impl Lead for Add {
    /// Admits the candidate that waits at the address, and tells it who it is.
    async fn lead(self, leader: &Leader, _: NodeId) -> Answer<Owner> {
        let me = leader.member.running()?.owner;
        // A member asks, who is no candidate any more.
        let greeting = leader.peers.hello(&self.0, Candidate::default()).await;
        let greeting = greeting.map_err(|e| nobody(&self.0, &e))?;
        match greeting.owner {
            Some(owner) if owner.cluster == me.cluster => return Ok(owner),
            Some(_) => return Err(ClusterError::invalid("it belongs to another cluster").into()),
            None => {}
        }
        let candidate = greeting.node.candidate;
        let node = greeting.node.clone();
        let join = Join { node: greeting.node, abstains: greeting.abstains };
        // An admin asked for it, by its address.
        let owner = join.admit(leader, Some(Word::Admin)).await?;
        let admitted = leader.endorser.endorse(me, &leader.replica.nodes(), owner, &node)?;
        let patience = leader.timings.patience;
        leader.peers.assign(&self.0, candidate, owner, &admitted, patience).await?;
        Ok(owner)
    }
}

/// What is said of an address at which no node answers: for whoever gave it, who is told at
/// once. The cluster itself is well, and asking it again changes nothing.
fn nobody(address: &str, error: &ClusterError) -> ClusterError {
    let why = match error {
        ClusterError::Unavailable(why) => why.clone(),
        ClusterError::Deadline => "no answer in time".to_owned(),
        other => other.to_string(),
    };
    ClusterError::invalid(format!(
        "no node answers at {address} ({why}): see that `kiln serve` runs there, and that this is \
         the HOST:PORT of its gRPC port, as the leader reaches it"
    ))
}

impl Lead for Remove {
    async fn lead(self, leader: &Leader, _: NodeId) -> Answer<()> {
        membership::remove(leader, self.0).await
    }
}
