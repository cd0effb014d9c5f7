//! A root key that says who signs: a cluster comes to it without losing an artifact, and
//! believes nobody else from then on.

use std::path::{Path, PathBuf};

use kiln_proto::pb::{self, Outcome};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    harness::{TestCluster, TestNode, eventually, saxpy},
    publish::{lease, publish},
    redis::Redis,
};

/// What `kiln signer` said, with its exit code.
async fn signer(node: Option<&TestNode>, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg("signer").args(arguments).arg("--json").kill_on_drop(true);
    if let Some(node) = node {
        command.args(["--endpoint", &format!("http://{}", node.config.grpc_listen)]);
    }
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].into_iter().find(|text| !text.is_empty());
    let said = said.unwrap_or_default();
    let last = said.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    (output.status.code(), serde_json::from_slice(last.unwrap_or_default()).unwrap_or_default())
}

pub(crate) async fn done(node: Option<&TestNode>, arguments: &[&str]) -> Value {
    let (code, told) = signer(node, arguments).await;
    assert_eq!(code, Some(0), "{arguments:?}: {told}");
    told
}

pub(crate) async fn refused(node: &TestNode, arguments: &[&str], why: &str) {
    let (code, told) = signer(Some(node), arguments).await;
    assert_ne!(code, Some(0), "{arguments:?}: {told}");
    assert!(told["error"]["message"].as_str().unwrap_or_default().contains(why), "{told}");
}

/// The folder of whoever has the root's key, and the cluster that it speaks of.
pub(crate) struct Office(PathBuf, pub(crate) String);

impl Office {
    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) async fn init(node: &TestNode, folder: &Path, name: &str) -> (Self, String) {
        let list = done(Some(node), &["list"]).await;
        let cluster = list[0]["cluster"].as_str().unwrap().to_owned();
        let office = Self(folder.join(name), cluster);
        std::fs::create_dir(&office.0).unwrap();
        let made = done(None, &["root", "init", &office.file("root.key")]).await;
        (office, made["root"].as_str().unwrap().to_owned())
    }

    /// A statement of the root about itself.
    pub(crate) async fn sign(&self, name: &str, required: bool) -> String {
        let (root, out) = (self.file("root.key"), self.file(name));
        let mut arguments = vec!["root", "sign", "--root", &root, "--out", &out];
        arguments.extend(["--cluster", &self.1]);
        arguments.extend(required.then_some("--required"));
        done(None, &arguments).await;
        out
    }

    pub(crate) async fn issue(&self, key: &str, namespace: &str, name: &str) -> String {
        let (root, out) = (self.file("root.key"), self.file(name));
        let of = ["issue", key, "--root", &root, "--namespace", namespace, "--out", &out];
        let of = [&of[..], &["--cluster", &self.1]].concat();
        done(None, &of).await;
        out
    }
}

async fn keys(node: &TestNode) -> Vec<String> {
    let list = done(Some(node), &["list"]).await;
    let list = list.as_array().unwrap();
    list.iter().map(|signer| signer["key"].as_str().unwrap().to_owned()).collect()
}

