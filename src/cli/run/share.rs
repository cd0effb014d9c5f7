//! What `kiln run` asks the cluster.
//!
//! Invariant: every call has a bound, and none of them can end the command:
//! errors are values for whoever tells the user.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use ed25519_dalek::VerifyingKey;
use futures::FutureExt;
use kiln_proto::{ArtifactKey, FailureKind, Manifest, SignedManifest, pb};
use pb::{lease_event::Event, publish_chunk::Chunk};
use tokio::time::timeout;
use tonic::Streaming;

use super::{later, spool::Pack};
use crate::cli::{
    CliError,
    belief::Belief,
    client::{Client, Endpoints},
    fetch::{self, Fetched},
};

/// For questions that move no bytes.
const SHORT: Duration = Duration::from_secs(10);
/// For packs: gigabytes over a slow link.
const LONG: Duration = Duration::from_secs(300);
/// For what the cluster is told and need not know.
const TELL: Duration = Duration::from_secs(2);
/// The node's answer at a lease's deadline takes this long at most.
const GRACE: Duration = Duration::from_secs(5);

/// The cluster, as one command sees it.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) endpoints: Endpoints,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) namespace: String,
    /// Whose signatures are good; all nodes' where it is empty.
    pub(crate) signers: Vec<VerifyingKey>,
}

/// The right to fill a key, for as long as it is neither dropped nor lost.
#[derive(Debug)]
pub(crate) struct Held {
    stream: Streaming<pb::LeaseEvent>,
}

impl Held {
    /// Whether the node that granted it took it back or went away. Does not wait.
    pub(crate) fn is_lost(&mut self) -> bool {
        // The stream is silent while it is held.
        self.stream.message().now_or_never().is_some()
    }
}

impl Share {
    /// The artifact that the asked node's index holds for `key`.
    pub(crate) async fn lookup(&self, key: &ArtifactKey) -> Result<Option<Manifest>, CliError> {
        self.look(key, false).await
    }

    /// The artifact of `key` after every publication so far: what another one is to be
    /// based on, so that nothing of them is lost.
    pub(crate) async fn latest(&self, key: &ArtifactKey) -> Result<Option<Manifest>, CliError> {
        self.look(key, true).await
    }

    async fn look(
        &self,
        key: &ArtifactKey,
        linearizable: bool,
    ) -> Result<Option<Manifest>, CliError> {
        let request =
            pb::LookupRequest { key: bytes(key), linearizable, namespace: self.namespace.clone() };
        let asked = self.endpoints.attempt(async |mut client| {
            let answer = client.lookup(request.clone()).await;
            answer.map_err(|e| CliError::from_status(&e))
        });
        let entry = bounded(SHORT, asked).await?.into_inner().entry;
        let Some(signed) = entry.and_then(|entry| entry.manifest) else { return Ok(None) };
        let belief = bounded(SHORT, self.endpoints.belief()).await?;
        self.read(key, &signed.into(), &belief).map(Some)
    }

    /// Waits for whoever holds the lease of `key`, under which nothing is published, and
    /// becomes the one who does.
    pub(crate) async fn acquire(
        &self,
        key: &ArtifactKey,
        wait: Duration,
        waiting: impl Fn(),
    ) -> Result<Box<Held>, CliError> {
        let deadline_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        let request = pb::LeaseRequest { key: bytes(key), deadline_ms };
        let asked = self.endpoints.attempt(async |mut client| {
            let answer = client.lease(request.clone()).await;
            let mut stream = answer.map_err(|e| CliError::from_status(&e))?.into_inner();
            loop {
                let event = stream.message().await.map_err(|e| CliError::from_status(&e))?;
                match event.and_then(|event| event.event) {
                    Some(Event::Waiting(_)) => waiting(),
                    Some(Event::Granted(_)) => return Ok(Box::new(Held { stream })),
                    Some(Event::Ready(_)) => {
                        let why = "something was published under the right to fill";
                        return Err(CliError::Refused(why.into()));
                    }
                    Some(Event::Failed(failure)) => {
                        return Err(CliError::failed(FailureKind::Crashed, failure.message));
                    }
                    None => return Err(CliError::Unreachable("the node ended its answer".into())),
                }
            }
        });
        bounded(wait + GRACE, asked).await
    }

