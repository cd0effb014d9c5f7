//! Joining with a token, and without one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_cluster::{
    ClusterError, Joining, Start,
    admission::{Candidacy, NewJoinToken, NotAdmitted, Witness},
    tokens::Secret,
};

use crate::harness::{Node, Seat, TestCluster, wait_for};

/// The file of a new token of `node`'s cluster.
async fn token(node: &Node, folder: &Path, uses: u32, lifetime_ms: u64) -> (u64, PathBuf) {
    let (id, secret) = Secret::mint().unwrap();
    let (name, by, digest) = (String::new(), "test".to_owned(), secret.digest());
    let lifetime_ms = Some(lifetime_ms);
    let token = NewJoinToken { id, digest, name, uses, lifetime_ms, by };
    node.index.issue_join_token(token).await.unwrap();
    (id, written(folder, &secret.token(id)))
}

fn written(folder: &Path, text: &str) -> PathBuf {
    let file =
        folder.join(format!("{:x}.token", text.len() + std::fs::read_dir(folder).unwrap().count()));
    std::fs::write(&file, format!("{text}\n")).unwrap();
    file
}

async fn joins(to: &Node, dir: &Path, token_file: Option<PathBuf>) -> Result<Node, ClusterError> {
    let mut seat = Seat::new(dir).await;
    seat.joining.token_file = token_file;
    seat.start(Start::Join { peers: vec![to.address.to_string()] }).await
}

#[track_caller]
fn assert_refused(joined: Result<Node, ClusterError>, why: NotAdmitted) {
    match joined {
        Err(ClusterError::NotAdmitted(told)) => assert_eq!(told, why),
        Err(other) => panic!("{other}"),
        Ok(node) => panic!("node {} was let in", node.id()),
    }
}

const HOUR: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_lets_one_disk_in_whoever_asks_at_once() {
    let mut cluster = TestCluster::start(1).await;
    let first = cluster.nodes.remove(0);
    let folder = cluster.temp.path().to_owned();
    assert!(first.index.need_join_token(true).await.unwrap());
    let (id, file) = token(&first, &folder, 1, HOUR).await;
    let place = |n: u8| folder.join(n.to_string());
    assert_refused(joins(&first, &place(2), None).await, NotAdmitted::NoToken);

    // Two at once with one token for one.
    let (places, file) = ([place(3), place(4)], Some(file));
    let (one, other) = tokio::join!(
        joins(&first, &places[0], file.clone()),
        joins(&first, &places[1], file.clone()),
    );
    let (joined, at, refused) = match (one, other) {
        (Ok(node), other) => (node, 0, other),
        (one, Ok(node)) => (node, 1, one),
        (Err(one), Err(other)) => panic!("{one}; {other}"),
    };
    assert_refused(refused, NotAdmitted::UsedUp);
    assert_eq!(first.index.admissions().tokens[&id].used, 1);
    let node = joined.id();
    joined.stop().await;
    // Replayed by another disk; and the member itself needs none to come back.
    assert_refused(joins(&first, &place(5), file).await, NotAdmitted::UsedUp);
    let back = joins(&first, &places[at], None).await.unwrap();
    assert_eq!(back.id(), node);

    // By a member that follows, too.
    let (_, file) = token(&first, &folder, 1, HOUR).await;
    wait_for("the token at the other member", async || {
        (back.index.admissions().tokens.len() == 2).then_some(())
    })
    .await;
    let third = joins(&back, &place(6), Some(file)).await.unwrap();
    for node in [third, back, first] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_by_one_member_asks_the_others() {
    let mut strict = TestCluster::start(1).await;
    let mut open = TestCluster::start(1).await;
    let (strict, open) = (strict.nodes.remove(0), open.nodes.remove(0));
    strict.index.need_join_token(true).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let seat = Seat::new(&temp.path().join("next")).await;
    let peers = vec![strict.address.to_string(), open.address.to_string()];
    let next = seat.start(Start::Join { peers }).await.unwrap();
    assert_eq!(open.cluster.status().nodes.len(), 2);
    for node in [next, strict, open] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_token_is_refused_and_told_of() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().to_owned();
    let told = Arc::<parking_lot::Mutex<Vec<Candidacy>>>::default();
    let tells = told.clone();
    let witness = Witness(Arc::new(move |candidacy| tells.lock().push(candidacy.clone())));
    let mut seat = Seat::new(&folder.join("first")).await;
    seat.joining = Joining { needs_token: true, witness: Some(witness), ..Joining::default() };
    let first = seat.start(Start::Expect { voters: 1, peers: Vec::new() }).await.unwrap();
    assert_eq!(first.index.admissions().needs_token, Some(true), "as its settings say");

    let (_, over) = token(&first, &folder, 1, 1).await;
    let (id, revoked) = token(&first, &folder, 1, HOUR).await;
    first.index.revoke_token(id, "test".into()).await.unwrap();
    let (id, _) = token(&first, &folder, 1, HOUR).await;
    let (_, other) = Secret::mint().unwrap();
    let wrong = written(&folder, &other.token(id));
    let stranger = written(&folder, &other.token(id ^ 1));
    let mut places = (0..).map(|n: u8| folder.join(format!("next-{n}")));
    for (file, why) in [
        (over, NotAdmitted::Expired),
        (revoked, NotAdmitted::Revoked),
        (wrong, NotAdmitted::Unknown),
        (stranger, NotAdmitted::Unknown),
    ] {
        assert_refused(joins(&first, &places.next().unwrap(), Some(file)).await, why);
        let last = told.lock().last().cloned().unwrap();
        assert_eq!(last.outcome, Err(why));
        assert!(last.token.is_some());
    }
    // A file that has none is an error of this node's own, which repeats nothing of it.
    let nowhere = folder.join("nowhere");
    for file in [written(&folder, "kiln_secretly_none"), written(&folder, ""), nowhere.clone()] {
        match joins(&first, &places.next().unwrap(), Some(file)).await {
            Err(ClusterError::Invalid(why)) => {
                assert!(why.contains("join token") && !why.contains("secretly"), "{why}");
            }
            other => panic!("{:?}", other.map(|node| node.id())),
        }
    }
    assert_eq!(told.lock().len(), 6, "one that has no token asks without");
    // An admin's word needs no token.
    let waiting = Seat::new(&folder.join("next")).await;
    let address = waiting.address.to_string();
    let waiting = tokio::spawn(waiting.start(Start::Join { peers: Vec::new() }));
    assert_eq!(first.cluster.add(&address).await.unwrap(), 2);
    let second = waiting.await.unwrap().unwrap();
    // Once it is open again, anybody joins.
    assert!(first.index.need_join_token(false).await.unwrap());
    // With the name of a file that nobody has written yet, too: so are founders started.
    let third = joins(&first, &folder.join("third"), Some(nowhere)).await.unwrap();
    assert_eq!(told.lock().last().unwrap().outcome, Ok(3));
    for node in [third, second, first] {
        node.stop().await;
    }
}
