//! A connection over TCP, in plain text or in TLS, as one type.
//!
//! Invariant: what is read and written is the same either way; only who can move bytes
//! without touching them (`sendfile`) asks which of the two it is.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

/// An accepted or dialled connection.
#[derive(Debug)]
pub enum Conn {
    /// In plain text.
    Plain(TcpStream),
    /// In TLS, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl From<TcpStream> for Conn {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

/// Calls the same method of either kind.
macro_rules! each {
    ($conn:expr, $stream:ident => $call:expr) => {
        match $conn.get_mut() {
            Conn::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Conn::Tls(stream) => {
                let $stream = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl Conn {
    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether nothing came on an idle connection: neither its end nor stray bytes.
    pub(crate) fn is_quiet(&self) -> bool {
        // What TLS has read and not given away would be stray bytes; there is none after a
        // whole answer. Session tickets come before the first one.
        matches!(self.tcp().try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
