//! Replies on their way out.
//!
//! Invariant: replies leave in the order in which they were pushed; a reader
//! that takes less than 64 KiB in a window is cut off; the bytes of a long
//! value are never copied into this process's buffers.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Write},
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};

use super::{
    reply::{Reply, Version},
    socket::Socket,
};
use crate::{cache::Blob, transfer::Progress};

/// Shorter values are copied behind their length: cheaper than a part of their own.
const COPIED: usize = 2 << 10;
/// Longer ones are handed to the kernel as they lie.
const SENT_AS_FILE: usize = 128 << 10;
/// Bytes handed to the kernel at once: bounds how long a worker is held.
const AT_ONCE: usize = 1 << 20;
/// Parts of one write.
const PARTS: usize = 32;

enum Part {
    Text(BytesMut),
    Value { blob: Blob, sent: usize },
}

/// The replies of one connection that are not written yet.
#[derive(Default)]
pub(super) struct Outgoing {
    parts: VecDeque<Part>,
    bytes: usize,
}

impl Outgoing {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a reply.
    pub(super) fn push(&mut self, reply: Reply, version: Version) {
        if let Reply::Value(blob) = reply {
            return self.push_value(blob);
        }
        let text = self.text();
        let before = text.len();
        reply.encode(version, text);
        self.bytes += text.len() - before;
    }

    /// Appends the head of an array of `n` replies, which follow.
    pub(super) fn push_array_of(&mut self, n: usize) {
        self.write_text(format_args!("*{n}\r\n"));
    }

    fn push_value(&mut self, blob: Blob) {
        self.write_text(format_args!("${}\r\n", blob.len()));
        self.bytes += blob.len();
        match blob.len() {
            0..COPIED => self.text().put_slice(&blob),
            _ => self.parts.push_back(Part::Value { blob, sent: 0 }),
        }
        self.write_text(format_args!("\r\n"));
    }

    fn write_text(&mut self, text: std::fmt::Arguments<'_>) {
        let buffer = self.text();
        let before = buffer.len();
        // A buffer that grows takes everything.
        let _ = buffer.writer().write_fmt(text);
        let after = self.text().len();
        self.bytes += after - before;
    }

    /// The text at the end.
    fn text(&mut self) -> &mut BytesMut {
        if !matches!(self.parts.back(), Some(Part::Text(_))) {
            self.parts.push_back(Part::Text(BytesMut::new()));
        }
        match self.parts.back_mut() {
            Some(Part::Text(text)) => text,
            _ => unreachable!("it was just pushed"),
        }
    }

    /// Writes everything; a reader has `window` for each 64 KiB.
    pub(super) async fn flush(&mut self, socket: &Socket, window: Duration) -> io::Result<()> {
        let mut progress = Progress::new(window);
        while !self.parts.is_empty() {
            let written = progress.step(self.write_some(socket)).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(written);
        }
        Ok(())
    }

    async fn write_some(&self, socket: &Socket) -> io::Result<usize> {
        let long = |part: Option<&Part>| matches!(part, Some(Part::Value { blob, .. }) if blob.len() >= SENT_AS_FILE);
        match (self.parts.front(), self.parts.get(1)) {
            (Some(Part::Value { blob, sent }), _) if blob.len() >= SENT_AS_FILE => {
                socket.send(blob, *sent, (blob.len() - sent).min(AT_ONCE)).await
            }
            (Some(Part::Text(text)), next) if long(next) => socket.write_more(text).await,
            _ => {
                let short = self.parts.iter().take_while(|part| !long(Some(part)));
                let parts: Vec<_> =
                    short.take(PARTS).map(|part| IoSlice::new(part.rest())).collect();
                socket.write(&parts).await
            }
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.parts.front_mut() {
            let rest = front.rest().len();
            if written < rest {
                match front {
                    Part::Text(text) => text.advance(written),
                    Part::Value { sent, .. } => *sent += written,
                }
                return;
            }
            written -= rest;
            self.parts.pop_front();
        }
    }
}

impl Part {
    fn rest(&self) -> &[u8] {
        match self {
            Self::Text(text) => text,
            Self::Value { blob, sent } => &blob[*sent..],
        }
    }
}
