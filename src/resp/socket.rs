//! A client's connection, over TCP or a unix socket.
//!
//! Invariant: nothing here waits but for the socket to become readable or
//! writable.

use std::io::{self, IoSlice};

use bytes::BytesMut;
use rustix::net::SendFlags;
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use crate::cache::Blob;

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

impl Socket {
    /// Reads what there is into `buffer`, waiting for at least one byte; 0: the
    /// client is gone.
    pub(super) async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            match each!(self, stream => stream.try_read_buf(buffer)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    each!(self, stream => stream.readable().await)?;
                }
                read => return read,
            }
        }
    }

    /// Writes some of `parts`.
    pub(super) async fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match each!(self, stream => stream.try_write_vectored(parts)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    each!(self, stream => stream.writable().await)?;
                }
                written => return written,
            }
        }
    }

    /// Writes `bytes` if that is possible at once.
    pub(super) fn write_now(&self, bytes: &[u8]) {
        // Who is refused and cannot be told sees the connection close.
        let _ = each!(self, stream => rustix::net::send(stream, bytes, SendFlags::NOSIGNAL));
    }

    /// Writes some of `bytes`, of which more will follow at once.
    pub(super) async fn write_more(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        each!(self, stream => {
            let step = || Ok(rustix::net::send(stream, bytes, flags)?);
            stream.async_io(Interest::WRITABLE, step).await
        })
    }

    /// Writes some of `blob` from `at` on, without its bytes coming into this process.
    pub(super) async fn send(&self, blob: &Blob, at: usize, most: usize) -> io::Result<usize> {
        each!(self, stream => {
            let step = || {
                let mut at = at as u64;
                Ok(rustix::fs::sendfile(stream, blob, Some(&mut at), most)?)
            };
            stream.async_io(Interest::WRITABLE, step).await
        })
    }
}
