//! The handshake of an accepted connection.
//!
//! Invariant: a connection ends within [`PATIENCE`] unless its first byte, and in TLS its
//! whole handshake, has come; what is refused is counted with the reason.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use kiln_cluster::Caller;
use rustls::{
    ServerConfig,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    Mode, Verify,
    files::{Loaded, TlsError, provider},
    identity::{self, Identity},
    reload::Trust,
};
use crate::net::stream::Conn;

/// What a client has for its first byte, and again for its handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is said of a certificate that would be any member's.
pub(super) const NAMELESS: &str = "the certificate names no node (tls.members.named): give each node \
                                   one of its own (kiln certs issue member --data-dir)";
/// Why a connection is refused that said too little, too late.
pub(crate) const SILENT: &str = "silent";
/// The first byte of a TLS handshake. No other protocol of Kiln's begins with it: gRPC
/// begins with `P`, a frame with the high byte of a small length.
const HANDSHAKE: u8 = 0x16;

/// Whose certificates a port is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Clients,
    /// Nodes: `named` takes none that names neither a node nor a key.
    Members {
        named: bool,
    },
}

/// Is told why a connection is not taken, and where it came from.
#[derive(Clone)]
pub(crate) struct Witness(pub(crate) Arc<dyn Fn(&'static str, Option<SocketAddr>) + Send + Sync>);

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

/// Takes connections in plain text, in TLS, or both.
#[derive(Debug, Clone)]
pub(crate) struct Acceptor {
    port: &'static str,
    tls: Option<Arc<Tls>>,
    witness: Option<Witness>,
}

#[derive(Debug)]
struct Tls {
    mode: Mode,
    verify: Verify,
    whose: Whose,
    protocols: Vec<Vec<u8>>,
    trust: Arc<Trust>,
    /// Made of what `trust` had loaded then.
    config: ArcSwap<(Arc<Loaded>, Arc<ServerConfig>)>,
}

impl Acceptor {
    /// Plain text for `port`, as metrics call it.
    pub(crate) const fn plain(port: &'static str) -> Self {
        Self { port, tls: None, witness: None }
    }

    /// In `mode` with the files of `trust`, offering `protocols`, to those who have
    /// certificates of `whose`.
    pub(crate) fn new(
        port: &'static str,
        mode: Mode,
        verify: Verify,
        whose: Whose,
        protocols: &[&[u8]],
        trust: Arc<Trust>,
    ) -> Result<Self, TlsError> {
        if mode == Mode::Off {
            return Ok(Self::plain(port));
        }
        let protocols: Vec<_> = protocols.iter().map(|name| name.to_vec()).collect();
        let loaded = trust.loaded();
        let config = configure(&loaded, verify, &protocols).map_err(|why| trust.unusable(why))?;
        let config = ArcSwap::from_pointee((loaded, config));
        let tls = Tls { mode, verify, whose, protocols, trust, config };
        Ok(Self { port, tls: Some(Arc::new(tls)), witness: None })
    }

    /// The same, and `witness` is told of those that it does not take.
    pub(crate) fn telling(self, witness: Witness) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// The connection after its handshake, and who it is from. An error was counted.
    pub(crate) async fn secure(&self, stream: TcpStream) -> io::Result<(Conn, Caller)> {
        let from = stream.peer_addr().ok();
        let Some(tls) = &self.tls else {
            return Ok((Conn::Plain(stream), Caller { from, ..Caller::default() }));
        };
        let secured = match first_byte(&stream).await {
            Ok(Some(HANDSHAKE)) => tls.handshake(stream).await,
            // Gone before it said anything: a probe of the port.
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Some(_)) if tls.mode == Mode::Require => Err(Refused {
                why: "plain_text",
                error: io::Error::other("plain text on a port that takes TLS alone"),
            }),
            Ok(Some(_)) => {
                metrics::counter!("kiln_plain_connections_total", "port" => self.port).increment(1);
                Ok((Conn::Plain(stream), Named::default()))
            }
            Err(error) => Err(Refused { why: SILENT, error }),
        };
        match secured {
            Ok((conn, Named { member: Identity { node, key }, client: names })) => {
                Ok((conn, Caller { from, node, key, names, uid: None }))
            }
            Err(Refused { why, error }) => {
                metrics::counter!("kiln_tls_refused_total", "port" => self.port, "why" => why)
                    .increment(1);
                tracing::warn!(port = self.port, ?from, why, %error, "a connection is refused");
                if let Some(Witness(witness)) = &self.witness {
                    witness(why, from);
                }
                Err(error)
            }
        }
    }
}

/// Whom the certificate of a connection names.
#[derive(Default)]
struct Named {
    member: Identity,
    client: Option<Arc<[String]>>,
}

/// Why a connection is not taken.
struct Refused {
    why: &'static str,
    error: io::Error,
}

impl Tls {
    async fn handshake(&self, stream: TcpStream) -> Result<(Conn, Named), Refused> {
        let acceptor = TlsAcceptor::from(self.config());
        let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Refused { why: reason(&error), error }),
            Err(silent) => return Err(Refused { why: SILENT, error: silent.into() }),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let bad_name = |why| Refused { why: "bad_name", error: io::Error::other(why) };
        let named = match (shown, self.whose) {
            (None, _) => Named::default(),
            (Some(shown), Whose::Members { named }) => {
                let member = Identity::of(shown).map_err(bad_name)?;
                if named && member == Identity::default() {
                    let error = io::Error::other(NAMELESS);
                    return Err(Refused { why: "nameless", error });
                }
                Named { member, client: None }
            }
            (Some(shown), Whose::Clients) => {
                let client = Some(identity::names(shown).map_err(bad_name)?.into());
                Named { client, ..Named::default() }
            }
        };
        Ok((Conn::Tls(Box::new(stream.into())), named))
    }

    /// The settings for the files that are in force.
    fn config(&self) -> Arc<ServerConfig> {
        let (now, made) = (self.trust.loaded(), self.config.load_full());
        if Arc::ptr_eq(&now, &made.0) {
            return made.1.clone();
        }
        match configure(&now, self.verify, &self.protocols) {
            Ok(config) => {
                self.config.store(Arc::new((now, config.clone())));
                config
            }
            Err(why) => {
                let audience = self.trust.audience();
                tracing::error!(audience, why, "new certificates cannot be used here");
                made.1.clone()
            }
        }
    }
}

