//! The addresses that the node listens on: free, or its own already.
//!
//! Invariant: a port that was free is free again when this returns.

use std::{net::SocketAddr, time::Duration};

use kiln::{config::Config, net::tls::Mode};
use kiln_proto::pb;
use tokio::net::TcpListener;

use super::Check;
use crate::cli::client::{Client, Endpoints};

/// What a node on this machine has to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What to do where the settings say that clients speak TLS alone.
pub(super) const IN_TLS: &str = "a node of these settings answers in TLS alone: kiln status --endpoint https://HOST:PORT --ca FILE";

/// The node that answers at the gRPC address of the settings.
pub(super) struct Here {
    pub(super) client: Client,
    pub(super) status: pb::StatusResponse,
}

pub(super) async fn check(config: &Config) -> (Vec<Check>, Option<Here>) {
    let here = tokio::time::timeout(ANSWER, ask(config.grpc_listen)).await.ok().flatten();
    let addresses = [
        ("grpc_listen", Some(config.grpc_listen)),
        ("http_listen", Some(config.http_listen)),
        ("transfer_listen", Some(config.transfer_listen)),
        ("resp_listen", config.resp_listen),
    ];
    let mut found = Vec::new();
    for (key, address) in addresses {
        found.push(match address {
            None => Check::off(key, "off", ""),
            Some(address) => port(key, address, here.as_ref(), speaks_tls(config)).await,
        });
    }
    (found, here)
}

async fn ask(address: SocketAddr) -> Option<Here> {
    if address.port() == 0 {
        return None;
    }
    let mut client = Endpoints::one(&reached(address).to_string()).ok()?.connect().await.ok()?;
    let request = pb::StatusRequest { whole: true };
    let status = client.status(request).await.ok()?.into_inner();
    Some(Here { client, status })
}

/// A wildcard is reached on this machine.
fn reached(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    address
}

/// Whether a node of these settings takes no question in plain text.
pub(super) fn speaks_tls(config: &Config) -> bool {
    config.tls.clients.mode == Mode::Require
}

async fn port(key: &str, address: SocketAddr, here: Option<&Here>, in_tls: bool) -> Check {
    let error = match TcpListener::bind(address).await {
        Ok(_) if address.port() == 0 => return Check::ok(key, format!("{address}: a free port")),
        Ok(_) => return Check::ok(key, format!("{address} is free")),
        Err(error) => error,
    };
    let variable = format!("KILN_{}", key.to_uppercase());
    match (error.kind(), here) {
        (std::io::ErrorKind::AddrInUse, Some(here)) => {
            Check::ok(key, format!("{address} is in use, as by node {} here", here.status.node))
        }
        (std::io::ErrorKind::AddrInUse, None) if in_tls => {
            Check::off(key, format!("{address} is in use; by whom was not asked"), IN_TLS)
        }
        (std::io::ErrorKind::AddrInUse, None) => Check::problem(
            key,
            format!("{address} is in use, and no node of Kiln answers here"),
            format!("see by whom (ss -ltnp), or set {variable} to another"),
        ),
        _ => Check::problem(
            key,
            format!("{address} cannot be listened on: {error}"),
            format!("set {variable} to an address of this machine"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[tokio::test]
    async fn a_port_is_free_or_somebody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = super::super::settings(folder.path());
        let (checks, here) = check(&config).await;
        assert!(checks.iter().all(|check| check.state != State::Problem), "{checks:?}");
        assert!(here.is_none());

        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        config.http_listen = taken.local_addr().unwrap();
        let (checks, _) = check(&config).await;
        assert_eq!(checks[1].state, State::Problem, "{checks:?}");
        assert!(checks[1].advice.contains("KILN_HTTP_LISTEN"), "{checks:?}");
    }
}
