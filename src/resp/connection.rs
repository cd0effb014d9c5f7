//! The state of one client's connection: what came, what goes, what it missed.
//!
//! Invariant: replies leave in the order in which they are pushed, and a read of
//! the middle of a request ends when the client stalls.

use std::{io, sync::Arc};

use kiln_proto::ArtifactKey;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    decode::{DecodeError, Decoder},
    many::Time,
    misses::Misses,
    outgoing::Outgoing,
    reply::Reply,
    session::Session,
    settings::Settings,
    socket::Socket,
    transaction::Transaction,
    values::Values,
};
use crate::net::Progress;

/// Replies that may wait for more of them before they are written.
const MOST_PENDING: usize = 1 << 20;

/// One connection.
pub(super) struct Connection {
    pub(super) values: Arc<Values>,
    pub(super) settings: Arc<Settings>,
    pub(super) session: Session,
    pub(super) socket: Socket,
    pub(super) decoder: Decoder,
    pub(super) out: Outgoing,
    pub(super) misses: Misses,
    pub(super) stop: CancellationToken,
    /// Between MULTI and EXEC.
    pub(super) transaction: Option<Transaction>,
    /// Of a transaction that runs: what follows is due.
    pub(super) executing: Option<Time>,
    /// Of the request that has begun to come in.
    arriving: Option<Progress>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The client left, or said QUIT.
    #[error("the client left")]
    Client,
    /// The node stops.
    #[error("this node stops")]
    Stopped,
    /// What came is no RESP.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The connection broke, or its other end stalled.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Connection {
    pub(super) fn new(
        values: Arc<Values>,
        settings: Arc<Settings>,
        session: Session,
        socket: Socket,
        stop: CancellationToken,
    ) -> Self {
        let longest = usize::try_from(settings.max_value).unwrap_or(usize::MAX);
        Self {
            values,
            settings,
            session,
            socket,
            decoder: Decoder::new(longest),
            out: Outgoing::default(),
            misses: Misses::default(),
            stop,
            transaction: None,
            executing: None,
            arriving: None,
        }
    }

    /// Writes replies that are too long to wait for more.
    pub(super) async fn flush_if_long(&mut self) -> io::Result<()> {
        match self.out.len() > MOST_PENDING {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// Appends a reply.
    pub(super) fn push(&mut self, reply: Reply) {
        self.out.push(reply, self.session.version);
    }

    /// Writes all replies.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.out.flush(&self.socket, self.settings.progress).await
    }

    /// The request that was arriving is whole.
    pub(super) fn arrived(&mut self) {
        self.arriving = None;
    }

    /// Reads more of a request, or waits for the next one.
    pub(super) async fn read(&mut self) -> Result<(), Ended> {
        let holds = self.transaction.as_ref().is_some_and(Transaction::holds);
        let within = self.decoder.has_more() || holds;
        let window = self.settings.progress;
        loop {
            let space = self.decoder.space();
            let read = tokio::select! {
                biased;
                read = async {
                    match within {
                        // A request that began must go on, and so must a transaction that
                        // holds others' room.
                        true => {
                            let progress =
                                self.arriving.get_or_insert_with(|| Progress::new(window));
                            progress.step(self.socket.read(space)).await
                        }
                        false => self.socket.read(space).await,
                    }
                } => read?,
                () = until(self.misses.next_end()) => {
                    self.misses.expire(&self.values).await;
                    continue;
                }
                () = self.stop.cancelled() => return Err(Ended::Stopped),
            };
            return if read == 0 { Err(Ended::Client) } else { Ok(()) };
        }
    }

    /// The time of a command that begins: that of its transaction, where it is in one.
    pub(super) fn time(&self) -> Time {
        self.executing.unwrap_or_else(|| Time::begin(self.settings.longest))
    }

    /// The key of `name` in this client's namespace.
    pub(super) fn key(&self, name: &[u8]) -> ArtifactKey {
        self.values.names.key(&self.session.namespace, name)
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}
