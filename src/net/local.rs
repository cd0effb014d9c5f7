//! A connection of this machine, for a server that is given connections.
//!
//! Invariant: the user at its other end is the kernel's word, taken when it connected.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use kiln_cluster::Caller;
use rustix::net::RecvFlags;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};
use tokio_util::sync::DropGuard;
use tonic::transport::server::Connected;

use super::patience::Patience;

/// A connection over a unix socket; `end` is dropped with it.
pub(crate) struct Local {
    stream: UnixStream,
    caller: Caller,
    patience: Patience,
    _end: DropGuard,
}

impl Local {
    pub(crate) fn new(stream: UnixStream, end: DropGuard) -> Self {
        let caller = Caller { uid: user(&stream), ..Caller::default() };
        Self { stream, caller, patience: Patience::grpc(), _end: end }
    }
}

/// The user at the other end.
pub(crate) fn user(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().map(|peer| peer.uid())
}

/// The first byte that comes, which stays to be read; `None`: the other end is gone.
pub(crate) async fn first_byte(stream: &UnixStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let came = stream
        .async_io(Interest::READABLE, || {
            Ok(rustix::net::recv(stream, &mut byte[..], RecvFlags::PEEK)?.0)
        })
        .await?;
    Ok((came > 0).then_some(byte[0]))
}

impl Connected for Local {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Local {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, patience, .. } = &mut *self;
        patience.poll_read(Pin::new(stream), context, buffer)
    }
}

impl AsyncWrite for Local {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
