//! What a node tells the cluster after each start: where it is, whether it may vote, and
//! what its settings say of the cluster that nobody has said yet.
//!
//! Invariant: a node that abstains has its id only once the cluster knows that it does,
//! so it never votes; what the settings say later is told at the next start, and only
//! where the cluster has it otherwise. A node's own word on the number of voters only
//! ever raises it.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    admission::Admission,
    bootstrap::{Bootstrap, INTERVAL, resolve},
    command::{Command, NodeFacts},
    error::ClusterError,
    replica::Replica,
    rpc::{Greeting, OfYou, Unanswered, Write},
    settings::Start,
    store::Owner,
    versions,
};

/// Between two tries while there is no leader.
const RETRY: Duration = Duration::from_millis(300);
/// Between two looks whether this node's proof convinces, and two tries where no member gives
/// another, as while all run an earlier version.
const ENDORSE_AGAIN: Duration = Duration::from_secs(30);
/// Members that are asked for that at once.
const ENDORSERS: usize = 8;

/// Makes the cluster's record of this node what its settings say: where they changed
/// with a restart, and where a member let it in that did not know of abstaining.
pub(crate) async fn announce_standing(node: Arc<Bootstrap>, replica: Arc<Replica>, start: Start) {
    let mut progress = replica.progress();
    loop {
        match wrong_standing(&node, &replica, &start) {
            Ok(None) => return,
            Ok(Some(command)) => {
                tracing::info!(%command, "told by this node's settings");
                // The last that there is to tell; said again it might undo what an
                // operator has set meanwhile.
                let last = matches!(command, Command::SetVoters { .. });
                match node.router.ask(Write(command)).await {
                    Ok(_) if last => return,
                    Ok(_) => {}
                    Err(e) => {
                        tracing::debug!(error = %e, "this node's standing is not known yet");
                    }
                }
            }
            Err(e) => tracing::debug!(error = %e, "this node is not registered yet"),
        }
        tokio::select! {
            // It may be what was missing: this node's registration.
            changed = progress.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY) => {}
            () = node.stop.cancelled() => return,
        }
    }
}

/// What the replica has otherwise than the settings, as the command that mends it.
fn wrong_standing(
    node: &Bootstrap,
    replica: &Replica,
    start: &Start,
) -> Result<Option<Command>, ClusterError> {
    let me = node.router.owner()?.node;
    let nodes = replica.nodes();
    let unknown = || ClusterError::unavailable("not in this replica");
    let known = nodes.get(&me).ok_or_else(unknown)?;
    if known.left {
        return Ok(None);
    }
    if known.eligible != node.voter {
        return Ok(Some(Command::SetVoter { node: me, voter: node.voter }));
    }
    let counters = replica.counters().ok_or_else(unknown)?;
    Ok(match start {
        Start::Expect { voters, .. } if *voters as u64 > counters.voters => {
            Some(Command::SetVoters { voters: *voters as u64, raise: true })
        }
        _ => None,
    })
}

/// Tells a cluster that was not told yet that joining it needs a token, where the settings
/// say so. Waits until every member reads that.
pub(crate) async fn announce_need(node: Arc<Bootstrap>, replica: Arc<Replica>) {
    let mut progress = replica.progress();
    while node.joining.needs_token && replica.admissions().needs_token.is_none() {
        if let Ok(me) = node.router.owner()
            && replica.nodes().contains_key(&me.node)
            && versions::admit_by_token(&replica.nodes())
        {
            let need = Admission::Need { needs_token: true, node: me.node, first: true };
            match node.router.ask(Write(Command::Admission(need))).await {
                Ok(_) => return,
                Err(e) => tracing::debug!(error = %e, "that joining needs a token is not told yet"),
            }
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY) => {}
            () = node.stop.cancelled() => return,
        }
    }
}

/// Has a member endorse this node where none has, not the key that it signs with by now, or none
/// that counts still: it joined when members endorsed nobody, it changed its key, or who let it in
/// left or was revoked.
pub(crate) async fn keep_endorsed(node: Arc<Bootstrap>, replica: Arc<Replica>) {
    let Ok(me) = node.router.owner() else { return };
    loop {
        // Registered before the look: no change is missed.
        let mut changed = pin!(node.endorser.changed());
        changed.as_mut().enable();
        let convinces = node.endorser.convinces(me, &replica.nodes());
        if !(node.endorser.is_endorsed(me) && convinces) {
            endorse(&node, &replica, me).await;
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(ENDORSE_AGAIN) => {}
            () = node.stop.cancelled() => return,
        }
    }
}

