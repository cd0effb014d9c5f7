//! A request for a compiler that this node lacks goes to a node that has it.
//!
//! Invariants: a request is sent on once, never by a node that got it from
//! another; what comes back is fetched through the index and checked like any
//! other artifact; and a failure keeps its kind and so its code.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kiln_proto::{
    ArtifactKey, Failure, FailureKind, MAX_MESSAGE_BYTES, MAX_PIECES, NodeId, SignedManifest,
    Token, pb,
    pb::{compile_event::Event, kiln_client::KilnClient},
};
use tokio::time::Instant;
use tonic::{Code, Status, transport::Endpoint};
use tracing::Instrument;

use super::{Answer, Found, Manager, Outcome, PieceReport, Progress, Request, Stage};
use crate::{
    compiler::{Compiler, Prepared},
    error::{Error, KIND},
    net::tls::Dialer,
    step,
    telemetry::trace,
};

/// A node that is there answers at once.
const CONNECT: Duration = Duration::from_secs(3);
/// A node that dies without a word is noticed after this and the next time-out.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Where a request can be compiled, and what is sent there.
pub(super) struct Route {
    key: ArtifactKey,
    nodes: Vec<(NodeId, String)>,
    request: pb::CompileRequest,
}

impl Manager {
    /// The nodes that can compile `prepared`, or why this node's lack is the end of it.
    pub(super) fn route(
        &self,
        request: &Request,
        compiler: &dyn Compiler,
        prepared: &Prepared,
        missing: Option<Failure>,
    ) -> Result<Route, Error> {
        let here = missing.unwrap_or_else(|| {
            let why = format!("this node has no {}", prepared.fingerprint);
            Failure::new(FailureKind::ToolchainMissing, why)
        });
        // A library that could not be loaded in time may be had later.
        let kind = match here.kind {
            FailureKind::Busy => FailureKind::Busy,
            _ => FailureKind::ToolchainMissing,
        };
        let here = here.message;
        let lacks = |why: String| Failure::new(kind, why).into();
        if request.forwarded {
            return Err(lacks(here));
        }
        let key = prepared.components.key();
        // What comes from a node that is not believed would be of no use.
        let namespace = Some(prepared.namespace.as_str());
        let mut nodes: Vec<(NodeId, String)> = self
            .index
            .nodes()
            .into_iter()
            .filter(|(id, node)| {
                *id != self.identity.node
                    && node.facts.compilers.contains(&prepared.fingerprint)
                    && self.believes(*id, &node.signing(), namespace).is_ok()
            })
            .map(|(id, node)| (id, node.facts.members().to_owned()))
            .collect();
        if nodes.is_empty() {
            return Err(lacks(format!("{here}; and no other node has it")));
        }
        // Every node that asks for one key asks the same one first; keys are spread.
        let first = usize::from(key.as_bytes()[0]) % nodes.len();
        nodes.rotate_left(first);
        Ok(Route { key, nodes, request: request.to_wire(compiler.name()) })
    }

