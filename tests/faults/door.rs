//! How clients reach one node, whatever becomes of its process.
//!
//! Invariant: a call to a node that is known not to answer is given up soon; any other
//! is waited for, so that one without an end shows.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use kiln::config::Config;
use kiln_proto::pb::kiln_client::KilnClient;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

const MESSAGE_BYTES: usize = 64 << 20;
/// How long a call to a node that is away is waited for.
const AWAY: Duration = Duration::from_millis(1500);
/// How long any other is: no bound of the node's is as long.
pub(crate) const HUNG: Duration = Duration::from_secs(60);

pub(crate) struct Door {
    pub(crate) node: usize,
    pub(crate) resp: SocketAddr,
    channel: Channel,
    /// Which process of the node serves, from 1.
    pub(crate) life: AtomicU32,
    /// Paused, or cut off from clients.
    pub(crate) away: AtomicBool,
    /// Clients ask it.
    pub(crate) open: AtomicBool,
}

impl Door {
    pub(crate) fn new(node: usize, config: &Config) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{}", config.grpc_listen))?
            .connect_timeout(Duration::from_secs(1))
            .connect_lazy();
        let resp = config.resp_listen.ok_or_else(|| anyhow::anyhow!("no RESP port"))?;
        let (life, away, open) = (AtomicU32::new(0), AtomicBool::new(false), AtomicBool::new(true));
        Ok(Self { node, resp, channel, life, away, open })
    }

    pub(crate) fn client(&self) -> KilnClient<Channel> {
        KilnClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    /// What `call` gives; `None`: it was given up.
    pub(crate) async fn call<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            answer = timeout(HUNG, call) => answer.ok(),
            () = self.gone() => None,
        }
    }

    /// Returns once the node was away for a while.
    async fn gone(&self) {
        const LOOK: Duration = Duration::from_millis(100);
        let mut away = Duration::ZERO;
        while away < AWAY {
            sleep(LOOK).await;
            away = if self.away.load(Relaxed) { away + LOOK } else { Duration::ZERO };
        }
    }
}
