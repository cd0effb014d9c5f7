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
use tokio_util::sync::CancellationToken;

use super::{
    connection::Connection,
    counters::Count,
    families::Families,
    reply::{Reply, Version},
    rights::Judge,
    session::Session,
    settings::Settings,
    socket::Socket,
    users::Users,
    values::{Parts, Values},
};
use crate::{
    access::Access,
    net::{self, Listen, tls::Acceptor},
};

/// A client whose machine is gone is noticed after about this and three probes.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The port, on any number of listeners.
pub struct Resp {
    values: Arc<Values>,
    settings: Arc<Settings>,
    judge: Arc<Judge>,
    places: Arc<Semaphore>,
    ids: AtomicU64,
}

/// Where clients come in.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Resp {
    /// A port over the node's parts; fails where the users cannot be read.
    pub fn new(parts: Parts, settings: Settings, access: Arc<Access>) -> io::Result<Self> {
        let users = Users::read(settings.users.as_deref(), &settings.namespace)?;
        let families = Families::new(settings.wait, settings.families.clone());
        Ok(Self {
            values: Arc::new(Values::new(parts, families)),
            judge: Arc::new(Judge {
                access,
                users: Arc::new(users),
                namespace: settings.namespace.as_str().into(),
                audits_values: settings.audits_values,
            }),
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

    /// How long a GET waits for another client's SET, where nothing else was told or learned.
    pub fn wait(&self) -> Duration {
        self.values.families.usual_wait()
    }

    /// So long from now on.
    pub fn set_wait(&self, wait: Duration) {
        self.values.families.set_usual_wait(wait);
    }

    /// Serves TCP clients until `stop`.
    pub(crate) async fn serve_tcp(
        self: Arc<Self>,
        listener: TcpListener,
        acceptor: Acceptor,
        stop: CancellationToken,
    ) {
        self.serve(listener.into(), acceptor, stop).await;
    }

    /// Serves clients of this machine until `stop`.
    pub async fn serve_unix(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        self.serve(listener.into(), Acceptor::plain("resp"), stop).await;
    }

    async fn serve(
        self: Arc<Self>,
        listener: Listener,
        acceptor: Acceptor,
        stop: CancellationToken,
    ) {
        let places = self.places.clone();
        let clients = Clients { port: self.clone(), acceptor, stop: stop.clone() };
        net::serve(listener, Arc::new(clients), places, stop).await;
        self.values.stores.close();
        self.values.stores.wait().await;
    }
}

/// The clients of one listener.
struct Clients {
    port: Arc<Resp>,
    acceptor: Acceptor,
    stop: CancellationToken,
}

impl net::Service<(Socket, String)> for Clients {
    async fn serve(&self, (socket, address): (Socket, String)) {
        let port = &self.port;
        let Some((socket, caller)) = socket.secured(&self.acceptor, &self.stop).await else {
            return;
        };
        let id = port.ids.fetch_add(1, Ordering::Relaxed);
        let session = Session::new(id, address, caller, port.judge.clone());
        let (values, settings) = (port.values.clone(), port.settings.clone());
        let counters = values.parts.counters.clone();
        let _open = counters.connection();
        Connection::new(values, settings, session, socket, self.stop.clone()).run().await;
    }

    /// The socket's buffer is empty, so this does not wait.
    async fn refuse(&self, (socket, _): (Socket, String)) {
        let mut text = BytesMut::new();
        Reply::error("ERR max number of clients reached").encode(Version::Two, &mut text);
        socket.write_now(&text);
        self.port.values.count(Count::Refused);
    }
}

impl Listen for Listener {
    type Stream = (Socket, String);

    async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let stream = Listen::accept(listener).await?;
                if let Err(error) = keep_alive(&stream) {
                    tracing::debug!(%error, "set a connection's options");
                }
                // A client that has left already is noticed when it is read from.
                let address = stream.peer_addr().map_or_else(|e| e.to_string(), |a| a.to_string());
                Ok((Socket::Tcp(stream), address))
            }
            Self::Unix(listener) => {
                Ok((Socket::Unix(Listen::accept(listener).await?), "unix:0".into()))
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
