//! Writes without a lease: keys of other tools, where the last write counts.
//!
//! Invariant: a write is applied at most once, however often it is sent, and never
//! after a later one of this node that superseded it; see [`crate::writes`].

use std::{sync::Arc, time::Duration};

use kiln_proto::{ArtifactKey, NodeId, SignedManifest, Token};
use tokio::time::Instant;

use crate::{
    command::{Change, Command, OrderedWrite, Response},
    core::Core,
    entry::{Put, PutMode},
    error::ClusterError,
    index::{Index, out_of_place},
    writes::{Fence, Turn},
};

/// How a write ended.
enum Written {
    /// The answer, and its log index.
    Answered(u64, Response),
    /// A later write took its place.
    Superseded,
}

impl Index {
    /// Takes the next turn of `key` at this node: of several writes of one key, the one
    /// with the latest turn counts, whichever is carried out first. Take it when the
    /// write arrives.
    pub fn turn(&self, key: &ArtifactKey, mode: PutMode) -> Result<Turn, ClusterError> {
        self.core.writes.turn(key, mode == PutMode::Replace)
    }

    /// Commits an artifact of a replaceable key ([`kiln_proto::Manifest::replaceable`])
    /// without a lease; its pack is durable on this node. The last put counts; a
    /// live lease of the key ends, and its waiters get this artifact. `also`: other nodes
    /// on whose disks the pack is.
    pub async fn put(
        &self,
        mut turn: Turn,
        manifest: SignedManifest,
        mode: PutMode,
        also: Vec<NodeId>,
    ) -> Result<Put, ClusterError> {
        let key = manifest.read_unverified().map_err(ClusterError::invalid)?.key;
        if key != *turn.key() {
            return Err(ClusterError::invalid("the turn is for another key"));
        }
        let create = mode == PutMode::Create;
        if create {
            let earlier = Instant::now() + self.core.timings.patience;
            tokio::time::timeout_at(earlier, turn.is_first()).await?;
        }
        let publication = self.publication(key, Token(0), manifest)?;
        let change = Change::Put { publication, create, also };
        let (index, response) = match self.core.write_in_turn(&mut turn, change).await? {
            Written::Answered(index, response) => (index, response),
            Written::Superseded => return Ok(Put::Superseded),
        };
        drop(turn);
        let put = match response {
            Response::Committed | Response::Repeated(true) => Put::Committed,
            Response::Unchanged => Put::Unchanged,
            Response::Existing => Put::Existing,
            Response::Repeated(false) if create => Put::Existing,
            Response::Repeated(false) => return Ok(Put::Superseded),
            _ => return Err(out_of_place()),
        };
        self.core.leases_are_over(&key);
        Ok(put(self.committed(&key, index).await?))
    }

    /// Removes the wrong artifact of `key` from the whole fleet; false when it has none.
    /// Writes of this node that arrived before and are not committed never will be.
    pub async fn tombstone(&self, key: &ArtifactKey, reason: String) -> Result<bool, ClusterError> {
        let mut turn = self.turn(key, PutMode::Replace)?;
        let change = Change::Remove { key: *key, reason };
        match self.core.write_in_turn(&mut turn, change).await? {
            Written::Answered(index, Response::Changed(changed) | Response::Repeated(changed)) => {
                self.wait_applied(index).await?;
                Ok(changed)
            }
            Written::Answered(..) => Err(out_of_place()),
            // What came later replaced what there was to remove.
            Written::Superseded => Ok(false),
        }
    }
}

impl Core {
    async fn write_in_turn(
        self: &Arc<Self>,
        turn: &mut Turn,
        change: Change,
    ) -> Result<Written, ClusterError> {
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
            written = self.write(self.ordered(session, &fence, change)?) => written,
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
        let node = self.member()?.owner.node;
        let Fence { sequence, floor, supersedes, .. } = fence;
        let (sequence, floor, supersedes) = (*sequence, *floor, supersedes.clone());
        Ok(Command::Write(OrderedWrite { node, session, sequence, floor, supersedes, change }))
    }

    /// This process's session, which its first write opens.
    async fn session(self: &Arc<Self>) -> Result<Token, ClusterError> {
        let open = async || {
            let (node, nonce) = (self.member()?.owner.node, self.writes.nonce);
            match self.write(Command::OpenSession { node, nonce }).await?.1 {
                Response::Session(session) => Ok(session),
                _ => Err(out_of_place()),
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
                        self.write(self.ordered(session, &fence, change)?).await
                    };
                    let sent = sent.await;
                    self.writes.fenced(&fence, sent.is_ok());
                    Some(if sent.is_err() { self.timings.patience } else { Duration::ZERO })
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
