//! Fetched is not used: what COMMAND made of what was restored for it.

use super::bench::{Bench, Done, manifest};
use crate::harness::{TestCluster, TestNode};

/// What its engine compiled goes below a folder named by a digest of its settings.
fn engine(digest: &str, setting: &str) -> String {
    format!(
        "mkdir -p $D/graphs/{digest} && cd $D/graphs/{digest} && \
         if [ -e graph ]; then cat graph factors.json; else \
         echo code > graph; echo '{{\"env\":{{\"SETTING\":\"{setting}\"}},\"code\":\"x\"}}' > factors.json; \
         echo more > other; fi"
    )
}

/// Restores that were of use, and of none, as the node counted them.
async fn counted(node: &TestNode) -> (u64, u64) {
    (node.counter("loaded").await, node.counter("unused_restores").await)
}

fn told(done: &Done) -> &serde_json::Value {
    &done.folder()["restored"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_of_no_use_is_said_with_what_moved() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let node = &cluster.nodes[0];
    let first = bench.run(node, "a", &[], &engine("d1", "one")).await.ok();
    assert_eq!(told(&first)["used"], serde_json::Value::Null, "nothing was restored: {first:?}");
    let second = bench.run(node, "b", &[], &engine("d1", "one")).await.ok();
    let (restored, used) = (&told(&second)["files"], &told(&second)["used"]);
    assert_eq!((restored, used), (&3.into(), &2.into()), "does $TMPDIR keep atime? {second:?}");
    assert_eq!(told(&second)["unused"], false);
    assert!(second.stderr.contains("opened 2 of 3 restored files"), "{second:?}");
    assert_eq!(counted(node).await, (1, 0));

    // Another setting, which is in no key of Kiln's: all is compiled beside what was restored.
    let third = bench.run(node, "c", &[], &engine("d2", "two")).await.ok();
    assert_eq!((third.outcome(), third.captures()), ("hit", 1));
    assert_eq!((&told(&third)["used"], &told(&third)["unused"]), (&0.into(), &true.into()));
    let moved = told(&third)["moved"].as_str().unwrap();
    assert_eq!(moved, "graphs/d1 is graphs/d2 now; it differs in env.SETTING");
    assert!(
        third.stderr.contains(&format!(
            "none of 3 restored files was opened, 3 new ones were published: {moved}"
        )),
        "{third:?}"
    );
    assert_eq!(counted(node).await, (1, 1));
    assert_eq!(manifest(node, &third.key()).await.files.len(), 7);

    // One that failed may have ended before it looked.
    let failed = bench.run(node, "d", &[], "exit 3").await;
    let state = (&told(&failed)["used"], &told(&failed)["unused"]);
    assert_eq!(state, (&0.into(), &serde_json::Value::Null), "{failed:?}");
    assert_eq!(counted(node).await, (1, 1));
}
