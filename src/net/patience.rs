//! What a connection has to do in time: else it ends, and its place is another's.
//!
//! Invariant: who says nothing, or a byte now and then, keeps no place for longer than
//! [`FIRST`] or [`IDLE`]; a connection that is served is not cut for being slow.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// The first bytes of HTTP/2: its preface, and the head of the frame of settings behind it.
const OPENING: usize = 24 + 9;
/// For those of gRPC; and in HTTP/1 for a request, which is answered.
const FIRST: Duration = Duration::from_secs(15);
/// In HTTP/1 between two answers, or two parts of one.
const IDLE: Duration = Duration::from_secs(120);

/// The time that one connection has.
pub(crate) struct Patience {
    /// Bytes that have to come; none: something has to be answered.
    opening: usize,
    /// Whether there is an end after the first.
    goes_on: bool,
    end: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Of gRPC: keep-alive pings find those that are gone once it is spoken.
    pub(crate) fn grpc() -> Self {
        Self::new(OPENING, false)
    }

    /// Of HTTP/1.
    pub(crate) fn http() -> Self {
        Self::new(0, true)
    }

    fn new(opening: usize, goes_on: bool) -> Self {
        let end = Instant::now() + FIRST;
        Self { opening, goes_on, end, timer: Some(Box::pin(sleep_until(end))) }
    }

    /// Reads from `stream`; the end of the time is an error of it.
    pub(crate) fn poll_read(
        &mut self,
        stream: Pin<&mut impl AsyncRead>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = stream.poll_read(context, buffer);
        if read.is_pending() {
            return self.poll_over(context).map(Err);
        }
        self.came(buffer.filled().len().saturating_sub(before));
        read
    }

    /// Ready when the time is over.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(timer) = &mut self.timer {
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= self.end {
                return Poll::Ready(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "nothing was asked in time",
                ));
            }
            timer.as_mut().reset(self.end);
        }
        Poll::Pending
    }

    /// So many bytes came.
    fn came(&mut self, bytes: usize) {
        if self.goes_on {
            return;
        }
        self.opening = self.opening.saturating_sub(bytes);
        if self.opening == 0 {
            self.timer = None;
        }
    }

    /// Something was answered.
    pub(crate) fn answered(&mut self) {
        if self.goes_on {
            self.end = Instant::now() + IDLE;
        }
    }
}
