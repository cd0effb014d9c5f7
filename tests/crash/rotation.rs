//! A node that is killed while it changes its signing key.
//!
//! Invariant: whatever the step, the restarted node has the private half of a key that the cluster
//! believes and signs with it, what it signed before is given out, and the change, asked for
//! again, ends.

use ed25519_dalek::SigningKey;
use kiln_proto::pb;

use crate::{
    harness::{NAMESPACE, TestNode, bytes_of, eventually},
    load,
};

/// One change of a key of one node.
pub(crate) struct Rotation {
    /// What the values that it publishes are called.
    name: String,
}

impl Rotation {
    /// Publishes through `node`, which has just joined.
    pub(crate) async fn begin(node: &TestNode, any: &TestNode) -> Self {
        let this = Self { name: format!("signed by node {}", node.id) };
        this.publish(node, 1).await;
        this.is_given_out(any, node.id, 1).await.expect("a node that has just joined signs");
        this
    }

    /// Asks for the change; the node may end before it answers.
    pub(crate) async fn ask(node: &TestNode) {
        drop(node.client().await.rotate_signer(pb::RotateSignerRequest::default()).await);
    }

    /// Waits until the replica of `node` knows of a change that the node has not noted.
    pub(crate) async fn is_heard_of(node: &TestNode) {
        let next = half(node, "signing.next").expect("it was killed before it noted that");
        let heard = async || (present_key(node, node).await == next).then_some(());
        eventually("its own change", heard).await;
    }

    /// What does not hold once the node runs again.
    pub(crate) async fn check(self, node: &TestNode, any: &TestNode) -> Vec<String> {
        let mut wrong = Vec::new();
        let known = present_key(node, any).await;
        let kept: Vec<_> =
            ["signing.key", "signing.next"].iter().filter_map(|n| half(node, n)).collect();
        if !kept.contains(&known) {
            wrong.push("the private half of its present key is lost".into());
        }
        self.publish(node, 2).await;
        wrong.extend(self.given_out(any, node.id, 2).await);

        let rotate = async || {
            let asked = node.client().await.rotate_signer(pb::RotateSignerRequest::default()).await;
            asked.ok().map(|answer| answer.into_inner().key)
        };
        let key = eventually("the change, asked for again", rotate).await;
        if present_key(node, any).await != key || half(node, "signing.key").as_ref() != Some(&key) {
            wrong.push("the change, asked for again, is not what it says".into());
        }
        if node.data().join("signing.next").exists() {
            wrong.push("signing.next is left over".into());
        }
        self.publish(node, 3).await;
        wrong.extend(self.given_out(any, node.id, 3).await);
        // They take room that the other values need.
        for version in 1..=3 {
            let key = bytes_of(&load::key(&self.value(version)));
            let remove = async || {
                let request = pb::TombstoneRequest { key: key.clone(), reason: "a test".into() };
                any.client().await.tombstone(request).await.ok()
            };
            eventually("the removal of what it signed", remove).await;
        }
        wrong
    }

    fn value(&self, version: u64) -> String {
        format!("{} {version}", self.name)
    }

    async fn publish(&self, node: &TestNode, version: u64) {
        let put = async || {
            let mut client = load::client(node.config.grpc_listen);
            load::put(&mut client, &self.value(version), version).await.ok()
        };
        eventually("a publication", put).await;
    }

    /// Which of the values up to `version` are not given out at `any` as signed by `node`.
    async fn given_out(&self, any: &TestNode, node: u64, version: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        for version in 1..=version {
            if let Err(why) = self.is_given_out(any, node, version).await {
                wrong.push(format!("{}: {why}", self.value(version)));
            }
        }
        wrong
    }

    async fn is_given_out(&self, any: &TestNode, node: u64, version: u64) -> Result<(), String> {
        let (name, key) = (self.value(version), load::key(&self.value(version)));
        let request = pb::LookupRequest {
            key: bytes_of(&key),
            linearizable: true,
            namespace: NAMESPACE.into(),
        };
        let found =
            eventually("an answer", async || any.client().await.lookup(request.clone()).await.ok());
        let entry = found.await.into_inner().entry.ok_or("not in the index")?;
        let signer = entry.manifest.map(|manifest| manifest.signer);
        if signer != Some(node) {
            return Err(format!("signed by {signer:?}"));
        }
        match any.fetch(&key).await {
            Ok((_, bytes)) if bytes == load::bytes(&name, version) => Ok(()),
            Ok(_) => Err("other bytes".into()),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// The public half of the key in that file, if it is there and whole.
fn half(node: &TestNode, file: &str) -> Option<prost::bytes::Bytes> {
    let secret = std::fs::read(node.data().join(file)).ok()?;
    let key = SigningKey::from_bytes(&secret.try_into().ok()?).verifying_key();
    Some(prost::bytes::Bytes::copy_from_slice(key.as_bytes()))
}

/// The key with which the cluster says that `node` signs now.
async fn present_key(node: &TestNode, any: &TestNode) -> prost::bytes::Bytes {
    eventually("its keys", async || {
        // Brings that replica up to what is committed.
        let request = pb::LookupRequest {
            key: bytes_of(&load::key("any")),
            linearizable: true,
            namespace: NAMESPACE.into(),
        };
        any.client().await.lookup(request).await.ok()?;
        let listed = any.client().await.signers(pb::SignersRequest::default()).await.ok()?;
        let rows = listed.into_inner().signers;
        rows.into_iter().rev().find(|row| row.node == node.id).map(|row| row.key)
    })
    .await
}
