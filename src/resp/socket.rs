//! A client's connection, over TCP or a unix socket.
//!
//! Invariant: nothing here waits but for the socket to become readable or
//! writable.

use std::{io, time::Duration};

use bytes::BytesMut;
use kiln_cluster::Caller;
use rustix::net::SendFlags;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::net::{self, Conn, tls::Acceptor};

/// All kinds, as one.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// This end of a pair, and what ends the task at the other when it is dropped.
    #[expect(dead_code, reason = "it is dropped")]
    Tls(UnixStream, DropGuard),
}

/// Calls the same method of each kind.
macro_rules! each {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) | Socket::Tls($stream, _) => $call,
        }
    };
}

/// What the last replies may take to reach a client in TLS that reads, once its connection
/// is over here.
const LAST: Duration = Duration::from_secs(1);

/// Moves bytes between a client and the other end of its pair. Ends once that is closed and
/// what came from it was written: a client that says no more may still be answered.
async fn move_bytes(client: impl AsyncRead + AsyncWrite, pair: UnixStream) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_pair, mut to_pair) = pair.into_split();
    let inward = async {
        let moved = tokio::io::copy(&mut from_client, &mut to_pair).await;
        if let Err(error) = moved.and(to_pair.shutdown().await) {
            tracing::debug!(%error, "read from a Redis client in TLS");
        }
        std::future::pending().await
    };
    let outward = async {
        let moved = tokio::io::copy(&mut from_pair, &mut to_client).await;
        if let Err(error) = moved.and(to_client.shutdown().await) {
            tracing::debug!(%error, "write to a Redis client in TLS");
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

impl Socket {
    /// The same after its handshake. In TLS a task moves bytes between the client and a pair
    /// of sockets, of which this is one: what reads and writes here asks the kernel what is
    /// possible at once, which a cipher cannot say. `None`: it was refused, and counted.
    pub(super) async fn secured(
        self,
        acceptor: &Acceptor,
        stop: &CancellationToken,
    ) -> Option<(Self, Caller)> {
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => {
                let caller = Caller { uid: net::user(&stream), ..Caller::default() };
                return Some((Self::Unix(stream), caller));
            }
            Self::Tls(..) => return None,
        };
        let secured = stop.run_until_cancelled(acceptor.secure(stream)).await?;
        let (conn, caller) = secured.ok()?;
        let tls = match conn {
            Conn::Plain(stream) => return Some((Self::Tcp(stream), caller)),
            Conn::Tls(stream) => stream,
        };
        let pair = UnixStream::pair();
        let (here, there) =
            pair.inspect_err(|error| tracing::warn!(%error, "serve a client in TLS")).ok()?;
        let over = CancellationToken::new();
        let guard = over.clone().drop_guard();
        tokio::spawn(async move {
            let given_up = async {
                over.cancelled().await;
                tokio::time::sleep(LAST).await;
            };
            tokio::select! {
                () = move_bytes(*tls, there) => {}
                () = given_up => tracing::debug!("a Redis client in TLS did not read to the end"),
            }
        });
        Some((Self::Tls(here, guard), caller))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// A client that says nothing more, and does not go either, keeps nothing here.
    #[tokio::test]
    async fn a_connection_in_tls_is_over_when_it_is_over_here() {
        let (client, mut far) = tokio::io::duplex(64);
        let (mut here, there) = UnixStream::pair().unwrap();
        let moving = tokio::spawn(move_bytes(client, there));
        let mut word = [0; 4];
        far.write_all(b"PING").await.unwrap();
        here.read_exact(&mut word).await.unwrap();
        here.write_all(b"PONG").await.unwrap();
        far.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"PONG");
        drop(here);
        tokio::time::timeout(SOON, moving).await.expect("it ends").unwrap();
        assert_eq!(far.read(&mut word).await.unwrap(), 0, "the client is told");
    }

    #[tokio::test]
    async fn a_client_that_says_no_more_is_answered_still() {
        let (client, mut far) = tokio::io::duplex(64);
        let (mut here, there) = UnixStream::pair().unwrap();
        let moving = tokio::spawn(move_bytes(client, there));
        far.shutdown().await.unwrap();
        let mut word = [0; 4];
        assert_eq!(here.read(&mut word).await.unwrap(), 0);
        here.write_all(b"LAST").await.unwrap();
        drop(here);
        far.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"LAST");
        tokio::time::timeout(SOON, moving).await.expect("it ends").unwrap();
    }
}
