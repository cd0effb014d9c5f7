//! One view, put together from what this node has and the others tell.
//!
//! Invariant: every member is in the view, whatever became of it; sums are over the nodes
//! that answer, and no other.

use std::collections::BTreeMap;

use kiln_cluster::{ClusterStatus, NodeStatus};

use super::{
    history::History,
    local::Local,
    peers::{Peers, Seen},
    sample::{KEPT, slot_of},
    sources::Sources,
    top::Top,
    view::{
        ClusterView, Figures, LeaseView, LeasesView, MissView, NodeState, NodeView, View,
        WantedView,
    },
};
use crate::{clock, manager};

/// Leases, wanted lists and flights that are shown.
const LISTED: usize = 128;
/// Misses that are shown: of compiles, and of Redis clients.
const MISSES: usize = 48;
const VALUES: usize = 16;
/// Points of the history that go with each event: who watches has the others already.
const NEWS: usize = 4;

/// What lasts from view to view.
#[derive(Default)]
pub(super) struct Collector {
    peers: Peers,
    history: History,
    top: Top,
    /// This node's samples are in the history up to this span.
    own_slot: u64,
}

impl Collector {
    /// Nobody looked for a while.
    pub(super) fn begin_anew(&mut self) {
        self.peers.begin_anew();
    }

    /// The view as of now.
    pub(super) async fn view(&mut self, sources: &Sources, local: &Local) -> View {
        let status = sources.cluster.status();
        let samples = self.peers.ask(&sources.dialer, sources.node, &status.nodes).await;
        let slot = slot_of(clock::since_epoch());
        for (node, samples) in samples {
            self.history.add(node, samples, slot);
        }
        let mut own = local.figures(self.own_slot);
        let samples = std::mem::take(&mut own.samples);
        self.own_slot = samples.last().map_or(self.own_slot, |sample| sample.slot);
        self.history.add(sources.node, samples, slot);

        let nodes = nodes(&status, sources.node, own, |id| self.peers.seen(id));
        View {
            history: self.history.points(KEPT),
            leases: leases(sources),
            wanted: wanted(sources),
            top: self.top.told(&sources.index),
            ..view(&status, sources.node, nodes)
        }
    }
}

/// Every member.
fn nodes(
    status: &ClusterStatus,
    own: u64,
    figures: Figures,
    seen: impl Fn(u64) -> Seen,
) -> Vec<NodeView> {
    let mut figures = Some(figures);
    let node = |node: &NodeStatus| {
        let seen = match node.id == own {
            true => Seen {
                state: NodeState::Up,
                silent: None,
                figures: figures.take(),
                note: String::new(),
            },
            false => seen(node.id),
        };
        NodeView {
            id: node.id,
            state: seen.state,
            silent_ms: seen.silent.map(|silent| silent.as_millis() as u64),
            note: seen.note,
            voter: node.voter,
            leader: status.leader == Some(node.id),
            grpc: node.facts.grpc.clone(),
            http: node.facts.http.clone(),
            lag: None,
            figures: seen.figures,
        }
    };
    let mut nodes: Vec<NodeView> = status.nodes.iter().map(node).collect();
    let applied = applied(&nodes);
    for node in &mut nodes {
        node.lag = node.figures.as_ref().map(|figures| applied.saturating_sub(figures.applied));
    }
    nodes
}

fn applied(nodes: &[NodeView]) -> u64 {
    let applied = nodes.iter().filter_map(|node| node.figures.as_ref()).map(|of| of.applied);
    applied.max().unwrap_or_default()
}

/// What follows from the nodes.
fn view(status: &ClusterStatus, own: u64, mut nodes: Vec<NodeView>) -> View {
    let mut view = View {
        at_unix_ms: clock::unix_ms(),
        answered_by: own,
        cluster: ClusterView {
            leader: status.leader,
            term: status.term,
            quorum: status.quorum,
            entries: status.entries,
            differing: status.differing,
            applied: applied(&nodes),
        },
        ..View::default()
    };
    for figures in nodes.iter_mut().filter_map(|node| node.figures.as_mut()) {
        add(&mut view.totals, &figures.counters);
        // In one list for all nodes.
        view.flights.append(&mut figures.flights);
        view.misses.append(&mut figures.misses);
        view.alerts.append(&mut figures.alerts);
        view.decisions.append(&mut figures.decisions);
    }
    view.flights.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    view.flights.truncate(LISTED);
    view.misses.sort_by_key(|miss| std::cmp::Reverse((miss.at_unix_ms, miss.number)));
    keep_both_kinds(&mut view.misses);
    view.alerts.sort_by_key(|alert| std::cmp::Reverse(alert.since_unix_ms));
    view.decisions.sort_by_key(|decision| std::cmp::Reverse(decision.at_unix_ms));
    view.decisions.truncate(LISTED);
    view.nodes = nodes;
    view
}

/// However many values are missed, no compile is pushed out of the list by them.
fn keep_both_kinds(misses: &mut Vec<MissView>) {
    let (mut compiles, mut values) = (0, 0);
    misses.retain(|miss| {
        let (seen, most) = match miss.maker == manager::VALUE {
            true => (&mut values, VALUES),
            false => (&mut compiles, MISSES),
        };
        *seen += 1;
        *seen <= most
    });
}

