//! The view behind the dashboard: what all nodes tell, nodes that die, readers that stall.

use kiln::dashboard::{View, view::NodeState};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{SOON, TestCluster, TestNode, eventually, http, metrics, saxpy, slow};

/// Who watches at once, at most.
const WATCHERS: usize = 32;

async fn view(node: &TestNode) -> View {
    let (code, body) = http(node, "/api/v1/state").await;
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn states(view: &View) -> Vec<NodeState> {
    view.nodes.iter().map(|node| node.state).collect()
}

async fn all_up(node: &TestNode) -> View {
    eventually("all nodes up", async || {
        let view = view(node).await;
        states(&view).iter().all(|state| *state == NodeState::Up).then_some(view)
    })
    .await
}

#[tokio::test]
async fn the_view_of_any_node_has_the_figures_of_all() {
    let cluster = TestCluster::start(3).await;
    let made = cluster.nodes[0].compile(saxpy("seen")).await.unwrap();
    for node in &cluster.nodes {
        node.compile(saxpy("seen")).await.unwrap();
    }
    for asked in &cluster.nodes {
        let view = all_up(asked).await;
        assert_eq!(view.answered_by, asked.id);
        assert_eq!((view.totals["compiled"], view.totals["compiler_runs"]), (1, 1));
        for node in &cluster.nodes {
            let shown = view.nodes.iter().find(|shown| shown.id == node.id).unwrap();
            let figures = shown.figures.as_ref().unwrap();
            for name in ["hits_memory", "hits_disk", "hits_peer", "compiled", "failed"] {
                assert_eq!(figures.counters[name], node.counter(name).await, "{name}");
            }
        }
        assert_eq!(view.nodes.iter().filter(|node| node.leader).count(), 1);
        assert!(view.cluster.quorum && view.cluster.entries == 1, "{:?}", view.cluster);
        assert!(view.misses.iter().any(|miss| miss.key == made.key.to_string()));
    }
    let page = metrics(&cluster.nodes[1]).await;
    let counted = view(&cluster.nodes[1]).await;
    let own = counted.nodes.iter().find(|node| node.id == cluster.nodes[1].id).unwrap();
    let disk = own.figures.as_ref().unwrap().tiers.iter().find(|tier| tier.name == "disk").unwrap();
    assert!(page.contains(&format!("kiln_tier_bytes{{tier=\"disk\"}} {}", disk.bytes)), "{page}");
}

#[tokio::test]
async fn a_killed_node_and_a_paused_one_are_gone_and_come_back() {
    let mut cluster = TestCluster::start(3).await;
    all_up(&cluster.nodes[0]).await;
    let (dead, paused) = (cluster.nodes[1].id, cluster.nodes[2].id);
    cluster.nodes[1].kill().await;
    gone(&cluster.nodes[0], dead).await;
    cluster.nodes[1].restart().await;
    all_up(&cluster.nodes[0]).await;
    cluster.nodes[2].pause().await;
    gone(&cluster.nodes[0], paused).await;
    cluster.nodes[2].resume();
    all_up(&cluster.nodes[0]).await;
}

async fn gone(asked: &TestNode, node: u64) {
    eventually("the node to be gone", async || {
        let view = view(asked).await;
        let shown = view.nodes.iter().find(|shown| shown.id == node).unwrap();
        assert!(view.nodes.iter().any(|own| own.id == asked.id && own.state == NodeState::Up));
        (shown.state == NodeState::Gone && shown.figures.is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_compile_under_way_is_seen_from_another_node_with_its_lease() {
    let cluster = TestCluster::start(3).await;
    let compiling = cluster.nodes[1].compile(slow("long", 40));
    let looking = async {
        eventually("the compile and its lease", async || {
            let view = view(&cluster.nodes[0]).await;
            let flight = view.flights.iter().find(|flight| flight.stage == "compiling")?;
            assert_eq!((flight.node, flight.label.as_str()), (cluster.nodes[1].id, "test.cu"));
            let lease = view.leases.some.iter().find(|lease| lease.key == flight.key)?;
            Some((lease.node, flight.key.clone()))
        })
        .await
    };
    let (made, (holder, key)) = tokio::join!(compiling, looking);
    assert_eq!((holder, key), (cluster.nodes[1].id, made.unwrap().key.to_string()));
    eventually("no compile", async || {
        let view = view(&cluster.nodes[0]).await;
        (view.flights.is_empty() && view.leases.held == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_page_of_an_artifact_has_its_parts_and_strange_keys_are_refused() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let made = node.compile(saxpy("paged")).await.unwrap();
    let (code, body) = http(node, &format!("/api/v1/artifacts/{}", made.key)).await;
    let shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(code, 200, "{body}");
    let stored = &shown["stored"];
    assert_eq!((&stored["signed"], &stored["holders"][0]), (&true.into(), &node.id.into()));
    assert!(!stored["manifest"]["files"].as_array().unwrap().is_empty());
    assert_eq!(stored["manifest"]["components"][0]["name"], "graph");
    assert_eq!(shown["history"][0]["what"], "published");
    let unknown = "0".repeat(64);
    for (path, expected) in [
        (unknown.as_str(), 404),
        ("short", 400),
        ("..%2f..%2fetc%2fpasswd", 400),
        ("%3Cscript%3E", 400),
    ] {
        let (code, body) = http(node, &format!("/api/v1/artifacts/{path}")).await;
        let error: Value = serde_json::from_str(&body).unwrap();
        assert!(code == expected && error["error"].is_string(), "{path}: {code} {body}");
    }
}

/// An open question, and the head of its answer.
async fn ask(node: &TestNode, path: &str) -> (BufReader<TcpStream>, String) {
    let stream = TcpStream::connect(node.config.http_listen).await.unwrap();
    let mut stream = BufReader::new(stream);
    let request = format!("GET {path} HTTP/1.1\r\nHost: kiln\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(timeout(SOON, stream.read_line(&mut head)).await.unwrap().unwrap(), 0, "{head}");
    }
    (stream, head)
}

#[tokio::test]
async fn the_page_is_guarded_and_asks_nobody_else() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    assert!(ask(node, "/").await.1.contains("location: /ui/"));
    for (path, kind) in [
        ("/ui/", "text/html"),
        ("/ui/app.js", "text/javascript"),
        ("/ui/vendor/uPlot.min.css", "text/css"),
        ("/api/v1/state", "application/json"),
    ] {
        let head = ask(node, path).await.1.to_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        assert!(head.contains(&format!("content-type: {kind}")), "{path}: {head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        assert!(head.contains("content-security-policy: default-src 'self'"), "{path}: {head}");
    }
    for path in ["/ui/../../etc/passwd", "/ui/%2e%2e/Cargo.toml", "/ui/nothing.js"] {
        assert!(ask(node, path).await.1.starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[tokio::test]
async fn news_come_every_second_to_a_bounded_number_and_end_with_the_node() {
    let mut cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let mut watching = Vec::new();
    for _ in 0..WATCHERS {
        let (stream, head) = ask(node, "/api/v1/events").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        watching.push(stream);
    }
    assert!(ask(node, "/api/v1/events").await.1.starts_with("HTTP/1.1 503"), "one too many");
    let mut first = watching.swap_remove(0);
    let mut told = Vec::new();
    while told.len() < 2 {
        let mut line = String::new();
        timeout(SOON, first.read_line(&mut line)).await.unwrap().unwrap();
        if let Some(json) = line.strip_prefix("data: ") {
            told.push(serde_json::from_str::<View>(json).unwrap().at_unix_ms);
        }
    }
    assert!(told[0] < told[1], "{told:?}");
    // Whoever leaves makes room.
    drop(watching);
    eventually("room for another", async || {
        ask(node, "/api/v1/events").await.1.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    cluster.nodes[0].terminate().await;
    let mut rest = Vec::new();
    timeout(SOON, first.read_to_end(&mut rest)).await.unwrap().unwrap();
}
