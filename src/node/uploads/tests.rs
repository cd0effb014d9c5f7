#![allow(clippy::unwrap_used)]
//! A holder takes over from those before it: three members in this process.

use bytesize::ByteSize;
use ed25519_dalek::SigningKey;
use kiln_cluster::{AccessReport, Cluster, NodeFacts, PutMode, Settings, Start, Timings};
use kiln_proto::{NodeIdentity, value};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::transport::{Server, server::TcpIncoming};

use super::*;
use crate::cache::{
    Blob, Budget, BudgetSettings, Hints, ObjectSettings, SystemClock, TiersSettings,
};

const TURN: Duration = Duration::from_secs(30);
/// Bound on anything that is waited for.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn each_holder_waits_for_those_before_it() {
    let (first, third) = (Digest::of(b"first"), Digest::of(b"third"));
    let ranks = [(first, 0), (third, 2)];
    let mut waiting = Waiting::default();
    let began = Instant::now();
    let mut due = |seconds| waiting.due(&ranks, began + Duration::from_secs(seconds), TURN);
    assert_eq!(due(0), [first]);
    assert_eq!(due(59), [first]);
    assert_eq!(due(60), [first, third]);
}

#[test]
fn the_wait_begins_anew_when_a_pack_waits_again() {
    let pack = Digest::of(b"pack");
    let mut waiting = Waiting::default();
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    assert!(waiting.due(&[(pack, 1)], at(0), TURN).is_empty());
    assert!(waiting.due(&[], at(10), TURN).is_empty(), "it was uploaded");
    assert!(waiting.due(&[(pack, 1)], at(40), TURN).is_empty(), "and is lost again");
    assert_eq!(waiting.due(&[(pack, 1)], at(70), TURN), [pack]);
}

async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Member {
    cluster: Cluster,
    identity: NodeIdentity,
    server: JoinHandle<()>,
}

/// Three voters in `folder`, by rising id.
async fn members(folder: &std::path::Path) -> Vec<Member> {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let starting = listeners.into_iter().enumerate().map(|(n, listener)| {
        let settings = Settings {
            data_dir: folder.join(format!("member-{n}")),
            start: Start::Expect { voters: 3, peers: peers.clone() },
            facts: NodeFacts { grpc: peers[n].clone(), ..NodeFacts::default() },
            voter: true,
            log_entries: kiln_cluster::LOG_ENTRIES,
            timings: Timings {
                heartbeat: Duration::from_millis(150),
                election_min: Duration::from_millis(600),
                election_max: Duration::from_millis(1200),
                ..Timings::default()
            },
            context: || None,
            dial: None,
            joining: kiln_cluster::Joining::default(),
        };
        async move {
            let key = SigningKey::from_bytes(&[n as u8 + 1; 32]);
            let (cluster, routes) = Cluster::open(settings, key).unwrap();
            let serving = Server::builder().add_routes(routes);
            let serving = serving.serve_with_incoming(TcpIncoming::from(listener));
            let server = tokio::spawn(async move { serving.await.unwrap() });
            let identity = cluster.start().await.unwrap();
            Member { cluster, identity, server }
        }
    });
    let mut members = futures::future::join_all(starting).await;
    members.sort_by_key(|member| member.identity.node);
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_first_holder_stops_no_upload() {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("object");
    std::fs::create_dir(&object).unwrap();
    let mut settings = TiersSettings {
        object: ObjectSettings {
            url: Some(format!("file://{}", object.display())),
            ..ObjectSettings::default()
        },
        ..TiersSettings::default()
    };
    settings.disk.path = folder.path().join("disk");
    settings.memory.capacity = ByteSize::mib(1);
    let budget = Budget::new(BudgetSettings { bytes: 1 << 30, blobs: 1 << 10, wait: SOON });
    let tiers = Arc::new(Tiers::open(settings, budget, Arc::new(SystemClock)).await.unwrap());

    let mut members = members(folder.path()).await;
    let (first, second) = (members.remove(0), members.remove(0));
    let index = second.cluster.index();
    let blob = Blob::copy_of(b"bytes").unwrap();
    let (pack, size) = (blob.digest(), blob.size());
    drop(tiers.insert(&blob, Hints::default()).await);
    let manifest = value::manifest("test", b"name", pack, size, 0.0);
    let key = manifest.key;
    let turn = index.turn(&manifest.key, PutMode::Replace).unwrap();
    let signed = second.identity.sign(manifest).unwrap();
    index.put(turn, signed, PutMode::Replace, Vec::new()).await.unwrap();
    let gained = AccessReport { gained: vec![pack], ..AccessReport::default() };
    first.cluster.index().report(gained).await.unwrap();
    eventually(async || index.upload_rank(&pack).await.unwrap() == Some(1)).await;

    // Dead, and a member for all that the others know.
    first.server.abort();
    first.cluster.shutdown().await;
    let stop = CancellationToken::new();
    let pace = Pace { look: Duration::from_millis(20), turn: Duration::from_millis(100) };
    let resuming = tokio::spawn(resume(tiers.clone(), index.clone(), pace, stop.clone()));
    let uploading = tokio::spawn(carry_out(tiers.clone(), index.clone(), stop.clone()));
    eventually(async || index.lookup(&key).await.unwrap().unwrap().stored).await;
    stop.cancel();
    let _ended = tokio::join!(resuming, uploading);
    for member in [second].into_iter().chain(members) {
        member.cluster.shutdown().await;
        member.server.abort();
    }
}
