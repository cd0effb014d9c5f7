//! How a request travels to a peer: gRPC over TCP, or whatever a member is opened with.
//!
//! Invariant: a transport carries whole gRPC calls, streams of frames both ways, and
//! knows nothing of what they say.

use std::{
    fmt, io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError, http},
    transport::{Channel, Endpoint, Uri},
};

/// The header that names the span of a caller, as W3C has it.
const PARENT: &str = "traceparent";
const CONNECT: Duration = Duration::from_secs(1);
/// A silent connection is probed, and given up when the probe is not answered.
pub(crate) const PROBE: Duration = Duration::from_secs(2);

/// A connection, in plain text or not.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that is being made.
pub type Dialing = BoxFuture<Box<dyn Io>, io::Error>;

/// Connects to the gRPC service of other members, and checks who answers.
pub trait Dial: fmt::Debug + Send + Sync {
    /// A connection to whoever is at `address`, `host:port`.
    fn dial(&self, address: String) -> Dialing;
}

/// A channel to `address`, `host:port`, of which `endpoint` has the settings; it connects by
/// `dial` when it is used.
pub fn channel(endpoint: &Endpoint, dial: &Arc<dyn Dial>) -> Channel {
    let dial = Arc::clone(dial);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |to: Uri| {
        let address = to.authority().map(ToString::to_string).unwrap_or_default();
        let dialing = dial.dial(address);
        async move { dialing.await.map(TokioIo::new) }
    }))
}

/// Makes transports.
pub(crate) trait Connect: Send + Sync {
    /// The way to whoever is at `address`; it connects when it is used.
    fn connect(&self, address: &str) -> Result<Transport, Status>;
}

/// Carries calls to one address.
pub(crate) trait Carry: Send + Sync {
    fn carry(&self, call: http::Request<Body>) -> BoxFuture<http::Response<Body>, StdError>;
}

/// The way to one address, as a gRPC client takes it.
#[derive(Clone)]
pub(crate) struct Transport(Arc<dyn Carry>);

impl Transport {
    pub(crate) fn new(carry: impl Carry + 'static) -> Self {
        Self(Arc::new(carry))
    }
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<http::Response<Body>, StdError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: http::Request<Body>) -> Self::Future {
        self.0.carry(call)
    }
}

/// HTTP/2 over TCP, one connection an address.
pub(crate) struct Tcp {
    /// The trace of the call under way, which goes along.
    pub context: fn() -> Option<String>,
    /// How it connects, where that is not in plain text.
    pub dial: Option<Arc<dyn Dial>>,
}

impl Connect for Tcp {
    fn connect(&self, address: &str) -> Result<Transport, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| Status::invalid_argument(format!("address {address:?}: {e}")))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE)
            .keep_alive_while_idle(true);
        let channel = match &self.dial {
            Some(dial) => channel(&endpoint, dial),
            None => endpoint.connect_lazy(),
        };
        Ok(Transport::new(Traced { channel, context: self.context }))
    }
}

/// A channel on which the trace of a call goes along.
struct Traced {
    channel: Channel,
    context: fn() -> Option<String>,
}

impl Carry for Traced {
    fn carry(&self, mut call: http::Request<Body>) -> BoxFuture<http::Response<Body>, StdError> {
        let parent = (self.context)().and_then(|text| http::HeaderValue::try_from(text).ok());
        if let Some(parent) = parent {
            call.headers_mut().insert(PARENT, parent);
        }
        let mut channel = self.channel.clone();
        Box::pin(async move {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            Ok(channel.call(call).await?)
        })
    }
}
