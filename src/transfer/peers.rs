//! The server for peers: bytes over TCP.
//!
//! Invariant: bytes go from sealed memory to the socket, in plain text by `sendfile`, so a
//! reader costs this node a socket buffer beside the blob, which one that stalls
//! gives up within a window.

use std::{io, sync::Arc};

use kiln_proto::pb;
use rustix::net::SendFlags;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{self, FrameError},
    provider::{PeerAddress, Provider, Refusal},
    server::{ParsedRequest, Responder, Server, Subject, refuse},
    settings::ServerSettings,
};
use crate::{
    cache::Blob,
    net::{self, Conn, Progress},
};

/// Bytes handed to the kernel at once: bounds how long a worker is held.
const SEND_AT_ONCE: u64 = 1 << 20;

/// Bytes that are encrypted at once.
const SEAL_AT_ONCE: usize = 64 << 10;

/// Answers peers on `listener` until `stop`; returns when all have ended.
///
/// A transfer that `stop` cuts is resumed by its client from another node.
pub async fn serve_peers(
    listener: TcpListener,
    provider: Arc<dyn Provider>,
    settings: ServerSettings,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let server = Arc::new(Plain(PeerServer::new(provider, settings, stop.clone())));
    net::serve(listener, server, places, stop).await;
}

/// Answers peers on connections that were accepted elsewhere.
pub(crate) struct PeerServer(Server<Peers>);

impl PeerServer {
    pub(crate) fn new(
        provider: Arc<dyn Provider>,
        settings: ServerSettings,
        stop: CancellationToken,
    ) -> Self {
        Self(Server { responder: Peers, provider, settings, stop })
    }

    /// Serves `conn` to its end.
    pub(crate) async fn serve(&self, conn: Conn) {
        net::Service::serve(&self.0, conn).await;
    }
}

/// Takes connections as they are.
struct Plain(PeerServer);

impl net::Service<TcpStream> for Plain {
    async fn serve(&self, stream: TcpStream) {
        self.0.serve(stream.into()).await;
    }

    async fn refuse(&self, stream: TcpStream) {
        net::Service::refuse(&self.0.0, Conn::from(stream)).await;
    }
}

pub(super) struct Peers;

impl Responder<Conn> for Peers {
    const DOOR: &'static str = "peers";

    async fn answer(
        &self,
        stream: &mut Conn,
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
    conn: &mut Conn,
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
    let stream = match conn {
        Conn::Plain(stream) => &*stream,
        Conn::Tls(stream) => {
            return send_sealed(stream, &header, &blob[offset as usize..], settings).await;
        }
    };
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

/// The same in TLS: bytes go through the cipher, so `sendfile` is of no use.
async fn send_sealed(
    stream: &mut (impl AsyncWrite + Unpin),
    header: &[u8],
    bytes: &[u8],
    settings: &ServerSettings,
) -> Result<(), FrameError> {
    let given_out = metrics::counter!("kiln_transfer_sent_bytes_total", "door" => Peers::DOOR);
    let mut progress = Progress::new(settings.progress);
    for (part, given) in [(header, false), (bytes, true)] {
        let mut sent = 0;
        while sent < part.len() {
            let end = part.len().min(sent + SEAL_AT_ONCE);
            let step = progress.step(stream.write(&part[sent..end])).await?;
            if step == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            sent += step;
            if given {
                given_out.increment(step as u64);
            }
        }
    }
    // A record that the socket did not take yet lies in the session.
    progress.step(async { stream.flush().await.map(|()| 0) }).await?;
    Ok(())
}
