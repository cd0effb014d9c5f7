//! Certificates that are exchanged while the node runs.
//!
//! Invariant: connections are made with the last files that could be used. New ones that
//! cannot be are said so, loudly and once, and are tried again when they change.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::files::{Files, Loaded, TlsError, seconds_until};

/// Between two looks at the files. Certificates live for hours at the least.
const EVERY: Duration = Duration::from_secs(1);

/// One audience's files, as they were last usable.
#[derive(Debug)]
pub(crate) struct Trust {
    /// For whom, in metrics and logs.
    audience: &'static str,
    files: Files,
    loaded: ArcSwap<Loaded>,
}

impl Trust {
    /// Reads the files; fails where they cannot be used.
    pub(crate) fn open(audience: &'static str, files: Files) -> Result<Arc<Self>, TlsError> {
        let loaded = ArcSwap::from_pointee(files.load()?);
        Ok(Arc::new(Self { audience, files, loaded }))
    }

    pub(crate) const fn audience(&self) -> &'static str {
        self.audience
    }

    /// Why the certificate cannot be used for what it is meant.
    pub(crate) fn unusable(&self, why: String) -> TlsError {
        TlsError::Content { path: self.files.ca.as_ref().unwrap_or(&self.files.cert).clone(), why }
    }

    /// What is in force.
    pub(crate) fn loaded(&self) -> Arc<Loaded> {
        self.loaded.load_full()
    }

    /// Follows the files until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut refused = None;
        loop {
            self.tell_expiry();
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
            let (trust, last) = (self.clone(), refused.take());
            let looked = tokio::task::spawn_blocking(move || trust.look(last));
            refused = looked.await.unwrap_or_default();
        }
    }

    /// Takes new files; what of them could not be used, so that it is not told again.
    fn look(&self, refused: Option<Refused>) -> Option<Refused> {
        let now = self.files.read();
        if now.as_ref().is_ok_and(|bytes| *bytes == self.loaded.load().bytes) {
            self.tell_failed(false);
            return None;
        }
        let now = now.map_err(|e| e.to_string());
        if refused.as_ref().is_some_and(|refused| *refused == now) {
            return refused;
        }
        match self.files.load() {
            Ok(loaded) => {
                tracing::info!(
                    audience = self.audience,
                    ends_in_s = seconds_until(loaded.ends),
                    "new certificates are in force"
                );
                self.loaded.store(Arc::new(loaded));
                self.count("taken");
                self.tell_failed(false);
                None
            }
            Err(error) => {
                tracing::error!(
                    audience = self.audience,
                    %error,
                    ends_in_s = seconds_until(self.loaded.load().ends),
                    "new certificates cannot be used: the old ones stay in force"
                );
                self.count("refused");
                self.tell_failed(true);
                Some(now)
            }
        }
    }

    fn count(&self, result: &'static str) {
        let audience = self.audience;
        metrics::counter!("kiln_tls_reloads_total", "audience" => audience, "result" => result)
            .increment(1);
    }

    fn tell_failed(&self, failed: bool) {
        let gauge = metrics::gauge!("kiln_tls_reload_failed", "audience" => self.audience);
        gauge.set(if failed { 1.0 } else { 0.0 });
    }

    fn tell_expiry(&self) {
        let left = seconds_until(self.loaded.load().ends);
        metrics::gauge!("kiln_tls_certificate_expiry_seconds", "audience" => self.audience)
            .set(left as f64);
    }
}

/// What was seen when files were refused: their bytes, or why they could not be read.
type Refused = Result<Vec<Vec<u8>>, String>;
