//! Keys over time: a node signs with another one, killed at whichever step; and what a key
//! signed in some time goes, by the cluster's clock and not by the signer's.

use std::{os::unix::fs::PermissionsExt, path::Path};

use kiln_proto::pb::{self, Outcome};
use serde_json::Value;

use crate::{
    asked::kiln,
    harness::{TestCluster, TestNode, eventually, saxpy},
    redis::Redis,
    root::{Office, done, refused},
};

/// The keys of a node, the present one last.
pub(crate) async fn keys_of(node: &TestNode, id: u64) -> Vec<Value> {
    let list = done(Some(node), &["list"]).await;
    let all = list.as_array().unwrap().iter();
    all.filter(|row| row["node"].as_u64() == Some(id)).cloned().collect()
}

async fn rotate(node: &TestNode) -> (String, String) {
    let told = done(Some(node), &["rotate"]).await;
    assert_eq!((told["node"].as_u64(), &told["rotated"]), (Some(node.id), &Value::from(true)));
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    (text("before"), text("key"))
}

async fn hit(node: &TestNode, name: &str) {
    eventually("a hit", async || {
        let answer = node.compile(saxpy(name)).await.ok()?;
        (answer.outcome == Outcome::Hit).then_some(())
    })
    .await;
}

async fn revoke(node: &TestNode, key: &str, time: &[&str]) -> Value {
    let arguments = [&["signer", "revoke", key, "--reason", "a copy was sold"], time].concat();
    let (code, told) = kiln(node, &arguments).await;
    assert_eq!(code, Some(0), "{told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_signs_with_a_new_key_and_the_old_one_goes_alone() {
    let mut cluster = TestCluster::start(3).await;
    let old = cluster.nodes[1].compile(saxpy("old")).await.unwrap().key;
    Redis::connect(&cluster.nodes[1]).await.set("old", "1").await;
    let (before, key) = rotate(&cluster.nodes[1]).await;
    assert_ne!(before, key);
    let new = cluster.nodes[1].compile(saxpy("fresh")).await.unwrap();
    assert_eq!((new.outcome, new.manifest.signer), (Outcome::Compiled, cluster.nodes[1].id));
    Redis::connect(&cluster.nodes[1]).await.set("fresh", "2").await;
    for node in &cluster.nodes {
        for name in ["old", "fresh"] {
            hit(node, name).await;
            eventually("a value", async || Redis::connect(node).await.get(name).await).await;
        }
        assert_eq!(node.counter("bad_manifests").await, 0);
        let keys = keys_of(node, cluster.nodes[1].id).await;
        assert_eq!(keys.len(), 2, "{keys:?}");
        assert_eq!(
            (keys[0]["key"].as_str(), keys[1]["key"].as_str()),
            (Some(&*before), Some(&*key))
        );
        assert_eq!(keys[0]["until_unix_ms"], keys[1]["since_unix_ms"]);
        assert!(keys[1]["since_unix_ms"].as_u64() > Some(1_700_000_000_000));
    }
    let data = cluster.nodes[1].config.data_dir.to_str().unwrap().to_owned();
    eventually("the line of the audit log", async || {
        let show = ["audit", "show", "--data-dir", &data, "--event", "rotate_signer"];
        let (_, shown) = kiln(&cluster.nodes[1], &show).await;
        shown.to_string().contains(&key).then_some(())
    })
    .await;
    // It comes back as itself.
    cluster.nodes[1].kill().await;
    cluster.nodes[1].restart().await;
    hit(&cluster.nodes[1], "fresh").await;
    let later = cluster.nodes[1].compile(saxpy("later")).await.unwrap();
    assert_eq!(later.outcome, Outcome::Compiled);

    let told = revoke(&cluster.nodes[0], &before, &[]).await;
    assert_eq!(told["removed"], 2, "{told}");
    for node in &cluster.nodes {
        eventually("a miss", async || {
            let gone = node.lookup(&old).await.unwrap().is_none();
            (gone && Redis::connect(node).await.get("old").await.is_none()).then_some(())
        })
        .await;
        hit(node, "fresh").await;
        hit(node, "later").await;
        assert!(Redis::connect(node).await.get("fresh").await.is_some());
    }
    let again = cluster.nodes[1].compile(saxpy("old")).await.unwrap();
    assert_eq!((again.outcome, again.manifest.signer), (Outcome::Compiled, cluster.nodes[1].id));
}

/// Each state of its disk in which it can be killed.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_while_its_key_changes_signs_with_one_that_is_believed() {
    let mut cluster = TestCluster::start(3).await;
    let data = cluster.nodes[1].config.data_dir.clone();
    let file = |name: &str| data.join(name);
    let read = |path: &Path| std::fs::read(path).unwrap();
    let first = read(&file("signing.key"));

    // The next key is made, and nobody has heard of it.
    let next = done(Some(&cluster.nodes[1]), &["rotate", "--next"]).await;
    let next = next["key"].as_str().unwrap().to_owned();
    assert_eq!(keys_of(&cluster.nodes[0], cluster.nodes[1].id).await.len(), 1);
    cluster.nodes[1].kill().await;
    cluster.nodes[1].restart().await;
    assert_eq!(read(&file("signing.key")), first);
    let made = cluster.nodes[1].compile(saxpy("one")).await.unwrap();
    assert_eq!(made.outcome, Outcome::Compiled);
    hit(&cluster.nodes[0], "one").await;
    // It is that one when the rotation goes on.
    let second = read(&file("signing.next"));
    assert_eq!(rotate(&cluster.nodes[1]).await.1, next);
    assert_eq!(read(&file("signing.key")), second);
    assert!(!file("signing.next").exists());

    // The cluster knows, and its disk has both in the old places.
    cluster.nodes[1].kill().await;
    std::fs::rename(file("signing.key"), file("signing.next")).unwrap();
    std::fs::write(file("signing.key"), &first).unwrap();
    std::fs::set_permissions(file("signing.key"), PermissionsExt::from_mode(0o600)).unwrap();
    cluster.nodes[1].restart().await;
    let made = cluster.nodes[1].compile(saxpy("two")).await.unwrap();
    assert_eq!(made.outcome, Outcome::Compiled);
    hit(&cluster.nodes[0], "two").await;

    // Certificates name it by the key that it joined with, whatever became of the note of that.
    cluster.nodes[1].kill().await;
    let named = std::fs::read_to_string(file("signing.name")).unwrap();
    std::fs::write(file("signing.name"), "ab".repeat(32)).unwrap();
    cluster.nodes[1].restart().await;
    assert_eq!(std::fs::read_to_string(file("signing.name")).unwrap(), named);

    // An older key alone: it says so, and signs nothing that nobody believes.
    cluster.nodes[1].kill().await;
    std::fs::write(file("signing.key"), &first).unwrap();
    // There where its replica had not applied the change yet when it started.
    let _ = std::fs::remove_file(file("signing.next"));
    cluster.nodes[1].restart().await;
    hit(&cluster.nodes[1], "two").await;
    let refused = cluster.nodes[1].compile(saxpy("three")).await;
    // Another one may have made it.
    assert!(refused.is_err() || refused.unwrap().manifest.signer != cluster.nodes[1].id);
    assert_eq!(cluster.nodes[0].counter("bad_manifests").await, 0);

    // Its private half is lost: another key takes its place.
    assert_eq!(rotate(&cluster.nodes[1]).await.0, next);
    let made = cluster.nodes[1].compile(saxpy("four")).await.unwrap();
    assert_eq!((made.outcome, made.manifest.signer), (Outcome::Compiled, cluster.nodes[1].id));
    hit(&cluster.nodes[0], "four").await;
}

