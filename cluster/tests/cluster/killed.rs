//! A leader that is gone from one moment to the next, as a killed process is.
//!
//! Each member has a runtime of its own. To kill one is to end its runtime: nothing of
//! it runs on, nothing is handed over, and its connections are closed by the system.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_cluster::{Joining, Published, Start};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    time::Instant,
};

use crate::harness::{Node, Seat, timings, trace, wait_for};

struct Killable {
    node: Node,
    runtime: Runtime,
}

impl Killable {
    fn kill(self) {
        self.runtime.shutdown_background();
        // What is left of it would still give leases back and close its files.
        std::mem::forget(self.node);
    }
}

/// A seat whose port belongs to a runtime of its own.
fn seat(dir: PathBuf) -> (Runtime, Seat) {
    let runtime = Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let inside = runtime.enter();
    let listener = TcpListener::from_std(listener).unwrap();
    drop(inside);
    let (version, joining) = ("", Joining::default());
    (runtime, Seat { listener, address, dir, voter: true, timings: timings(), version, joining })
}

async fn start(temp: &Path) -> Vec<Killable> {
    let seats: Vec<(Runtime, Seat)> =
        (0..3).map(|n| seat(temp.join(format!("node-{n}")))).collect();
    let peers: Vec<String> = seats.iter().map(|(_, seat)| seat.address.to_string()).collect();
    let starting = seats.into_iter().map(async |(runtime, seat)| {
        let start = Start::Expect { voters: 3, peers: peers.clone() };
        let node = runtime.spawn(seat.start(start)).await.unwrap().unwrap();
        Killable { node, runtime }
    });
    futures::future::join_all(starting).await
}

async fn publish(node: &Node, name: &str) {
    let published = node.publish(name, b"pack").await.unwrap();
    assert!(matches!(published, Published::Committed(_)), "{published:?}");
}

/// From the end of a new cluster's leader to the next publication.
async fn next_publication() -> Duration {
    let temp = tempfile::tempdir().unwrap();
    let mut members = start(temp.path()).await;
    let leader = wait_for("a leader", async || {
        members.iter().position(|m| {
            let status = m.node.cluster.status();
            status.role == kiln_cluster::Role::Leader && status.quorum
        })
    })
    .await;
    publish(&members[0].node, "before").await;
    members.remove(leader).kill();
    let killed = Instant::now();
    publish(&members[0].node, "after").await;
    let took = killed.elapsed();
    for member in members {
        member.kill();
    }
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_when_its_lease_is_over() {
    trace();
    // An election by time-out begins no sooner: the lease, and then silence.
    let by_time_out = timings().election_max + timings().election_min;
    let mut took = Vec::new();
    // More than once, since other tests may take the CPU just then.
    while took.len() < 4 && took.iter().all(|took| *took >= by_time_out) {
        took.push(next_publication().await);
    }
    assert!(took.iter().any(|took| *took < by_time_out), "{took:?}");
}
