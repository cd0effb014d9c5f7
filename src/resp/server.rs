//! Accepting clients.
//!
//! Invariant: at most `max_connections` are served at once, one more is told so;
//! when `serve` returns, every connection and every store has ended.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Parts, Settings, connection::Connection, counters::Count, families::Families, session::Session,
    socket::Socket, users::Users, values::Values,
};

/// What a failing `accept` (out of descriptors) waits before it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client whose machine is gone is noticed after about this and three probes.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The port, on any number of listeners.
pub struct Resp {
    values: Arc<Values>,
    settings: Arc<Settings>,
    users: Arc<Users>,
    places: Arc<Semaphore>,
    ids: AtomicU64,
}

/// Where clients come in.
pub(super) enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl From<TcpListener> for Door {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Door {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Resp {
    /// A port over the node's parts; fails where the users cannot be read.
    pub fn new(parts: Parts, settings: Settings) -> io::Result<Self> {
        let users = Users::read(settings.users.as_deref(), &settings.namespace)?;
        let families = Families::new(settings.wait, settings.families.clone());
        Ok(Self {
            values: Arc::new(Values::new(parts, families, settings.budget)),
            users: Arc::new(users),
            places: Arc::new(Semaphore::new(settings.max_connections)),
            settings: Arc::new(settings),
            ids: AtomicU64::new(1),
        })
    }

    /// Follows the index and the quorum until `stop`; needed once.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let parts = &self.values.parts;
        let names = self.values.names.follow(parts.index.clone(), stop.clone());
        let quorum = self.values.quorum.follow(parts.cluster.clone(), stop.clone());
        tokio::join!(names, quorum);
    }

    /// Serves TCP clients until `stop`.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        self.serve(listener.into(), stop).await;
    }

    /// Serves clients of this machine until `stop`.
    pub async fn serve_unix(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        self.serve(listener.into(), stop).await;
    }

    async fn serve(self: Arc<Self>, door: Door, stop: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = door.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept a RESP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                refuse(&socket);
                self.values.count(Count::Refused);
                continue;
            };
            let id = self.ids.fetch_add(1, Ordering::Relaxed);
            let session = Session::new(id, address, self.users.clone());
            let (values, settings) = (self.values.clone(), self.settings.clone());
            let stop = stop.clone();
            connections.spawn(async move {
                let counters = values.parts.counters.clone();
                let _open = counters.connection();
                Connection::new(values, settings, session, socket, stop).run().await;
                drop(place);
            });
        }
        connections.close();
        connections.wait().await;
        self.values.stores.close();
        self.values.stores.wait().await;
    }
}

impl Door {
    async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Only slower without; an error here would stop others from being accepted.
                if let Err(error) = stream.set_nodelay(true).and_then(|()| keep_alive(&stream)) {
                    tracing::debug!(%error, "set a connection's options");
                }
                Ok((Socket::Tcp(stream), address.to_string()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), "unix:0".into()))
            }
        }
    }
}

/// A lease must not outlive its client's machine by much.
fn keep_alive(stream: &impl AsFd) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE / 6)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

/// Tells a client that there is no room; its socket's buffer is empty, so this
/// does not wait.
fn refuse(socket: &Socket) {
    let mut text = BytesMut::new();
    super::reply::Reply::error("ERR max number of clients reached")
        .encode(super::reply::Version::Two, &mut text);
    socket.write_now(&text);
}
