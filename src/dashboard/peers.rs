//! What other nodes tell of themselves, asked once a round.
//!
//! Invariant: a round ends within [`PATIENCE`] however many nodes are dead, slow or lying;
//! what a node tells is bounded and kept under its own id alone.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use kiln_cluster::NodeStatus;
use kiln_proto::{NodeId, pb, pb::kiln_client::KilnClient};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{
    sample::{KEPT, Sample},
    view::{Figures, NodeState},
};
use crate::net::tls::Dialer;

/// What one node's answer may take, and so a round.
const PATIENCE: Duration = Duration::from_millis(900);
/// A node that is silent for longer is gone: more than two rounds.
pub(super) const GONE: Duration = Duration::from_millis(2500);
/// Nodes that are asked at once.
const AT_ONCE: usize = 64;
/// Largest answer: an hour of samples is some hundred KiB.
const MOST_BYTES: usize = 4 << 20;
/// Most of each list that one node tells.
const MOST_LISTED: usize = 256;
/// Longest text that is kept of a peer's answer, in characters.
const LONGEST: usize = 512;

/// One other member.
struct Peer {
    address: String,
    client: KilnClient<Channel>,
    asked_since: Instant,
    answered: Option<Instant>,
    /// The last answer, without its samples.
    figures: Option<Figures>,
    last_slot: u64,
    note: String,
}

/// All other members.
#[derive(Default)]
pub(super) struct Peers(BTreeMap<NodeId, Peer>);

/// One of them, as of now.
pub(super) struct Seen {
    pub(super) state: NodeState,
    pub(super) silent: Option<Duration>,
    pub(super) figures: Option<Figures>,
    pub(super) note: String,
}

impl Peers {
    /// Asks every member but `own`; returns the samples that are new, by node.
    pub(super) async fn ask(
        &mut self,
        dialer: &Dialer,
        own: NodeId,
        members: &[NodeStatus],
    ) -> Vec<(NodeId, Vec<Sample>)> {
        self.follow(dialer, own, members);
        let asked: Vec<_> =
            self.0.iter().map(|(id, peer)| ask(*id, peer.client.clone(), peer.last_slot)).collect();
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        let mut samples = Vec::new();
        for (id, answer) in answers {
            let Some(peer) = self.0.get_mut(&id) else { continue };
            if let Some(new) = peer.take(id, answer) {
                samples.push((id, new));
            }
        }
        samples
    }

    /// Nobody looked for a while: how long nodes were silent meanwhile is not known.
    pub(super) fn begin_anew(&mut self) {
        for peer in self.0.values_mut() {
            (peer.asked_since, peer.answered) = (Instant::now(), None);
        }
    }

    /// What is known of `id`.
    pub(super) fn seen(&self, id: NodeId) -> Seen {
        let Some(peer) = self.0.get(&id) else {
            let note = "it was not asked yet".to_owned();
            return Seen { state: NodeState::Unknown, silent: None, figures: None, note };
        };
        let silent = peer.answered.map(|answered| answered.elapsed());
        let state = match silent {
            Some(silent) if silent < GONE => NodeState::Up,
            None if peer.asked_since.elapsed() < GONE => NodeState::Unknown,
            _ => NodeState::Gone,
        };
        let figures = if state == NodeState::Up { peer.figures.clone() } else { None };
        Seen { state, silent, figures, note: peer.note.clone() }
    }

    /// Forgets who is no member any more, or has another address; adds who is new.
    fn follow(&mut self, dialer: &Dialer, own: NodeId, members: &[NodeStatus]) {
        let address =
            |id: NodeId| members.iter().find(|node| node.id == id).map(|n| n.facts.members());
        self.0.retain(|id, peer| address(*id) == Some(&peer.address));
        for node in members.iter().filter(|node| node.id != own) {
            if self.0.contains_key(&node.id) {
                continue;
            }
            let Some(client) = connect(dialer, node.facts.members()) else { continue };
            let peer = Peer {
                address: node.facts.members().to_owned(),
                client,
                asked_since: Instant::now(),
                answered: None,
                figures: None,
                last_slot: 0,
                note: String::new(),
            };
            self.0.insert(node.id, peer);
        }
    }
}

impl Peer {
    /// Takes an answer; its samples, if it has figures.
    fn take(&mut self, id: NodeId, answer: Result<Figures, Status>) -> Option<Vec<Sample>> {
        match answer {
            Ok(figures) if figures.node == id => {
                let mut figures = bounded(figures);
                let samples = std::mem::take(&mut figures.samples);
                self.last_slot = samples.iter().map(|s| s.slot).max().unwrap_or(self.last_slot);
                (self.answered, self.note) = (Some(Instant::now()), String::new());
                self.figures = Some(figures);
                Some(samples)
            }
            Ok(other) => {
                self.note = format!("node {} answers at its address", other.node);
                None
            }
            Err(status) if status.code() == Code::Unimplemented => {
                (self.answered, self.figures) = (Some(Instant::now()), None);
                self.note = "it runs, and is of a version that tells no figures".to_owned();
                None
            }
            Err(status) => {
                self.note = cut(status.message());
                None
            }
        }
    }
}

