//! How long a cluster of three voters takes to accept writes again after its
//! leader is killed or paused, and what readers see meanwhile.
//!
//! `cargo bench --bench failover` starts three `kiln serve` processes on loopback
//! with default timings, kills the leader (SIGKILL) `KILLS` times and restarts it,
//! then pauses the leader (SIGSTOP) `PAUSES` times and resumes it; both default to
//! 30. After each it measures, for each survivor, the time until a publish that
//! began after the failure is acknowledged there, while one connection to each
//! survivor GETs stored values (one request in flight, a millisecond between two,
//! so that two cores have room for the election that is measured).
//!
//! Prints a table; `-- --json` adds one line of JSON with every sample. A release
//! build takes minutes here: `--profile dev` measures the same waits.
//! `KILN_BENCH_BINARY` names another `kiln` to run.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

mod load;
mod nodes;
mod table;

use std::time::{Duration, Instant};

use crate::{
    load::{KEYS, Reader},
    nodes::Nodes,
    table::{Event, Failure, Report},
};

/// A paused leader sleeps at least this long: twice the longest election time-out.
const PAUSE: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() {
    let (kills, pauses) = (count("KILLS"), count("PAUSES"));
    let mut nodes = Nodes::start(|_, _| {}).await;
    load::fill(&nodes).await;
    let mut report = Report::default();
    for (failure, events) in [(Failure::Killed, kills), (Failure::Paused, pauses)] {
        for n in 1..=events {
            let event = fail(&mut nodes, failure).await;
            eprintln!("{n}/{events} {}", event.line());
            report.events.push(event);
        }
    }
    report.print();
    if std::env::args().any(|argument| argument == "--json") {
        println!("{}", report.json());
    }
}

fn count(name: &str) -> usize {
    std::env::var(name).map_or(30, |text| text.parse().unwrap())
}

/// Lets the leader fail once, and returns when it follows again.
async fn fail(nodes: &mut Nodes, failure: Failure) -> Event {
    let leader = nodes.settled().await;
    let survivors = nodes.others(leader);
    load::wait_readable(nodes, &survivors).await;
    let readers: Vec<_> = survivors.iter().map(|i| Reader::start(nodes.resp(*i), KEYS)).collect();

    let began = Instant::now();
    match failure {
        Failure::Killed => nodes.kill(leader).await,
        Failure::Paused => nodes.signal(leader, rustix::process::Signal::STOP),
    }
    let elected = nodes.elected(&survivors, leader, began);
    let publish = survivors.iter().map(|i| load::publish(nodes.grpc(*i), began));
    let (elected, published) = tokio::join!(elected, futures::future::join_all(publish));

    let resumed = match failure {
        Failure::Killed => {
            let restarted = Instant::now();
            nodes.restart(leader).await;
            nodes.settled().await;
            restarted.elapsed()
        }
        Failure::Paused => {
            tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await;
            let woken = Instant::now();
            nodes.signal(leader, rustix::process::Signal::CONT);
            load::publish(nodes.grpc(leader), woken).await
        }
    };
    let reads = futures::future::join_all(readers.into_iter().map(Reader::stop)).await;
    Event { failure, elected, published, resumed, reads }
}
