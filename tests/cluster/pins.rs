//! Pins that change while a node is away, and pins of packs that several keys share.

use kiln_proto::{Digest, pb, value};

use crate::{
    harness::{NAMESPACE, TestCluster, TestNode, bytes_of, eventually, metrics},
    redis::Redis,
};

/// Of one value, in bytes.
const VALUE: usize = 256 << 10;
/// The disk tier of the node that is looked at: room for a few values.
const DISK: u64 = 6 * VALUE as u64;

fn bytes(name: &str) -> Vec<u8> {
    let seed = Digest::of(name.as_bytes());
    seed.as_bytes().iter().copied().cycle().take(VALUE).collect()
}

async fn set(node: &TestNode, name: &str, bytes: &[u8]) {
    Redis::connect(node).await.set(name, bytes).await;
}

async fn pin(node: &TestNode, name: &str, pinned: bool) {
    let key = value::components(NAMESPACE, name.as_bytes()).key();
    let request = pb::PinRequest { key: bytes_of(&key), pinned };
    node.client().await.pin(request).await.unwrap();
}

/// Whether the disk tier of `node` has the file of these bytes.
fn has(node: &TestNode, bytes: &[u8]) -> bool {
    let digest = Digest::of(bytes).to_string();
    let name = |pack: &std::path::PathBuf| {
        let file = pack.file_name().unwrap().to_string_lossy().into_owned();
        // The first digits name its folder.
        let folder = pack.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        format!("{folder}{file}")
    };
    node.packs().iter().any(|pack| name(pack) == digest)
}

/// Waits until `node` changed as many pins of its tiers since it started.
async fn changed(node: &TestNode, change: &str, least: u64) {
    let line = format!("kiln_pins_changed_total{{change=\"{change}\"}} ");
    eventually("pins to change", async || {
        let page = metrics(node).await;
        let count = page.lines().find_map(|l| l.strip_prefix(&line)).unwrap_or("0").to_owned();
        (count.parse::<u64>().unwrap() >= least).then_some(())
    })
    .await;
}

