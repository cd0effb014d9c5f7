//! How long until the last node refuses what was revoked.
//!
//! Each time is from the command's answer until a refusal came back, of the node that was last;
//! where it came before the answer, that is no time at all.

use std::time::{Duration, Instant};

use kiln_proto::{ArtifactKey, Hasher, pb};
use prost::bytes::Bytes;
use rustix::process::Signal;
use serde_json::{Map, Value};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    door::{Client, Cluster, NODES, SOON, fetch, until},
    number,
    table::Samples,
};

/// In which a revocation is to be in force.
const GOAL: f64 = 2000.0;
/// Longer than an election takes.
const PAUSE: Duration = Duration::from_secs(3);
/// For how long a token is good on a node that hears of nobody, where that is measured.
const OFFLINE: Duration = Duration::from_secs(2);
/// For how long a member that was revoked is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// One kind of event.
struct Row {
    name: &'static str,
    times: Samples,
    /// In milliseconds, where one is set.
    goal: Option<f64>,
}

pub(crate) async fn measure() -> Value {
    let events = number("EVENTS", 5);
    let hour = Duration::from_secs(3600);
    let row = |name, goal| Row { name, times: Samples::default(), goal };
    let mut token = row("a token, on all three", Some(GOAL));
    let mut key = row("a signer's key, on all three", Some(GOAL));
    let mut woken_token =
        row("a token, on a follower that was paused, from its waking", Some(GOAL));
    let mut woken_key = row("a key, on a follower that was paused, from its waking", Some(GOAL));
    let cluster = Cluster::secure(hour, false).await;
    for n in 0..events {
        token.add(revoke_token(&cluster, n).await);
        key.add(revoke_key(&cluster, n).await);
    }
    for n in 0..events {
        let (token, key) = paused(&cluster, n).await;
        woken_token.add(token);
        woken_key.add(key);
    }
    drop(cluster);
    let mut certificate = row("a member's certificate, on both others", Some(GOAL));
    let mut artifacts = row("a member's artifacts, on both others", Some(GOAL));
    let mut own = row("a member's artifacts, on the member itself", None);
    let mut never = 0;
    for _ in 0..events {
        let cluster = Cluster::secure(hour, false).await;
        let (of_certificate, of_artifacts, of_own) = revoke_member(&cluster).await;
        certificate.add(of_certificate);
        artifacts.add(of_artifacts);
        match of_own {
            Some(time) => own.add(time),
            None => never += 1,
        }
    }
    let mut alone = row("any token, on a node that hears of nobody, access.offline = 2 s", None);
    let cluster = Cluster::secure(OFFLINE, false).await;
    for n in 0..events {
        alone.add(cut_off(&cluster, n).await);
    }
    let mut rows = vec![token, key, certificate, artifacts, woken_token, woken_key, alone];
    if never < events {
        rows.push(own);
    }
    table(&rows);
    if never > 0 {
        println!(
            "The member itself gave its artifacts out {WATCHED:?} later, {never} of {events} times."
        );
    }
    let rows = rows.iter().map(|row| (row.name.to_owned(), row.times.json()));
    let mut all: Map<_, _> = rows.collect();
    all.insert("member itself not within 5 s".into(), never.into());
    Value::Object(all)
}

fn table(rows: &[Row]) {
    println!("| revoked | median ms | worst ms | goal |");
    println!("|---|---|---|---|");
    for Row { name, times, goal } in rows {
        let verdict = match goal {
            None => "none",
            Some(goal) if times.most() <= *goal => "met",
            Some(_) => "missed",
        };
        println!("| {name} | {:.1} | {:.1} | {verdict} |", times.median(), times.most());
    }
    println!();
}

impl Row {
    fn add(&mut self, time: Duration) {
        self.times.add(time.as_secs_f64() * 1e3);
        eprintln!("{}: {time:?}", self.name);
    }
}

/// From `answered` until the last of `refused`.
fn last(answered: Instant, refused: &[Instant]) -> Duration {
    let last = refused.iter().max().unwrap();
    last.saturating_duration_since(answered)
}

/// Whether a token is refused; a node that cannot say is asked again.
async fn is_refused(client: &mut Client) -> bool {
    let asked = timeout(SOON, client.status(pb::StatusRequest::default())).await.unwrap();
    match asked {
        Err(status) => [Code::Unauthenticated, Code::PermissionDenied].contains(&status.code()),
        Ok(_) => false,
    }
}

async fn is_gone(client: &mut Client, key: &ArtifactKey) -> bool {
    let fetched = timeout(SOON, fetch(client, key, |_| {})).await.unwrap();
    fetched.is_err_and(|status| status.code() == Code::NotFound)
}

/// A reader's token, which each node takes, and its id.
async fn reader(cluster: &Cluster) -> (u64, String) {
    let request = pb::CreateTokenRequest {
        role: pb::AccessRole::Read.into(),
        namespaces: vec!["*".into()],
        ..Default::default()
    };
    let made = cluster.client(0).await.create_token(request).await.unwrap().into_inner();
    for i in 0..NODES {
        let mut client = cluster.client_as(i, Some(&made.token)).await;
        until(async || !is_refused(&mut client).await).await;
    }
    (made.id, made.token)
}

async fn end_token(client: &mut Client, id: u64) -> Instant {
    let answer = client.revoke_token(pb::RevokeTokenRequest { id }).await.unwrap();
    let answered = Instant::now();
    assert!(answer.into_inner().changed);
    answered
}