fn add(totals: &mut BTreeMap<String, u64>, counters: &BTreeMap<String, u64>) {
    for (name, value) in counters {
        let total = totals.entry(name.clone()).or_default();
        *total = total.saturating_add(*value);
    }
}

fn leases(sources: &Sources) -> LeasesView {
    let (held, some) = sources.index.leases(LISTED);
    let some = some.into_iter().map(|(key, node, token)| LeaseView {
        key: key.to_string(),
        node,
        token: token.0,
    });
    LeasesView { held: held as u64, some: some.collect() }
}

fn wanted(sources: &Sources) -> Vec<WantedView> {
    let lists = sources.index.wanted();
    let list = |list: &kiln_cluster::Wanted| WantedView {
        whole: list.whole.to_string(),
        node: list.node,
        compiler: list.fingerprint.compiler.clone(),
        pieces: list.pieces.len() as u64,
        seconds: list.pieces.iter().map(|piece| f64::from(piece.seconds)).sum(),
    };
    lists.iter().take(LISTED).map(|of| list(of)).collect()
}

/// A view for who watches: with the latest of its history alone.
pub(super) fn news(view: &View) -> View {
    let from = view.history.len().saturating_sub(NEWS);
    View { history: view.history[from..].to_vec(), ..view.clone() }
}

#[cfg(test)]
mod tests {
    use kiln_cluster::{NodeFacts, Role};

    use super::*;
    use crate::dashboard::view::{FlightView, Point};

    fn status() -> ClusterStatus {
        let node = |id| NodeStatus {
            id,
            facts: NodeFacts { http: format!("host-{id}:1"), ..NodeFacts::default() },
            voter: true,
            reachable: None,
            silent: None,
        };
        ClusterStatus {
            node: Some(1),
            cluster: Some(7),
            role: Role::Follower,
            leader: Some(2),
            term: 3,
            applied: 10,
            logged: 12,
            quorum: true,
            nodes: vec![node(1), node(2), node(3)],
            left: Vec::new(),
            away: Vec::new(),
            entries: 4,
            differing: 0,
        }
    }

    fn figures(node: u64, applied: u64) -> Figures {
        let counters = BTreeMap::from([("compiled".to_owned(), node), ("failed".into(), u64::MAX)]);
        let flights = vec![FlightView { node, seconds: node as f64, ..FlightView::default() }];
        let misses = vec![MissView { node, at_unix_ms: 100 + node, ..MissView::default() }];
        Figures { node, applied, counters, flights, misses, ..Figures::default() }
    }

    fn seen(id: u64) -> Seen {
        match id {
            2 => {
                let figures = Some(figures(2, 15));
                Seen { state: NodeState::Up, silent: None, figures, note: String::new() }
            }
            _ => {
                Seen { state: NodeState::Gone, silent: None, figures: None, note: "refused".into() }
            }
        }
    }

    #[test]
    fn every_member_is_shown_and_the_sums_are_those_of_the_nodes_that_answer() {
        let status = status();
        let view = view(&status, 1, nodes(&status, 1, figures(1, 10), seen));
        let states: Vec<_> =
            view.nodes.iter().map(|node| (node.id, node.state, node.lag)).collect();
        let expected =
            [(1, NodeState::Up, Some(5)), (2, NodeState::Up, Some(0)), (3, NodeState::Gone, None)];
        assert_eq!(states, expected);
        assert!(view.nodes[1].leader && !view.nodes[0].leader);
        assert_eq!(view.totals["compiled"], 3);
        assert_eq!(view.totals["failed"], u64::MAX, "no node's figure overflows the sum");
        assert_eq!(view.cluster.applied, 15);
    }

    #[test]
    fn lists_of_all_nodes_are_one_list_in_order() {
        let status = status();
        let view = view(&status, 1, nodes(&status, 1, figures(1, 10), seen));
        let flights: Vec<_> = view.flights.iter().map(|flight| flight.node).collect();
        let misses: Vec<_> = view.misses.iter().map(|miss| miss.node).collect();
        assert_eq!((flights, misses), (vec![2, 1], vec![2, 1]));
        assert!(view.nodes[0].figures.as_ref().is_some_and(|own| own.flights.is_empty()));
    }

    #[test]
    fn many_missed_values_push_no_compile_out_of_the_list() {
        let miss =
            |n, maker: &str| MissView { number: n, maker: maker.into(), ..MissView::default() };
        let mut misses: Vec<_> = (0..500).map(|n| miss(n, manager::VALUE)).collect();
        misses.extend((500..600).map(|n| miss(n, "cuda")));
        keep_both_kinds(&mut misses);
        assert_eq!(misses.len(), VALUES + MISSES);
        assert_eq!((misses[0].number, misses[VALUES].number), (0, 500));
    }

    #[test]
    fn who_watches_gets_the_latest_points_alone_in_the_same_shape() {
        let point = |at_unix_ms| Point { at_unix_ms, ..Point::default() };
        let view = View { history: (0..50).map(point).collect(), ..View::default() };
        let news = news(&view);
        assert_eq!(news.history.len(), NEWS);
        assert_eq!(news.history[NEWS - 1].at_unix_ms, 49);
        let json = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<View>(&json).unwrap(), view);
    }

    #[test]
    fn what_an_older_node_does_not_tell_is_empty() {
        let told: Figures = serde_json::from_str(r#"{"node": 3, "unheard_of": [1]}"#).unwrap();
        assert_eq!(told, Figures { node: 3, ..Figures::default() });
    }
}
