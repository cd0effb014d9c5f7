//! `kiln status`: the node and the cluster as the node sees them.

use std::time::Duration;

use clap::Args;
use kiln_proto::pb;

use super::{
    CliError, ClientArgs,
    output::{self, size, table},
    view::{AccessView, NodeView, StatusView, TierView},
};

const EXAMPLES: &str = "\
Examples:
  kiln status
  kiln status --probe
  kiln status --endpoint http://10.0.0.2:7400 --json";

/// Show the node and the cluster as the node sees them.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Status {
    /// Only whether the node answers, for whoever probes it: no token is needed.
    #[arg(long)]
    probe: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Status {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let status = self.client.endpoints.attempt(async |mut client| {
            client
                .status(pb::StatusRequest { whole: true })
                .await
                .map_err(|e| CliError::from_status(&e))
        });
        let status = match status.await {
            // It answers, and tells a stranger no more.
            Err(CliError::Denied { .. }) if self.probe => None,
            status => Some(status?.into_inner()),
        };
        let Some(status) = status.filter(|_| !self.probe) else {
            return match self.client.json {
                true => output::json(&serde_json::json!({ "answers": true })),
                false => output::line("the node answers"),
            };
        };
        let view = StatusView::from(status);
        match self.client.json {
            true => output::json(&view),
            false => output::line(for_people(&view)),
        }
    }
}

fn for_people(view: &StatusView) -> String {
    let leader = view.leader.map_or("none known".to_owned(), |id| format!("node {id}"));
    let state = match (view.role.as_str(), view.quorum) {
        ("removed", _) => {
            "; this node LEFT its cluster and serves nothing: stop it, and delete its data folder \
             before it is started again"
        }
        (_, true) => "",
        (_, false) => "; NO QUORUM: reads only",
    };
    let leaving = view.leaving.map(|left| format!("\nLEAVING: reads only; {left}"));
    let leaving = leaving.unwrap_or_default();
    let emergency = view.emergency.as_ref().map(|mode| format!("\nEMERGENCY: {mode}"));
    let emergency = emergency.unwrap_or_default();
    let mut parts = vec![format!(
        "node {} ({}, kiln {})\nleader: {leader}, term {}, applied {}{state}{leaving}{emergency}\nentries: {}, kept requests among them",
        view.node, view.role, view.version, view.term, view.applied, view.entries
    )];
    let node = |node: &NodeView| {
        let compilers: Vec<_> = node.compilers.iter().map(|c| c.compiler.clone()).collect();
        [
            node.id.to_string(),
            node.grpc.clone(),
            if node.voter { "voter" } else { "learner" }.to_owned(),
            state_of(node),
            compilers.join(","),
        ]
    };
    let rows: Vec<_> = view.nodes.iter().map(node).collect();
    let mut nodes = table(["NODE", "GRPC", "ROLE", "STATE", "COMPILERS"], &rows);
    for (what, ids) in [("left", &view.left), ("set aside until they answer", &view.away)] {
        nodes.push_str(&gone(what, ids));
    }
    if view.seen_by != view.node {
        nodes.push_str(&format!("\nas the leader, node {}, sees them", view.seen_by));
    }
    parts.push(nodes);
    if let Some(access) = &view.access {
        parts.push(access_of(access));
    }
    let tier = |tier: &TierView| {
        [
            tier.name.clone(),
            tier.bytes.map_or_else(|| "-".to_owned(), size),
            if tier.capacity_bytes == 0 { "-".to_owned() } else { size(tier.capacity_bytes) },
            tier.entries.map_or_else(|| "-".to_owned(), |entries| entries.to_string()),
            if tier.healthy { "ok" } else { "FAILING" }.to_owned(),
        ]
    };
    let rows: Vec<_> = view.tiers.iter().map(tier).collect();
    parts.push(table(["TIER", "USED", "OF", "ENTRIES", "STATE"], &rows));
    parts.join("\n\n")
}

/// What is asked of callers.
fn access_of(access: &AccessView) -> String {
    let AccessView { required, caller, role, namespaces, join_needs_token } = access;
    let joining = if *join_needs_token { "\njoining needs a token" } else { "" };
    let who = match required {
        true => format!("access: required; you are {caller}: {role} in {}", namespaces.join(", ")),
        false => {
            "access: open, whoever reaches the ports may do everything (access.required)".into()
        }
    };
    who + joining
}

/// Whether a node answers, and since when it does not.
fn state_of(node: &NodeView) -> String {
    let silent =
        node.silent_ms.map(|ms| humantime::format_duration(Duration::from_secs(ms / 1000)));
    match (node.reachable, silent) {
        (Some(true), _) => "up".to_owned(),
        (Some(false), Some(silent)) => format!("DOWN for {silent}"),
        (Some(false), None) => "DOWN".to_owned(),
        (None, _) => "?".to_owned(),
    }
}