    /// The bytes of `manifest`, from the node's socket where that works.
    pub(crate) async fn fetch(&self, manifest: &Manifest) -> Result<Fetched, CliError> {
        let key = &manifest.key;
        let namespace = &self.namespace;
        let belief = &bounded(SHORT, self.endpoints.belief()).await?;
        let mapped = async {
            let socket = self.socket.as_ref()?;
            fetch::fetch_local(
                socket,
                self.endpoints.token().ok()?,
                key,
                namespace,
                fetch::Purpose::Use,
                belief,
            )
            .await
            .ok()
        };
        let fetched = match timeout(LONG, mapped).await.ok().flatten() {
            Some(fetched) => fetched,
            None => {
                let streamed = self.endpoints.attempt(async |mut client| {
                    let purpose = fetch::Purpose::Use;
                    fetch::fetch(&mut client, key, &self.namespace, purpose, belief).await
                });
                bounded(LONG, streamed).await?
            }
        };
        if fetched.manifest.files != manifest.files {
            // Replaced since it was looked up: what was checked is not what came.
            return Err(CliError::Unreachable("the artifact was replaced meanwhile".into()));
        }
        later::check(&fetched.manifest, &fetched.pack)?;
        Ok(fetched)
    }

    /// Puts `pack` under the key of `manifest`, in place of what it had.
    pub(crate) async fn publish(&self, manifest: &Manifest, pack: Pack) -> Result<(), CliError> {
        let manifest = Some(manifest.into());
        let header = pb::PublishHeader { manifest, replace: true, ..Default::default() };
        let chunks = std::iter::once(Chunk::Header(header))
            .chain(pack.into_chunks().map(Chunk::Data))
            .map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
        let sent = async {
            let mut client: Client = self.endpoints.connect().await?;
            let answer = client.publish(futures::stream::iter(chunks)).await;
            answer.map_err(|e| CliError::from_status(&e))
        };
        bounded(LONG, sent).await.map(|_| ())
    }

    /// Says whether what was restored was of use, and if not, what moved. Nobody waits for
    /// this for long.
    pub(crate) async fn tell_use(&self, key: &ArtifactKey, unused: Option<&str>) {
        let mut told = pb::LoadedRequest::default();
        match unused {
            None => told.keys.push(bytes(key)),
            Some(moved) => told.unused.push(pb::Unused { key: bytes(key), moved: moved.into() }),
        }
        let asked = self.endpoints.attempt(async |mut client| {
            let answer = client.loaded(told.clone()).await;
            answer.map_err(|e| CliError::from_status(&e))
        });
        if let Err(error) = bounded(TELL, asked).await {
            tracing::debug!(error = error.for_people(), "tell of use");
        }
    }

    /// A manifest for `key` that may be trusted.
    fn read(
        &self,
        key: &ArtifactKey,
        signed: &SignedManifest,
        belief: &Belief,
    ) -> Result<Manifest, CliError> {
        let corrupt = |why: String| CliError::failed(FailureKind::Corrupt, why);
        let manifest = belief.read(signed, key, &self.namespace)?;
        let mut pinned = self.signers.iter();
        if !self.signers.is_empty() && !pinned.any(|signer| signed.verify(signer, key).is_ok()) {
            let nobody = kiln_proto::ManifestError::Signature { signer: signed.signer };
            return Err(corrupt(nobody.to_string()));
        }
        Ok(manifest)
    }
}

/// Keys separated by commas, in hexadecimal. Empty: none are pinned; what has no key otherwise is
/// a mistake.
pub(crate) fn signers(text: &str) -> Result<Vec<VerifyingKey>, String> {
    let names: BTreeSet<&str> = text.split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
    let read = |name: &str| {
        let bytes: [u8; 32] = hex::decode(name).ok()?.try_into().ok()?;
        VerifyingKey::from_bytes(&bytes).ok()
    };
    let refuse =
        |name: &str| format!("KILN_SIGNERS: {name:?} is no ed25519 public key in hexadecimal");
    if names.is_empty() && !text.is_empty() {
        return Err(format!("KILN_SIGNERS: {text:?} names no key: give one, or leave it unset"));
    }
    names.into_iter().map(|name| read(name).ok_or_else(|| refuse(name))).collect()
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        let why = format!("no answer within {}", humantime::format_duration(limit));
        Err(CliError::failed(FailureKind::Timeout, why))
    })
}

fn bytes(key: &ArtifactKey) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signers_are_public_keys() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key();
        let text = hex::encode(key.as_bytes());
        assert_eq!(signers(&format!(" {text},")).unwrap(), [key]);
        for bad in ["abc", ",", " , ", " "] {
            assert!(signers(bad).is_err(), "{bad:?}");
        }
        assert!(signers("").unwrap().is_empty());
    }
}
