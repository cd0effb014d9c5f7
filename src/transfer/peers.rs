//! The server for peers: bytes over TCP.
//!
//! Invariant: bytes go from sealed memory to the socket by `sendfile`, so a
//! reader costs this node a socket buffer beside the blob, which one that stalls
//! gives up within a window.

use std::sync::Arc;

use kiln_proto::pb;
use rustix::net::SendFlags;
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{self, FrameError},
    provider::{PeerAddress, Provider, Refusal},
    server::{ParsedRequest, Responder, Subject, refuse, serve},
    settings::ServerSettings,
};
use crate::{cache::Blob, net::Progress};

/// Bytes handed to the kernel at once: bounds how long a worker is held.
const SEND_AT_ONCE: u64 = 1 << 20;

/// Answers peers on `listener` until `stop`; returns when all have ended.
///
/// A transfer that `stop` cuts is resumed by its client from another node.
pub async fn serve_peers(
    listener: TcpListener,
    provider: Arc<dyn Provider>,
    settings: ServerSettings,
    stop: CancellationToken,
) {
    serve(listener, Peers, provider, settings, stop).await;
}

struct Peers;

impl Responder<TcpStream> for Peers {
    const DOOR: &'static str = "peers";

    async fn answer(
        &self,
        stream: &mut TcpStream,
        asked: ParsedRequest,
        provider: &dyn Provider,
        settings: &ServerSettings,
    ) -> Result<(), FrameError> {
        match find(&asked, provider).await {
            Ok(Some(blob)) => send(stream, &blob, asked.offset, settings).await,
            Ok(None) => {
                let kept = pb::TransferResponse {
                    code: pb::TransferCode::Ok.into(),
                    ..Default::default()
                };
                frame::write(stream, &kept, frame::MAX_RESPONSE, settings.progress).await
            }
            Err(refusal) => refuse(stream, refusal, settings).await,
        }
    }
}

/// The blob to send; `None` where a copy was asked for and is kept.
async fn find(asked: &ParsedRequest, provider: &dyn Provider) -> Result<Option<Blob>, Refusal> {
    if asked.node.is_some_and(|meant| meant != provider.node()) {
        return Err(Refusal::WrongNode);
    }
    let digest = match &asked.subject {
        Subject::Blob(digest) => digest,
        Subject::Keep { digest, size, node, address } => {
            provider.keep(digest, *size, PeerAddress { node: *node, address }).await?;
            return Ok(None);
        }
        Subject::Artifact { .. } => {
            return Err(Refusal::BadRequest("keys are answered on the unix socket".into()));
        }
    };
    let blob = provider.blob(digest).await?.ok_or(Refusal::NotFound)?;
    if asked.offset > blob.size() {
        return Err(Refusal::BadRequest(format!("offset {} of {}", asked.offset, blob.size())));
    }
    Ok(Some(blob))
}

/// Sends the header, then the bytes of `blob` from `offset` on.
async fn send(
    stream: &TcpStream,
    blob: &Blob,
    offset: u64,
    settings: &ServerSettings,
) -> Result<(), FrameError> {
    let length = blob.size() - offset;
    let given_out = metrics::counter!("kiln_transfer_sent_bytes_total", "door" => Peers::DOOR);
    let header = pb::TransferResponse {
        code: pb::TransferCode::Ok.into(),
        size: blob.size(),
        length,
        ..Default::default()
    };
    let header = frame::encode(&header, frame::MAX_RESPONSE)?;
    // MORE: the header leaves in one segment with the first bytes.
    let more = if length > 0 { SendFlags::MORE } else { SendFlags::empty() };
    let flags = more | SendFlags::NOSIGNAL;
    let mut progress = Progress::new(settings.progress);
    let mut sent = 0;
    while sent < header.len() {
        let rest = &header[sent..];
        let step = || Ok(rustix::net::send(stream, rest, flags)?);
        sent += progress.step(stream.async_io(Interest::WRITABLE, step)).await?;
    }
    let mut at = offset;
    while at < blob.size() {
        let count = (blob.size() - at).min(SEND_AT_ONCE) as usize;
        let step = || Ok(rustix::fs::sendfile(stream, blob, Some(&mut at), count)?);
        let sent = progress.step(stream.async_io(Interest::WRITABLE, step)).await?;
        given_out.increment(sent as u64);
    }
    Ok(())
}
