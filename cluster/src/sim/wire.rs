//! One call over the simulated network, in the place of HTTP/2 over TCP.
//!
//! Invariant: the frames of one body arrive in order, each after its delay, until the
//! connection breaks: then both ends are told, each when it would notice. A handler runs on
//! when its caller gave up, until word of that arrives.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body::Frame;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError, http},
};

use super::network::{Lost, Network, Process};
use crate::transport::{Carry, Connect, Transport};

/// Snapshots are counted: a run should send some.
pub(super) const SNAPSHOT: &str = "/kiln.cluster.v1.Peer/Snapshot";

/// The network as one process uses it.
pub(super) struct Uplink {
    pub network: Arc<Network>,
    pub process: Arc<Process>,
}

impl Connect for Uplink {
    fn connect(&self, address: &str) -> Result<Transport, Status> {
        let (network, process) = (Arc::clone(&self.network), Arc::clone(&self.process));
        Ok(Transport::new(Line { network, from: process, to: address.to_owned() }))
    }
}

/// The way to one address.
struct Line {
    network: Arc<Network>,
    from: Arc<Process>,
    to: String,
}

fn broken(why: &str) -> StdError {
    Box::new(Status::unavailable(format!("simulated: {why}")))
}

impl Carry for Line {
    fn carry(&self, call: http::Request<Body>) -> BoxFuture<http::Response<Body>, StdError> {
        let (network, from, to) =
            (Arc::clone(&self.network), Arc::clone(&self.from), self.to.clone());
        Box::pin(async move {
            let lost = |Lost| broken("no answer");
            if from.is_dead() {
                return Err(broken("this process is dead"));
            }
            let host = network.host_of(&to).map_err(lost)?;
            network.transit(from.host, host).await.map_err(lost)?;
            let found = network.process_at(&to);
            let Some(process) = found.map_err(lost)? else {
                network.transit(host, from.host).await.map_err(lost)?;
                return Err(broken("connection refused"));
            };
            if from.is_dead() || network.loses() {
                return Err(broken("the request was lost"));
            }
            let connection = Connection { network, client: from, server: process };
            Arc::new(connection).call(call).await
        })
    }
}

/// One call's share of the connection between two processes.
struct Connection {
    network: Arc<Network>,
    client: Arc<Process>,
    server: Arc<Process>,
}

impl Connection {
    async fn call(
        self: Arc<Self>,
        call: http::Request<Body>,
    ) -> Result<http::Response<Body>, StdError> {
        let (parts, body) = call.into_parts();
        let (client, server) = (self.client.host, self.server.host);
        self.network.trace.event(format_args!("{client}>{server} {}", parts.uri.path()));
        if parts.uri.path() == SNAPSHOT {
            self.network.trace.count(SNAPSHOT);
        }
        let call = http::Request::from_parts(parts, self.pipe(body, &self.client, &self.server));
        let (answer, answered) = oneshot::channel();
        let gone = CancellationToken::new();
        let abandons = gone.clone().drop_guard();
        let serving = Arc::clone(&self);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = serving.server.dead.cancelled() => {}
                served = serving.serve(call) => if let Ok(served) = served {
                    // The caller may be gone.
                    drop(answer.send(served));
                },
                () = serving.abandoned(&gone) => {}
                () = serving.network.broken(&serving.client, &serving.server) => {}
            }
        });
        tokio::select! {
            biased;
            answer = answered => {
                drop(abandons);
                answer.map_err(|_| broken("the connection broke"))
            }
            () = self.network.broken(&self.client, &self.server) => {
                Err(broken("the connection broke"))
            }
        }
    }

    async fn serve(
        self: &Arc<Self>,
        call: http::Request<Body>,
    ) -> Result<http::Response<Body>, Lost> {
        let Some(mut routes) = self.server.routes() else { return Err(Lost) };
        let Ok(answer) = Service::call(&mut routes, call).await;
        let (client, server) = (self.client.host, self.server.host);
        self.network.transit(server, client).await?;
        if self.network.loses() {
            return Err(Lost);
        }
        self.network.trace.event(format_args!("{client}<{server}"));
        let (parts, body) = answer.into_parts();
        Ok(http::Response::from_parts(parts, self.pipe(body, &self.server, &self.client)))
    }

    /// Returns when the server heard that its caller does not wait any more.
    async fn abandoned(&self, gone: &CancellationToken) {
        gone.cancelled().await;
        drop(self.network.transit(self.client.host, self.server.host).await);
    }

    /// `body` as it arrives at the other end.
    fn pipe(self: &Arc<Self>, body: Body, sender: &Arc<Process>, receiver: &Process) -> Body {
        let (from, to) = (sender.host, receiver.host);
        let (mut body, sender) = (body, Arc::clone(sender));
        let (frames, arriving) = mpsc::unbounded_channel();
        let connection = Arc::clone(self);
        let network = Arc::clone(&self.network);
        // The sending half: takes frames as they come, and lets go of the body when the
        // other end did or the connection broke.
        tokio::spawn(async move {
            let mut last = Instant::now();
            loop {
                let frame = std::future::poll_fn(|context| {
                    http_body::Body::poll_frame(Pin::new(&mut body), context)
                });
                tokio::select! {
                    biased;
                    () = sender.dead.cancelled() => {
                        // What still runs of it says no more; the other end learns it later.
                        drop(body);
                        connection.network.broken(&connection.client, &connection.server).await;
                        return;
                    }
                    () = connection.network.broken(&connection.client, &connection.server) => return,
                    () = frames.closed() => {
                        drop(connection.network.transit(to, from).await);
                        return;
                    }
                    frame = frame => {
                        let end = frame.is_none();
                        last = last.max(Instant::now() + connection.network.delay());
                        if frames.send((last, frame)).is_err() || end {
                            return;
                        }
                    }
                }
            }
        });
        let ends = (Arc::clone(&self.client), Arc::clone(&self.server));
        let arriving =
            futures::stream::unfold(Some((arriving, network, ends)), move |state| async move {
                let (mut arriving, network, ends) = state?;
                let next = async {
                    let (at, frame) = arriving.recv().await.ok_or(Lost)?;
                    tokio::time::sleep_until(at).await;
                    network.passes(from, to).await?;
                    Ok::<_, Lost>(frame)
                };
                let next = tokio::select! {
                    biased;
                    next = next => next,
                    () = network.broken(&ends.0, &ends.1) => Err(Lost),
                };
                match next {
                    Ok(Some(Ok(frame))) => {
                        network.trace.event(format_args!("{from}-{to} {}", size(&frame)));
                        Some((Ok(frame), Some((arriving, network, ends))))
                    }
                    Ok(Some(Err(status))) => Some((Err(status), None)),
                    Ok(None) => None,
                    Err(Lost) => {
                        Some((Err(Status::unavailable("simulated: the stream broke")), None))
                    }
                }
            });
        Body::new(Arriving(Box::pin(arriving)))
    }
}

fn size(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

/// A stream of frames as a body.
struct Arriving(Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Status>> + Send>>);

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_next_unpin(context)
    }
}