fn connect(dialer: &Dialer, address: &str) -> Option<KilnClient<Channel>> {
    let channel = dialer.channel(address, |e: Endpoint| e.connect_timeout(PATIENCE)).ok()?;
    Some(KilnClient::new(channel).max_decoding_message_size(MOST_BYTES))
}

async fn ask(
    id: NodeId,
    mut client: KilnClient<Channel>,
    samples_after: u64,
) -> (NodeId, Result<Figures, Status>) {
    let request = pb::OverviewRequest { node_only: true, samples_after };
    let answer = match tokio::time::timeout(PATIENCE, client.overview(request)).await {
        Ok(Ok(answer)) => serde_json::from_slice(&answer.into_inner().json)
            .map_err(|e| Status::internal(format!("its answer cannot be read: {e}"))),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("it did not answer in time")),
    };
    (id, answer)
}

/// Within what one node may take of this one's memory and of the page.
fn bounded(mut figures: Figures) -> Figures {
    figures.flights.truncate(MOST_LISTED);
    figures.misses.truncate(MOST_LISTED);
    figures.alerts.truncate(MOST_LISTED);
    figures.decisions.truncate(MOST_LISTED);
    figures.tiers.truncate(8);
    figures.compilers.truncate(32);
    figures.samples.truncate(KEPT);
    while figures.counters.len() > MOST_LISTED {
        figures.counters.pop_last();
    }
    let id = figures.node;
    figures.flights.iter_mut().for_each(|flight| flight.node = id);
    figures.misses.iter_mut().for_each(|miss| miss.node = id);
    figures.alerts.iter_mut().for_each(|alert| alert.node = id);
    figures.decisions.iter_mut().for_each(|decision| decision.node = id);
    figures
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboard::view::FlightView;

    fn peer() -> Peer {
        Peer {
            address: "127.0.0.1:1".into(),
            client: connect(&Dialer::default(), "127.0.0.1:1").unwrap(),
            asked_since: Instant::now(),
            answered: None,
            figures: None,
            last_slot: 0,
            note: String::new(),
        }
    }

    #[tokio::test]
    async fn a_node_is_up_while_it_answers_and_gone_once_it_was_silent() {
        let mut peers = Peers(BTreeMap::from([(2, peer())]));
        assert_eq!(peers.seen(2).state, NodeState::Unknown);
        peers.0.get_mut(&2).unwrap().take(2, Ok(Figures { node: 2, ..Figures::default() }));
        assert_eq!(peers.seen(2).state, NodeState::Up);
        peers.0.get_mut(&2).unwrap().take(2, Err(Status::unavailable("refused")));
        assert!(peers.seen(2).figures.is_some(), "one missed answer is no end");
        peers.0.get_mut(&2).unwrap().answered = Instant::now().checked_sub(GONE);
        let seen = peers.seen(2);
        assert_eq!((seen.state, seen.figures), (NodeState::Gone, None));
        assert_eq!(seen.note, "refused");
        peers.begin_anew();
        assert_eq!(peers.seen(2).state, NodeState::Unknown);
    }

    #[tokio::test]
    async fn a_node_that_never_answered_is_gone_after_the_same_time() {
        let silent = Peer { asked_since: Instant::now().checked_sub(GONE).unwrap(), ..peer() };
        assert_eq!(Peers(BTreeMap::from([(2, silent)])).seen(2).state, NodeState::Gone);
    }

    #[tokio::test]
    async fn a_node_speaks_for_itself_alone_and_within_bounds() {
        let mut one = peer();
        assert!(one.take(2, Ok(Figures { node: 3, ..Figures::default() })).is_none());
        assert!(one.answered.is_none() && one.note.contains("node 3"));
        let flights = vec![FlightView { node: 9, ..FlightView::default() }; MOST_LISTED * 2];
        one.take(2, Ok(Figures { node: 2, flights, ..Figures::default() })).unwrap();
        let kept = one.figures.unwrap().flights;
        assert!(kept.len() == MOST_LISTED && kept.iter().all(|flight| flight.node == 2));
    }

    #[tokio::test]
    async fn a_dead_node_holds_up_no_round() {
        let node = |id, grpc: &str| NodeStatus {
            id,
            facts: kiln_cluster::NodeFacts { grpc: grpc.into(), ..Default::default() },
            voter: true,
            reachable: None,
            silent: None,
        };
        // It accepts connections, and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let (mut peers, dialer) = (Peers::default(), Dialer::default());
        let nodes = [node(1, "127.0.0.1:1"), node(2, &address), node(3, "not an address")];
        let asking = tokio::time::timeout(Duration::from_secs(60), peers.ask(&dialer, 1, &nodes));
        assert!(asking.await.expect("the round ends").is_empty());
        assert!(peers.0.contains_key(&2) && !peers.0.contains_key(&1));
    }
}
