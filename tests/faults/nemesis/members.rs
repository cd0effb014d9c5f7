//! Members that come and go under load.
//!
//! Invariant: when a strike ends, the cluster has as many nodes as it began with.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::{Context, ensure};
use kiln::config::{Config, Copies};
use kiln_proto::pb;
use tokio::time::{Instant, sleep};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::fleet::Plan;

pub(super) fn all() -> Vec<Nemesis> {
    vec![
        nemesis("join-leave", "a node joins, another leaves; the leader in turn", 20, join_leave),
        Nemesis {
            once: true,
            plan: Plan { configure: two_copies, ..THREE },
            ..nemesis("remove-dead", "a node dies and is removed, a new one joins", 20, remove_dead)
        },
    ]
}

/// What is acknowledged survives the loss of one disk for good.
fn two_copies(_: usize, config: &mut Config) {
    config.publish.copies = Copies::Nodes(2.try_into().unwrap());
}

fn join_leave<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, others) = strike.members().await?;
        let leaves = if strike.chance.percent(50) { leader } else { others[0] };
        strike.struck(format!("a node joins, {leaves} leaves"));
        join(strike).await?;
        let mut client = strike.fleet.nodes[leaves].door.client();
        strike.fleet.nodes[leaves].door.open.store(false, Relaxed);
        client.leave(pb::LeaveRequest::default()).await.context("leave")?;
        strike.hold(3.0).await;
        strike.fleet.nodes[leaves].terminate().await?;
        strike.heal()
    })
}

fn remove_dead<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, others) = strike.members().await?;
        let dies = if strike.chance.percent(50) { leader } else { others[0] };
        strike.fleet.nodes[dies].kill().await?;
        strike.fleet.nodes[dies].door.open.store(false, Relaxed);
        strike.struck(format!("{dies} died, is removed and replaced"));
        strike.hold(1.0).await;
        let id = strike.fleet.nodes[dies].id;
        let alive = strike.fleet.leader().await?;
        let mut client = strike.fleet.nodes[alive].door.client();
        client.remove_node(pb::RemoveNodeRequest { id }).await.context("remove")?;
        join(strike).await?;
        strike.hold(2.0).await;
        strike.heal()
    })
}

/// A new node becomes a voter, and clients ask it.
async fn join(strike: &mut Strike<'_>) -> anyhow::Result<usize> {
    let at = strike.fleet.newcomer().await?;
    let id = strike.fleet.nodes[at].id;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let leader = strike.fleet.leader().await?;
        let status = strike.fleet.nodes[leader].status().await;
        let nodes = status.map(|status| status.nodes).unwrap_or_default();
        if nodes.iter().any(|node| node.id == id && node.voter) || nodes.len() > 3 {
            return Ok(at);
        }
        ensure!(Instant::now() < end, "node {at} is no voter after 30 s");
        sleep(Duration::from_millis(200)).await;
    }
}
