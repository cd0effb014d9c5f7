//! Which ports the nodes of `kiln dev` get.
//!
//! Invariant: ports that people can remember are taken by one `kiln dev` of a machine at a
//! time, and only where all of a node's are free; every other node gets free ones.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    time::{Duration, Instant},
};

use kiln::config::Config;

use crate::cli::CliError;

/// Ports for one node: gRPC, HTTP, transfer, RESP.
const PORTS: u16 = 4;
/// The default of `grpc_listen`; the other three follow.
const FIRST: u16 = 7400;
/// From one node's to the next one's.
const STEP: u16 = 10;

/// How ports are chosen.
#[derive(Debug)]
pub(super) struct Ports {
    address: Ipv4Addr,
    /// The first node's first port, where they are fixed.
    first: Option<u16>,
    /// That no other `kiln dev` takes them between a look and a node's own bind.
    _mutex: Option<UnixListener>,
}

impl Ports {
    /// Free ones: scripts read them, and many may run at once.
    pub(super) fn free() -> Self {
        Self { address: Ipv4Addr::LOCALHOST, first: None, _mutex: None }
    }

    /// The default ports and those ten higher, unless another `kiln dev` has taken them.
    pub(super) fn for_people() -> Self {
        Self::of_one("kiln-dev-ports")
    }

    /// The default ports, for one holder of `name` at a time.
    fn of_one(name: &str) -> Self {
        // Abstract: the kernel ends it with this process, and it is the network's own, as
        // ports are.
        let name = UnixAddr::from_abstract_name(name);
        match name.and_then(|name| UnixListener::bind_addr(&name)) {
            Ok(mutex) => Self { first: Some(FIRST), _mutex: Some(mutex), ..Self::free() },
            Err(_) => Self::free(),
        }
    }

    /// Four addresses for each of the nodes of these numbers, which begin at 1.
    pub(super) fn of(
        &self,
        numbers: RangeInclusive<usize>,
    ) -> Result<Vec<Vec<SocketAddr>>, CliError> {
        // All are held until all are chosen, so that none is chosen twice.
        let mut chosen = Vec::new();
        for number in numbers {
            let fixed = self.first.and_then(|first| fixed(self.address, first, number));
            chosen.push(match fixed {
                Some(held) => held,
                None => free(self.address)?,
            });
        }
        let addresses =
            |held: &Vec<TcpListener>| held.iter().map(TcpListener::local_addr).collect();
        Ok(chosen.iter().map(addresses).collect::<Result<_, _>>()?)
    }
}

/// A node's own ports, if nobody listens on any of them.
fn fixed(address: Ipv4Addr, first: u16, number: usize) -> Option<Vec<TcpListener>> {
    let before = STEP.checked_mul(u16::try_from(number).ok()?.checked_sub(1)?)?;
    let own = first.checked_add(before)?;
    (0..PORTS).map(|at| TcpListener::bind((address, own.checked_add(at)?)).ok()).collect()
}

/// Ports that nobody listens on, below the range from which the kernel takes ports for
/// outgoing connections: nothing else takes one between this look and the node's own bind.
fn free(address: Ipv4Addr) -> Result<Vec<TcpListener>, CliError> {
    const LOWEST: u16 = 10_000;
    const TRIES: usize = 1024;
    let outgoing = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let outgoing = outgoing.and_then(|range| range.split_whitespace().next()?.parse::<u16>().ok());
    let end = outgoing.filter(|first| *first > LOWEST + 1000).unwrap_or(32_768);
    let mut held = Vec::new();
    for _ in 0..TRIES {
        if held.len() == usize::from(PORTS) {
            return Ok(held);
        }
        let random = getrandom::u32().map_err(|e| anyhow::anyhow!("random port: {e}"))?;
        let port = LOWEST + (random % u32::from(end - LOWEST)) as u16;
        held.extend(TcpListener::bind((address, port)));
    }
    Err(anyhow::anyhow!("no {PORTS} free ports between {LOWEST} and {end}").into())
}

