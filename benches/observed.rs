//! What metrics and traces cost a GET of the RESP port: nodes with and without traces at
//! 1 %, and a build without this change where one is given, in turns.
//!
//! `cargo bench --bench observed` starts one node that traces nothing and one that traces
//! 1 % to a collector that takes all and looks at none; `KILN_BENCH_BEFORE` names the
//! program of a third, an earlier build. One client asks them in turns, in an order that
//! rotates, so that noise and warmth hit them alike. Prints GETs per second, the ratio of
//! each to the first in the same round (median, and the quartiles), and what a GET costs
//! each in time on a core. Needs a quiet machine: the quartiles say whether it was.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/support/collector.rs"]
mod collector;
#[path = "support/served.rs"]
mod served;

use std::{
    io::{Read, Write},
    time::Instant,
};

use self::served::{GET, Server};

/// Bytes of a value, and GETs of it in one turn.
const CASES: [(usize, usize); 2] = [(1 << 10, 20_000), (16 << 10, 10_000)];
const ROUNDS: usize = 31;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_collector, address) = runtime.block_on(collector::Collector::start());
    let this = env!("CARGO_BIN_EXE_kiln").to_owned();
    let traced =
        [format!("--set=trace.endpoint=http://{address}"), "--set=trace.ratio=0.01".into()];
    let mut servers = vec![
        Server::kiln("metrics, no traces", &this, &dir.path().join("plain"), &[]),
        Server::kiln("metrics, traces at 1 %", &this, &dir.path().join("traced"), &traced),
    ];
    if let Ok(before) = std::env::var("KILN_BENCH_BEFORE") {
        servers
            .insert(0, Server::kiln("the earlier build", &before, &dir.path().join("before"), &[]));
    }
    println!("| value | node | GET/s | ratio to the first | quartiles | us of a core a GET |");
    println!("|---|---|---|---|---|---|");
    for (size, gets) in CASES {
        let value: Vec<u8> = (0..size).map(|at| ((at * 2_654_435_761) >> 7) as u8).collect();
        for server in &servers {
            server.set(&value);
            server.turn(&value, gets);
        }
        let before: Vec<f64> = servers.iter().map(Server::core_seconds).collect();
        let mut rounds: Vec<Vec<f64>> = Vec::new();
        for round in 0..ROUNDS {
            let mut rates = vec![0.0; servers.len()];
            for turn in 0..servers.len() {
                let at = (round + turn) % servers.len();
                rates[at] = servers[at].turn(&value, gets);
            }
            rounds.push(rates);
        }
        for (at, server) in servers.iter().enumerate() {
            let rates = sorted(rounds.iter().map(|round| round[at]));
            let ratios = sorted(rounds.iter().map(|round| round[at] / round[0]));
            let cores = (server.core_seconds() - before[at]) / (ROUNDS * gets) as f64 * 1e6;
            println!(
                "| {} KiB | {} | {:.0} | {:.3} | {:.3} to {:.3} | {cores:.2} |",
                size >> 10,
                server.name,
                rates[ROUNDS / 2],
                ratios[ROUNDS / 2],
                ratios[ROUNDS / 4],
                ratios[ROUNDS * 3 / 4],
            );
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

impl Server {
    /// GETs per second of one connection.
    fn turn(&self, value: &[u8], gets: usize) -> f64 {
        let mut stream = self.connect();
        let head = format!("${}\r\n", value.len());
        let mut buffer = vec![0; head.len() + value.len() + 2];
        let began = Instant::now();
        for _ in 0..gets {
            stream.write_all(GET).unwrap();
            stream.read_exact(&mut buffer).unwrap();
        }
        let took = began.elapsed();
        assert!(buffer[head.len()..].starts_with(value), "other bytes than were SET");
        gets as f64 / took.as_secs_f64()
    }
}
