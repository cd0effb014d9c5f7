//! What both servers share: accepting, limits, and the loop over requests.
//!
//! Invariant: at most `max_connections` are served at once, each is ended by a
//! time-out when its other end goes silent, and all have ended when
//! [`serve`] returns.

use std::{future::Future, io, sync::Arc, time::Duration};

use kiln_proto::{ArtifactKey, Digest, NodeId, convert, pb};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ServerSettings,
    frame::{self, FrameError, Patience},
    provider::{Provider, Refusal},
};

/// Connections over the limit that are told so; yet more are just closed.
const REFUSED_AT_ONCE: usize = 64;
/// What a failing `accept` (out of descriptors) waits before it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come in, and how their requests are answered.
pub(super) trait Door: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Writes the whole answer, bytes included; an error ends the connection.
    fn answer(
        &self,
        stream: &mut Self::Stream,
        asked: Asked,
        provider: &dyn Provider,
        settings: &ServerSettings,
    ) -> impl Future<Output = Result<(), FrameError>> + Send;
}

/// A request that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) subject: Subject,
    pub(super) offset: u64,
    /// The node that is meant; `None`: whichever answers.
    pub(super) node: Option<NodeId>,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Blob(Digest),
    Artifact(ArtifactKey),
    Keep { digest: Digest, size: u64, node: NodeId, address: String },
}

impl TryFrom<pb::TransferRequest> for Asked {
    type Error = Refusal;

    fn try_from(wire: pb::TransferRequest) -> Result<Self, Refusal> {
        use pb::transfer_request::Subject as Wire;
        let subject = match wire.subject {
            Some(Wire::Digest(bytes)) => convert::digest("digest", &bytes).map(Subject::Blob),
            Some(Wire::Key(bytes)) => convert::key("key", &bytes).map(Subject::Artifact),
            Some(Wire::Keep(pb::Keep { digest, size, node, address })) => {
                convert::digest("digest", &digest).map(|digest| Subject::Keep {
                    digest,
                    size,
                    node,
                    address,
                })
            }
            None => return Err(Refusal::BadRequest("neither a digest nor a key".into())),
        };
        let node = Some(wire.node).filter(|node| *node != 0);
        let subject = subject.map_err(|e| Refusal::BadRequest(e.to_string()))?;
        Ok(Self { subject, offset: wire.offset, node })
    }
}

/// Serves `door` until `stop`; returns when every connection has ended.
pub(super) async fn serve<D: Door>(
    door: D,
    provider: Arc<dyn Provider>,
    settings: ServerSettings,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let refusals = Arc::new(Semaphore::new(REFUSED_AT_ONCE));
    let server = Arc::new(Server { door, provider, settings });
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = server.door.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept a transfer connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let server = server.clone();
        let stop = stop.clone();
        if let Ok(place) = places.clone().try_acquire_owned() {
            connections.spawn(async move {
                let served = server.connection(stream, place);
                if let Some(Err(error)) = stop.run_until_cancelled(served).await {
                    tracing::debug!(%error, "a transfer connection ended");
                }
            });
        } else if let Ok(place) = refusals.clone().try_acquire_owned() {
            tracing::debug!("too many transfer connections: one is told to come later");
            connections.spawn(async move {
                let refused = server.refuse(stream, place);
                if let Some(Err(error)) = stop.run_until_cancelled(refused).await {
                    tracing::debug!(%error, "refuse a transfer connection");
                }
            });
        }
    }
    connections.close();
    connections.wait().await;
}

struct Server<D> {
    door: D,
    provider: Arc<dyn Provider>,
    settings: ServerSettings,
}

impl<D: Door> Server<D> {
    async fn connection(
        &self,
        mut stream: D::Stream,
        _place: OwnedSemaphorePermit,
    ) -> Result<(), FrameError> {
        let patience = Patience { first: self.settings.idle, rest: self.settings.progress };
        loop {
            let request: Option<pb::TransferRequest> =
                frame::read(&mut stream, frame::MAX_REQUEST, patience).await?;
            let Some(request) = request else { return Ok(()) };
            match Asked::try_from(request) {
                Ok(asked) => {
                    let provider = &*self.provider;
                    self.door.answer(&mut stream, asked, provider, &self.settings).await?;
                }
                Err(refusal) => refuse(&mut stream, refusal, &self.settings).await?,
            }
        }
    }

    /// Reads the request first: closing with unread bytes would reset the
    /// connection, and the client would not see the answer.
    async fn refuse(
        &self,
        mut stream: D::Stream,
        _place: OwnedSemaphorePermit,
    ) -> Result<(), FrameError> {
        let patience = Patience { first: self.settings.progress, rest: self.settings.progress };
        let asked: Option<pb::TransferRequest> =
            frame::read(&mut stream, frame::MAX_REQUEST, patience).await?;
        match asked {
            Some(_) => refuse(&mut stream, Refusal::Busy, &self.settings).await,
            None => Ok(()),
        }
    }
}

/// Answers with a refusal; the connection stays usable.
pub(super) async fn refuse(
    stream: &mut (impl AsyncWrite + Unpin),
    refusal: Refusal,
    settings: &ServerSettings,
) -> Result<(), FrameError> {
    let response = pb::TransferResponse::from(refusal);
    frame::write(stream, &response, frame::MAX_RESPONSE, settings.progress).await
}
