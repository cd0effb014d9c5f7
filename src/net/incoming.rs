//! Connections for a server that has an accept loop of its own, within the same bounds.
//!
//! Invariant: at most as many connections as there are places exist at once, and a
//! listener that is out of descriptors is asked again after a pause (a server that
//! is handed the error asks at once, for ever).

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use kiln_cluster::Caller;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{
    accept::accept,
    patience::Patience,
    places::{Full, Places, Seat},
    stream::Conn,
    tls::Acceptor,
};

/// A connection, and its place until it is dropped.
pub(crate) struct Placed {
    stream: Conn,
    caller: Caller,
    patience: Patience,
    place: Place,
}

/// Held for as long as a connection lives.
enum Place {
    One(Seat),
    /// Of a port that counts by itself: told when the connection is dropped; and what ends it
    /// from outside.
    Told(#[allow(dead_code)] DropGuard, Pin<Box<WaitForCancellationFutureOwned>>),
}

impl Place {
    /// Bytes came or went.
    fn moved(&self) {
        if let Self::One(seat) = self {
            seat.moved();
        }
    }

    /// Ready when the connection is ended from outside.
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let ended = match self {
            Self::One(seat) => seat.poll_ended(context),
            Self::Told(_, ended) => ended.as_mut().poll(context),
        };
        ended.map(|()| io::ErrorKind::ConnectionAborted.into())
    }
}

/// A connection that another accept loop took, for a server that is given connections;
/// `end` is dropped with it, and it ends at `abort`.
pub(crate) fn placed(
    stream: Conn,
    caller: Caller,
    end: DropGuard,
    abort: CancellationToken,
) -> Placed {
    let place = Place::Told(end, Box::pin(abort.cancelled_owned()));
    Placed { stream, caller, patience: Patience::grpc(), place }
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
/// once; what becomes of one more is `full`, and is counted for `port`. One that has no more
/// `patience` ends.
pub(crate) fn incoming(
    listener: TcpListener,
    (most, full): (usize, Full),
    port: &'static str,
    acceptor: Acceptor,
    patience: fn() -> Patience,
) -> impl Stream<Item = io::Result<Placed>> {
    let places = Places::new(port, most, full);
    let accepted = stream::unfold((listener, places), move |(listener, places)| async move {
        loop {
            let stream = accept(&listener).await;
            if let Some(place) = places.take().await {
                return Some(((stream, place), (listener, places)));
            }
        }
    });
    let secured = accepted.map(move |(stream, mut seat)| {
        let acceptor = acceptor.clone();
        async move {
            let (stream, caller) = tokio::select! {
                secured = acceptor.secure(stream) => secured.ok()?,
                () = seat.ended() => return None,
            };
            Some(Ok(Placed { stream, caller, patience: patience(), place: Place::One(seat) }))
        }
    });
    // Whoever is slow with its handshake keeps nobody else waiting, nor do all of them one more.
    secured.buffer_unordered(most.saturating_add(1)).filter_map(std::future::ready)
}

impl Placed {
    /// Writes with `write`, unless the connection is to end: one whose peer reads nothing is
    /// asked for no more bytes.
    fn poll_written(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Conn>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(ended) = self.place.poll_ended(context) {
            return Poll::Ready(Err(ended));
        }
        self.patience.answered();
        let written = write(Pin::new(&mut self.stream), context);
        if written.is_ready() {
            self.place.moved();
        }
        written
    }
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
        if let Poll::Ready(ended) = self.place.poll_ended(context) {
            return Poll::Ready(Err(ended));
        }
        let Self { stream, patience, place, .. } = &mut *self;
        let read = patience.poll_read(Pin::new(stream), context, buffer);
        if let Poll::Ready(Ok(())) = read {
            place.moved();
        }
        read
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream, context| stream.poll_write(context, bytes))
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
        self.poll_written(context, |stream, context| stream.poll_write_vectored(context, bytes))
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
        let mut connections = std::pin::pin!(incoming(
            listener,
            (1, Full::Refuse),
            "test",
            Acceptor::plain("test"),
            Patience::grpc
        ));
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
    async fn where_it_may_one_more_has_the_place_of_who_is_idle_longest() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (plain, places) = (Acceptor::plain("test"), (2, Full::EndIdlest));
        let connections = incoming(listener, places, "test", plain, Patience::http);
        let mut connections = std::pin::pin!(connections);
        let mut clients = Vec::new();
        let mut placed = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.unwrap());
            placed.push(connections.next().await.unwrap().unwrap());
        }
        // The first says something once both are there.
        clients[0].write_all(b"x").await.unwrap();
        placed[0].read_exact(&mut [0]).await.unwrap();
        let mut second = placed.remove(1);
        let idle = tokio::spawn(async move { second.read(&mut [0]).await.map_err(|e| e.kind()) });
        let _third = TcpStream::connect(address).await.unwrap();
        placed.push(connections.next().await.unwrap().unwrap());
        assert_eq!(idle.await.unwrap(), Err(io::ErrorKind::ConnectionAborted));
        clients[0].write_all(b"x").await.unwrap();
        placed[0].read_exact(&mut [0]).await.unwrap();
    }

    #[tokio::test]
    async fn one_more_than_there_are_places_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = std::pin::pin!(incoming(
            listener,
            (1, Full::Refuse),
            "test",
            Acceptor::plain("test"),
            Patience::grpc
        ));
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
        let connections =
            incoming(listener, (1, Full::Refuse), "test", Acceptor::plain("test"), patience);
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
            let connections =
                incoming(listener, (1, Full::Refuse), "test", Acceptor::plain("test"), patience);
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
