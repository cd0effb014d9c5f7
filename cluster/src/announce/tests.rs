//! Real members on loopback: who abstains, when it is known, and who ever votes.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use kiln_proto::NodeId;
use openraft::{EntryPayload, RaftLogReader};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::DropGuard;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    Cluster, ClusterError, Joining, LOG_ENTRIES, NodeFacts, Settings, Start, Timings,
    admission::{Candidacy, Witness, Word},
    announce::{announce_standing, keep_endorsed},
    codec,
    command::{Candidate, Command, NewNode},
    endorsement::{Admitted, Endorsement, Keys, Proof, Roster},
    peers::{frame, set_abstains, unframe},
    replica::Replica,
    rpc::{Admit, Answer, Assignment, Greeting, Join, Unanswered},
    store::{LogStore, Owner},
};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A member that is served; whether it is started is the test's affair.
struct Member {
    cluster: Cluster,
    address: String,
    _served: DropGuard,
}

impl Member {
    async fn open(dir: &Path, voter: bool) -> Self {
        Self::open_with(dir, voter, Joining::default()).await
    }

    async fn open_with(dir: &Path, voter: bool, joining: Joining) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let settings = Settings {
            data_dir: dir.to_owned(),
            start: Start::Expect { voters: 1, peers: Vec::new() },
            facts: NodeFacts { grpc: address.clone(), ..NodeFacts::default() },
            voter,
            log_entries: LOG_ENTRIES,
            timings: Timings::default(),
            context: || None,
            dial: None,
            joining,
        };
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let (cluster, routes) = Cluster::open(settings, SigningKey::from_bytes(&seed)).unwrap();
        let stop = cluster.stop.clone();
        let served = stop.clone().drop_guard();
        tokio::spawn(
            Server::builder()
                .add_routes(routes)
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.cancelled_owned()),
        );
        Self { cluster, address, _served: served }
    }

    /// Whether the node may vote, as far as this one has applied.
    fn eligible(&self, node: NodeId) -> bool {
        self.cluster.replica.nodes().get(&node).unwrap().eligible
    }

    /// Joins at `peer` and does nothing else that a member does after that: it follows.
    async fn join(&self, peer: &Self) -> NodeId {
        let start = Start::Join { peers: vec![peer.address.clone()] };
        timeout(PATIENCE, self.cluster.bootstrap.find_place(&start)).await.unwrap().unwrap();
        let own = self.cluster.member.running().unwrap().owner.node;
        // Its index comes after its place: until then it knows nobody's address.
        let known = async {
            while !self.cluster.replica.nodes().contains_key(&own) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, known).await.expect("it has applied its own joining");
        own
    }

    /// All sets of voters that the log tells of: none is missed, as a watch would.
    async fn all_voters(&self) -> BTreeSet<Vec<NodeId>> {
        let mut log = LogStore::new(Arc::clone(&self.cluster.store));
        let entries = log.try_get_log_entries(0..).await.unwrap();
        let memberships = entries.into_iter().filter_map(|entry| match entry.payload {
            EntryPayload::Membership(membership) => Some(membership.voter_ids().collect()),
            _ => None,
        });
        memberships.collect()
    }
}

