//! How near a model in pieces comes to the time that its pieces must take: K different ones
//! over N nodes with c compilers each are `ceil(K / (N c))` waves.
//!
//! `cargo bench --bench waves` starts clusters of 3 `kiln serve` processes, of which 1, 2 or all
//! have the compiler, 1 or 2 at once, and compiles language models of 16 layers whose pieces
//! differ more or less, each `RUNS` times (5) for another tenant, so that nothing is there before. The compiler is a
//! library in NVRTC's place that takes `COST_MS` (1000) and no processor: see `nvrtc.c`. What is
//! above one wave's time is Kiln: reading and splitting the model, code generation, leases,
//! packs, publications, the compiler's processes. It takes a machine of its own: where others
//! hold the processors, nodes wait for these and not for their compilers.
//!
//! Prints a table; `-- --json` adds one line of JSON with every sample. `KILN_BENCH_BINARY`
//! names another `kiln` to run; `--profile dev` measures the same waits.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../tests/support/layers.rs"]
mod layers;
mod model;
#[allow(dead_code)]
#[path = "../failover/nodes.rs"]
mod nodes;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kiln_proto::pb::{self, compile_event::Event};

use crate::nodes::Nodes;

const NODES: usize = 3;
/// How many norms of the model are changed: each makes one more piece a different one.
const CHANGED: [usize; 4] = [0, 4, 9, 19];

fn main() {
    let (runs, cost) = (number("RUNS", 5), number("COST_MS", 1000));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let all = runtime.block_on(measure(runs, cost));
    println!("compiles of {cost} ms; seconds: median of {runs} (least to greatest)");
    println!("  N  c   K  waves     at least  taken                    ratio");
    for row in &all {
        println!("{}", row.line());
    }
    let ratios: Vec<f64> = all.iter().map(Row::ratio).collect();
    let worst = ratios.iter().copied().fold(0.0, f64::max);
    println!("ratios: median {:.3}, worst {worst:.3}", median(ratios));
    if std::env::args().any(|argument| argument == "--json") {
        let rows: Vec<serde_json::Value> = all.iter().map(Row::json).collect();
        println!("{}", serde_json::json!({ "cost_ms": cost, "rows": rows }));
    }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// One shape of a cluster, and one number of pieces.
struct Row {
    nodes: usize,
    compilers: usize,
    pieces: usize,
    cost: Duration,
    taken: Vec<f64>,
}

impl Row {
    fn waves(&self) -> usize {
        self.pieces.div_ceil(self.nodes * self.compilers)
    }

    fn least(&self) -> f64 {
        self.waves() as f64 * self.cost.as_secs_f64()
    }

    fn ratio(&self) -> f64 {
        median(self.taken.clone()) / self.least()
    }

    fn line(&self) -> String {
        let Self { nodes, compilers, pieces, .. } = self;
        let (least, greatest) = ends(&self.taken);
        format!(
            "{nodes:>3} {compilers:>2} {pieces:>3} {:>6} {:>12.2}  {:>6.2} ({least:.2} to \
             {greatest:.2}) {:>10.3}",
            self.waves(),
            self.least(),
            median(self.taken.clone()),
            self.ratio(),
        )
    }

    fn json(&self) -> serde_json::Value {
        let Self { nodes, compilers, pieces, taken, .. } = self;
        serde_json::json!({
            "nodes": nodes, "compilers": compilers, "pieces": pieces, "waves": self.waves(),
            "seconds": taken, "ratio": self.ratio(),
        })
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    match all.len() % 2 {
        1 => all[middle],
        _ => f64::midpoint(all[middle - 1], all[middle]),
    }
}

fn ends(all: &[f64]) -> (f64, f64) {
    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
    (least, all.iter().copied().fold(0.0, f64::max))
}

async fn measure(runs: usize, cost_ms: usize) -> Vec<Row> {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), cost_ms);
    let mut all = Vec::new();
    let mut tenant = 0;
    for nodes in 1..=NODES {
        for compilers in 1..=2 {
            let started = std::cell::Cell::new(0);
            let cluster = Nodes::start(|_, config| {
                let has = started.replace(started.get() + 1) < nodes;
                let none = folder.path().join("none");
                config.compile.nvrtc = Some(if has { library.clone() } else { none });
                config.compile.concurrency = compilers;
            })
            .await;
            ready(&cluster, nodes).await;
            let cost = Duration::from_millis(cost_ms as u64);
            for changed in CHANGED {
                let mut row = Row { nodes, compilers, pieces: 0, cost, taken: Vec::new() };
                for _ in 0..runs {
                    tenant += 1;
                    let request = model::request(changed, tenant);
                    let began = Instant::now();
                    let done = compile(&cluster, request).await;
                    row.taken.push(began.elapsed().as_secs_f64());
                    let compiled = |piece: &pb::Piece| piece.outcome() == pb::Outcome::Compiled;
                    assert!(done.pieces.iter().all(compiled), "{:?}", done.pieces);
                    row.pieces = done.pieces.len();
                }
                eprintln!("{}", row.line());
                all.push(row);
            }
        }
    }
    all
}

/// The library in NVRTC's place.
fn library(folder: &Path, cost_ms: usize) -> PathBuf {
    assert!(cost_ms > 0, "COST_MS is at least 1");
    let made = folder.join("libnvrtc.so.13");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/waves/nvrtc.c");
    let cost = format!("-DCOST_MS={cost_ms}L");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-Wl,-soname,libnvrtc.so.13", &cost, source, "-o"]);
    assert!(command.arg(&made).status().unwrap().success(), "cc makes {source}");
    made
}

/// Returns when every node knows that so many have the compiler.
async fn ready(cluster: &Nodes, nodes: usize) {
    let end = Instant::now() + Duration::from_secs(120);
    for node in 0..NODES {
        loop {
            let able = cluster.status(node).await.map_or(0, |status| {
                let native = |of: &&pb::NodeStatus| {
                    of.compilers.iter().any(|found| found.compiler == "native")
                };
                status.nodes.iter().filter(native).count()
            });
            if able == nodes {
                break;
            }
            assert!(Instant::now() < end, "node {node} knows of {able} compilers");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn compile(cluster: &Nodes, request: pb::CompileRequest) -> pb::Done {
    let mut client = cluster.grpc(0).max_encoding_message_size(64 << 20);
    let mut events = client.compile(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.event;
    }
    match last {
        Some(Event::Done(done)) => done,
        other => panic!("no answer: {other:?}"),
    }
}
