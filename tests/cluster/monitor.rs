//! The monitor of a real node: planted anomalies, alerts, emergency mode.

use kiln_proto::pb::{self, EmergencySystem, EmergencyTurn, Outcome};
use serde_json::Value;
use tokio::time::timeout;
use tonic::Code;

use crate::{
    harness::{SOON, TestCluster, TestNode, eventually, http, saxpy},
    redis::Redis,
    watching::{anomaly, knows, telling, watchful, working_until},
};

impl TestNode {
    async fn emergency(
        &self,
        turn: EmergencyTurn,
        system: EmergencySystem,
    ) -> Result<pb::EmergencyMode, tonic::Status> {
        let request = pb::EmergencyRequest {
            turn: turn.into(),
            system: system.into(),
            reason: "a test".into(),
        };
        let asked = self.client().await.emergency(request).await?;
        Ok(asked.into_inner().mode.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_that_nobody_uses_and_a_falling_hit_rate_are_found() {
    let cluster = TestCluster::start_with(1, watchful).await;
    let node = &cluster.nodes[0];
    let mut redis = Redis::connect(node).await;
    let mut store = async |n: u64| {
        let key = format!("new:{n}");
        redis.set(&key, key.as_bytes()).await;
        assert!(redis.get(&key).await.is_some());
    };
    let usual = |report: &pb::MonitorResponse| {
        knows(report, "unused_restores").and(knows(report, "value_hit_rate"))
    };
    working_until("what is usual", node, &mut store, usual).await;
    let report = node.report().await;
    for kind in ["unused_restores", "falling_hit_rate"] {
        assert_eq!(anomaly(&report, kind), None, "{:?}", report.anomalies);
    }

    let planted = node.report().await.cycle;
    let publish_again = async |n: u64| {
        let key = format!("new:{}", 1 + n % 20);
        let value = redis.get(&key).await.unwrap();
        redis.set(&key, value).await;
    };
    let of = |report: &pb::MonitorResponse| anomaly(report, "unused_restores");
    let found = working_until("unused restores", node, publish_again, of).await;
    // It was planted in the middle of a cycle, and is asked for after one.
    assert!(found <= planted + 4, "planted in {planted}, found in {found}");

    let planted = node.report().await.cycle;
    let miss = async |n: u64| assert!(redis.get(&format!("nowhere:{n}")).await.is_none());
    let of = |report: &pb::MonitorResponse| anomaly(report, "falling_hit_rate");
    let found = working_until("a falling hit rate", node, miss, of).await;
    assert!(found <= planted + 4, "planted in {planted}, found in {found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_copy_is_an_alert_that_a_webhook_gets_once_with_its_end() {
    let (cluster, mut webhook) = telling(|i, config| {
        watchful(i, config);
        // No value of this test stays in memory.
        config.memory.bytes = 1 << 20;
    })
    .await;
    let node = &cluster.nodes[0];
    let mut redis = Redis::connect(node).await;
    let value = vec![7; 2 << 20];
    redis.set("value", &value).await;
    let packs = node.packs();
    assert_eq!(packs.len(), 1);
    let mut bytes = std::fs::read(&packs[0]).unwrap();
    bytes[1 << 20] ^= 1;
    std::fs::write(&packs[0], &bytes).unwrap();
    // From L3, where there is a good copy; or a miss while the upload is under way.
    let got = redis.get("value").await;
    assert!(got.is_none_or(|got| got == value), "no wrong byte");

    let told = webhook.until_resolved("KilnCorruption").await;
    let told: Vec<&str> = told.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(told, ["firing", "resolved"]);
    let alerts = node.report().await.alerts;
    assert!(alerts.iter().any(|of| of.name == "KilnCorruption" && of.ends_unix_ms.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_turns_compilers_and_cache_off_and_on() {
    use EmergencySystem::{Cache, Compilers};
    use EmergencyTurn::{Begin, End};
    let cluster = TestCluster::start_with(1, watchful).await;
    let node = &cluster.nodes[0];
    let known = node.compile(saxpy("known")).await.unwrap();

    let mode = node.emergency(Begin, Compilers).await.unwrap();
    assert_eq!(mode.compilers.unwrap().why, "a test");
    let refused = timeout(SOON, node.compile(saxpy("fresh"))).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("a test"), "{refused}");
    assert_eq!(node.compile(saxpy("known")).await.unwrap().outcome, Outcome::Hit);
    let (code, page) = http(node, "/readyz").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!((code, &page["emergency"]["compilers"]["by"]), (200, &"person".into()));
    assert!(node.status().await.unwrap().emergency.unwrap().compilers.is_some());
    assert!(crate::harness::metrics(node).await.contains("kiln_emergency{system=\"compilers\"} 1"));
    node.emergency(End, Compilers).await.unwrap();
    assert_eq!(node.compile(saxpy("fresh")).await.unwrap().outcome, Outcome::Compiled);

    let mut redis = Redis::connect(node).await;
    redis.set("value", b"here").await;
    node.emergency(Begin, Cache).await.unwrap();
    assert_eq!(redis.get("value").await, None);
    for _ in 0..2 {
        let alone = node.compile(saxpy("known")).await.unwrap();
        assert_eq!(alone.outcome, Outcome::Compiled, "each for itself");
    }
    let mode = node.emergency(End, Cache).await.unwrap();
    assert_eq!(mode, pb::EmergencyMode::default());
    assert_eq!(redis.get("value").await.unwrap(), b"here");
    assert_eq!(node.compile(saxpy("known")).await.unwrap().key, known.key);
    assert!(node.status().await.unwrap().emergency.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn compilers_that_all_fail_are_off_until_one_works_again() {
    let cluster = TestCluster::start_with(1, watchful).await;
    let node = &cluster.nodes[0];
    node.compile(saxpy("first")).await.unwrap();
    // Where each of its processes begins: without it none starts.
    let workers = node.data().join("workers");
    let aside = node.data().join("aside");
    std::fs::rename(&workers, &aside).unwrap();
    let mut n = 0;
    let mut compile = async || {
        n += 1;
        node.compile(saxpy(&format!("broken_{n}"))).await
    };
    let mode = eventually("compilers off", async || {
        let _ = compile().await;
        node.status().await.unwrap().emergency
    })
    .await;
    let cause = mode.compilers.expect("compilers are off");
    assert_eq!(cause.by, "monitor");
    assert!(mode.cache.is_none());
    let down = |report: &pb::MonitorResponse| anomaly(report, "compilers_down");
    eventually("the alert", async || down(&node.report().await)).await;

    std::fs::rename(&aside, &workers).unwrap();
    let works = eventually("a compile", async || compile().await.ok()).await;
    assert_eq!(works.outcome, Outcome::Compiled);
    let on = async || node.status().await.unwrap().emergency.is_none().then_some(());
    eventually("compilers on", on).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_turns_the_cache_off_until_it_works_again() {
    let cluster = TestCluster::start_with(1, watchful).await;
    let node = &cluster.nodes[0];
    let mut redis = Redis::connect(node).await;
    redis.set("value", b"here").await;
    let quarantine = node.data().join("tier/quarantine");
    std::fs::write(quarantine.join("bad"), b"bad").unwrap();
    // Nothing can be written any more: a file where the folder was.
    let folder = node.data().join("tier/tmp");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, b"").unwrap();
    let mode = eventually("the cache off", async || node.status().await.unwrap().emergency).await;
    let cause = mode.cache.expect("the cache is off");
    assert_eq!(cause.by, "monitor");
    let alone = node.compile(saxpy("alone")).await.unwrap();
    assert_eq!(alone.outcome, Outcome::Compiled, "requests are answered");

    std::fs::remove_file(&folder).unwrap();
    let on = async || node.status().await.unwrap().emergency.is_none().then_some(());
    eventually("the cache on", on).await;
    assert!(folder.is_dir(), "made again");
    assert_eq!(std::fs::read_dir(&quarantine).unwrap().count(), 0, "swept");
    assert_eq!(redis.get("value").await.unwrap(), b"here");
    redis.set("more", b"kept").await;
    assert_eq!(redis.get("more").await.unwrap(), b"kept");
}
