//! Requests that are kept beside what was compiled of them, so that a later toolchain can
//! compile them again.
//!
//! Invariant: keeping one delays and fails no answer; and what is compiled again of a key
//! is what its artifact was compiled of: all that decides a key is the same, but for the
//! toolchain and what follows from it.

use std::sync::Arc;

use futures::future::BoxFuture;
use kiln_cluster::PutMode;
use kiln_proto::{
    ArtifactKey, Component, Fingerprint, KeyField, Manifest, Target, component, pb,
    value::{self, REQUEST_FAMILY},
};
use prost::Message;
use tokio::time::Instant;

use super::{FallbackPolicy, Manager, Request};
use crate::{cache::BlobWriter, compiler::Prepared, error::Error};

impl Manager {
    /// Keeps what the artifact of `prepared` was compiled of, in the background.
    pub(super) fn keep_request(self: &Arc<Self>, request: &Request, prepared: &Arc<Prepared>) {
        // Encoded there: it may have megabytes.
        let (manager, request, prepared) = (self.clone(), request.clone(), prepared.clone());
        let is_patched = prepared.stitch().is_some_and(|stitch| stitch.is_patched());
        if manager.settings.keep_requests == 0 || request.piece.is_some() || is_patched {
            return;
        }
        tokio::spawn(async move {
            if let Err(e) = manager.put_request(&request, &prepared).await {
                tracing::debug!(label = %prepared.label, error = %e, "its request is not kept");
            }
        });
    }

    async fn put_request(&self, request: &Request, prepared: &Prepared) -> Result<(), Error> {
        let wire = request.to_wire(&prepared.fingerprint.compiler);
        let bytes = wire.encoded_len() as u64;
        if bytes > self.settings.keep_requests {
            let most = self.settings.keep_requests;
            return Err(Error::NotStored(format!("it has {bytes} bytes, of {most} at most")));
        }
        let key = prepared.components.key();
        if self.index.lookup(&key).await?.is_none() {
            return Err(Error::NotFound(key));
        }
        let inside = self.gate.enter()?;
        let mut writer = BlobWriter::within(self.tiers.budget(), bytes).await?;
        writer.write(&wire.encode_to_vec())?;
        let pack = writer.finish()?;
        let components = value::request_components(&prepared.namespace, &key);
        let manifest = Manifest {
            key: components.key(),
            components,
            fingerprint: Fingerprint::new(REQUEST_FAMILY, [("", ""); 0]),
            target: Target::any(),
            label: format!("request of {}", prepared.label),
            ..value::manifest(&prepared.namespace, b"", pack.digest(), pack.size(), 0.0)
        };
        self.clear_unbelieved(&manifest.key, &prepared.namespace).await?;
        let turn = self.index.turn(&manifest.key, PutMode::Create)?;
        self.put(&inside, turn, manifest, &pack, PutMode::Create).await?;
        Ok(())
    }

    /// Whether the cluster has what the artifact of `key` was compiled of.
    pub async fn keeps_request(&self, key: &ArtifactKey, namespace: &str) -> Result<bool, Error> {
        let kept = value::request_components(namespace, key).key();
        Ok(self.index.lookup(&kept).await?.is_some())
    }

    /// The request that the artifact of `key` was compiled of, to be compiled by the
    /// toolchain that this node has now. Boxed: the compiler gives up on its type.
    pub fn kept_request<'a>(
        &'a self,
        key: &'a ArtifactKey,
        namespace: &'a str,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Request, Error>> {
        Box::pin(self.read_request(key, namespace, deadline))
    }

    async fn read_request(
        &self,
        key: &ArtifactKey,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Request, Error> {
        let entry = self.index.lookup(key).await?.ok_or(Error::NotFound(*key))?;
        let of = entry.manifest.read_unverified()?;
        if of.namespace != namespace {
            return Err(Error::NotFound(*key));
        }
        let kept = value::request_components(namespace, key).key();
        let answer = self.view(&kept, namespace).await.map_err(|e| match e {
            Error::NotFound(_) => Error::Invalid(format!(
                "the cluster did not keep what {key} was compiled of (compile.keep_requests): \
                 kiln warm FILE compiles it anew"
            )),
            other => other,
        })?;
        let wire = pb::CompileRequest::decode(&*answer.pack)
            .map_err(|e| Error::Invalid(format!("the kept request of {key}: {e}")))?;
        let mut read = Request::read(wire, deadline)?;
        if read.len() != 1 {
            return Err(Error::Invalid(format!("the kept request of {key} is not one")));
        }
        // What answers instead would be of no use later.
        let fallback = FallbackPolicy::None;
        let request = Request { forwarded: false, fallback, ..read.remove(0) };
        let again = self.prepare(&request).await?;
        match same_but_for_toolchain(&of, &again) {
            true => Ok(request),
            // Whoever may write a value may write this one.
            false => Err(Error::Invalid(format!("the kept request of {key} is another one's"))),
        }
    }
}

/// Whether two keys are of the same program, options, target and tenant.
fn same_but_for_toolchain(of: &Manifest, again: &Prepared) -> bool {
    // Generated text follows from the program and this version of Kiln.
    let given = |part: &Component| -> Vec<KeyField> {
        part.fields.iter().filter(|field| !field.derived).cloned().collect()
    };
    let all = |parts: &mut dyn Iterator<Item = &Component>| -> Vec<(String, Vec<KeyField>)> {
        let parts = parts.filter(|part| part.name != component::FINGERPRINT);
        parts.map(|part| (part.name.clone(), given(part))).filter(|(_, f)| !f.is_empty()).collect()
    };
    of.fingerprint.compiler == again.fingerprint.compiler
        && all(&mut of.components.iter()) == all(&mut again.components.iter())
}
