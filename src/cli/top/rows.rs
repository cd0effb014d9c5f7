//! The view as rows of text.
//!
//! Invariant: every cell is printable characters alone, whatever the view has.

use kiln::dashboard::{
    View,
    view::{NodeState, NodeView},
};

use super::tab::Tab;
use crate::cli::output::{seconds, size};

/// Longest cell in characters.
const LONGEST: usize = 60;
/// Characters that turn the order of what is around them.
const TURNING: [char; 9] = [
    '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}',
    '\u{2069}',
];

/// A table.
pub(super) struct Rows {
    pub(super) heading: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Rows {
    fn new<const N: usize>(
        heading: [&'static str; N],
        rows: impl Iterator<Item = [String; N]>,
    ) -> Self {
        let rows = rows.map(|row| row.iter().map(|cell| plain(cell)).collect());
        Self { heading: heading.to_vec(), rows: rows.collect() }
    }

    /// Characters that each column needs.
    pub(super) fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.heading.iter().map(|name| name.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    /// In columns.
    pub(super) fn text(&self) -> String {
        if self.rows.is_empty() {
            return "  nothing".to_owned();
        }
        let widths = self.widths();
        let line = |cells: Vec<&str>| {
            let cells = cells.iter().zip(&widths);
            let cells: Vec<_> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
            format!("  {}", cells.join("  ").trim_end())
        };
        let rows = self.rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
        let lines: Vec<_> = std::iter::once(line(self.heading.clone())).chain(rows).collect();
        lines.join("\n")
    }
}

/// Printable, on one line, and not too long.
pub(super) fn plain(text: &str) -> String {
    let bad = |c: char| c.is_control() || TURNING.contains(&c);
    let cut = text.chars().map(|c| if bad(c) { '·' } else { c });
    let mut shown: String = cut.take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

fn key(key: &str) -> String {
    key.chars().take(12).collect()
}

fn count(of: &std::collections::BTreeMap<String, u64>, name: &str) -> u64 {
    of.get(name).copied().unwrap_or_default()
}

/// Artifacts that were found, of all that were asked for.
pub(super) fn hits(of: &std::collections::BTreeMap<String, u64>) -> (u64, u64) {
    let sum =
        |names: &[&str]| names.iter().map(|name| count(of, name)).fold(0, u64::saturating_add);
    let hits = sum(&["hits_memory", "hits_disk", "hits_peer", "hits_object"]);
    (hits, hits.saturating_add(sum(&["coalesced", "compiled", "failed"])))
}

/// Values of Redis clients, likewise.
fn values(of: &std::collections::BTreeMap<String, u64>) -> (u64, u64) {
    let found = count(of, "resp_hits");
    (found, found.saturating_add(count(of, "resp_misses")))
}

fn percent((part, all): (u64, u64)) -> String {
    if all == 0 { "-".into() } else { format!("{:.1}%", 100.0 * part as f64 / all as f64) }
}

/// What matters most, on two lines.
pub(super) fn heading(view: &View) -> String {
    let up = view.nodes.iter().filter(|node| node.state == NodeState::Up).count();
    let leader = view.cluster.leader.map_or("no leader".into(), |id| format!("node {id} leads"));
    let quorum = if view.cluster.quorum { "" } else { "; NO QUORUM: reads only" };
    let stage = |name| view.flights.iter().filter(|flight| flight.stage == name).count();
    format!(
        "{up} of {} nodes up, {leader}, term {}{quorum}; seen by node {}\n\
         hits {}, Redis hits {}; {} compiling, {} waiting, {} leases; {} entries, saved {}",
        view.nodes.len(),
        view.cluster.term,
        view.answered_by,
        percent(hits(&view.totals)),
        percent(values(&view.totals)),
        stage("compiling"),
        stage("waiting") + stage("acquiring"),
        view.leases.held,
        view.cluster.entries,
        seconds(view.top.seconds_saved),
    )
}

/// The rows of one part.
pub(super) fn of(tab: Tab, view: &View) -> Rows {
    match tab {
        Tab::Nodes => nodes(view),
        Tab::Requests => requests(view),
        Tab::Flights => flights(view),
        Tab::Top => top(view),
        Tab::Misses => misses(view),
        Tab::Alerts => alerts(view),
    }
}

fn nodes(view: &View) -> Rows {
    let heading = [
        "NODE", "STATE", "ROLE", "LAG", "HITS", "RATE", "COMPILED", "FAILED", "REDIS", "MEMORY",
        "DISK", "VERSION",
    ];
    Rows::new(heading, view.nodes.iter().map(node))
}

fn node(node: &NodeView) -> [String; 12] {
    let state = match (node.state, node.silent_ms) {
        (NodeState::Up, _) => "up".to_owned(),
        (NodeState::Gone, Some(ms)) => format!("GONE {} s", ms / 1000),
        (NodeState::Gone, None) => "GONE".to_owned(),
        (NodeState::Unknown, _) => "?".to_owned(),
    };
    let leads = if node.leader { "leader" } else { "" };
    let Some(of) = &node.figures else {
        let none = || "-".to_owned();
        let role = if node.leader { leads.to_owned() } else { none() };
        return [
            node.id.to_string(),
            state,
            role,
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            node.note.clone(),
        ];
    };
    let tier = |name: &str| {
        let bytes = of.tiers.iter().find(|tier| tier.name == name).map(|tier| tier.bytes);
        bytes.map_or("-".to_owned(), size)
    };
    [
        node.id.to_string(),
        state,
        of.role.clone(),
        node.lag.map_or("-".to_owned(), |lag| lag.to_string()),
        hits(&of.counters).0.to_string(),
        percent(hits(&of.counters)),
        count(&of.counters, "compiled").to_string(),
        count(&of.counters, "failed").to_string(),
        percent(values(&of.counters)),
        tier("memory"),
        tier("disk"),
        of.version.clone(),
    ]
}

fn requests(view: &View) -> Rows {
    let last = view.history.last();
    let all = hits(&view.totals).1;
    let now = |name: &str| {
        let counts = last.map(|point| point.counts).unwrap_or_default();
        let found = serde_json::to_value(counts).ok().and_then(|counts| counts[name].as_u64());
        found.map_or("-".to_owned(), |count| format!("{:.1}", count as f64 / 5.0))
    };
    let row = |(name, shown): (&str, &str)| {
        let total = count(&view.totals, name);
        let of = if name.starts_with("resp") { values(&view.totals).1 } else { all };
        [shown.to_owned(), total.to_string(), percent((total, of)), now(name)]
    };
    let names = [
        ("hits_memory", "hit: memory"),
        ("hits_disk", "hit: disk"),
        ("hits_peer", "hit: peer"),
        ("hits_object", "hit: object"),
        ("coalesced", "waited for a compile"),
        ("compiled", "compiled"),
        ("failed", "failed"),
        ("resp_hits", "Redis: found"),
        ("resp_misses", "Redis: not found"),
    ];
    Rows::new(["ANSWER", "REQUESTS", "SHARE", "A SECOND"], names.into_iter().map(row))
}

fn flights(view: &View) -> Rows {
    let rows = view.flights.iter().map(|flight| {
        let pieces = match flight.pieces {
            0 => "-".to_owned(),
            all => format!("{} of {all}", flight.pieces_over),
        };
        [
            key(&flight.key),
            flight.node.to_string(),
            flight.stage.clone(),
            pieces,
            seconds(flight.seconds),
            flight.compiler.clone(),
            flight.label.clone(),
        ]
    });
    Rows::new(["KEY", "NODE", "STAGE", "PIECES", "FOR", "COMPILER", "NAME"], rows)
}

fn top(view: &View) -> Rows {
    let rows = view.top.artifacts.iter().map(|one| {
        [
            key(&one.key),
            one.hits.to_string(),
            seconds(one.compile_seconds),
            seconds(one.seconds_saved),
            size(one.bytes),
            one.compiler.clone(),
            one.label.clone(),
        ]
    });
    Rows::new(["KEY", "HITS", "A COMPILE", "SAVED", "SIZE", "COMPILER", "NAME"], rows)
}

fn misses(view: &View) -> Rows {
    let rows = view.misses.iter().map(|miss| {
        let passed = view.at_unix_ms.saturating_sub(miss.at_unix_ms) / 1000;
        let reason = if miss.reason.is_empty() { "looking for it" } else { &miss.reason };
        [
            key(&miss.key),
            miss.node.to_string(),
            format!("{passed} s ago"),
            miss.maker.clone(),
            miss.label.chars().take(24).collect(),
            reason.to_owned(),
        ]
    });
    Rows::new(["KEY", "NODE", "WHEN", "MAKER", "NAME", "REASON"], rows)
}

fn alerts(view: &View) -> Rows {
    let since = |unix_ms: u64| format!("{} s", view.at_unix_ms.saturating_sub(unix_ms) / 1000);
    let alerts = view.alerts.iter().map(|alert| {
        let node = alert.node.to_string();
        [
            alert.severity.clone(),
            node,
            since(alert.since_unix_ms),
            alert.name.clone(),
            alert.summary.clone(),
        ]
    });
    let decisions = view.decisions.iter().map(|decision| {
        let node = decision.node.to_string();
        [
            decision.state.clone(),
            node,
            since(decision.at_unix_ms),
            decision.action.clone(),
            decision.evidence.clone(),
        ]
    });
    Rows::new(["STATE", "NODE", "FOR", "WHAT", "WHY"], alerts.chain(decisions))
}