/// A line of those that are not in the table, the latest of them.
fn gone(what: &str, ids: &[u64]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = ids.iter().rev().take(SHOWN).map(|id| format!("node {id}")).collect();
    let more = match ids.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} before"),
    };
    if ids.is_empty() { String::new() } else { format!("\n{what}: {}{more}", shown.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> pb::StatusResponse {
        pb::StatusResponse {
            node: 1,
            version: "0.1.0".into(),
            role: "follower".into(),
            leader: 0,
            term: 4,
            applied: 17,
            quorum: false,
            entries: 2,
            nodes: vec![pb::NodeStatus {
                id: 1,
                grpc: "127.0.0.1:7400".into(),
                transfer: "127.0.0.1:7402".into(),
                voter: true,
                reachable: Some(true),
                compilers: Vec::new(),
                silent_ms: None,
            }],
            tiers: vec![pb::TierStatus {
                name: "memory".into(),
                bytes: 5,
                entries: 1,
                capacity_bytes: 10,
                healthy: true,
                uncounted: false,
            }],
            compilers: vec![pb::Fingerprint {
                compiler: "cuda".into(),
                versions: vec![pb::Field { name: "nvrtc".into(), value: "13.0".into() }],
            }],
            counters: vec![pb::Counter { name: "compiles".into(), value: 3 }],
            // Its earlier key, and the present one.
            signers: [0xcd, 0xab]
                .map(|byte| pb::Signer { node: 1, key: vec![byte; 32].into(), certificate: None })
                .into(),
            leaving: None,
            emergency: None,
            left: Vec::new(),
            away: Vec::new(),
            seen_by: 0,
            access: None,
        }
    }

    #[test]
    fn what_a_node_does_without_is_plain_to_see() {
        let cause = pb::EmergencyCause {
            by: "monitor".into(),
            why: "all fail".into(),
            since_unix_ms: 1_000,
        };
        let emergency = Some(pb::EmergencyMode { compilers: Some(cause), cache: None });
        let view = StatusView::from(pb::StatusResponse { emergency, ..status() });
        let text = for_people(&view);
        assert!(
            text.contains(
                "EMERGENCY: compilers off since 1970-01-01T00:00:01Z by monitor: all fail"
            ),
            "{text}"
        );
        let json = serde_json::to_value(view).unwrap();
        let cause = serde_json::json!({"by": "monitor", "why": "all fail", "since_unix_ms": 1000});
        assert_eq!(json["emergency"], serde_json::json!({"compilers": cause, "cache": null}));
    }

    #[test]
    fn the_json_shape_holds() {
        assert_eq!(
            serde_json::to_value(StatusView::from(status())).unwrap(),
            serde_json::json!({
                "node": 1, "version": "0.1.0", "role": "follower", "leader": null, "term": 4,
                "applied": 17, "quorum": false, "entries": 2,
                "nodes": [{"id": 1, "grpc": "127.0.0.1:7400", "transfer": "127.0.0.1:7402",
                    "voter": true, "reachable": true, "compilers": [], "silent_ms": null}],
                "tiers": [{"name": "memory", "bytes": 5, "entries": 1, "capacity_bytes": 10,
                    "healthy": true}],
                "compilers": [{"compiler": "cuda", "versions": {"nvrtc": "13.0"}}],
                "counters": {"compiles": 3},
                "signers": {"1": "ab".repeat(32)},
                "signer_keys": {"1": ["cd".repeat(32), "ab".repeat(32)]},
                "left": [], "away": [], "seen_by": 1,
            })
        );
    }

    #[test]
    fn what_the_leader_knows_is_shown_with_its_age() {
        let mut status = status();
        let other = status.nodes[0].clone();
        let node =
            |id, reachable, silent_ms| pb::NodeStatus { id, reachable, silent_ms, ..other.clone() };
        status.nodes = vec![node(1, Some(true), None), node(2, Some(false), Some(34_500))];
        status.tiers[0].uncounted = true;
        (status.seen_by, status.left) = (3, (4..=15).collect());
        let text = for_people(&StatusView::from(status));
        for part in ["DOWN for 34s", "as the leader, node 3", "left: node 15,", "and 2 before"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("memory  -     10 B  -"), "nobody counted: {text}");
    }

    #[test]
    fn a_node_that_left_says_so() {
        let left = pb::StatusResponse { role: "removed".into(), quorum: true, ..status() };
        let text = for_people(&StatusView::from(left));
        assert!(text.contains("LEFT its cluster") && !text.contains("QUORUM"), "{text}");
    }

    #[test]
    fn a_node_that_leaves_says_what_is_left_to_do() {
        let leaving = Some(pb::Leaving { packs: 3, bytes: 2048, publications: 1 });
        let view = StatusView::from(pb::StatusResponse { leaving, ..status() });
        let text = for_people(&view);
        assert!(text.contains("LEAVING: reads only; 3 packs (2.0 KiB) only there, 1"), "{text}");
        let json = serde_json::to_value(view).unwrap();
        let left = serde_json::json!({"packs": 3, "bytes": 2048, "publications": 1});
        assert_eq!(json["leaving"], left);
    }

    #[test]
    fn a_lost_quorum_is_plain_to_see() {
        let text = for_people(&StatusView::from(status()));
        assert!(text.contains("NO QUORUM") && text.contains("none known"), "{text}");
    }
}
