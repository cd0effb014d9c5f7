//! The accept loop: how many connections a port serves, and what becomes of one more.
//!
//! Invariant: at most as many connections are served as there are places, at most
//! [`REFUSED_AT_ONCE`] more are open because they are being refused, and a listener
//! whose accept fails (out of descriptors) is asked again, never given up. When
//! [`serve`] returns, every connection has ended.

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections over the limit that are told so; yet more are just closed.
const REFUSED_AT_ONCE: usize = 64;
/// What a failing `accept` (out of descriptors) waits before it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket.
pub(crate) trait Listen: Send + Sync + 'static {
    /// One connection.
    type Stream: Send + 'static;

    /// Waits for the next connection; dropping the future loses none.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// What is spoken on a connection.
pub(crate) trait Service<S>: Send + Sync + 'static {
    /// Serves `stream` to its end, which comes soon after the port was stopped.
    fn serve(&self, stream: S) -> impl Future<Output = ()> + Send;

    /// Tells `stream` that there is no place for it.
    fn refuse(&self, stream: S) -> impl Future<Output = ()> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Only slower without; an error here would stop others from being accepted.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "send small segments at once");
        }
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves the connections of `listener` until `stop`; returns when all have ended.
/// `places` may be shared with other listeners of the same port.
pub(crate) async fn serve<L: Listen>(
    listener: L,
    service: Arc<impl Service<L::Stream>>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let refusals = Arc::new(Semaphore::new(REFUSED_AT_ONCE));
    let connections = TaskTracker::new();
    while let Some(stream) = stop.run_until_cancelled(accept(&listener)).await {
        let service = service.clone();
        if let Ok(place) = places.clone().try_acquire_owned() {
            connections.spawn(async move {
                service.serve(stream).await;
                drop(place);
            });
        } else if let Ok(place) = refusals.clone().try_acquire_owned() {
            connections.spawn(async move {
                service.refuse(stream).await;
                drop(place);
            });
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// The next connection, however long it takes.
pub(super) async fn accept<L: Listen>(listener: &L) -> L::Stream {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) if is_of_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an error of `accept` says something of one connection, not of the listener.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::io::Errno;
    use tokio::{
        io::AsyncWriteExt,
        sync::{Mutex, mpsc},
    };

    use super::*;

    /// A listener whose accepts end as they are scripted.
    struct Scripted(Mutex<mpsc::UnboundedReceiver<io::Result<u32>>>);

    impl Listen for Scripted {
        type Stream = u32;

        async fn accept(&self) -> io::Result<u32> {
            match self.0.lock().await.recv().await {
                Some(next) => next,
                None => std::future::pending().await,
            }
        }
    }

    /// Serves until it is told to end, and counts.
    #[derive(Default)]
    struct Counted {
        served: AtomicUsize,
        refused: AtomicUsize,
        end: CancellationToken,
    }

    impl Service<u32> for Counted {
        async fn serve(&self, _: u32) {
            self.served.fetch_add(1, Ordering::SeqCst);
            self.end.cancelled().await;
        }

        async fn refuse(&self, _: u32) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            self.end.cancelled().await;
        }
    }

    async fn until(reached: impl Fn() -> bool) {
        let wait = async {
            while !reached() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_listener_without_descriptors_is_asked_again() {
        let (script, next) = mpsc::unbounded_channel();
        for errno in [Errno::MFILE, Errno::NFILE, Errno::CONNABORTED, Errno::NOBUFS] {
            script.send(Err(errno.into())).unwrap();
        }
        script.send(Ok(1)).unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(accept(&Scripted(next.into())).await, 1);
        assert!(began.elapsed() >= 3 * ACCEPT_PAUSE, "it would spin");
    }

    #[tokio::test]
    async fn places_bound_what_is_served_and_refused() {
        let (script, next) = mpsc::unbounded_channel();
        let service = Arc::new(Counted::default());
        let (places, stop) = (Arc::new(Semaphore::new(2)), CancellationToken::new());
        let listener = Scripted(next.into());
        let serving = tokio::spawn(serve(listener, service.clone(), places.clone(), stop.clone()));
        for n in 0..2 + REFUSED_AT_ONCE as u32 + 10 {
            script.send(Ok(n)).unwrap();
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        until(|| count(&service.refused) == REFUSED_AT_ONCE).await;
        assert_eq!(count(&service.served), 2);
        service.end.cancel();
        until(|| places.available_permits() == 2).await;
        script.send(Ok(0)).unwrap();
        until(|| count(&service.served) == 3).await;
        stop.cancel();
        serving.await.unwrap();
        assert_eq!(count(&service.refused), REFUSED_AT_ONCE, "the rest was closed, untold");
    }

    #[tokio::test]
    async fn the_port_is_free_once_it_was_stopped() {
        struct Greeting(CancellationToken);

        impl Service<TcpStream> for Greeting {
            async fn serve(&self, mut stream: TcpStream) {
                stream.write_all(b"hello").await.unwrap();
                self.0.cancelled().await;
            }

            async fn refuse(&self, _: TcpStream) {}
        }

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let service = Arc::new(Greeting(stop.clone()));
        let places = Arc::new(Semaphore::new(1));
        let serving = tokio::spawn(serve(listener, service, places, stop.clone()));
        let client = TcpStream::connect(address).await.unwrap();
        client.readable().await.unwrap();
        stop.cancel();
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
