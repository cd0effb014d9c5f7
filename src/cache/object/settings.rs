//! From a URL and settings to a store.
//!
//! Invariant: every request has a time-out and a bounded number of tries.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use bytesize::ByteSize;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder,
    local::LocalFileSystem, path::Path,
};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::cache::{TierError, TierName};

/// The file that shows that a folder is the one it should be.
/// The file by which a folder is known as a store: while it is missing, the folder may be one
/// on which the store's device is not mounted.
pub const MARKER: &str = ".kiln-store";

/// How to reach the store, besides its URL.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectSettings {
    /// `s3://bucket/prefix` or `file:///folder`; none: the node does without L3.
    pub url: Option<String>,
    /// Where S3 is, if not at AWS: `http://host:port`.
    pub endpoint: Option<String>,
    /// AWS region.
    pub region: String,
    /// Unset: the environment's, the container's or the instance's credentials.
    pub access_key_id: Option<String>,
    /// Goes with `access_key_id`.
    pub secret_access_key: Option<String>,
    /// Time to connect.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Time without a byte after which a request is given up.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// Tries of one request after the first.
    pub retries: usize,
    /// Time after which no further try is begun.
    #[serde(with = "humantime_serde")]
    pub retry_timeout: Duration,
    /// Larger packs are uploaded in parts of this size, at least 5 MiB.
    pub part_size: ByteSize,
    /// Parts of one pack that are sent at a time.
    pub parts_at_once: usize,
}

impl Default for ObjectSettings {
    fn default() -> Self {
        Self {
            url: None,
            endpoint: None,
            region: "us-east-1".into(),
            access_key_id: None,
            secret_access_key: None,
            connect_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(20),
            retries: 3,
            retry_timeout: Duration::from_secs(10),
            part_size: ByteSize::mib(16),
            parts_at_once: 4,
        }
    }
}

/// Without the secret: settings end up in logs.
impl std::fmt::Debug for ObjectSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectSettings")
            .field("url", &self.url)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &self.secret_access_key.as_ref().map(|_| "..."))
            .finish_non_exhaustive()
    }
}

/// A store, the prefix within it, and a folder's marker.
pub(super) type Connected = (Arc<dyn ObjectStore>, Path, Option<PathBuf>);

pub(super) fn connect(url: &str, settings: &ObjectSettings) -> Result<Connected, TierError> {
    let parsed = Url::parse(url).map_err(|e| refused(format!("{url:?}: {e}")))?;
    match parsed.scheme() {
        "file" => folder(&parsed),
        "s3" => bucket(&parsed, settings),
        other => {
            Err(refused(format!("{other:?} is no store; use s3://BUCKET/PREFIX or file:///FOLDER")))
        }
    }
}

fn folder(url: &Url) -> Result<Connected, TierError> {
    let root = url.to_file_path().map_err(|()| refused(format!("{url}: not an absolute path")))?;
    let failed = |e: std::io::Error| refused(format!("{}: {e}", root.display()));
    fs::create_dir_all(&root).map_err(failed)?;
    let marker = root.join(MARKER);
    fs::File::options().append(true).create(true).open(&marker).map_err(failed)?;
    let store = LocalFileSystem::new_with_prefix(&root).map_err(|e| refused(e.to_string()))?;
    Ok((Arc::new(store.with_fsync(true)), Path::default(), Some(marker)))
}

fn bucket(url: &Url, settings: &ObjectSettings) -> Result<Connected, TierError> {
    // The first provider stays; reqwest panics where there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bucket = url.host_str().ok_or_else(|| refused(format!("{url}: names no bucket")))?;
    let prefix = Path::from_url_path(url.path()).map_err(|e| refused(format!("{url}: {e}")))?;
    if settings.part_size < ByteSize::mib(5) {
        return Err(refused("part_size: S3 takes parts of 5 MiB and more".into()));
    }
    let client = ClientOptions::new()
        .with_connect_timeout(settings.connect_timeout)
        // A large pack takes long; standing still is what ends a request.
        .with_timeout_disabled()
        .with_read_timeout(settings.read_timeout);
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: settings.retries,
        retry_timeout: settings.retry_timeout,
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(&settings.region)
        .with_client_options(client)
        .with_retry(retry)
        // One object goes at a time anyway, and not every store (Google's) has the call for many.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    match (&settings.access_key_id, &settings.secret_access_key) {
        (Some(id), Some(secret)) => {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        (None, None) => {}
        _ => return Err(refused("access_key_id and secret_access_key go together".into())),
    }
    let store = builder.build().map_err(|e| refused(e.to_string()))?;
    Ok((Arc::new(store), prefix, None))
}

fn refused(why: String) -> TierError {
    TierError::Settings { tier: TierName::Object, why }
}
