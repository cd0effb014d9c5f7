//! Large gRPC messages on their way in.
//!
//! Invariant: all messages of clients that are larger than [`FREE`] and not whole yet
//! have at most [`MOST`] bytes together, however many connections there are; one that
//! stalls ends. A message is counted from its header, before any byte of it is kept.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use kiln_proto::{Failure, FailureKind, MAX_MESSAGE_BYTES};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};
use tokio_util::sync::PollSemaphore;
use tonic::{Status, body::Body, codegen::http, server::NamedService};
use tower::Service;

use crate::error::Error;

/// Bytes of a message that is not counted.
const FREE: usize = 1 << 20;
/// Bytes of all that are.
const MOST: usize = 4 * MAX_MESSAGE_BYTES;
/// How long a message waits for others to be whole, and the window in which its sender
/// must give [`LEAST`].
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that a window must see.
const LEAST: usize = 64 << 10;
/// Compression flag and length in front of each message.
const HEADER: usize = 5;
/// The unit of account: a KiB.
const UNIT: usize = 1 << 10;

/// A service whose clients' messages are counted.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    units: Arc<Semaphore>,
}

impl<S> Counted<S> {
    /// Counts the messages that come to `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, units: Arc::new(Semaphore::new(MOST / UNIT)) }
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let units = self.units.clone();
        self.inner.call(request.map(|body| Body::new(Messages::new(body, units, PATIENCE))))
    }
}

/// The body of a request.
struct Messages {
    body: Body,
    units: PollSemaphore,
    patience: Duration,
    arriving: Arriving,
    /// What the message that is arriving has of the account.
    place: Option<OwnedSemaphorePermit>,
    /// Bytes that wait for the place of their message, and how many units that is.
    waiting: Option<(Bytes, u32)>,
    /// The end of the window, and what it has seen.
    window: Pin<Box<Sleep>>,
    seen: usize,
}

/// Where in the stream of messages the next byte is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arriving {
    header: Vec<u8>,
    /// Bytes of the present message that are missing.
    left: usize,
}

impl Arriving {
    /// Reads on; the length of the largest message that begins in `data`, if one does.
    fn read(&mut self, mut data: &[u8]) -> Option<usize> {
        let mut largest = None;
        loop {
            let now = self.left.min(data.len());
            self.left -= now;
            data = &data[now..];
            if data.is_empty() {
                return largest;
            }
            let now = (HEADER - self.header.len()).min(data.len());
            self.header.extend_from_slice(&data[..now]);
            data = &data[now..];
            if let [_, a, b, c, d] = self.header[..] {
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.header.clear();
                largest = largest.max(Some(self.left));
            }
        }
    }

    /// Whether a message has begun and is not whole.
    fn is_within(&self) -> bool {
        self.left > 0 || !self.header.is_empty()
    }
}

impl Messages {
    fn new(body: Body, units: Arc<Semaphore>, patience: Duration) -> Self {
        Self {
            body,
            units: PollSemaphore::new(units),
            patience,
            arriving: Arriving::default(),
            place: None,
            waiting: None,
            window: Box::pin(tokio::time::sleep(patience)),
            seen: 0,
        }
    }

    fn renew(&mut self) {
        self.seen = 0;
        self.window.as_mut().reset(Instant::now() + self.patience);
    }

    /// The bytes that wait, once their message has its place.
    fn poll_place(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        let Some((_, units)) = self.waiting else {
            return Poll::Ready(Err(Status::internal("nothing waits")));
        };
        let Poll::Ready(place) = self.units.poll_acquire_many(context, units) else {
            ready!(self.window.as_mut().poll(context));
            let why = "too many large requests arrive at once: try again";
            return Poll::Ready(Err(Error::from(Failure::new(FailureKind::Busy, why)).into()));
        };
        self.place = place;
        self.renew();
        let bytes = self.waiting.take().map(|(bytes, _)| bytes).unwrap_or_default();
        Poll::Ready(Ok(bytes))
    }
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.waiting.is_some() {
            let bytes = ready!(this.poll_place(context))?;
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let within = this.arriving.is_within();
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            // A stream may rest between two messages, as long as it likes.
            if within {
                ready!(this.window.as_mut().poll(context));
                let why = format!("a message stalled for {:?}", this.patience);
                return Poll::Ready(Some(Err(Error::Invalid(why).into())));
            }
            return Poll::Pending;
        };
        let Some(frame) = frame.transpose()? else { return Poll::Ready(None) };
        let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
        this.seen += data.len();
        if !within || this.seen >= LEAST {
            this.renew();
        }
        let begins = this.arriving.read(data);
        let Some(size) = begins else { return Poll::Ready(Some(Ok(frame))) };
        // The message before is whole: whoever asked for this one has read it.
        this.place = None;
        if size <= FREE {
            return Poll::Ready(Some(Ok(frame)));
        }
        // One that is larger than any may be is refused by its reader.
        let units = u32::try_from(size.min(MAX_MESSAGE_BYTES) / UNIT).unwrap_or(u32::MAX);
        this.waiting = frame.into_data().ok().map(|bytes| (bytes, units));
        this.renew();
        let bytes = ready!(this.poll_place(context))?;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