fn configure(
    loaded: &Loaded,
    verify: Verify,
    protocols: &[Vec<u8>],
) -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let judge = || {
        let judge = WebPkiClientVerifier::builder_with_provider(loaded.roots.clone(), provider());
        let judge = if verify == Verify::Optional { judge.allow_unauthenticated() } else { judge };
        judge.build().map_err(|e| e.to_string())
    };
    let builder = match verify {
        Verify::Off => builder.with_no_client_auth(),
        Verify::Optional | Verify::Required => {
            let judge: Arc<dyn ClientCertVerifier> = judge()?;
            builder.with_client_cert_verifier(judge)
        }
    };
    let resolver = SingleCertAndKey::from(loaded.certified.clone());
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = protocols.to_vec();
    Ok(Arc::new(config))
}

async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let came = timeout(PATIENCE, stream.peek(&mut byte)).await??;
    Ok((came > 0).then_some(byte[0]))
}

/// The reason in metrics.
fn reason(error: &io::Error) -> &'static str {
    use rustls::{AlertDescription as Alert, CertificateError as Cert, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::NoCertificatesPresented) => "no_certificate",
        Some(Error::InvalidCertificate(why)) => match why {
            Cert::Expired | Cert::ExpiredContext { .. } => "expired",
            Cert::NotValidYet | Cert::NotValidYetContext { .. } => "not_valid_yet",
            // Authorities that `kiln certs` makes have one name: another key is found by that.
            Cert::UnknownIssuer | Cert::BadSignature => "unknown_issuer",
            _ => "bad_certificate",
        },
        Some(Error::AlertReceived(Alert::UnknownCA)) => "not_trusted",
        Some(Error::NoApplicationProtocol) => "protocol",
        _ => "handshake",
    }
}
