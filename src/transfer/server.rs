//! What both servers share: their limits, and the loop over requests.
//!
//! Invariant: at most `max_connections` are served at once, each is ended by a
//! time-out when its other end goes silent, and all have ended when
//! [`serve`] returns.

use std::{future::Future, sync::Arc, time::Instant};

use kiln_proto::{ArtifactKey, Digest, NAMESPACE_RULE, NodeId, convert, is_namespace, pb};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::{
    frame::{self, FrameError, Patience},
    provider::{Provider, Refusal},
    settings::ServerSettings,
};
use crate::{
    net::{self, Listen},
    telemetry::trace,
};

/// A connection of either kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection for S {}

/// How requests are answered on one kind of connection.
pub(super) trait Responder<S>: Send + Sync + 'static {
    /// The name of the door in metrics.
    const DOOR: &'static str;

    /// Writes the whole answer, bytes included; an error ends the connection.
    fn answer(
        &self,
        stream: &mut S,
        asked: ParsedRequest,
        provider: &dyn Provider,
        settings: &ServerSettings,
    ) -> impl Future<Output = Result<(), FrameError>> + Send;
}

/// A request that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParsedRequest {
    pub(super) subject: Subject,
    pub(super) offset: u64,
    /// The node that is meant; `None`: whichever answers.
    pub(super) node: Option<NodeId>,
    /// What stood where a token belongs.
    pub(super) token: Option<String>,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Blob(Digest),
    /// `look`: it is not used.
    Artifact {
        key: ArtifactKey,
        namespace: String,
        look: bool,
    },
    Keep {
        digest: Digest,
        size: u64,
        node: NodeId,
        address: String,
    },
}

impl Subject {
    /// The kind of the request, in metrics.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Blob(_) => "blob",
            Self::Artifact { .. } => "artifact",
            Self::Keep { .. } => "keep",
        }
    }
}

impl TryFrom<pb::TransferRequest> for ParsedRequest {
    type Error = Refusal;

    fn try_from(wire: pb::TransferRequest) -> Result<Self, Refusal> {
        use pb::transfer_request::Subject as Wire;
        let token = Some(wire.token).filter(|token| !token.is_empty());
        let subject = match wire.subject {
            Some(Wire::Digest(bytes)) => convert::digest("digest", &bytes).map(Subject::Blob),
            Some(Wire::Key(bytes)) => {
                let (namespace, look) = (wire.namespace, wire.look);
                if !is_namespace(&namespace) {
                    let why = format!("namespace: {NAMESPACE_RULE}");
                    return Err(Refusal::BadRequest(why));
                }
                let subject = |key| Subject::Artifact { key, namespace, look };
                convert::key("key", &bytes).map(subject)
            }
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
        Ok(Self { subject, offset: wire.offset, node, token })
    }
}

/// Serves `listener` until `stop`; returns when every connection has ended.
pub(super) async fn serve<L: Listen<Stream: Connection>>(
    listener: L,
    responder: impl Responder<L::Stream>,
    provider: Arc<dyn Provider>,
    settings: ServerSettings,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let server = Server { responder, provider, settings, stop: stop.clone() };
    net::serve(listener, Arc::new(server), places, stop).await;
}

pub(super) struct Server<D> {
    pub(super) responder: D,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) settings: ServerSettings,
    pub(super) stop: CancellationToken,
}

impl<S: Connection, D: Responder<S>> net::Service<S> for Server<D> {
    async fn serve(&self, stream: S) {
        let served = self.stop.run_until_cancelled(self.connection(stream)).await;
        if let Some(Err(error)) = served {
            tracing::debug!(%error, "a transfer connection ended");
        }
    }

    async fn refuse(&self, stream: S) {
        tracing::debug!("too many transfer connections: one is told to come later");
        let refused = self.stop.run_until_cancelled(self.refuse_connection(stream)).await;
        if let Some(Err(error)) = refused {
            tracing::debug!(%error, "refuse a transfer connection");
        }
    }
}

impl<D> Server<D> {
    async fn connection<S: Connection>(&self, mut stream: S) -> Result<(), FrameError>
    where
        D: Responder<S>,
    {
        let patience = Patience { first: self.settings.idle, rest: self.settings.progress };
        loop {
            let request: Option<pb::TransferRequest> =
                frame::read(&mut stream, frame::MAX_REQUEST, patience).await?;
            let Some(request) = request else { return Ok(()) };
            let parent = request.trace.clone();
            match ParsedRequest::try_from(request) {
                Ok(asked) => {
                    let (provider, began) = (&*self.provider, Instant::now());
                    let took = metrics::histogram!(
                        "kiln_transfer_request_seconds",
                        "door" => D::DOOR,
                        "kind" => asked.subject.kind()
                    );
                    let span = match parent.is_empty() {
                        true => Span::none(),
                        false => trace::incoming("transfer", Some(&parent), Some(provider.node())),
                    };
                    let answer =
                        self.responder.answer(&mut stream, asked, provider, &self.settings);
                    answer.instrument(span).await?;
                    took.record(began.elapsed());
                }
                Err(refusal) => refuse(&mut stream, refusal, &self.settings).await?,
            }
        }
    }

    /// Reads the request first: closing with unread bytes would reset the
    /// connection, and the client would not see the answer.
    async fn refuse_connection(&self, mut stream: impl Connection) -> Result<(), FrameError> {
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