/// A caller who goes away stops nothing, and two changes at once are one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_key_that_nobody_waits_for_end_and_do_not_overlap() {
    let mut cluster = TestCluster::start(3).await;
    let node = &cluster.nodes[1];
    for (round, patience) in [0, 9, 81].into_iter().enumerate() {
        let known = keys_of(node, node.id).await.len();
        let mut client = node.client().await;
        let asked = client.rotate_signer(pb::RotateSignerRequest::default());
        // Wherever it is by then.
        let patience = std::time::Duration::from_millis(patience);
        let _ = tokio::time::timeout(patience, asked).await;
        rotate(node).await;
        let now = keys_of(node, node.id).await.len();
        assert!(now > known, "{round}: {known}, {now}");
    }
    eventually("the present key alone", async || {
        let present = keys_of(node, node.id).await.last().unwrap()["key"].clone();
        let on_disk = std::fs::read(node.data().join("signing.key")).unwrap();
        let on_disk = ed25519_dalek::SigningKey::from_bytes(&on_disk.try_into().unwrap());
        let is_it = present == hex::encode(on_disk.verifying_key().as_bytes());
        (is_it && !node.data().join("signing.next").exists()).then_some(())
    })
    .await;
    cluster.nodes[1].kill().await;
    cluster.nodes[1].restart().await;
    let made = cluster.nodes[1].compile(saxpy("after")).await.unwrap();
    assert_eq!((made.outcome, made.manifest.signer), (Outcome::Compiled, cluster.nodes[1].id));
}

