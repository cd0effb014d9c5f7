//! Connections to other members.
//!
//! Invariant: in TLS a connection is handed out only where the certificate of the other
//! end names no other node, and no other key, than the member that is registered at that
//! address.

use std::{
    io,
    sync::{Arc, OnceLock, Weak},
};

use arc_swap::ArcSwap;
use kiln_cluster::{Cluster, Dial, Dialing, Io, channel};
use rustls::{
    ClientConfig,
    client::ResolvesClientCert,
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::{
    BYTES, GRPC, Mode,
    accept::NAMELESS,
    files::{Loaded, TlsError, provider},
    identity::Identity,
    reload::Trust,
    verify::OfMembers,
};
use crate::net::stream::Conn;

/// Connects to members, in plain text or in TLS.
#[derive(Debug, Clone, Default)]
pub struct Dialer(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tls: Option<Tls>,
    /// Who is registered where. The cluster has this dialer, and is not kept by it.
    cluster: OnceLock<Weak<Cluster>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

struct Tls {
    /// Whether whoever answers must have a certificate that names a node or a key.
    named: bool,
    trust: Arc<Trust>,
    config: ArcSwap<(Arc<Loaded>, Configs)>,
}

/// One for each protocol.
#[derive(Clone)]
struct Configs {
    grpc: Arc<ClientConfig>,
    bytes: Arc<ClientConfig>,
}

impl Dialer {
    /// In TLS where `mode` says so, with the files of `trust`.
    pub(crate) fn new(mode: Mode, named: bool, trust: Arc<Trust>) -> Result<Self, TlsError> {
        if mode < Mode::Dial {
            return Ok(Self::default());
        }
        let loaded = trust.loaded();
        let configs = configure(&loaded).map_err(|why| trust.unusable(why))?;
        let tls = Some(Tls { named, trust, config: ArcSwap::from_pointee((loaded, configs)) });
        Ok(Self(Arc::new(Inner { tls, cluster: OnceLock::new() })))
    }

    /// From now on whoever answers is compared with whom `cluster` has at that address.
    pub(crate) fn know(&self, cluster: &Arc<Cluster>) {
        // The node has one cluster.
        let _ = self.0.cluster.set(Arc::downgrade(cluster));
    }

    /// A connection for bytes to whoever is at `address`.
    pub(crate) async fn bytes(&self, address: &str) -> io::Result<Conn> {
        self.connect(address, |configs| configs.bytes.clone()).await
    }

    /// A channel for the API of the member at `address`, with the settings of `configured`;
    /// it connects when it is used.
    pub(crate) fn channel(
        &self,
        address: &str,
        configured: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, tonic::transport::Error> {
        let endpoint = configured(Endpoint::from_shared(format!("http://{address}"))?);
        let dial: Arc<dyn Dial> = Arc::new(self.clone());
        Ok(channel(&endpoint, &dial))
    }

    async fn connect(
        &self,
        address: &str,
        pick: impl FnOnce(&Configs) -> Arc<ClientConfig>,
    ) -> io::Result<Conn> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.0.tls else { return Ok(Conn::Plain(stream)) };
        let name = server_name(address)?;
        let connector = TlsConnector::from(pick(&tls.configs()));
        let refused = |error: io::Error| {
            let why = "handshake";
            metrics::counter!("kiln_refused_peers_total", "why" => why).increment(1);
            tracing::debug!(address, %error, "no TLS with a member");
            io::Error::new(error.kind(), format!("TLS with {address}: {error}"))
        };
        let stream = connector.connect(name, stream).await.map_err(refused)?;
        self.check(address, stream.get_ref().1.peer_certificates())?;
        Ok(Conn::Tls(Box::new(stream.into())))
    }

    /// Refuses who answers at the address of another member.
    fn check(
        &self,
        address: &str,
        shown: Option<&[rustls::pki_types::CertificateDer<'_>]>,
    ) -> io::Result<()> {
        let shown = shown.and_then(<[_]>::first);
        let identity = shown.map(Identity::of).transpose().map_err(io::Error::other)?;
        let identity = identity.unwrap_or_default();
        if identity == Identity::default() && self.0.tls.as_ref().is_some_and(|tls| tls.named) {
            metrics::counter!("kiln_refused_peers_total", "why" => "nameless").increment(1);
            tracing::warn!(address, "whoever answers has a certificate that names nobody: refused");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, NAMELESS));
        }
        let Some(cluster) = self.0.cluster.get().and_then(Weak::upgrade) else { return Ok(()) };
        let nodes = cluster.index().nodes();
        let members = nodes.iter().filter(|(_, known)| known.facts.members() == address);
        let mut members = members.filter(|(_, known)| !known.left).peekable();
        // One address may have been given to another node, and both be registered there.
        if members.peek().is_none()
            || members.any(|(id, known)| identity.is_of(*id, &known.key.to_bytes()))
        {
            return Ok(());
        }
        metrics::counter!("kiln_refused_peers_total", "why" => "wrong_node").increment(1);
        let named = identity.to_uri().unwrap_or_default();
        tracing::warn!(address, named, "another node than the one registered answers: refused");
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "the certificate at {address} names {named}, which is not the node registered there"
            ),
        ))
    }
}

impl Dial for Dialer {
    fn dial(&self, address: String) -> Dialing {
        let dialer = self.clone();
        Box::pin(async move {
            let conn = dialer.connect(&address, |configs| configs.grpc.clone()).await?;
            let conn: Box<dyn Io> = Box::new(conn);
            Ok(conn)
        })
    }
}

impl Tls {
    /// The settings for the files that are in force.
    fn configs(&self) -> Configs {
        let (now, made) = (self.trust.loaded(), self.config.load_full());
        if Arc::ptr_eq(&now, &made.0) {
            return made.1.clone();
        }
        match configure(&now) {
            Ok(configs) => {
                self.config.store(Arc::new((now, configs.clone())));
                configs
            }
            Err(why) => {
                tracing::error!(why, "new certificates cannot be used to connect");
                made.1.clone()
            }
        }
    }
}

fn configure(loaded: &Loaded) -> Result<Configs, String> {
    let one = |protocol: &[u8]| {
        let judge = OfMembers { roots: loaded.roots.clone(), provider: provider() };
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(own(&loaded.certified));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge))
            .with_client_cert_resolver(resolver);
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok::<_, String>(Arc::new(config))
    };
    Ok(Configs { grpc: one(GRPC)?, bytes: one(BYTES)? })
}

fn own(certified: &Arc<CertifiedKey>) -> SingleCertAndKey {
    SingleCertAndKey::from(certified.clone())
}

/// The host of `host:port`, as a certificate would name it.
fn server_name(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}