/// A node that was killed a moment ago may still be about to leave its ports.
const LEAVING: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// Returns when a node can listen where its configuration says, or says what is taken.
pub(super) async fn until_free(number: usize, config: &Config) -> Result<(), CliError> {
    let end = Instant::now() + LEAVING;
    let own = [config.grpc_listen, config.http_listen, config.transfer_listen];
    for address in own.into_iter().chain(config.resp_listen) {
        while let Err(e) = TcpListener::bind(address) {
            if e.kind() != ErrorKind::AddrInUse {
                return Err(anyhow::anyhow!("listen on {address}: {e}").into());
            }
            if Instant::now() > end {
                return Err(CliError::Refused(format!(
                    "node {number} has {address}, on which another process listens: stop that \
                     (another kiln dev, or a node of this folder that was started by itself), or \
                     name another --dir"
                )));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// An address of loopback that no other process takes: its ports are this test's alone.
    fn own_address() -> Ipv4Addr {
        const OWN: u32 = 0x7f80_0000;
        Ipv4Addr::from_bits(OWN + (std::process::id() & 0x7f_ffff))
    }

    /// The first port of two nodes whose ports nobody has: one on all addresses would be in
    /// the way of [`FIRST`].
    fn free_range(address: Ipv4Addr) -> u16 {
        let all_free = |first: &u16| (0..STEP + PORTS).all(|at| is_free(address, first + at));
        (FIRST..30_000).step_by(100).find(all_free).unwrap()
    }

    fn is_free(address: Ipv4Addr, port: u16) -> bool {
        TcpListener::bind((address, port)).is_ok()
    }

    #[test]
    fn a_node_has_its_own_ports_where_all_of_them_are_free() {
        let address = own_address();
        let first = free_range(address);
        let ports = Ports { address, first: Some(first), _mutex: None };
        let own = |number: u16| (0..PORTS).map(move |at| first + (number - 1) * STEP + at);
        let taken = TcpListener::bind((ports.address, first + 1)).unwrap();
        let chosen = ports.of(1..=2).unwrap();
        let of = |at: usize| chosen[at].iter().map(SocketAddr::port).collect::<Vec<_>>();
        assert!(of(0).iter().all(|port| !own(1).any(|own| own == *port)), "{chosen:?}");
        assert_eq!(of(1), own(2).collect::<Vec<_>>());
        drop(taken);
        let again = ports.of(1..=1).unwrap();
        assert_eq!(
            again[0].iter().map(SocketAddr::port).collect::<Vec<_>>(),
            own(1).collect::<Vec<_>>()
        );
    }

    #[test]
    fn one_at_a_time_has_the_ports_for_people() {
        // Not the name that a `kiln dev` of this machine may have at this moment.
        let name = format!("kiln-dev-ports-of-test-{}", std::process::id());
        let one = Ports::of_one(&name);
        assert_eq!((one.first, Ports::of_one(&name).first), (Some(FIRST), None));
        drop(one);
        assert_eq!(Ports::of_one(&name).first, Some(FIRST), "the next one has them");
    }

    #[tokio::test]
    async fn a_port_that_another_has_taken_is_named() {
        let held = free(Ipv4Addr::LOCALHOST).unwrap();
        let address = |at: usize| held[at].local_addr().unwrap();
        let config = Config {
            grpc_listen: "127.0.0.1:0".parse().unwrap(),
            http_listen: address(1),
            ..Config::default()
        };
        let refused = until_free(7, &config).await.unwrap_err();
        assert_eq!(refused.exit_code(), 21);
        assert!(refused.to_string().contains(&format!("node 7 has {}", address(1))), "{refused}");
        let free = |at| SocketAddr::from((Ipv4Addr::LOCALHOST, at));
        let config = Config {
            grpc_listen: free(0),
            http_listen: free(0),
            transfer_listen: free(0),
            resp_listen: None,
            ..Config::default()
        };
        until_free(7, &config).await.unwrap();
    }

    #[test]
    fn a_number_without_ports_of_its_own_gets_free_ones() {
        assert!(fixed(own_address(), 65_530, 2).is_none());
        assert!(fixed(own_address(), FIRST, usize::MAX).is_none());
    }
}