/// Asks the oldest members, whom the most replicas know, until one endorses this node.
async fn endorse(node: &Bootstrap, replica: &Replica, me: Owner) {
    let nodes = replica.nodes();
    let members = nodes.iter().filter(|(id, known)| **id != me.node && known.is_member());
    for (id, member) in members.take(ENDORSERS) {
        let asked = node.ask_to_join(member.facts.members()).await;
        let renewed = asked.and_then(|(owner, admitted)| match admitted {
            Some(admitted) if owner == me => node.endorser.renew(me, &nodes, admitted.proof),
            _ => Ok(false),
        });
        match renewed {
            Ok(true) => return,
            Ok(false) => tracing::debug!(member = id, "this node is not endorsed by it"),
            Err(e) => tracing::debug!(member = id, error = %e, "this node is not endorsed yet"),
        }
    }
}

/// After a restart: tells the cluster where this node is by now, learns from the peers
/// where they are, and whether this node is a member still. Goes on until a leader is
/// heard of: one that was removed while it was away never hears of one.
pub(crate) async fn announce_address(
    node: Arc<Bootstrap>,
    replica: Arc<Replica>,
    peers: Vec<String>,
) {
    let Ok(me) = node.router.owner() else { return };
    let began = Instant::now();
    loop {
        let (mut members, mut away) = (Vec::new(), false);
        let known = replica.nodes();
        let known = known.iter().filter(|(id, known)| **id != me.node && known.is_member());
        let known = known.map(|(_, known)| known.facts.members().to_owned());
        let peers: Vec<String> = peers.iter().cloned().chain(known).collect();
        for (address, greeting) in ask_peers(&node, &peers).await {
            let Some(owner) = greeting.owner.filter(|owner| owner.cluster == me.cluster) else {
                continue;
            };
            node.peers.set_address(owner.node, &address);
            members.push(owner);
            match greeting.of_you {
                Some(OfYou::Left) => {
                    match node.member.votes() {
                        true => tracing::warn!(
                            node = me.node,
                            "this node is being removed from its cluster: keep it running until \
                             another one votes in its place"
                        ),
                        false => tracing::error!(
                            node = me.node,
                            "this node was removed from its cluster: empty its data folder to \
                             join anew"
                        ),
                    }
                    return node.member.set_removed();
                }
                Some(OfYou::Away) => away = true,
                None => {}
            }
        }
        let nodes = replica.nodes();
        let registered = nodes.get(&me.node);
        // Compilers are told by who looks for them: here it is about being found.
        let found = |facts: &NodeFacts| {
            let compilers = node.facts.compilers.clone();
            NodeFacts { compilers, ..facts.clone() } == node.facts
        };
        if registered.is_some_and(|known| known.left) {
            return;
        }
        let is_right = registered.is_some_and(|known| !known.away && found(&known.facts));
        if is_right && !away && node.member.last_contact() > began {
            return;
        }
        if registered.is_some() && (away || !is_right) {
            send_facts(&node, me, members).await;
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = node.stop.cancelled() => return,
        }
    }
}

async fn ask_peers(node: &Bootstrap, peers: &[String]) -> Vec<(String, Greeting)> {
    match resolve(peers).await {
        Ok(addresses) => node.ask_peers(&addresses).await,
        Err(e) => {
            tracing::warn!(error = %e, "the peers cannot be asked");
            Vec::new()
        }
    }
}

/// Tells the leader where this node is, also where it is not known who leads: a
/// leader cannot reach a node that moved, so the node hears of no new one.
async fn send_facts(node: &Bootstrap, me: Owner, members: Vec<Owner>) {
    let facts = Write(Command::Facts { node: me.node, facts: node.facts.clone() });
    for member in members {
        let asking = node.router.ask_peer::<Write>(member, facts.clone().into());
        match tokio::time::timeout(node.patience, asking).await {
            Ok(Ok(Ok(_))) => return,
            Ok(Ok(Err(Unanswered::NotLeader))) => {}
            other => tracing::debug!(node = member.node, ?other, "the facts are not told yet"),
        }
    }
    // None of the peers leads: whoever did when this node stopped may.
    if node.router.leader().is_some()
        && let Err(e) = node.router.ask(facts).await
    {
        tracing::debug!(error = %e, "the facts are not told yet");
    }
}

#[cfg(test)]
mod tests;
