//! Redis connections that stand for many compilers, as those of ccache's and sccache's helpers do.

use std::time::Duration;

use crate::{
    harness::TestCluster,
    redis::{Redis, request, value},
};

/// Long enough to tell a GET that waits from one that is slow.
const MOMENT: Duration = Duration::from_millis(700);

/// Helpers of ccache have one connection for many compilers, and send one request at a time.
#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_key_does_not_wait_for_anothers() {
    // Longer than a test waits for a reply.
    let cluster = TestCluster::start_with(3, |_, config| {
        config.resp.wait = Duration::from_secs(4 * 3600);
    })
    .await;
    let mut helpers =
        [Redis::connect(&cluster.nodes[0]).await, Redis::connect(&cluster.nodes[1]).await];
    for (helper, own) in helpers.iter_mut().zip(["cc/x", "cc/y"]) {
        assert_eq!(helper.get(own).await, None);
    }
    for (helper, others) in helpers.iter_mut().zip(["cc/y", "cc/x"]) {
        assert_eq!(helper.get(others).await, None);
    }
    // It has SET what it held: now it may wait, and is told.
    helpers[0].set("cc/x", "1").await;
    helpers[0].send(&request(["GET", "cc/y"])).await;
    assert!(helpers[0].is_silent_for(MOMENT).await);
    helpers[1].set("cc/y", "2").await;
    assert_eq!(value(helpers[0].reply().await).unwrap(), b"2");
}