/// More bytes than the disk has room for.
async fn press(node: &TestNode, round: &str) {
    for n in 0..10 {
        set(node, &format!("{round}-{n}"), &bytes(&format!("{round}-{n}"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_that_changed_while_a_node_was_away_are_reconciled() {
    let mut cluster = TestCluster::start_with(3, |i, config| {
        if i == 2 {
            config.disk.bytes = DISK;
            config.disk.policy = kiln::config::EvictionPolicy::Lru;
        }
    })
    .await;
    let kept = bytes("kept");
    set(&cluster.nodes[2], "kept", &kept).await;
    assert!(has(&cluster.nodes[2], &kept));

    cluster.nodes[2].kill().await;
    pin(&cluster.nodes[0], "kept", true).await;
    cluster.nodes[2].restart().await;
    changed(&cluster.nodes[2], "pinned", 1).await;
    press(&cluster.nodes[2], "first").await;
    assert!(has(&cluster.nodes[2], &kept), "a pinned pack was evicted");

    cluster.nodes[2].kill().await;
    pin(&cluster.nodes[0], "kept", false).await;
    cluster.nodes[2].restart().await;
    changed(&cluster.nodes[2], "unpinned", 1).await;
    press(&cluster.nodes[2], "second").await;
    assert!(!has(&cluster.nodes[2], &kept), "a pack that is pinned no more stays for ever");
}

/// A snapshot says nothing of what changed, only what is.
#[tokio::test(flavor = "multi_thread")]
async fn pins_that_came_with_a_snapshot_are_reconciled() {
    let mut cluster = TestCluster::start_with(3, |i, config| {
        config.cluster.log_entries = 64;
        if i == 2 {
            config.disk.bytes = DISK;
            config.disk.policy = kiln::config::EvictionPolicy::Lru;
        }
    })
    .await;
    let (kept, free) = (bytes("kept"), bytes("free"));
    for (name, bytes) in [("kept", &kept), ("free", &free)] {
        set(&cluster.nodes[2], name, bytes).await;
    }
    pin(&cluster.nodes[2], "free", true).await;
    changed(&cluster.nodes[2], "pinned", 1).await;
    let (mut kept_is, mut free_is) = (false, true);
    // What the log keeps for a node that is away depends on what is being sent to it just
    // then: until the node gets a snapshot, and the pins are the other way round.
    for round in 0.. {
        assert!(round < 20, "the log always brought it up to date");
        cluster.nodes[2].kill().await;
        cluster.leader(&[0, 1]).await;
        (kept_is, free_is) = (!kept_is, !free_is);
        pin(&cluster.nodes[0], "kept", kept_is).await;
        pin(&cluster.nodes[0], "free", free_is).await;
        for n in 0..300 {
            set(&cluster.nodes[0], &format!("more {round} {n}"), b"x").await;
        }
        let known = cluster.nodes[2].log().len();
        cluster.nodes[2].restart().await;
        changed(&cluster.nodes[2], "pinned", 1).await;
        changed(&cluster.nodes[2], "unpinned", 1).await;
        let came = cluster.nodes[2].log()[known..].contains("a snapshot of the index came");
        if came && kept_is {
            break;
        }
    }
    press(&cluster.nodes[2], "after").await;
    assert!(has(&cluster.nodes[2], &kept), "a pinned pack was evicted");
    assert!(!has(&cluster.nodes[2], &free), "a pack that is pinned no more stays for ever");
}

/// No event tells of these pins: their node alone forgot them.
#[tokio::test(flavor = "multi_thread")]
async fn pins_outlive_the_disk_tiers_own_index() {
    let mut cluster = TestCluster::start_with(1, |_, config| {
        config.disk.bytes = DISK;
        config.disk.policy = kiln::config::EvictionPolicy::Lru;
    })
    .await;
    let kept = bytes("kept");
    set(&cluster.nodes[0], "kept", &kept).await;
    pin(&cluster.nodes[0], "kept", true).await;
    changed(&cluster.nodes[0], "pinned", 1).await;
    cluster.nodes[0].kill().await;
    std::fs::remove_dir_all(cluster.nodes[0].config.disk_path().join("index")).unwrap();
    cluster.nodes[0].restart().await;
    changed(&cluster.nodes[0], "pinned", 1).await;
    press(&cluster.nodes[0], "pressure").await;
    assert!(has(&cluster.nodes[0], &kept), "a pinned pack was evicted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_stays_pinned_as_long_as_one_of_its_keys_is() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.disk.bytes = DISK;
        config.disk.policy = kiln::config::EvictionPolicy::Lru;
    })
    .await;
    let node = &cluster.nodes[0];
    let shared = bytes("shared");
    for name in ["one", "two"] {
        set(node, name, &shared).await;
        pin(node, name, true).await;
    }
    let other = bytes("other");
    set(node, "other", &other).await;
    pin(node, "other", true).await;
    pin(node, "one", false).await;
    // The comparison that this asks for finds one pin to take back, of a third key.
    pin(node, "other", false).await;
    changed(node, "unpinned", 1).await;
    press(node, "pressure").await;
    assert!(has(node, &shared), "the other key's pin counts too");
    assert!(!has(node, &other));

    pin(node, "two", false).await;
    changed(node, "unpinned", 2).await;
    press(node, "more").await;
    assert!(!has(node, &shared));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_value_of_a_pinned_key_is_pinned_too() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.disk.bytes = DISK;
        config.disk.policy = kiln::config::EvictionPolicy::Lru;
    })
    .await;
    let node = &cluster.nodes[0];
    set(node, "key", &bytes("old")).await;
    pin(node, "key", true).await;
    changed(node, "pinned", 1).await;
    let new = bytes("new");
    set(node, "key", &new).await;
    changed(node, "pinned", 2).await;
    press(node, "pressure").await;
    assert!(has(node, &new), "the pin is the key's, whatever its bytes are");
}
