//! Connections for a server that has an accept loop of its own, within the same bounds.
//!
//! Invariant: at most as many connections as there are places exist at once, and a
//! listener that is out of descriptors is asked again after a pause (a server that
//! is handed the error asks at once, for ever).

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use kiln_cluster::Caller;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{accept::accept, patience::Patience, stream::Conn, tls::Acceptor};

/// A connection, and its place until it is dropped.
pub(crate) struct Placed {
    stream: Conn,
    caller: Caller,
    patience: Patience,
    /// Ends it from outside.
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: Place,
}

/// Held for as long as a connection lives.
pub(crate) enum Place {
    One(#[allow(dead_code)] OwnedSemaphorePermit),
    /// Of a port that counts by itself: told when the connection is dropped.
    Told(#[allow(dead_code)] DropGuard),
}

/// A connection that another accept loop took, for a server that is given connections;
/// `end` is dropped with it, and it ends at `abort`.
pub(crate) fn placed(
    stream: Conn,
    caller: Caller,
    end: DropGuard,
    abort: CancellationToken,
) -> Placed {
    let ended = Some(Box::pin(abort.cancelled_owned()));
    Placed { stream, caller, patience: Patience::grpc(), ended, _place: Place::Told(end) }
}

impl Placed {
    /// Where the other end is.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        self.caller.from.map(|from| from.ip())
    }

    /// Ends the connection where its peer takes nothing of what was sent for so long: one
    /// that does not read, too.
    pub(crate) fn let_go_after(&self, silent: Duration) {
        let millis = u32::try_from(silent.as_millis()).unwrap_or(u32::MAX);
        // Without it the place is taken until the peer leaves.
        if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(self.stream.tcp(), millis) {
            tracing::debug!(%error, "bound how long a peer may not read");
        }
    }
}

/// The connections of `listener`, after their handshakes by `acceptor`, at most `most` at
/// once; one more is closed, and counted for `port`. One that has no more `patience` ends.
pub(crate) fn incoming(
    listener: TcpListener,
    most: usize,
    port: &'static str,
    acceptor: Acceptor,
    patience: fn() -> Patience,
) -> impl Stream<Item = io::Result<Placed>> {
    let places = Arc::new(Semaphore::new(most));
    let accepted = stream::unfold((listener, places), move |(listener, places)| async move {
        loop {
            let stream = accept(&listener).await;
            if let Ok(place) = places.clone().try_acquire_owned() {
                return Some(((stream, place), (listener, places)));
            }
            metrics::counter!("kiln_refused_connections_total", "port" => port).increment(1);
            tracing::debug!(port, "too many connections: one is closed");
        }
    });
    let secured = accepted.map(move |(stream, place)| {
        let acceptor = acceptor.clone();
        async move {
            let (stream, caller) = acceptor.secure(stream).await.ok()?;
            let (patience, _place) = (patience(), Place::One(place));
            Some(Ok(Placed { stream, caller, patience, ended: None, _place }))
        }
    });
    // Whoever is slow with its handshake keeps nobody else waiting.
    secured.buffer_unordered(most.max(1)).filter_map(std::future::ready)
}

impl Connected for Placed {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(ended) = &mut self.ended
            && ended.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        match read {
            Poll::Ready(_) => {
                let came = buffer.filled().len().saturating_sub(before);
                self.patience.came(came);
                read
            }
            Poll::Pending => self.patience.poll_over(context).map(Err),
        }
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.patience.answered();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.patience.answered();
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections =
            std::pin::pin!(incoming(listener, 1, "test", Acceptor::plain("test"), Patience::grpc));
        let _client = TcpStream::connect(address).await.unwrap();
        let mut placed = connections.next().await.unwrap().unwrap();
        placed.let_go_after(Duration::from_millis(200));
        let sending = async {
            loop {
                if let Err(error) = placed.write_all(&[0; 65_536]).await {
                    return error;
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(60), sending).await.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn one_more_than_there_are_places_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections =
            std::pin::pin!(incoming(listener, 1, "test", Acceptor::plain("test"), Patience::grpc));
        let _client = TcpStream::connect(address).await.unwrap();
        let first = connections.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let closed = async { second.read(&mut [0]).await.unwrap_or(0) };
        tokio::select! {
            read = closed => assert_eq!(read, 0),
            _ = connections.next() => panic!("two have a place"),
        }
        drop(first);
        let _third = TcpStream::connect(address).await.unwrap();
        connections.next().await.unwrap().unwrap();
    }

    /// A connection that says what `says` gives it, a byte in each second.
    async fn dribbles(patience: fn() -> Patience, bytes: usize) -> io::Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = incoming(listener, 1, "test", Acceptor::plain("test"), patience);
        let mut connections = std::pin::pin!(connections);
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut placed = connections.next().await.unwrap().unwrap();
        let dribbling = async {
            for _ in 0..bytes {
                client.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            std::future::pending().await
        };
        let reading = async {
            loop {
                match placed.read(&mut [0; 64]).await {
                    Ok(0) => panic!("it left"),
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        };
        tokio::select! {
            error = reading => error,
            () = dribbling => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_a_byte_now_and_then_or_nothing_keeps_no_place() {
        for patience in [Patience::grpc as fn() -> Patience, Patience::http] {
            for bytes in [0, 30, 1000] {
                let began = tokio::time::Instant::now();
                let error = dribbles(patience, bytes).await;
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                assert!(began.elapsed() < Duration::from_secs(30), "{bytes}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_in_time_has_time_and_an_idle_page_ends_later() {
        let hour = Duration::from_secs(3600);
        for (patience, ends) in
            [(Patience::grpc as fn() -> Patience, false), (Patience::http, true)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let connections = incoming(listener, 1, "test", Acceptor::plain("test"), patience);
            let mut connections = std::pin::pin!(connections);
            let mut client = TcpStream::connect(address).await.unwrap();
            let mut placed = connections.next().await.unwrap().unwrap();
            client.write_all(&[0; 64]).await.unwrap();
            placed.read_exact(&mut [0; 64]).await.unwrap();
            placed.write_all(b"answer").await.unwrap();
            let began = tokio::time::Instant::now();
            let ended = tokio::time::timeout(hour, placed.read(&mut [0])).await;
            assert_eq!(ended.is_ok(), ends);
            assert!(began.elapsed() > Duration::from_secs(60));
        }
    }
}
