//! The addresses that the node listens on: free, or its own already.
//!
//! Invariant: a port that was free is free again when this returns.

use std::{net::SocketAddr, time::Duration};

use kiln::{config::Config, net::tls::Mode};
use kiln_proto::pb;
use tokio::net::TcpListener;

use super::Check;
use crate::cli::{
    CliError,
    client::{Client, Endpoints},
};

/// What a node on this machine has to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What to do where the settings say that clients speak TLS alone.
pub(super) const IN_TLS: &str = "a node of these settings answers in TLS alone: kiln status --endpoint https://HOST:PORT --ca FILE";

/// What to do where a node says nothing without a token.
const WITH_TOKEN: &str =
    "the node that answers there wants to know who asks: name a token's file in KILN_TOKEN_FILE";

/// What to do where this client's token would go in plain text.
const NOT_SENT: &str = "the token is not sent there in plain text, or is no token, and so the \
                        node was not asked: kiln status --endpoint says which";

/// The node that answers at the gRPC address of the settings.
pub(super) struct Here {
    pub(super) client: Client,
    pub(super) status: pb::StatusResponse,
}

pub(super) async fn check(config: &Config) -> (Vec<Check>, Option<Here>) {
    let asked = tokio::time::timeout(ANSWER, ask(config.grpc_listen)).await;
    let (here, unasked) = match asked {
        Ok(Ok(here)) => (here, speaks_tls(config).then_some(IN_TLS)),
        Ok(Err(Unasked::WantsToken)) => (None, Some(WITH_TOKEN)),
        Ok(Err(Unasked::KeepsToken)) => (None, Some(NOT_SENT)),
        Err(_) => (None, speaks_tls(config).then_some(IN_TLS)),
    };
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
            Some(address) => port(key, address, here.as_ref(), unasked).await,
        });
    }
    (found, here)
}

/// Why it is not known which node answers.
enum Unasked {
    /// It does not say more without a token.
    WantsToken,
    /// There is a token that does not go there.
    KeepsToken,
}

async fn ask(address: SocketAddr) -> Result<Option<Here>, Unasked> {
    if address.port() == 0 {
        return Ok(None);
    }
    let Ok(endpoints) = Endpoints::one(&reached(address).to_string()) else { return Ok(None) };
    let mut client = match endpoints.connect().await {
        Ok(client) => client,
        Err(CliError::Usage(_)) => return Err(Unasked::KeepsToken),
        Err(_) => return Ok(None),
    };
    let request = pb::StatusRequest { whole: true };
    match client.status(request).await {
        Ok(answer) => Ok(Some(Here { client, status: answer.into_inner() })),
        Err(status) if status.code() == tonic::Code::Unauthenticated => Err(Unasked::WantsToken),
        Err(_) => Ok(None),
    }
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

async fn port(
    key: &str,
    address: SocketAddr,
    here: Option<&Here>,
    unasked: Option<&'static str>,
) -> Check {
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
        (std::io::ErrorKind::AddrInUse, None) if let Some(advice) = unasked => {
            Check::off(key, format!("{address} is in use; by whom was not asked"), advice)
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
