//! The nodes of `kiln dev`, for people.
//!
//! Invariant: it says what to type next, up to a hit, and of each compiler that a node lacks why;
//! its table has room in 80 columns.

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
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    let mut parts = vec![output::table(["NODE", "ENDPOINT", "RESP", "HTTP"], &rows)];
    let compilers: Vec<_> = [present(nodes), missing(nodes)].into_iter().flatten().collect();
    parts.push(compilers.join("\n"));
    parts.push(format!("In another terminal:\n  {}", next(nodes).join("\n  ")));
    parts.push(format!(
        "Data and logs: {}/node-*\nCtrl-C stops all nodes; to start them again:\n  kiln dev --dir {0}",
        dir.display()
    ));
    parts.join("\n\n")
}

/// The compilers that some node has; which ones lack one is told below. `None`: there is none.
fn present(nodes: &[NodeView]) -> Option<String> {
    let mut compilers: Vec<&str> = Vec::new();
    for compiler in nodes.iter().flat_map(|node| &node.compilers) {
        if !compilers.contains(&compiler.as_str()) {
            compilers.push(compiler);
        }
    }
    (!compilers.is_empty()).then(|| format!("Compilers: {}", compilers.join(", ")))
}

/// What to type: a look, a compile, and the same from another node, where that is possible.
fn next(nodes: &[NodeView]) -> Vec<String> {
    let endpoints: Vec<_> = nodes.iter().map(|node| format!("http://{}", node.grpc)).collect();
    let mut lines =
        vec![format!("export KILN_ENDPOINT={}", endpoints.join(",")), "kiln status".into()];
    // A node that still looks for it has it when somebody has read this far.
    let loads = |node: &NodeView| node.missing.iter().any(|m| m.compiler == "cuda" && m.loading);
    let has = |node: &NodeView| node.compilers.iter().any(|compiler| compiler == "cuda");
    if nodes.iter().all(|node| has(node) || loads(node)) {
        const COMPILE: &str = "kiln compile hello.cu --target sm_90";
        lines.push("echo '__global__ void hello() {}' >hello.cu".into());
        lines.push(format!("{COMPILE}  # compiled; no GPU needed"));
        if let [_, .., last] = &*endpoints {
            lines.push(format!("{COMPILE} --endpoint {last}  # a hit"));
        }
    }
    lines
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
        output::wrapped(&format!("  {}{on}: {why}", compilers.join(", ")), 4, output::width())
    };
    let lines: Vec<_> = reasons.iter().map(line).collect();
    (!lines.is_empty()).then(|| format!("Not here:\n{}", lines.join("\n")))
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
NODE  ENDPOINT               RESP            HTTP
1     http://127.0.0.1:7400  127.0.0.1:7403  http://127.0.0.1:7401
2     http://127.0.0.1:7410  off             http://127.0.0.1:7411

Compilers: cuda, eager
Not here:
  inductor, mixed: no torch
  native on node 2: no NVRTC

In another terminal:
  export KILN_ENDPOINT=http://127.0.0.1:7400,http://127.0.0.1:7410
  kiln status
  echo '__global__ void hello() {}' >hello.cu
  kiln compile hello.cu --target sm_90  # compiled; no GPU needed
  kiln compile hello.cu --target sm_90 --endpoint http://127.0.0.1:7410  # a hit

Data and logs: /d/node-*
Ctrl-C stops all nodes; to start them again:
  kiln dev --dir /d"
        );
        let mut slow = [node(1, &[]), node(2, &[("cuda", "try again")])];
        slow[1].missing[0].loading = true;
        slow[1].compilers = vec!["eager".into()];
        let text = for_people(&slow, Path::new("/d"));
        assert!(text.contains("Compilers: cuda, eager\nNot here:\n  cuda on node 2"), "{text}");
        assert!(text.contains("7410  # a hit"), "{text}");
        let mut alone = node(1, &[("cuda", "no NVRTC")]);
        alone.compilers.clear();
        let text = for_people(&[alone], Path::new("/d"));
        assert!(!text.contains("kiln compile") && !text.contains("Compilers:"), "{text}");
        assert!(text.contains("Not here:\n  cuda: no NVRTC"), "{text}");
    }
}
