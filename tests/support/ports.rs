//! Ports of loopback that stay a test's own, also while the process that listens on them is down.
//!
//! Invariant: as long as a [`Held`] lives, the kernel gives its ports to nobody who asks for any
//! port, to listen or to connect; who names one listens on it as if it were free. Both rest on
//! `SO_REUSEADDR` (socket(7), ip(7)): it is set here and by all who listen, and nobody listens
//! here.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Ports of one process.
pub(crate) struct Held {
    pub(crate) addresses: Vec<SocketAddr>,
    _sockets: Vec<Socket>,
}

/// `n` ports that nobody has.
pub(crate) fn hold_ports(n: usize) -> std::io::Result<Held> {
    let mut held = Held { addresses: Vec::new(), _sockets: Vec::new() };
    for _ in 0..n {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let bound = socket.local_addr()?.as_socket();
        held.addresses.push(bound.ok_or_else(|| std::io::Error::other("not an IP address"))?);
        held._sockets.push(socket);
    }
    Ok(held)
}
