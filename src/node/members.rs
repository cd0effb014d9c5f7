//! The members' port: Raft, membership and the API over gRPC, and bytes, for the other
//! nodes of the cluster alone.
//!
//! Invariant: nothing is answered before [`Acceptor`] took the connection, and nothing to
//! whose certificate is of a node that is gone ([`Standing`]); where members prove that
//! they joined, bytes go to those alone that did; which of the two
//! protocols is spoken is settled once, by the handshake or by the first byte.

use std::{io, sync::Arc, time::Duration};

use kiln_cluster::Caller;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::standing::Standing;
use crate::{
    net::{
        self, Conn, Placed,
        tls::{Acceptor, GRPC},
    },
    transfer::PeerServer,
};

/// Connections for gRPC that wait until its server takes them.
const WAITING: usize = 64;
/// How long a connection may say nothing, as between two requests for bytes.
const IDLE: Duration = Duration::from_secs(60);
/// Until this node has heard of one that joined a moment ago.
const HEARD: Duration = Duration::from_secs(2);
/// The first byte of gRPC in plain text: that of `PRI * HTTP/2.0`.
const PREFACE: u8 = b'P';

/// The port.
pub(super) struct Members {
    acceptor: Acceptor,
    grpc: mpsc::Sender<io::Result<Placed>>,
    /// Who gives bytes, once this node has an id.
    bytes: watch::Receiver<Option<Arc<PeerServer>>>,
    standing: Arc<Standing>,
    stop: CancellationToken,
}

/// What comes in at the port, to be served.
pub(super) struct Doors {
    /// Connections for a gRPC server.
    pub(super) grpc: ReceiverStream<io::Result<Placed>>,
    /// To be told who gives bytes; until then they wait.
    pub(super) bytes: watch::Sender<Option<Arc<PeerServer>>>,
}

/// Takes connections of `listener`, at most `most` at once, until `stop`.
pub(super) fn serve(
    listener: TcpListener,
    most: usize,
    acceptor: Acceptor,
    standing: Arc<Standing>,
    stop: CancellationToken,
) -> (impl Future<Output = ()> + Send, Doors) {
    let (grpc, connections) = mpsc::channel(WAITING);
    let (bytes, given) = watch::channel(None);
    let members = Members { acceptor, grpc, bytes: given, standing, stop: stop.clone() };
    let places = Arc::new(Semaphore::new(most));
    let serving = net::serve(listener, Arc::new(members), places, stop);
    (serving, Doors { grpc: ReceiverStream::new(connections), bytes })
}

impl net::Service<TcpStream> for Members {
    async fn serve(&self, stream: TcpStream) {
        let served = async {
            let (conn, caller) = self.acceptor.secure(stream).await.ok()?;
            let abort = CancellationToken::new();
            let of_member = async {
                match timeout(IDLE, is_grpc(&conn)).await.ok()?? {
                    true => self.hand_over(conn, caller.clone(), abort.clone()).await,
                    false => self.give_bytes(conn, &caller).await,
                }
            };
            tokio::select! {
                // First: who is gone already is served nothing.
                biased;
                gone = self.standing.gone(&caller) => {
                    self.standing.refused(&caller, gone);
                    abort.cancel();
                    None
                }
                served = of_member => served,
            }
        };
        self.stop.run_until_cancelled(served).await;
    }

    async fn refuse(&self, _: TcpStream) {
        metrics::counter!("kiln_refused_connections_total", "port" => "members").increment(1);
    }
}

impl Members {
    /// Returns when the gRPC server is done with it.
    async fn hand_over(&self, conn: Conn, caller: Caller, abort: CancellationToken) -> Option<()> {
        let end = CancellationToken::new();
        let placed = net::placed(conn, caller, end.clone().drop_guard(), abort);
        self.grpc.send(Ok(placed)).await.ok()?;
        end.cancelled().await;
        Some(())
    }

    async fn give_bytes(&self, conn: Conn, caller: &Caller) -> Option<()> {
        let joined = timeout(HEARD, self.standing.joined(caller));
        let mut bytes = self.bytes.clone();
        if self.standing.needs_proof() {
            if joined.await.is_err() {
                self.standing.stranger(caller);
                return None;
            }
            let server = bytes.wait_for(Option::is_some).await.ok()?.clone()?;
            server.serve(conn).await;
            return Some(());
        }
        let server = bytes.wait_for(Option::is_some).await.ok()?.clone()?;
        let report = async {
            if joined.await.is_err() {
                self.standing.unproved(caller);
            }
        };
        tokio::join!(server.serve(conn), report);
        Some(())
    }
}

/// Whether the other end speaks gRPC; `None`: it is gone.
async fn is_grpc(conn: &Conn) -> Option<bool> {
    match conn {
        Conn::Tls(stream) => Some(stream.get_ref().1.alpn_protocol() == Some(GRPC)),
        Conn::Plain(stream) => {
            let mut first = [0];
            let came = stream.peek(&mut first).await.ok()?;
            (came > 0).then_some(first[0] == PREFACE)
        }
    }
}
