//! A certificate, its key and an authority, as they lie in files.
//!
//! Invariant: what [`Files::load`] returns fits together: the key is the certificate's,
//! and the certificate is in force by this machine's clock or is said not to be.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

/// Largest file of certificates that is read, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// Why TLS cannot be set up with the files that there are.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It is not there, or not readable: put it there, for the user that runs the node.
    #[error("cannot read {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be: PEM, as `kiln certs issue` writes it.
    #[error("{path:?}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Where one audience's certificate, key and authority are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// This end's certificate, and those between it and its authority, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The authorities that the other end's certificate must come from, in PEM.
    pub ca: Option<PathBuf>,
}

/// What the files hold.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    /// When the certificate ends, in seconds since 1970.
    pub(crate) ends: i64,
    /// The bytes as they were read: what is compared to see that a file changed.
    pub(crate) bytes: Vec<Vec<u8>>,
}

/// The one provider of cryptography: ring.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Files {
    /// Reads them all; the error names the file that cannot be used.
    pub(crate) fn load(&self) -> Result<Loaded, TlsError> {
        let bytes = self.read()?;
        let content = |path: &Path, why: String| TlsError::Content { path: path.into(), why };
        let certs = certificates(&self.cert, &bytes[0])?;
        let key = PrivateKeyDer::from_pem_slice(&bytes[1])
            .map_err(|e| content(&self.key, format!("no private key in PEM: {e}")))?;
        let ends = ends(&certs[0]).map_err(|why| content(&self.cert, why))?;
        let certified = CertifiedKey::from_der(certs, key, &provider()).map_err(|e| {
            content(&self.key, format!("it is not the key of {}: {e}", self.cert.display()))
        })?;
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            for authority in certificates(ca, &bytes[2])? {
                let added = roots.add(authority);
                added.map_err(|e| content(ca, format!("no certificate authority: {e}")))?;
            }
        }
        Ok(Loaded { certified: Arc::new(certified), roots: Arc::new(roots), ends, bytes })
    }

    /// Their bytes, in the order certificate, key, authority.
    pub(crate) fn read(&self) -> Result<Vec<Vec<u8>>, TlsError> {
        [Some(&self.cert), Some(&self.key), self.ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| read(path).map_err(|source| TlsError::Read { path: path.clone(), source }))
            .collect()
    }
}

/// The authorities in `path`, for a client that has no certificate of its own.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let bytes = read(path).map_err(|source| TlsError::Read { path: path.into(), source })?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, &bytes)? {
        roots.add(authority).map_err(|e| TlsError::Content {
            path: path.into(),
            why: format!("no certificate authority: {e}"),
        })?;
    }
    Ok(roots)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let size = std::fs::metadata(path)?.len();
    if size > MOST_BYTES {
        return Err(io::Error::other(format!("{size} bytes are too many for a certificate")));
    }
    std::fs::read(path)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why: String| TlsError::Content { path: path.into(), why };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| content(format!("not PEM: {e}")))?;
    match found.is_empty() {
        true => Err(content("no certificate in PEM".into())),
        false => Ok(found),
    }
}

/// When a certificate ends, in seconds since 1970.
fn ends(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|e| format!("not a certificate: {e}"))?;
    Ok(parsed.validity().not_after.timestamp())
}

/// Seconds from now until `at`, seconds since 1970; negative: it is over.
pub(crate) fn seconds_until(at: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    at.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX))
}
