//! The metrics call: this node's figures, and those of the others.
//!
//! Invariant: it ends within [`PATIENCE`], whatever the other nodes do; a node that does
//! not answer is named with the reason, and its figures are in no sum.

use std::time::Duration;

use futures::{StreamExt, stream};
use kiln_proto::{NodeId, pb, pb::kiln_client::KilnClient};
use tokio::time::timeout;
use tonic::{Status, transport::Endpoint};

use super::parts::Parts;
use crate::{
    net::tls::Dialer,
    telemetry::{compilation::Compilation, exposition::Family},
};

/// What all other nodes have for their answers.
const PATIENCE: Duration = Duration::from_secs(3);
/// Nodes that are asked at once.
const AT_ONCE: usize = 32;

/// This node's metrics and, of a `cluster`, those of every other member.
pub(super) async fn gather(parts: &Parts, cluster: bool) -> pb::MetricsResponse {
    let families = parts.meters.families(&parts.cluster);
    let mut nodes = vec![pb::NodeMetrics {
        node: parts.node,
        error: String::new(),
        metrics: families.iter().map(Into::into).collect(),
        compilation: Some((&Compilation::of(&families)).into()),
    }];
    if cluster {
        let others = parts.cluster.status().nodes.into_iter().filter(|node| node.id != parts.node);
        let asked = others.map(|node| ask(&parts.dialer, node.id, node.facts.members().to_owned()));
        let mut others: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        others.sort_by_key(|node: &pb::NodeMetrics| node.node);
        nodes.append(&mut others);
    }
    let all: Vec<Family> = nodes.iter().flat_map(|node| &node.metrics).map(Into::into).collect();
    let compilation = Some((&Compilation::of(&all)).into());
    pb::MetricsResponse { nodes, compilation }
}

/// One node's own answer, or why there is none.
async fn ask(dialer: &Dialer, node: NodeId, address: String) -> pb::NodeMetrics {
    let answer = timeout(PATIENCE, ask_at(dialer, &address)).await;
    let error = match answer {
        Ok(Ok(answer)) => match answer.nodes.into_iter().find(|found| found.node == node) {
            Some(found) => return found,
            None => format!("another node answers at {address}"),
        },
        Ok(Err(status)) => status.message().to_owned(),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    pb::NodeMetrics { node, error, ..Default::default() }
}

async fn ask_at(dialer: &Dialer, address: &str) -> Result<pb::MetricsResponse, Status> {
    let unreachable = |e: tonic::transport::Error| Status::unavailable(format!("{address}: {e}"));
    let configured = |endpoint: Endpoint| endpoint.connect_timeout(PATIENCE);
    let channel = dialer.channel(address, configured).map_err(unreachable)?;
    // Answers of at most 4 MiB, as gRPC has it: twenty times what a node has to tell.
    let mut client = KilnClient::new(channel);
    Ok(client.metrics(pb::MetricsRequest { cluster: false }).await?.into_inner())
}