/// A node that has just started may know an older key of its own than it had: what it is asked
/// for then is made and stored by itself all the same, once it heard from the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_just_started_signs_with_the_key_that_it_had() {
    let mut cluster = TestCluster::start(3).await;
    rotate(&cluster.nodes[1]).await;
    cluster.nodes[1].kill().await;
    for node in [0, 2] {
        cluster.nodes[node].pause().await;
    }
    cluster.nodes[1].restart().await;
    let node = &cluster.nodes[1];
    let others = [&cluster.nodes[0], &cluster.nodes[2]];
    let once_asked = |_: &pb::compile_event::Event| others.iter().for_each(|node| node.resume());
    let made = node.compile_watching(saxpy("early"), once_asked).await.unwrap();
    assert_eq!((made.outcome, made.manifest.signer), (Outcome::Compiled, node.id));
}

/// Of several endpoints, and of two tries, the one node and the one key that are meant.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_of_the_node_and_the_key_that_are_meant() {
    let cluster = TestCluster::start(3).await;
    let [first, second, _] = &cluster.nodes[..] else { unreachable!() };
    let both = format!("http://{},http://{}", first.config.grpc_listen, second.config.grpc_listen);
    let at_both = async |arguments: &[&str]| {
        let mut rotating = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        rotating.args(["signer", "rotate", "--json", "--endpoint", &both]).args(arguments);
        let told = rotating.kill_on_drop(true).output().await.unwrap();
        let text = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
        (told.status.code(), text)
    };
    let (code, told) = at_both(&[]).await;
    assert!(code == Some(2) && told.contains("--node"), "{told}");
    let (code, told) = at_both(&["--node", "99"]).await;
    assert!(code == Some(3) && told.contains("is node"), "{told}");
    let id = second.id.to_string();
    let (code, told) = at_both(&["--node", &id]).await;
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(keys_of(first, second.id).await.len(), 2);
    assert_eq!(keys_of(first, first.id).await.len(), 1);
    let asked = pb::RotateSignerRequest { node: second.id, ..Default::default() };
    let refused_by = first.client().await.rotate_signer(asked).await.unwrap_err();
    assert!(refused_by.message().contains("this is node"), "{refused_by:?}");

    // A certificate of another key changes nothing; its own, said again, nothing more.
    let (office, _) = Office::init(first, cluster.folder.path(), "office").await;
    done(Some(first), &["add", &office.sign("root.json", false).await]).await;
    let next = done(Some(second), &["rotate", "--next"]).await["key"].as_str().unwrap().to_owned();
    let stranger = ed25519_dalek::SigningKey::from_bytes(&[5; 32]).verifying_key();
    let another = office.issue(&hex::encode(stranger.as_bytes()), "*", "another.json").await;
    refused(second, &["rotate", "--certificate", &another], "is to follow it").await;
    assert_eq!(keys_of(second, second.id).await.len(), 2);
    let mine = office.issue(&next, "*", "mine.json").await;
    for _ in 0..2 {
        let told = done(Some(second), &["rotate", "--certificate", &mine]).await;
        assert_eq!(told["key"], Value::from(next.clone()));
        assert_eq!(keys_of(second, second.id).await.len(), 3);
    }
    // What the status tells has all of them.
    let (_, told) = kiln(second, &["status"]).await;
    assert_eq!(told["signer_keys"][&id].as_array().unwrap().len(), 3, "{told}");
    assert_eq!(told["signers"][&id], Value::from(next));

    // Of a key that is revoked for a time there is nothing to believe, and none is made.
    let key = second.compile(saxpy("attested")).await.unwrap().key.to_string();
    let present = keys_of(second, second.id).await.last().unwrap()["key"].clone();
    revoke(first, present.as_str().unwrap(), &["--signed-before", "2001-01-01T00:00:00Z"]).await;
    let refused = eventually("the refusal", async || {
        let (code, told) = kiln(second, &["attest", &key]).await;
        (code != Some(0)).then_some(told)
    });
    let told = refused.await.to_string();
    assert!(told.contains("kiln signer rotate"), "{told}");
    rotate(second).await;
    assert_eq!(kiln(second, &["attest", &key]).await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_signed_in_a_time_goes_by_the_clock_of_the_cluster() {
    let cluster = TestCluster::start(3).await;
    let signer = &cluster.nodes[2];
    let mine = keys_of(signer, signer.id).await[0]["key"].as_str().unwrap().to_owned();
    signer.compile(saxpy("before")).await.unwrap();
    let moment = |ms: u64| {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
        humantime::format_rfc3339_millis(at).to_string()
    };
    let now = || {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap();
        u64::try_from(since.as_millis()).unwrap()
    };
    let next = async |after: u64| {
        eventually("another millisecond", async || (now() > after).then(now)).await
    };
    let began = next(now()).await;
    signer.compile(saxpy("within")).await.unwrap();
    Redis::connect(signer).await.set("within", "1").await;
    eventually("the value", async || Redis::connect(&cluster.nodes[0]).await.get("within").await)
        .await;
    let ended = next(now()).await;
    signer.compile(saxpy("after")).await.unwrap();

    let (from, to) = (moment(began), moment(ended));
    let told =
        revoke(&cluster.nodes[0], &mine, &["--signed-after", &from, "--signed-before", &to]).await;
    assert_eq!(told["removed"], 2, "{told}");
    for node in &cluster.nodes {
        eventually("a miss", async || {
            Redis::connect(node).await.get("within").await.is_none().then_some(())
        })
        .await;
        hit(node, "before").await;
        hit(node, "after").await;
    }
    // It signs on: that time is over.
    let again = signer.compile(saxpy("within")).await.unwrap();
    assert_eq!((again.outcome, again.manifest.signer), (Outcome::Compiled, signer.id));

    // From now on it signs no more, and what it signed is there still; with a new key it goes on.
    assert_eq!(revoke(&cluster.nodes[0], &mine, &["--signed-after", "now"]).await["removed"], 0);
    hit(&cluster.nodes[0], "before").await;
    let lost = signer.compile(saxpy("late")).await.unwrap_err();
    assert!(lost.message().contains("a copy was sold"), "{lost:?}");
    rotate(signer).await;
    let late = signer.compile(saxpy("late")).await.unwrap();
    assert_eq!((late.outcome, late.manifest.signer), (Outcome::Compiled, signer.id));
    hit(&cluster.nodes[0], "late").await;

    for (arguments, why) in [
        (["revoke", "3", "--signed-after", "now", "--reason", "x"], "are of a key"),
        (
            ["revoke", mine.as_str(), "--signed-before", "1970-01-01T00:00:00Z", "--reason", "x"],
            "ends before",
        ),
    ] {
        refused(signer, &arguments, why).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_root_a_node_changes_its_key_with_a_certificate_and_not_without() {
    let cluster = TestCluster::start(3).await;
    let any = &cluster.nodes[0];
    let (office, _) = Office::init(any, cluster.folder.path(), "office").await;
    done(Some(any), &["add", &office.sign("root.json", false).await]).await;
    for (at, node) in cluster.nodes.iter().enumerate() {
        let key = keys_of(any, node.id).await[0]["key"].as_str().unwrap().to_owned();
        let file = office.issue(&key, "*", &format!("node-{at}.json")).await;
        done(Some(any), &["add", &file]).await;
    }
    done(Some(any), &["add", &office.sign("required.json", true).await]).await;
    let signer = &cluster.nodes[1];
    signer.compile(saxpy("old")).await.unwrap();

    refused(signer, &["rotate"], "kiln signer issue").await;
    let made = signer.compile(saxpy("meanwhile")).await.unwrap();
    assert_eq!((made.outcome, made.manifest.signer), (Outcome::Compiled, signer.id));
    let next = done(Some(signer), &["rotate", "--next"]).await["key"].as_str().unwrap().to_owned();
    let file = office.issue(&next, "*", "next.json").await;
    let told = done(Some(signer), &["rotate", "--certificate", &file]).await;
    assert_eq!(told["key"], Value::from(next));
    let made = signer.compile(saxpy("fresh")).await.unwrap();
    assert_eq!((made.outcome, made.manifest.signer), (Outcome::Compiled, signer.id));
    for node in &cluster.nodes {
        for name in ["old", "meanwhile", "fresh"] {
            hit(node, name).await;
        }
        assert_eq!(node.counter("unbelieved").await, 0);
    }
    // The root can say so again: a certificate of each present key is there.
    done(Some(any), &["add", &office.sign("again.json", true).await]).await;
}

/// The steps of "Another root" in deploy/DAY2.md.
#[tokio::test(flavor = "multi_thread")]
async fn another_root_takes_its_place_and_nothing_right_is_a_miss() {
    let mut cluster = TestCluster::start(3).await;
    let folder = cluster.folder.path().to_owned();
    let (old, old_root) = Office::init(&cluster.nodes[0], &folder, "old").await;
    let (new, new_root) = Office::init(&cluster.nodes[0], &folder, "fresh").await;
    let mut keys = Vec::new();
    for node in &cluster.nodes {
        let key = keys_of(node, node.id).await[0]["key"].as_str().unwrap().to_owned();
        keys.push(key);
    }
    let certify = async |office: &Office, node: &TestNode| {
        for (at, key) in keys.iter().enumerate() {
            let file = office.issue(key, "*", &format!("node-{at}.json")).await;
            done(Some(node), &["add", &file]).await;
        }
    };
    let any = &cluster.nodes[0];
    done(Some(any), &["add", &old.sign("root.json", false).await]).await;
    certify(&old, any).await;
    done(Some(any), &["add", &old.sign("required.json", true).await]).await;
    let key = cluster.nodes[0].compile(saxpy("mine")).await.unwrap().key;
    cluster.nodes[1].compile(saxpy("theirs")).await.unwrap();

    // Who pins a root pins both, first.
    cluster.nodes[1].terminate().await;
    cluster.nodes[1].config.trust.root = Some(format!("{old_root},{new_root}"));
    cluster.nodes[1].restart().await;
    let (root, out) = (old.file("root.key"), old.file("next.json"));
    let next = ["root", "next", &new_root, "--root", &root, "--out", &out, "--cluster", &old.1];
    done(None, &next).await;
    let any = &cluster.nodes[0];
    done(Some(any), &["add", &out]).await;
    let switch = new.sign("required.json", true).await;
    refused(any, &["add", &switch], "nodes without a certificate").await;
    certify(&new, any).await;
    for row in done(Some(any), &["list"]).await.as_array().unwrap() {
        assert_eq!(row["certified_next"], true, "{row}");
    }
    for node in &cluster.nodes {
        hit(node, "mine").await;
        hit(node, "theirs").await;
    }
    done(Some(any), &["add", &switch]).await;
    for node in &cluster.nodes {
        hit(node, "mine").await;
        hit(node, "theirs").await;
        assert_eq!(node.counter("unbelieved").await, 0);
    }
    refused(any, &["add", &old.sign("again.json", false).await], "the root of this cluster is")
        .await;

    // A client that was told of the new one, of both, and of the old one alone.
    let key = key.to_string();
    let at = format!("http://{}", any.config.grpc_listen);
    for (roots, good) in [
        (new_root.clone(), true),
        (format!("{old_root},{new_root}"), true),
        (old_root.clone(), false),
    ] {
        let out = folder.join(format!("out-{}", roots.len() + usize::from(good)));
        let mut get = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        get.args(["get", &key, "--endpoint", &at, "-o"]).arg(&out).env("KILN_ROOT", &roots);
        let told = get.kill_on_drop(true).output().await.unwrap();
        assert_eq!((told.status.success(), out.exists()), (good, good), "{roots}: {told:?}");
        if !good {
            let why = String::from_utf8_lossy(&told.stderr).into_owned();
            assert!(why.contains("no certificate of the root"), "{why}");
        }
    }
    // What a fleet shares by folders is believed by the same rule, and the command runs.
    for (roots, name, compiles) in
        [(&new_root, "first", true), (&new_root, "second", false), (&old_root, "third", true)]
    {
        let dir = folder.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let mut run = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        run.args(["run", "--endpoint", &at, "--trust-root", roots, "--target", "any", "--dir"]);
        run.arg(format!("shared={}", dir.display())).args(["--", "sh", "-c"]);
        run.arg(format!(
            "cd {} && {{ test -e made || echo compiles; }}; echo > made",
            dir.display()
        ));
        let told = run.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.status.success(), "{told:?}");
        assert_eq!(said.contains("compiles"), compiles, "{name}: {told:?}");
    }
}
