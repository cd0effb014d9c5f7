//! The nodes of `kiln dev`, for people.
//!
//! Invariant: it says what to type next, and of each compiler that a node lacks why.

use std::path::Path;

use super::node::NodeView;
use crate::cli::output;

/// What a terminal shows when all nodes are ready.
pub(super) fn for_people(nodes: &[NodeView], dir: &Path) -> String {
    let row = |node: &NodeView| {
        [
            node.id.to_string(),
            format!("http://{}", node.grpc),
            node.resp.clone().unwrap_or_else(|| "off".to_owned()),
            format!("http://{}", node.http),
            node.compilers.join(","),
            node.data.display().to_string(),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    let heading = ["NODE", "ENDPOINT", "RESP", "HTTP", "COMPILERS", "DATA"];
    let endpoints: Vec<_> = nodes.iter().map(|node| format!("http://{}", node.grpc)).collect();
    let mut parts = vec![output::table(heading, &rows)];
    parts.extend(missing(nodes));
    parts.push(format!(
        "In another terminal:\n  export KILN_ENDPOINT={}\n  kiln status",
        endpoints.join(",")
    ));
    parts.push(format!(
        "Logs: {}/node-*/log. Ctrl-C stops all nodes; kiln dev --dir {0} starts them again.",
        dir.display()
    ));
    parts.join("\n\n")
}

/// Each reason once, with the compilers that it keeps away, and where it is not so on all
/// nodes, from which; `None`: every node has all.
fn missing(nodes: &[NodeView]) -> Option<String> {
    let mut reasons: Vec<(&str, Vec<&str>, Vec<u64>)> = Vec::new();
    for node in nodes {
        for missing in &node.missing {
            let known = reasons.iter().position(|(why, ..)| *why == missing.why);
            let at = known.unwrap_or_else(|| {
                reasons.push((&missing.why, Vec::new(), Vec::new()));
                reasons.len() - 1
            });
            let (_, compilers, ids) = &mut reasons[at];
            if !compilers.contains(&missing.compiler.as_str()) {
                compilers.push(&missing.compiler);
            }
            if !ids.contains(&node.id) {
                ids.push(node.id);
            }
        }
    }
    let line = |(why, compilers, ids): &(&str, Vec<&str>, Vec<u64>)| {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        let on = match ids.len() == nodes.len() {
            true => String::new(),
            false => format!(" on node {}", ids.join(", ")),
        };
        format!("  {}{on}: {why}", compilers.join(", "))
    };
    let lines: Vec<_> = reasons.iter().map(line).collect();
    (!lines.is_empty()).then(|| format!("Compilers that are not here:\n{}", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use kiln::node::MissingCompiler;

    use super::*;

    fn node(id: u64, missing: &[(&str, &str)]) -> NodeView {
        let missing = missing.iter().map(|(compiler, why)| MissingCompiler {
            compiler: (*compiler).into(),
            why: (*why).into(),
            loading: false,
        });
        NodeView {
            id,
            grpc: format!("127.0.0.1:74{}0", id - 1),
            http: format!("127.0.0.1:74{}1", id - 1),
            transfer: String::new(),
            socket: None,
            resp: (id == 1).then(|| "127.0.0.1:7403".into()),
            resp_socket: None,
            pid: 4,
            data: format!("/d/node-{id}/data").into(),
            config: "/d/node-1/config.toml".into(),
            log: "/d/node-1/log".into(),
            compilers: vec!["cuda".into(), "eager".into()],
            missing: missing.collect(),
        }
    }

    #[test]
    fn it_has_what_to_paste_and_why_a_compiler_is_not_here() {
        let torch = [("inductor", "no torch"), ("mixed", "no torch")];
        let nodes = [node(1, &torch), node(2, &[torch[0], torch[1], ("native", "no NVRTC")])];
        assert_eq!(
            for_people(&nodes, Path::new("/d")),
            "\
NODE  ENDPOINT               RESP            HTTP                   COMPILERS   DATA
1     http://127.0.0.1:7400  127.0.0.1:7403  http://127.0.0.1:7401  cuda,eager  /d/node-1/data
2     http://127.0.0.1:7410  off             http://127.0.0.1:7411  cuda,eager  /d/node-2/data

Compilers that are not here:
  inductor, mixed: no torch
  native on node 2: no NVRTC

In another terminal:
  export KILN_ENDPOINT=http://127.0.0.1:7400,http://127.0.0.1:7410
  kiln status

Logs: /d/node-*/log. Ctrl-C stops all nodes; kiln dev --dir /d starts them again."
        );
    }
}