async fn hits(cluster: &TestCluster, name: &str) {
    for node in &cluster.nodes {
        eventually("a hit", async || {
            let answer = node.compile(saxpy(name)).await.ok()?;
            (answer.outcome == Outcome::Hit).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_to_a_root_and_loses_nothing_and_believes_nobody_else() {
    let mut cluster = TestCluster::start(3).await;
    let (office, _) = Office::init(&cluster.nodes[0], cluster.folder.path(), "office").await;
    cluster.nodes[0].compile(saxpy("zero")).await.unwrap();
    let one = cluster.nodes[1].compile(saxpy("one")).await.unwrap().key;
    let backup = cluster.nodes[1].lookup(&one).await.unwrap().unwrap();
    Redis::connect(&cluster.nodes[2]).await.set("value", "2").await;
    Redis::connect(&cluster.nodes[1]).await.set("hers", "1").await;
    let leased = cluster.nodes[1].compile(saxpy("leased")).await.unwrap();
    let (_, pack) = cluster.nodes[1].fetch(&leased.key).await.unwrap();

    // Nobody is needed yet, and nothing may go.
    let any = Some(&cluster.nodes[0]);
    done(any, &["add", &office.sign("root.json", false).await]).await;
    let required = office.sign("required.json", true).await;
    refused(&cluster.nodes[1], &["add", &required], "nodes without a certificate").await;
    let keys = keys(&cluster.nodes[0]).await;
    let mut files = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        files.push(office.issue(key, "*", &format!("node-{at}.json")).await);
    }
    let add: Vec<&str> = ["add"].into_iter().chain(files.iter().map(String::as_str)).collect();
    done(any, &add).await;
    done(any, &["add", &required]).await;
    hits(&cluster, "zero").await;
    hits(&cluster, "one").await;
    for node in &cluster.nodes {
        for name in ["value", "hers", "hers"] {
            assert!(Redis::connect(node).await.get(name).await.is_some());
        }
        assert_eq!(node.counter("unbelieved").await, 0);
        let signers = node.status().await.unwrap().signers;
        assert!(signers.len() == 3 && signers.iter().all(|of| of.certificate.is_some()));
    }

    // Another root, an older word of this one, and a certificate that somebody changed.
    let (other, _) = Office::init(&cluster.nodes[0], cluster.folder.path(), "other").await;
    let theirs = other.sign("root.json", false).await;
    refused(&cluster.nodes[0], &["add", &theirs], "the root of this cluster is").await;
    refused(&cluster.nodes[0], &["add", &office.file("root.json")], "later statement").await;
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
    let statement = changed["statement"].as_str().unwrap().to_owned();
    changed["statement"] = Value::from(statement.replacen("22012a", "220161", 1));
    assert_ne!(changed["statement"], statement, "the namespace is in it");
    std::fs::write(office.0.join("changed.json"), changed.to_string()).unwrap();
    refused(&cluster.nodes[0], &["add", &office.file("changed.json")], "not signed").await;

    // A clock of the office that is years ahead would have had the last word for years.
    let (root, ahead) = (office.file("root.key"), office.file("ahead.json"));
    let sign = ["root", "sign", "--root", &root, "--out", &ahead, "--cluster", &office.1];
    done(None, &[&sign[..], &["--required", "--serial", "4000000000000"]].concat()).await;
    refused(&cluster.nodes[0], &["add", &ahead], "ahead of this node's clock").await;

    // A later certificate takes rights away, on all nodes: what the second signed misses,
    // and somebody else makes it.
    let narrow = office.issue(&keys[1], "team", "narrow.json").await;
    done(any, &["add", &narrow]).await;
    refused(&cluster.nodes[0], &["add", &files[1]], "later statement").await;
    // Who restores signs anew, and does not for a key that may not sign this.
    let signers = vec![pb::Signer {
        node: cluster.nodes[1].id,
        key: hex::decode(&keys[1]).unwrap().into(),
        certificate: None,
    }];
    let restore = pb::RestoreRequest { entries: vec![backup], signers };
    let told = cluster.nodes[0].client().await.restore(restore).await.unwrap().into_inner();
    assert_eq!((told.restored, told.known, told.refused), (0, 0, 1));
    // What is in memory is believed no more than what is not, and the keys come back to life:
    // by the same value, and by a client's lease.
    for node in &cluster.nodes {
        eventually("a miss", async || {
            Redis::connect(node).await.get("hers").await.is_none().then_some(())
        })
        .await;
    }
    Redis::connect(&cluster.nodes[0]).await.set("hers", "1").await;
    for node in &cluster.nodes {
        eventually("a value", async || Redis::connect(node).await.get("hers").await).await;
    }
    let manifest = leased.manifest.read_unverified().unwrap();
    let (stream, granted) = lease(&cluster.nodes[0], &manifest).await;
    assert!(publish(&cluster.nodes[0], &granted, &manifest, &pack).await.unwrap().committed);
    drop(stream);
    hits(&cluster, "leased").await;
    // A node that may not sign this compiles nothing of it where another one may.
    let runs = cluster.nodes[1].counter("compiler_runs").await;
    let late = cluster.nodes[1].compile(saxpy("late")).await.unwrap();
    assert_eq!(late.outcome, Outcome::Compiled);
    assert_ne!(late.manifest.signer, cluster.nodes[1].id);
    assert_eq!(cluster.nodes[1].counter("compiler_runs").await, runs);
    hits(&cluster, "late").await;
    let of_team = pb::CompileRequest { namespace: "team".into(), ..saxpy("theirs") };
    assert_eq!(cluster.nodes[1].compile(of_team).await.unwrap().outcome, Outcome::Compiled);
    let again = cluster.nodes[0].compile(saxpy("one")).await.unwrap();
    assert_eq!(again.outcome, Outcome::Compiled);
    assert_eq!(again.manifest.signer, cluster.nodes[0].id);
    assert!(cluster.nodes[0].counter("unbelieved").await > 0);
    hits(&cluster, "one").await;

    // Who joins needs one, and may have it before it runs.
    let newcomer = cluster.newcomer(|_, _| {});
    cluster.nodes[newcomer].spawn();
    assert!(!cluster.nodes[newcomer].wait_ready().await, "it has no certificate");
    let log = cluster.nodes[newcomer].log();
    let data = cluster.nodes[newcomer].config.data_dir.to_str().unwrap().to_owned();
    let key = done(None, &["key", "--data-dir", &data]).await["key"].as_str().unwrap().to_owned();
    assert!(log.contains(&format!("kiln signer issue {key}")), "{log}");
    assert!(cluster.nodes[newcomer].has_ended());
    let file = office.issue(&key, "*", "newcomer.json").await;
    done(Some(&cluster.nodes[0]), &["add", &file]).await;
    cluster.nodes[newcomer].restart().await;
    let made = cluster.nodes[newcomer].compile(saxpy("newer")).await.unwrap();
    assert_eq!(made.outcome, Outcome::Compiled);
    hits(&cluster, "newer").await;

    // Also after a restart.
    cluster.nodes[0].terminate().await;
    cluster.nodes[0].restart().await;
    let list = done(Some(&cluster.nodes[0]), &["list"]).await;
    assert_eq!(list[1]["certificate"]["namespaces"][0], "team", "{list}");
    hits(&cluster, "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_of_a_root_believes_no_other() {
    let mut cluster = TestCluster::start(1).await;
    let (office, root) = Office::init(&cluster.nodes[0], cluster.folder.path(), "office").await;
    let key = cluster.nodes[0].compile(saxpy("kernel")).await.unwrap().key;
    let epoch = cluster.nodes[0].lookup(&key).await.unwrap().unwrap().epoch;
    Redis::connect(&cluster.nodes[0]).await.set("value", "1").await;
    cluster.nodes[0].terminate().await;
    cluster.nodes[0].config.trust.root = Some(root);
    cluster.nodes[0].restart().await;
    let node = &cluster.nodes[0];
    for _ in 0..2 {
        let told = node.compile(saxpy("kernel")).await.unwrap();
        assert_eq!((told.key, told.outcome), (key, Outcome::Compiled), "as if it were not there");
    }
    assert_eq!(Redis::connect(node).await.get("value").await, None);
    assert!(node.lookup(&key).await.unwrap().is_none());
    assert!(node.fetch(&key).await.is_err());
    assert!(node.status().await.unwrap().signers.is_empty());
    let signer = &keys(node).await[0];
    let (root, certificate) =
        (office.sign("root.json", false).await, office.issue(signer, "default", "node.json").await);
    done(Some(node), &["add", &root, &certificate]).await;
    assert_eq!(node.compile(saxpy("kernel")).await.unwrap().outcome, Outcome::Hit);
    // What it did not believe was its own, and it has put nothing in its place.
    assert_eq!(node.lookup(&key).await.unwrap().unwrap().epoch, epoch);
    assert!(Redis::connect(node).await.get("value").await.is_some());
    assert_eq!(node.status().await.unwrap().signers.len(), 1);
}
