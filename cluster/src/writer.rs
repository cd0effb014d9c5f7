//! Carries out writes without a lease: keys of other tools, where the last one counts.
//!
//! Invariant: a write is applied at most once, however often it is sent, and never
//! after a later one of this node that superseded it; see [`crate::writes`].

use std::{sync::Arc, time::Duration};

use kiln_proto::{ArtifactKey, Token};
use tokio_util::sync::CancellationToken;

use crate::{
    command::{Change, Command, OrderedWrite, Response},
    error::ClusterError,
    router::Router,
    writes::{Fence, Turn, Writes},
};

/// This node's ordered writes.
pub(crate) struct Writer {
    writes: Writes,
    router: Arc<Router>,
    /// How long a write waits for those before it, and a fence for its next try.
    patience: Duration,
    stop: CancellationToken,
}

/// How a write ended.
pub(crate) enum Written {
    /// The answer, and its log index.
    Answered(u64, Response),
    /// A later write took its place.
    Superseded,
}

impl Writer {
    /// Without a session yet; fails where the system has no randomness.
    pub(crate) fn new(
        router: Arc<Router>,
        patience: Duration,
        stop: CancellationToken,
    ) -> Result<Self, ClusterError> {
        Ok(Self { writes: Writes::new()?, router, patience, stop })
    }

    /// The next turn of `key`. `overwrites`: it supersedes earlier ones.
    pub(crate) fn turn(&self, key: &ArtifactKey, overwrites: bool) -> Result<Turn, ClusterError> {
        self.writes.turn(key, overwrites)
    }

    /// Carries out `change` in its turn.
    pub(crate) async fn write(
        &self,
        turn: &mut Turn,
        change: Change,
    ) -> Result<Written, ClusterError> {
        if let Change::Put { create: true, .. } = change {
            tokio::time::timeout(self.patience, turn.is_first()).await?;
        }
        let session = tokio::select! {
            session = self.session() => session?,
            () = turn.superseded() => return Ok(Written::Superseded),
        };
        if turn.is_superseded() {
            return Ok(Written::Superseded);
        }
        debug_assert!(change != Change::Nothing);
        let fence = turn.send();
        let written = tokio::select! {
            written = self.router.write(self.ordered(session, &fence, change)?) => written,
            // Its successor ends it, also where it is on its way.
            () = turn.superseded() => return Ok(Written::Superseded),
        };
        let (index, response) = written?;
        if response == Response::StaleSession {
            return Err(ClusterError::invalid("another process writes as this node"));
        }
        turn.end(&fence);
        Ok(Written::Answered(index, response))
    }

    fn ordered(
        &self,
        session: Token,
        fence: &Fence,
        change: Change,
    ) -> Result<Command, ClusterError> {
        let node = self.router.owner()?.node;
        let Fence { sequence, floor, supersedes, .. } = fence;
        let (sequence, floor, supersedes) = (*sequence, *floor, supersedes.clone());
        Ok(Command::Write(OrderedWrite { node, session, sequence, floor, supersedes, change }))
    }

    /// This process's session, which its first write opens.
    async fn session(&self) -> Result<Token, ClusterError> {
        let open = async || {
            let (node, nonce) = (self.router.owner()?.node, self.writes.nonce);
            match self.router.write(Command::OpenSession { node, nonce }).await?.1 {
                Response::Session(session) => Ok(session),
                other => Err(ClusterError::unexpected(&other)),
            }
        };
        self.writes.session.get_or_try_init(open).await.copied()
    }

    /// Ends writes of unknown outcome, until the node stops: none of them shall apply
    /// when nobody expects it any more. Where the last write of a key was given up,
    /// what an earlier one may have put is withdrawn: rather a miss than an old value.
    pub(crate) async fn fence_writes(self: Arc<Self>) {
        loop {
            let fence = match self.writes.fence() {
                Ok(fence) => fence,
                Err(e) => {
                    tracing::warn!(error = %e, "writes of unknown outcome are not fenced yet");
                    None
                }
            };
            let pause = match fence {
                None => None,
                Some(fence) => {
                    let change = match fence.withdraw {
                        Some(key) => Change::Withdraw { key },
                        None => Change::Nothing,
                    };
                    let sent = async {
                        let session = self.session().await?;
                        self.router.write(self.ordered(session, &fence, change)?).await
                    };
                    let sent = sent.await;
                    self.writes.fenced(&fence, sent.is_ok());
                    Some(if sent.is_err() { self.patience } else { Duration::ZERO })
                }
            };
            tokio::select! {
                () = self.writes.some_unknown(), if pause.is_none() => {}
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }
}
