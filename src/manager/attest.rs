//! What this node attests of an artifact.
//!
//! Invariant: only what was verified here is signed.

use futures::future::BoxFuture;
use kiln_proto::{ArtifactKey, Failure, FailureKind};

use super::Manager;
use crate::{
    attest::{Envelope, statement},
    error::Error,
};

impl Manager {
    /// An attestation of the artifact of `key`, as JSON, under this node's signature. Its
    /// bytes are read and hashed: a blocking thread does that. Boxed: the compiler gives up on
    /// its type.
    pub fn attest<'a>(
        &'a self,
        key: &'a ArtifactKey,
        namespace: &'a str,
    ) -> BoxFuture<'a, Result<String, Error>> {
        Box::pin(self.sign_statement(key, namespace))
    }

    async fn sign_statement(&self, key: &ArtifactKey, namespace: &str) -> Result<String, Error> {
        let answer = self.view(key, namespace).await?;
        let crashed = |why: String| Error::from(Failure::new(FailureKind::Crashed, why));
        let entry = self.index.node(answer.manifest.producer);
        let signer = entry.and_then(|node| node.verify(&answer.signed, key).ok());
        let (_, by) = signer.ok_or_else(|| crashed("its signer is not known any more".into()))?;
        let identity = self.signing().await?;
        let (me, mine) = (self.index.node(self.identity.node), identity.verifying_key());
        // A statement has no time but its signer's: nobody believes such a key's new one.
        if me.is_some_and(|me| me.keys.iter().any(|of| of.key == mine && !of.revoked.is_empty())) {
            return Err(Error::Invalid(
                "the key with which this node signs was revoked for some time, so nobody believes \
                 an attestation under it: give the node another key first (kiln signer rotate), or \
                 ask another node"
                    .into(),
            ));
        }
        let signing = move || {
            let said = statement(&answer.signed, &answer.manifest, &answer.pack, &by);
            let said = said.map_err(|e| e.to_string())?.to_string();
            let envelope = Envelope::sign(&identity, said.as_bytes());
            serde_json::to_string(&envelope).map_err(|e| e.to_string())
        };
        let signed = tokio::task::spawn_blocking(signing).await;
        signed.map_err(|e| crashed(e.to_string()))?.map_err(crashed)
    }
}
