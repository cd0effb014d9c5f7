//! The unix socket of this machine's clients: descriptors of artifacts, and the API.
//!
//! Invariant: which of the two is spoken is settled once, by the first byte; until it has
//! come the connection has its place for [`IDLE`] at most.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::UnixStream,
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    net::{self, Local},
    transfer::SocketServer,
};

/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(60);
/// The first byte of gRPC: that of `PRI * HTTP/2.0`. A frame begins with the high byte of
/// a small length.
const PREFACE: u8 = b'P';

/// Connections for gRPC that wait until its server takes them.
pub(super) const WAITING: usize = 64;

/// What is behind the socket.
pub(super) struct Door {
    pub(super) grpc: mpsc::Sender<io::Result<Local>>,
    /// Of gRPC, so that it leaves room for the byte path.
    pub(super) places: Arc<Semaphore>,
    pub(super) bytes: SocketServer,
    pub(super) stop: CancellationToken,
}

impl net::Service<UnixStream> for Door {
    async fn serve(&self, stream: UnixStream) {
        let served = async {
            match timeout(IDLE, net::first_byte(&stream)).await.ok()?.ok()?? {
                PREFACE => {
                    let Ok(_place) = self.places.clone().try_acquire_owned() else {
                        self.refuse(stream).await;
                        return None;
                    };
                    let end = CancellationToken::new();
                    let local = Local::new(stream, end.clone().drop_guard());
                    self.grpc.send(Ok(local)).await.ok()?;
                    end.cancelled().await;
                }
                _ => net::Service::serve(&self.bytes, stream).await,
            }
            Some(())
        };
        self.stop.run_until_cancelled(served).await;
    }

    async fn refuse(&self, stream: UnixStream) {
        net::Service::refuse(&self.bytes, stream).await;
    }
}