/// The only voter of its cluster, which strives for three.
async fn founder(temp: &TempDir) -> Member {
    let founder = Member::open(&temp.path().join("founder"), true).await;
    timeout(PATIENCE, founder.cluster.start()).await.unwrap().unwrap();
    founder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_membership_ever_has_an_abstaining_node_among_its_voters() {
    let temp = tempfile::tempdir().unwrap();
    let founder = founder(&temp).await;
    let mut members = Vec::new();
    for (n, voter) in [false, false, true, true].into_iter().enumerate() {
        let member = Member::open(&temp.path().join(n.to_string()), voter).await;
        let node = member.join(&founder).await;
        assert_eq!(founder.eligible(node), voter, "node {node}, once it has its id");
        members.push(member);
    }
    // Votes are given in the order of the ids: those who abstain were passed over.
    let raft = &founder.cluster.member.running().unwrap().raft;
    let three = |m: &crate::raft::Metrics| {
        m.committed_membership_config.membership().voter_ids().count() == 3
    };
    raft.wait(Some(PATIENCE)).metrics(three, "three voters").await.unwrap();
    let all = founder.all_voters().await;
    assert!(all.contains(&vec![1, 4, 5]), "{all:?}");
    assert!(all.iter().flatten().all(|node| ![2, 3].contains(node)), "{all:?}");
    for member in members.iter().chain([&founder]) {
        member.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_a_members_disk_changes_nothing_by_it() {
    let temp = tempfile::tempdir().unwrap();
    let told = Arc::<parking_lot::Mutex<Vec<Candidacy>>>::default();
    let tells = told.clone();
    let witness = Some(Witness(Arc::new(move |told| tells.lock().push(told.clone()))));
    let joining = Joining { witness, ..Joining::default() };
    let founder = Member::open_with(&temp.path().join("founder"), true, joining).await;
    timeout(PATIENCE, founder.cluster.start()).await.unwrap().unwrap();
    let member = Member::open(&temp.path().join("member"), true).await;
    let node = member.join(&founder).await;
    let introduction = member.cluster.bootstrap.introduction();
    let mut client = member.cluster.peers.at(&founder.address).unwrap();
    for _ in 0..3 {
        let mut request = tonic::Request::new(frame(&introduction).unwrap());
        set_abstains(request.metadata_mut(), true);
        let answer = client.join(request).await.unwrap();
        let owner = unframe::<Answer<Owner>>(answer.get_ref()).unwrap().unwrap();
        assert_eq!(owner.node, node);
    }
    assert!(founder.eligible(node), "it may vote as before");
    let mut log = LogStore::new(Arc::clone(&founder.cluster.store));
    let entries = log.try_get_log_entries(0..).await.unwrap();
    let of_joins = entries.iter().filter(|entry| {
        matches!(&entry.payload, EntryPayload::Normal(Command::Join(_) | Command::SetVoter { .. }))
    });
    assert_eq!(of_joins.count(), 1);
    assert_eq!(told.lock().len(), 1, "it was let in once");
    for member in [member, founder] {
        member.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_member_speaks_for_an_admin() {
    let temp = tempfile::tempdir().unwrap();
    let founder = founder(&temp).await;
    let member = Member::open(&temp.path().join("member"), true).await;
    member.join(&founder).await;
    let stranger = Member::open(&temp.path().join("stranger"), true).await;
    let join = Join { node: stranger.cluster.bootstrap.introduction(), abstains: false };
    let leader = founder.cluster.member.running().unwrap().owner;
    let asked = Admit { join, by: Word::Admin }.into();
    let answer = member.cluster.bootstrap.router.ask_peer::<Admit>(leader, asked).await.unwrap();
    assert!(matches!(answer, Err(Unanswered::Refused(ClusterError::Invalid(_)))), "{answer:?}");
    assert_eq!(founder.cluster.replica.nodes().len(), 2);
    for member in [stranger, member, founder] {
        member.cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_to_be_admitted_abstains_from_the_start() {
    let temp = tempfile::tempdir().unwrap();
    let founder = founder(&temp).await;
    for (name, voter) in [("agent", false), ("spare", true)] {
        let waiting = Member::open(&temp.path().join(name), voter).await;
        let node = founder.cluster.add(&waiting.address).await.unwrap();
        assert_eq!(founder.eligible(node), voter);
        waiting.cluster.shutdown().await;
    }
    founder.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_knows_of_no_abstaining_lets_in_all_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let founder = founder(&temp).await;
    let agent = Member::open(&temp.path().join("agent"), false).await;
    // As between an older member and this agent: the body alone is read.
    let node = agent.cluster.bootstrap.introduction();
    let candidate = node.candidate;
    let mut client = agent.cluster.peers.at(&founder.address).unwrap();
    let answer = client.join(frame(&node).unwrap()).await.unwrap();
    let owner = unframe::<Answer<Owner>>(answer.get_ref()).unwrap().unwrap();
    assert!(founder.eligible(owner.node));
    agent.cluster.bootstrap.accept(Assignment { candidate, owner }, None).await.unwrap();
    let start = Start::Join { peers: Vec::new() };
    let (bootstrap, replica) = (&agent.cluster.bootstrap, &agent.cluster.replica);
    let announced = announce_standing(Arc::clone(bootstrap), Arc::clone(replica), start);
    timeout(PATIENCE, announced).await.unwrap();
    assert!(!founder.eligible(owner.node));
    agent.cluster.shutdown().await;
    founder.cluster.shutdown().await;
}

#[test]
fn older_members_read_the_greeting_of_a_node_that_abstains() {
    #[derive(Deserialize)]
    struct Older {
        node: NewNode,
        owner: Option<Owner>,
        sees: BTreeSet<Candidate>,
    }
    let node = NewNode { candidate: [7; 16], facts: NodeFacts::default(), key: [1; 32] };
    let sees = BTreeSet::from([node.candidate]);
    let greeting = Greeting {
        node: node.clone(),
        owner: None,
        sees: sees.clone(),
        abstains: true,
        of_you: None,
    };
    let older: Older = codec::decode(&codec::encode(&greeting).unwrap()).unwrap();
    assert_eq!((older.node, older.owner, older.sees), (node, None, sees));
}

/// Returns once `replica` knows of the node.
async fn until_registered(replica: &Replica, owner: Owner) {
    let mut applied = replica.progress();
    let registered = async {
        while !replica.nodes().contains_key(&owner.node) {
            applied.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, registered).await.unwrap();
}

/// As one does that joined when members endorsed nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_never_endorsed_is_once_it_asks() {
    let temp = tempfile::tempdir().unwrap();
    let founder = founder(&temp).await;
    let member = Member::open(&temp.path().join("member"), true).await;
    let node = member.cluster.bootstrap.introduction();
    let candidate = node.candidate;
    let mut client = member.cluster.peers.at(&founder.address).unwrap();
    let answer = client.join(frame(&node).unwrap()).await.unwrap();
    let owner = unframe::<Answer<Owner>>(answer.get_ref()).unwrap().unwrap();
    let (bootstrap, replica) = (&member.cluster.bootstrap, &member.cluster.replica);
    bootstrap.accept(Assignment { candidate, owner }, None).await.unwrap();
    assert!(!bootstrap.endorser.is_endorsed(owner) && bootstrap.endorser.own().is_none());
    until_registered(replica, owner).await;
    let keeping = tokio::spawn(keep_endorsed(Arc::clone(bootstrap), Arc::clone(replica)));
    let endorsed = async {
        while !bootstrap.endorser.is_endorsed(owner) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, endorsed).await.unwrap();
    let proof = member.cluster.store.admitted().unwrap().unwrap().proof;
    let nodes = founder.cluster.replica.nodes();
    assert!(proof.proves(owner.cluster, &*nodes, owner.node, Some(node.key)));
    // Another key of its own is not the one that was endorsed.
    bootstrap.endorser.sign_with(SigningKey::from_bytes(&[7; 32]));
    assert!(!bootstrap.endorser.is_endorsed(owner));
    keeping.abort();
    for member in [member, founder] {
        member.cluster.shutdown().await;
    }
}

/// As one does whose endorser left, or was revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_proof_convinces_no_more_asks_for_another() {
    let temp = tempfile::tempdir().unwrap();
    let founder = founder(&temp).await;
    let member = Member::open(&temp.path().join("member"), true).await;
    member.join(&founder).await;
    let (bootstrap, replica) = (&member.cluster.bootstrap, &member.cluster.replica);
    let owner = member.cluster.member.running().unwrap().owner;
    until_registered(replica, owner).await;
    let name = bootstrap.introduction().key;
    let keys = Keys { name, signing: name };
    let word = Endorsement::sign(owner, keys, 99, &SigningKey::from_bytes(&[7; 32])).unwrap();
    let own = bootstrap.endorser.own().unwrap();
    let given = Admitted { proof: Proof::default().with(word), roll: own.roll.clone() };
    bootstrap.endorser.keep(owner, name, given).unwrap();
    assert!(bootstrap.endorser.is_endorsed(owner), "by somebody whom nobody knows");
    assert!(!bootstrap.endorser.convinces(owner, &replica.nodes()));
    let keeping = tokio::spawn(keep_endorsed(Arc::clone(bootstrap), Arc::clone(replica)));
    let convincing = async {
        while !bootstrap.endorser.convinces(owner, &replica.nodes()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, convincing).await.unwrap();
    assert!(bootstrap.endorser.is_endorsed(owner));
    keeping.abort();
    for member in [member, founder] {
        member.cluster.shutdown().await;
    }
}

/// Whoever reaches the port can repeat an assignment: by it a node believes nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_assignment_changes_nothing_of_whom_a_node_believes() {
    let temp = tempfile::tempdir().unwrap();
    let founder = founder(&temp).await;
    let member = Member::open(&temp.path().join("member"), true).await;
    member.join(&founder).await;
    let bootstrap = &member.cluster.bootstrap;
    let owner = member.cluster.member.running().unwrap().owner;
    let (candidate, own) = (bootstrap.introduction().candidate, bootstrap.endorser.own().unwrap());
    assert_eq!(own.roll.name(1), Some(founder.cluster.bootstrap.introduction().key));
    let stranger = NewNode { key: [9; 32], ..bootstrap.introduction() };
    let given = Admitted::of_founders(&[stranger]);
    bootstrap.accept(Assignment { candidate, owner }, Some(given)).await.unwrap();
    assert_eq!(bootstrap.endorser.own().unwrap(), own);
    assert!(bootstrap.endorser.is_endorsed(owner));
    for member in [member, founder] {
        member.cluster.shutdown().await;
    }
}