    /// Lets another node compile, and brings what it published.
    pub(super) async fn forward(
        self: Arc<Self>,
        route: Route,
        prepared: &Prepared,
        progress: Arc<Progress<Stage>>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let mut last = Error::Unavailable("no node that has the compiler can be reached".into());
        for (node, address) in &route.nodes {
            self.counters.forwarded();
            tracing::info!(key = %route.key, node, "forwarded to a node that has the compiler");
            let mut request = route.request.clone();
            let left = deadline.saturating_duration_since(Instant::now());
            request.deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            let asking = ask(&self.dialer, address, request, &route.key, &progress);
            match asking.instrument(step!("forward", to = node.cast_signed())).await {
                Ok(told) => return self.collect(&route, prepared, told).await,
                Err(status) => {
                    let (error, elsewhere) = understood(*node, &status);
                    if !elsewhere {
                        return Err(error);
                    }
                    tracing::warn!(node, %error, "a forwarded request was not served");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The artifact that another node has just published.
    async fn collect(
        &self,
        route: &Route,
        prepared: &Prepared,
        (outcome, pieces): (Outcome, Arc<[PieceReport]>),
    ) -> Result<Answer, Error> {
        let entry = match self.index.lookup(&route.key).await? {
            Some(entry) => Some(entry),
            // This replica is a moment behind.
            None => self.index.lookup_linearizable(&route.key).await?,
        };
        let found = match entry {
            Some(entry) => self.resolve_all(&entry, prepared, outcome).await?,
            None => Found::Retired,
        };
        match found {
            // What it cost is what the other node told.
            Found::Here(answer) => Ok(Answer { pieces, ..*answer }),
            Found::Unreachable(why) => Err(Error::Unreachable(why)),
            Found::Incomplete(piece) => Err(Error::MissingPiece(piece)),
            Found::Retired => {
                Err(Error::Unavailable("it was compiled elsewhere and is gone: try again".into()))
            }
        }
    }
}

/// Sends the request, tells how it goes, and returns how it ended.
async fn ask(
    dialer: &Dialer,
    address: &str,
    request: pb::CompileRequest,
    key: &ArtifactKey,
    progress: &Progress<Stage>,
) -> Result<(Outcome, Arc<[PieceReport]>), Status> {
    let unreachable = |e: tonic::transport::Error| Status::unavailable(format!("{address}: {e}"));
    let configured = |endpoint: Endpoint| {
        endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
    };
    let channel = dialer.channel(address, configured).map_err(unreachable)?;
    let mut client = KilnClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut request = tonic::Request::new(request);
    trace::put_into_metadata(request.metadata_mut());
    let mut events = client.compile(request).await?.into_inner();
    let mut pieces = BTreeMap::new();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Waiting(_)) => progress.set(Stage::Waiting),
            Some(Event::Compiling(stage)) => progress.set(Stage::Compiling(Token(stage.token))),
            Some(Event::Piece(pb::PieceNews { piece: Some(piece), .. })) => {
                let piece = PieceReport::read(&piece).map_err(Status::from)?;
                // A whole has so many at most, whatever a node says.
                if piece.index < MAX_PIECES {
                    pieces.insert(piece.index, piece);
                    progress.set(Stage::Pieces(pieces.values().cloned().collect()));
                }
            }
            Some(Event::Done(done)) => return ended(&done, key),
            // One size alone ends as what has no sizes.
            Some(
                Event::Started(_) | Event::Planned(_) | Event::Piece(_) | Event::SizeFailed(_),
            )
            | None => {}
        }
    }
    Err(Status::unavailable("the node ended its answer early"))
}

fn ended(done: &pb::Done, key: &ArtifactKey) -> Result<(Outcome, Arc<[PieceReport]>), Status> {
    let pieces = done.pieces.iter().map(PieceReport::read).collect::<Result<_, _>>();
    let pieces = pieces.map_err(Status::from)?;
    let signed = done.manifest.clone().map(SignedManifest::from);
    let theirs = signed.and_then(|signed| signed.read_unverified().ok()).map(|m| m.key);
    match theirs == Some(*key) {
        true => Ok((done.outcome().into(), pieces)),
        // Its toolchain is no longer the one that the cluster knows it by.
        false => Err(Status::unavailable("that node gives the request another key")),
    }
}

/// What a status of another node means here, and whether a third one may do better.
fn understood(node: NodeId, status: &Status) -> (Error, bool) {
    let kind = status.metadata().get(KIND).and_then(|kind| kind.to_str().ok());
    if let Some(kind) = kind.and_then(FailureKind::named) {
        let text = status.message();
        let prefix = format!("{} {}: ", kind.code(), kind.name());
        let text = text.strip_prefix(prefix.as_str()).unwrap_or(text);
        let failure = Failure::new(kind, format!("node {node}: {text}"));
        let elsewhere = matches!(
            kind,
            FailureKind::ToolchainMissing | FailureKind::Busy | FailureKind::Crashed
        );
        return (failure.into(), elsewhere);
    }
    let why = format!("node {node}: {}", status.message());
    match status.code() {
        Code::InvalidArgument => (Error::Invalid(why), false),
        _ => (Error::Unavailable(why), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_crosses_nodes_as_it_is() {
        let failure = Failure::new(FailureKind::CompileError, "no such op");
        let status = Status::from(Error::from(failure));
        let (error, elsewhere) = understood(7, &status);
        assert_eq!(error.to_string(), "C001 compile_error: node 7: no such op");
        assert!(!elsewhere, "it would fail anywhere");
        for kind in [FailureKind::Busy, FailureKind::ToolchainMissing, FailureKind::Crashed] {
            let status = Status::from(Error::from(Failure::new(kind, "x")));
            let (error, elsewhere) = understood(7, &status);
            assert!(elsewhere && matches!(error, Error::Failed(f) if f.kind == kind));
        }
        let (error, elsewhere) = understood(7, &Status::unavailable("gone"));
        assert!(elsewhere && matches!(error, Error::Unavailable(_)));
    }
}