async fn revoke_token(cluster: &Cluster, n: usize) -> Duration {
    let (id, token) = reader(cluster).await;
    let mut admin = cluster.client(n % NODES).await;
    let watched = (0..NODES).map(async |i| {
        let mut client = cluster.client_as(i, Some(&token)).await;
        until(async || is_refused(&mut client).await).await
    });
    let revoke = async { end_token(&mut admin, id).await };
    let (answered, refused) = tokio::join!(revoke, futures::future::join_all(watched));
    last(answered, &refused)
}

/// An artifact that all nodes have, which `node` signed with a key that another one follows; that
/// key.
async fn signed_before(cluster: &Cluster, node: usize, name: &str) -> (ArtifactKey, Bytes) {
    let mut bytes = vec![0; 16 << 10];
    let unique = format!("{name} {:?}", Instant::now());
    Hasher::new().update(unique.as_bytes()).finalize_xof().fill(&mut bytes);
    let artifact = cluster.spread(node, &[0, 1, 2], bytes).await;
    let mut client = cluster.client(node).await;
    let rotated = client.rotate_signer(pb::RotateSignerRequest::default()).await.unwrap();
    (artifact, rotated.into_inner().before)
}

async fn end_key(client: &mut Client, key: Bytes) -> Instant {
    let reason = "a bench".to_owned();
    let request = pb::RevokeSignerRequest { key, reason, ..Default::default() };
    let answer = client.revoke_signer(request).await.unwrap();
    let answered = Instant::now();
    assert_eq!(answer.into_inner().removed, 1);
    answered
}

async fn revoke_key(cluster: &Cluster, n: usize) -> Duration {
    let signer = n % NODES;
    let (artifact, key) = signed_before(cluster, signer, "key").await;
    let mut admin = cluster.client((signer + 1) % NODES).await;
    let watched = (0..NODES).map(async |i| {
        let mut client = cluster.client(i).await;
        until(async || is_gone(&mut client, &artifact).await).await
    });
    let revoke = async { end_key(&mut admin, key).await };
    let (answered, refused) = tokio::join!(revoke, futures::future::join_all(watched));
    last(answered, &refused)
}

/// Of its certificate and of its artifacts, on the others; of those on itself, if it heard of it.
async fn revoke_member(cluster: &Cluster) -> (Duration, Duration, Option<Duration>) {
    let leader = cluster.settled().await;
    let gone = (leader + 1) % NODES;
    let others = [leader, (leader + 2) % NODES];
    let artifact = cluster.spread(gone, &[0, 1, 2], b"a member's".to_vec()).await;
    for i in others {
        assert!(cluster.serves_member(i, gone).await, "it is a member");
    }
    let mut admin = cluster.client(leader).await;
    let request = pb::RevokeSignerRequest {
        node: cluster.nodes().id(gone),
        reason: "a bench".into(),
        ..Default::default()
    };
    let revoke = async {
        admin.revoke_signer(request).await.unwrap();
        Instant::now()
    };
    let certificates =
        others.map(async |i| until(async || !cluster.serves_member(i, gone).await).await);
    let artifacts = others.map(async |i| {
        let mut client = cluster.client(i).await;
        until(async || is_gone(&mut client, &artifact).await).await
    });
    let own = async {
        let mut client = cluster.client(gone).await;
        timeout(WATCHED, until(async || is_gone(&mut client, &artifact).await)).await.ok()
    };
    let (answered, certificates, artifacts, own) = tokio::join!(
        revoke,
        futures::future::join_all(certificates),
        futures::future::join_all(artifacts),
        own
    );
    let own = own.map(|at| at.saturating_duration_since(answered));
    (last(answered, &certificates), last(answered, &artifacts), own)
}

/// Of a token and of a key, on a follower that was stopped when they were revoked.
async fn paused(cluster: &Cluster, n: usize) -> (Duration, Duration) {
    let leader = cluster.settled().await;
    let follower = (leader + 1 + n % 2) % NODES;
    let (id, token) = reader(cluster).await;
    let (artifact, key) = signed_before(cluster, leader, "paused").await;
    // Connected before: so that no handshake is part of the time.
    let mut with_token = cluster.client_as(follower, Some(&token)).await;
    let mut reads = cluster.client(follower).await;
    let mut admin = cluster.client(leader).await;
    cluster.signal(follower, Signal::STOP);
    let began = Instant::now();
    end_token(&mut admin, id).await;
    end_key(&mut admin, key).await;
    tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await;
    cluster.signal(follower, Signal::CONT);
    let woken = Instant::now();
    let (token, key) = tokio::join!(
        until(async || is_refused(&mut with_token).await),
        until(async || is_gone(&mut reads, &artifact).await),
    );
    cluster.settled().await;
    (token - woken, key - woken)
}

/// From the moment when a node hears of nobody any more until it takes no token.
async fn cut_off(cluster: &Cluster, n: usize) -> Duration {
    let leader = cluster.settled().await;
    let alone = (leader + n) % NODES;
    let (_, token) = reader(cluster).await;
    let mut client = cluster.client_as(alone, Some(&token)).await;
    let others: Vec<_> = (0..NODES).filter(|i| *i != alone).collect();
    for i in &others {
        cluster.signal(*i, Signal::STOP);
    }
    let stopped = Instant::now();
    // Not that the token is no good: nobody can say.
    let asks = async |client: &mut Client| client.status(pb::StatusRequest::default()).await;
    let refused = until(async || asks(&mut client).await.is_err()).await;
    for i in &others {
        cluster.signal(*i, Signal::CONT);
    }
    until(async || asks(&mut client).await.is_ok()).await;
    cluster.settled().await;
    refused - stopped
}
