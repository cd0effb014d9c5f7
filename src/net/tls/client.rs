//! A client's side of TLS: the command line's.
//!
//! Invariant: the node's certificate is of the authority that was named, and names the
//! host that was dialled.

use std::{io, path::Path, sync::Arc};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{
    GRPC,
    files::{Files, TlsError, authorities, provider},
};
use crate::net::stream::Conn;

/// Connects to clients' ports in TLS.
#[derive(Debug, Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// For gRPC, trusting the authorities in `ca` alone, and showing the certificate `own`,
    /// its file and its key's.
    pub fn new(ca: &Path, own: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let unusable = |e: rustls::Error| TlsError::Content { path: ca.into(), why: e.to_string() };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(authorities(ca)?);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let files = Files { cert: cert.into(), key: key.into(), ca: None };
                let certified = files.load()?.certified;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                    certified,
                )))
            }
        };
        config.alpn_protocols = vec![GRPC.to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// A connection to `host`, a name or an address without brackets, and `port`.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<Conn> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let stream = TlsConnector::from(self.0.clone()).connect(name, stream).await?;
        Ok(Conn::Tls(Box::new(stream.into())))
    }
}
