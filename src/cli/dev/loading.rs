//! Compilers that a ready node of `kiln dev` is still loading.
//!
//! Invariant: people see a compiler as missing only where it is, or where it takes longer
//! than [`PATIENCE`] to load.

use std::time::Duration;

use kiln_proto::{pb, pb::kiln_client::KilnClient};
use tokio::time::{sleep, timeout};

use super::node::NodeView;

/// A table is worth so much waiting; nodes serve meanwhile.
const PATIENCE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(100);

/// Takes over what nodes have loaded since they were ready, as long as some are loading.
pub(super) async fn until_loaded(nodes: &mut [NodeView]) {
    let all = nodes.iter_mut().map(async |node| {
        // What is missing then is told as missing.
        let _ = timeout(PATIENCE, loaded(node)).await;
    });
    futures::future::join_all(all).await;
}

async fn loaded(node: &mut NodeView) {
    while node.missing.iter().any(|missing| missing.loading) {
        sleep(AGAIN).await;
        let Some(found) = compilers(&node.grpc).await else { continue };
        node.missing.retain(|missing| !found.contains(&missing.compiler));
        node.compilers = found;
    }
}

/// The compilers that the node at `address` has now, if it answers.
async fn compilers(address: &str) -> Option<Vec<String>> {
    let mut client = KilnClient::connect(format!("http://{address}")).await.ok()?;
    let status = client.status(pb::StatusRequest::default()).await.ok()?.into_inner();
    Some(status.compilers.into_iter().map(|found| found.compiler).collect())
}
