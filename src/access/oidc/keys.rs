//! The public keys of an issuer: fetched, or read from a file.
//!
//! Invariant: what is fetched is bounded in bytes and in number, comes from the address in
//! the settings alone (no redirect is followed), and takes the place of what was known only
//! when it has a key. What is known is good for [`super::Settings::offline`] after it was
//! last fetched.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use reqwest::{Client, Url, redirect::Policy};
use serde::Deserialize;

/// Longest answer of an issuer, in bytes.
const MOST_BYTES: usize = 1 << 20;
/// Most keys of one issuer.
const MOST_KEYS: usize = 256;
/// What one fetch may take.
const CALL: Duration = Duration::from_secs(10);
/// Below an issuer's address.
const DISCOVERY: &str = ".well-known/openid-configuration";

/// Where keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file with a set of keys; read again now and then.
    File(PathBuf),
    /// An address of a set of keys.
    Keys(Url),
    /// The issuer's own word for where they are.
    Discovery(Url),
}

/// One public key, and what it signs with.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

pub(super) type Keys = HashMap<String, Key>;

/// Fetches the keys of one issuer.
#[derive(Debug)]
pub(super) struct Fetcher {
    source: Source,
    issuer: String,
    bearer: Option<PathBuf>,
    client: Client,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl Fetcher {
    /// `ca`: PEM of the only authorities that are trusted; without, those of the system.
    pub(super) fn new(
        source: Source,
        issuer: String,
        ca: Option<&[u8]>,
        bearer: Option<PathBuf>,
    ) -> Result<Self, String> {
        // The first to install one wins, and it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(CALL).redirect(Policy::none());
        let client = match ca {
            None => client,
            Some(ca) => {
                let ca = reqwest::Certificate::from_pem_bundle(ca).map_err(|e| e.to_string())?;
                client.tls_certs_only(ca)
            }
        };
        let client = client.build().map_err(|e| e.to_string())?;
        Ok(Self { source, issuer, bearer, client })
    }

    /// The keys as they are now. An error: why there are none, for people.
    pub(super) async fn fetch(&self) -> Result<Keys, String> {
        let set = match &self.source {
            Source::File(path) => {
                let bytes = tokio::fs::read(path).await;
                bytes.map_err(|e| format!("read {}: {e}", path.display()))?
            }
            Source::Keys(url) => self.get(url.clone(), self.bearer.as_deref()).await?,
            Source::Discovery(issuer) => {
                let mut url = issuer.clone();
                url.set_path(&format!("{}/{DISCOVERY}", issuer.path().trim_end_matches('/')));
                let found: Discovered =
                    serde_json::from_slice(&self.get(url.clone(), self.bearer.as_deref()).await?)
                        .map_err(|e| format!("{url}: {e}"))?;
                if found.issuer != self.issuer {
                    return Err(format!("{url} speaks for another issuer"));
                }
                let keys = Url::parse(&found.jwks_uri).map_err(|e| format!("jwks_uri: {e}"))?;
                // Nobody on the way may say what the issuer's keys are.
                if keys.scheme() != issuer.scheme() && keys.scheme() != "https" {
                    return Err(format!("{url} names keys at {keys}, which is not https"));
                }
                // Nor to whom this node shows its token.
                let own = keys.origin() == issuer.origin();
                let bearer = self.bearer.as_deref().filter(|_| own);
                self.get(keys, bearer).await.map_err(|why| match (&self.bearer, own) {
                    (Some(_), false) => format!(
                        "{why} (bearer_file is shown to the issuer's own host and port alone: \
                         name that address as jwks to show it there)"
                    ),
                    _ => why,
                })?
            }
        };
        let keys = read(&set)?;
        match keys.is_empty() {
            true => Err("it has no key for RS256, ES256 or EdDSA with an id (kid)".into()),
            false => Ok(keys),
        }
    }

    async fn get(&self, url: Url, bearer: Option<&Path>) -> Result<Vec<u8>, String> {
        let mut request = self.client.get(url.clone());
        if let Some(file) = bearer {
            // Read each time: Kubernetes writes another one now and then.
            let token = tokio::fs::read_to_string(file).await;
            let token = token.map_err(|e| format!("read {}: {e}", file.display()))?;
            request = request.bearer_auth(token.trim());
        }
        let said = |e: reqwest::Error| format!("{url}: {}", chain(&e));
        let mut answer = request.send().await.map_err(said)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(format!("{url} answers {}", answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(said)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST_BYTES {
                return Err(format!("{url} has more than {MOST_BYTES} bytes"));
            }
        }
        Ok(bytes)
    }
}

/// An error of the client, with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The keys of a set that are of use here; others are none of ours.
fn read(set: &[u8]) -> Result<Keys, String> {
    let Set { keys } = serde_json::from_slice(set).map_err(|e| format!("no set of keys: {e}"))?;
    if keys.len() > MOST_KEYS {
        return Err(format!("it has more than {MOST_KEYS} keys"));
    }
    let mut found = Keys::new();
    for (id, key) in keys.into_iter().filter_map(|key| one(&serde_json::from_value(key).ok()?)) {
        if found.insert(id.clone(), key).is_some() {
            return Err("two of its keys have one id".into());
        }
    }
    Ok(found)
}

fn one(jwk: &Jwk) -> Option<(String, Key)> {
    let common = &jwk.common;
    if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    if common.key_algorithm.is_some_and(|other| other != named) {
        return None;
    }
    let id = common.key_id.clone().filter(|id| !id.is_empty())?;
    Some((id, Key { algorithm, key: DecodingKey::from_jwk(jwk).ok()? }))
}

/// A source that is known to be one.
pub(crate) fn source(jwks: Option<&str>, issuer: &str) -> Result<Source, String> {
    let url = |text: &str| {
        let url = Url::parse(text).map_err(|e| format!("{text:?}: {e}"))?;
        let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        match url.scheme() {
            "https" => Ok(url),
            "http" if local => Ok(url),
            _ => Err(format!("{text:?} is no https:// address")),
        }
    };
    match jwks {
        None => url(issuer).map(Source::Discovery),
        Some(path) if path.starts_with('/') => Ok(Source::File(path.into())),
        Some(address) => url(address).map(Source::Keys),
    }
}

/// Shared with the task that fetches.
pub(super) type Shared = Arc<Keys>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_for_anything_else_are_left_out() {
        let ed = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
        let text = format!(
            r#"{{"keys":[
                {{"kid":"a",{ed}}}, {{"kid":"b","use":"enc",{ed}}}, {{{ed}}},
                {{"kid":"c","alg":"HS256",{ed}}}, {{"kid":"d","kty":"oct","k":"AAAA"}},
                {{"kid":"e","kty":"new","alg":"new"}}, 7
            ]}}"#
        );
        let keys = read(text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(keys["a"].algorithm, Algorithm::EdDSA);
        let twice = format!(r#"{{"keys":[{{"kid":"a",{ed}}},{{"kid":"a",{ed}}}]}}"#);
        assert!(read(twice.as_bytes()).is_err());
        assert!(read(b"{}").is_err() && read(b"[]").is_err());
    }

    #[test]
    fn keys_come_by_a_way_that_nobody_else_can_write_on() {
        let issuer = "https://issuer.example.com";
        assert!(matches!(source(None, issuer), Ok(Source::Discovery(_))));
        assert!(matches!(source(Some("/etc/keys.json"), issuer), Ok(Source::File(_))));
        assert!(matches!(source(Some("https://a/b"), issuer), Ok(Source::Keys(_))));
        assert!(source(Some("http://127.0.0.1:1/b"), issuer).is_ok());
        for bad in ["http://a/b", "ftp://a", "keys.json", ""] {
            assert!(source(Some(bad), issuer).is_err(), "{bad}");
        }
        assert!(source(None, "kubernetes/serviceaccount").is_err());
    }
}
