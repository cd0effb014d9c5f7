//! The server for clients on the same node: descriptors over a unix socket.
//!
//! Invariant: a client is handed sealed memory that was verified; it can read
//! it for as long as it likes and change nothing.

use std::{io::IoSlice, mem::MaybeUninit, os::fd::AsFd, sync::Arc};

use kiln_proto::pb;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{self, FrameError},
    provider::{Provider, Refusal},
    server::{ParsedRequest, Responder, Server, Subject, refuse, serve},
    settings::ServerSettings,
};
use crate::{
    access::Shown,
    cache::Blob,
    net::{self, Progress},
};

/// Answers clients on `listener` until `stop`; returns when all have ended.
pub async fn serve_socket(
    listener: UnixListener,
    provider: Arc<dyn Provider>,
    settings: ServerSettings,
    stop: CancellationToken,
) {
    serve(listener, Local, provider, settings, stop).await;
}

/// Answers clients of this machine on connections that were accepted elsewhere.
pub(crate) struct SocketServer(Server<Local>);

impl SocketServer {
    pub(crate) fn new(
        provider: Arc<dyn Provider>,
        settings: ServerSettings,
        stop: CancellationToken,
    ) -> Self {
        Self(Server { responder: Local, provider, settings, stop })
    }
}

impl net::Service<UnixStream> for SocketServer {
    async fn serve(&self, stream: UnixStream) {
        net::Service::serve(&self.0, stream).await;
    }

    async fn refuse(&self, stream: UnixStream) {
        net::Service::refuse(&self.0, stream).await;
    }
}

struct Local;

impl Responder<UnixStream> for Local {
    const DOOR: &'static str = "socket";

    async fn answer(
        &self,
        stream: &mut UnixStream,
        asked: ParsedRequest,
        provider: &dyn Provider,
        settings: &ServerSettings,
    ) -> Result<(), FrameError> {
        let asks = Shown { uid: net::user(stream), bearer: asked.token.clone(), certificate: None };
        let (header, blob) = match find(asked, &asks, provider).await {
            Ok(found) => found,
            Err(refusal) => return refuse(stream, refusal, settings).await,
        };
        match frame::encode(&header, frame::MAX_RESPONSE) {
            Ok(frame) => send(stream, &frame, &blob, settings).await,
            Err(too_long) => {
                refuse(stream, Refusal::Failed(format!("the manifest: {too_long}")), settings).await
            }
        }
    }
}

async fn find(
    asked: ParsedRequest,
    asks: &Shown,
    provider: &dyn Provider,
) -> Result<(pb::TransferResponse, Blob), Refusal> {
    if asked.offset != 0 {
        return Err(Refusal::BadRequest("a descriptor has no offset".into()));
    }
    let (manifest, blob, tier) = match asked.subject {
        Subject::Artifact { key, namespace, look } => {
            let (manifest, blob, tier) = provider.artifact(asks, &key, &namespace, look).await?;
            (Some((&manifest).into()), blob, tier)
        }
        Subject::Blob(digest) => {
            provider.may_read_all(asks).await?;
            let blob = provider.blob(&digest).await?.ok_or(Refusal::NotFound)?;
            (None, blob, pb::Tier::Unspecified)
        }
        Subject::Keep { .. } => {
            return Err(Refusal::BadRequest("copies are asked for by peers".into()));
        }
    };
    let header = pb::TransferResponse {
        code: pb::TransferCode::Ok.into(),
        size: blob.size(),
        length: blob.size(),
        manifest,
        tier: tier.into(),
        ..Default::default()
    };
    Ok((header, blob))
}

/// Sends the frame; the descriptor comes along with its first byte.
async fn send(
    stream: &UnixStream,
    frame: &[u8],
    blob: &Blob,
    settings: &ServerSettings,
) -> Result<(), FrameError> {
    let mut progress = Progress::new(settings.progress);
    let mut sent = 0;
    while sent < frame.len() {
        let step = || {
            let memory = [blob.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 {
                let fits = control.push(SendAncillaryMessage::ScmRights(&memory));
                debug_assert!(fits, "the buffer is made for one descriptor");
            }
            let rest = [IoSlice::new(&frame[sent..])];
            Ok(rustix::net::sendmsg(stream, &rest, &mut control, SendFlags::NOSIGNAL)?)
        };
        sent += progress.step(stream.async_io(Interest::WRITABLE, step)).await?;
    }
    metrics::counter!("kiln_transfer_sent_bytes_total", "door" => Local::DOOR)
        .increment(blob.size());
    Ok(())
}
