//! The client of peers: bytes over TCP into sealed memory.
//!
//! Invariant: whatever a peer sends, the writer holds at most the bytes it was
//! made for, all of them hashed; [`BlobWriter::finish_as`] then judges them.

use std::io;

use kiln_proto::{
    Digest,
    pb::{self, transfer_request::Subject},
};
use tokio::io::AsyncReadExt;

use super::{
    error::{NoAnswer, TransferError, accepted},
    frame,
    pool::Pool,
    provider::PeerAddress,
    settings::ClientSettings,
};
use crate::{
    cache::BlobWriter,
    net::{Conn, Progress, tls::Dialer},
    telemetry::trace,
};

/// Fetches blobs from other nodes, over connections that it keeps.
pub struct PeerClient {
    pool: Pool,
    settings: ClientSettings,
}

impl PeerClient {
    /// A client without connections, which makes them by `dialer`.
    pub fn new(settings: ClientSettings, dialer: Dialer) -> Self {
        Self { pool: Pool::new(settings.clone(), dialer), settings }
    }

    /// Fetches the blob `digest` from `peer` into `writer`, from the byte on that
    /// `writer` lacks.
    ///
    /// After [`TransferError::Broken`] the same writer resumes at any peer.
    /// The bytes are what the peer sent: only `writer.finish_as(digest)` says
    /// that they are right.
    pub async fn fetch_into(
        &self,
        peer: PeerAddress<'_>,
        digest: &Digest,
        writer: &mut BlobWriter,
    ) -> Result<(), TransferError> {
        let address = peer.address;
        let request = pb::TransferRequest {
            subject: Some(Subject::Digest(digest.as_bytes().to_vec().into())),
            offset: writer.filled(),
            node: peer.node,
            trace: trace::of_traced().unwrap_or_default(),
            ..Default::default()
        };
        let (mut stream, response) = self.ask(address, &request).await?;
        let outcome = match accepted(response) {
            Ok(header) => {
                let mut buffer = self.pool.pop_buffer();
                let received =
                    receive(&mut stream, &header, writer, &mut buffer, &self.settings).await;
                self.pool.put_back_buffer(buffer);
                received
            }
            Err(refusal) => Err(refusal),
        };
        // After anything else, bytes of unknown meaning may be on their way.
        self.keep_usable(address, stream, &outcome);
        outcome
    }

    /// Makes `peer` fetch `size` bytes of the blob `digest` from `from`; they are durable
    /// there on return.
    pub async fn keep(
        &self,
        peer: PeerAddress<'_>,
        digest: &Digest,
        size: u64,
        from: PeerAddress<'_>,
    ) -> Result<(), TransferError> {
        let keep = pb::Keep {
            digest: digest.as_bytes().to_vec().into(),
            size,
            node: from.node,
            address: from.address.to_owned(),
        };
        let subject = Some(Subject::Keep(keep));
        let trace = trace::of_traced().unwrap_or_default();
        let request = pb::TransferRequest { subject, node: peer.node, trace, ..Default::default() };
        let (stream, response) = self.ask(peer.address, &request).await?;
        let outcome = accepted(response).map(drop);
        self.keep_usable(peer.address, stream, &outcome);
        outcome
    }

    /// Keeps a connection on which the next answer can begin.
    fn keep_usable(&self, address: &str, stream: Conn, outcome: &Result<(), TransferError>) {
        use TransferError::{Busy, Failed, NotFound, WrongNode};
        if matches!(outcome, Ok(()) | Err(NotFound | WrongNode | Busy | Failed(_))) {
            self.pool.put_back(address, stream);
        }
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.pool.len()
    }

    /// Sends `request` on an idle connection, or a new one. A peer closes idle
    /// connections as it likes, so losing one of these proves nothing.
    async fn ask(
        &self,
        address: &str,
        request: &pb::TransferRequest,
    ) -> Result<(Conn, pb::TransferResponse), TransferError> {
        if let Some(mut stream) = self.pool.pop(address) {
            match exchange(&mut stream, request, &self.settings).await {
                Ok(response) => return Ok((stream, response)),
                Err(NoAnswer::Lost(e)) if e.kind() != io::ErrorKind::TimedOut => {
                    tracing::trace!(address, error = %e, "an idle connection had ended");
                }
                Err(no_answer) => return Err(no_answer.at(request.offset)),
            }
        }
        let unreachable =
            |source| TransferError::Unreachable { address: address.to_owned(), source };
        let mut stream = self.pool.connect(address).await.map_err(unreachable)?;
        match exchange(&mut stream, request, &self.settings).await {
            Ok(response) => Ok((stream, response)),
            Err(no_answer) => Err(no_answer.at(request.offset)),
        }
    }
}

async fn exchange(
    stream: &mut Conn,
    request: &pb::TransferRequest,
    settings: &ClientSettings,
) -> Result<pb::TransferResponse, NoAnswer> {
    frame::write(stream, request, frame::MAX_REQUEST, settings.progress).await?;
    let response = frame::read(stream, frame::MAX_RESPONSE, settings.patience()).await?;
    response.ok_or(NoAnswer::Lost(io::ErrorKind::UnexpectedEof.into()))
}

async fn receive(
    stream: &mut Conn,
    header: &pb::TransferResponse,
    writer: &mut BlobWriter,
    buffer: &mut [u8],
    settings: &ClientSettings,
) -> Result<(), TransferError> {
    let missing = writer.size() - writer.filled();
    if (header.size, header.length) != (writer.size(), missing) {
        return Err(TransferError::Protocol(format!(
            "{} of {} bytes offered, {missing} of {} wanted",
            header.length,
            header.size,
            writer.size()
        )));
    }
    let mut progress = Progress::new(settings.progress);
    let mut missing = missing as usize;
    while missing > 0 {
        let size = missing.min(buffer.len());
        let (came, ended) = fill(stream, &mut buffer[..size], &mut progress).await;
        // What came before an end counts: it need not come again.
        writer.write(&buffer[..came])?;
        missing -= came;
        if let Err(source) = ended {
            return Err(TransferError::Broken { at: writer.filled(), source });
        }
    }
    Ok(())
}

/// Reads until `chunk` is full or the connection ends, and says how far it came.
async fn fill(
    stream: &mut Conn,
    chunk: &mut [u8],
    progress: &mut Progress,
) -> (usize, io::Result<()>) {
    let mut came = 0;
    while came < chunk.len() {
        match progress.step(stream.read(&mut chunk[came..])).await {
            Ok(0) => return (came, Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => came += n,
            Err(error) => return (came, Err(error)),
        }
    }
    (came, Ok(()))
}
