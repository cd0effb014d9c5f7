//! A client's connection, over TCP or a unix socket.
//!
//! Invariant: nothing here waits but for the socket to become readable or
//! writable.

use std::io;

use bytes::BytesMut;
use rustix::net::SendFlags;
use tokio::{
    io::{AsyncReadExt, copy_bidirectional_with_sizes},
    net::{TcpStream, UnixStream},
};
use tokio_util::sync::CancellationToken;

use crate::net::{Conn, tls::Acceptor};

/// Both kinds, as one.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Calls the same method of either kind.
macro_rules! each {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
        }
    };
}

/// Bytes on their way between the cipher and the commands, each way.
const BUFFER: usize = 64 << 10;

impl Socket {
    /// The same after its handshake. In TLS a task moves bytes between the client and a pair
    /// of sockets, of which this is one: what reads and writes here asks the kernel what is
    /// possible at once, which a cipher cannot say. `None`: it was refused, and counted.
    pub(super) async fn secured(
        self,
        acceptor: &Acceptor,
        stop: &CancellationToken,
    ) -> Option<Self> {
        let Self::Tcp(stream) = self else { return Some(self) };
        let secured = stop.run_until_cancelled(acceptor.secure(stream)).await?;
        let mut tls = match secured.ok()?.0 {
            Conn::Plain(stream) => return Some(Self::Tcp(stream)),
            Conn::Tls(stream) => stream,
        };
        let pair = UnixStream::pair();
        let (here, mut there) =
            pair.inspect_err(|error| tracing::warn!(%error, "serve a client in TLS")).ok()?;
        tokio::spawn(async move {
            // Ends when either side does.
            let moved = copy_bidirectional_with_sizes(&mut *tls, &mut there, BUFFER, BUFFER).await;
            if let Err(error) = moved {
                tracing::debug!(%error, "a TLS connection of a Redis client ended");
            }
        });
        Some(Self::Unix(here))
    }

    /// Reads what there is into `buffer`, waiting for at least one byte; 0: the
    /// client is gone.
    ///
    /// A read that leaves room in the buffer emptied the socket: the next one
    /// then waits its turn at the poller without asking the kernel in vain, so
    /// that a quick client does not keep a worker from the others.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        each!(self, stream => stream.read_buf(buffer).await)
    }

    /// Returns when [`try_write`](Self::try_write) is worth a try.
    pub(super) async fn writable(&self) -> io::Result<()> {
        each!(self, stream => stream.writable().await)
    }

    /// Writes some of `bytes`, if that is possible at once.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.try_write(bytes))
    }

    /// Writes `bytes` if that is possible at once.
    pub(super) fn write_now(&self, bytes: &[u8]) {
        // Who is refused and cannot be told sees the connection close.
        let _ = each!(self, stream => rustix::net::send(stream, bytes, SendFlags::NOSIGNAL));
    }
}
