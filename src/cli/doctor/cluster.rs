//! The cluster as the node here sees it: quorum, peers in reach, and their clocks.
//!
//! Invariant: nodes are asked for one entry at most, and nothing is changed.

use std::time::{Duration, SystemTime};

use futures::{StreamExt, stream};
use kiln_proto::pb;

use super::{
    Check,
    ports::{self, Here},
};
use crate::cli::client::Endpoints;

/// What each node has to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Nodes that are asked at once.
const AT_ONCE: usize = 16;
/// Ages, traces and certificates go wrong beyond it; the index does not.
const MOST_APART: Duration = Duration::from_secs(2);

pub(super) async fn check(here: Option<Here>, in_tls: bool) -> Vec<Check> {
    let Some(here) = here else {
        if in_tls {
            return vec![Check::off("cluster", "not asked", ports::IN_TLS)];
        }
        let advice = "start one with kiln serve, and then look again";
        return vec![Check::off("cluster", "no node runs here", advice)];
    };
    let status = here.status;
    drop(here.client);
    let said = format!("node {}, {}, of {} nodes", status.node, status.role, status.nodes.len());
    let mut found = vec![match status.quorum {
        true => Check::ok("cluster", said),
        false => Check::problem(
            "cluster",
            format!("{said}: no quorum"),
            "start the nodes that are missing; what is stored here is served meanwhile",
        ),
    }];
    let asking = status.nodes.into_iter().map(|node| async move {
        let name = format!("node {}", node.id);
        match tokio::time::timeout(ANSWER, clock(&node.grpc)).await {
            Ok(Ok(apart)) => judged(&name, &node.grpc, apart),
            Ok(Err(why)) => unreachable(&name, &node.grpc, &why),
            Err(_) => {
                unreachable(&name, &node.grpc, &format!("no answer within {} s", ANSWER.as_secs()))
            }
        }
    });
    found.extend(stream::iter(asking).buffered(AT_ONCE).collect::<Vec<_>>().await);
    found
}

fn unreachable(name: &str, address: &str, why: &str) -> Check {
    let advice = "see that it runs, that its advertised address is right, and that no firewall \
                  is between";
    Check::problem(name, format!("{address} cannot be reached: {why}"), advice)
}

fn judged(name: &str, address: &str, apart: Option<Duration>) -> Check {
    match apart {
        None => Check::ok(name, format!("{address} answers; its version does not tell its clock")),
        Some(apart) if apart > MOST_APART => Check::problem(
            name,
            format!("{address} answers; its clock is {} s from this one's", apart.as_secs()),
            "let a time service (chrony, systemd-timesyncd) set both clocks",
        ),
        Some(apart) => {
            let said = format!("{address} answers; clocks within {} ms", apart.as_millis());
            Check::ok(name, said)
        }
    }
}

/// How far the clock of the node is from this one's, at least: what the call took is left out.
async fn clock(address: &str) -> Result<Option<Duration>, String> {
    let mut client = Endpoints::one(address)?.connect().await.map_err(|error| error.to_string())?;
    let before = SystemTime::now();
    let answer = client.list(pb::ListRequest { limit: 1, ..Default::default() }).await;
    let after = SystemTime::now();
    let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
    if answer.now_unix_ms == 0 {
        return Ok(None);
    }
    let there = SystemTime::UNIX_EPOCH + Duration::from_millis(answer.now_unix_ms);
    let ahead = there.duration_since(after).unwrap_or_default();
    let behind = before.duration_since(there).unwrap_or_default();
    Ok(Some(ahead.max(behind)))
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[tokio::test]
    async fn no_node_is_no_problem_and_one_that_does_not_answer_is() {
        assert_eq!(check(None, false).await[0].state, State::Off);
        // Bound, so that nobody else has the port, and not listening.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = closed.local_addr().unwrap().to_string();
        let why = clock(&address).await.unwrap_err();
        assert_eq!(unreachable("node 2", &address, &why).state, State::Problem);
    }

    #[test]
    fn clocks_may_differ_a_little() {
        let state = |apart| judged("node 2", "a:1", apart).state;
        assert_eq!(state(Some(Duration::from_millis(1999))), State::Ok);
        assert_eq!(state(Some(Duration::from_secs(3))), State::Problem);
        assert_eq!(state(None), State::Ok);
    }
}
