//! What is told of artifacts that cannot be had: removed ones, and those of a backup.

use ::bytes::Bytes;
use kiln_proto::pb::{self, explain_request::Subject, kiln_client::KilnClient};
use tonic::transport::Channel;

use super::*;

async fn client(of: &Running) -> KilnClient<Channel> {
    KilnClient::connect(format!("http://{}", of.node.ready.grpc)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_removed_key_hears_why_and_when_and_from_where() {
    let node = Running::start(None, 1 << 30).await;
    let made = piece("wrong");
    node.publish(&made, &bytes("wrong")).await;
    let mut client = client(&node).await;
    let key = Bytes::copy_from_slice(made.key.as_bytes());
    let remove = pb::TombstoneRequest { key: key.clone(), reason: "wrong on 580.65".into() };
    assert!(client.tombstone(remove).await.unwrap().into_inner().existed);
    let explain = pb::ExplainRequest { subject: Some(Subject::Key(key.clone())) };
    let told = client.explain(explain.clone()).await.unwrap().into_inner();
    assert!(!told.stored && told.key == key);
    let id = node.node.ready.id;
    assert!(told.ended.starts_with("wrong on 580.65 (removed 20"), "{}", told.ended);
    assert!(
        told.ended.ends_with(&format!("by node {id}, asked from 127.0.0.1)")),
        "{}",
        told.ended
    );

    node.publish(&made, &bytes("wrong")).await;
    let told = client.explain(explain).await.unwrap().into_inner();
    assert!(told.stored && told.ended.is_empty(), "it has one again");
    let never = Bytes::copy_from_slice(piece("never").key.as_bytes());
    let explain = pb::ExplainRequest { subject: Some(Subject::Key(never)) };
    assert_eq!(client.explain(explain).await.unwrap_err().code(), tonic::Code::NotFound);
    node.stop().await;
}

/// The index alone was restored: the bytes are where the old cluster uploaded them.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_its_object_store_says_where_the_bytes_should_be() {
    let old = Running::start(None, 1 << 30).await;
    let made = piece("kept");
    old.publish(&made, &bytes("kept")).await;
    let mut of_old = client(&old).await;
    let page = of_old.list(pb::ListRequest::default()).await.unwrap().into_inner();
    let mut entries = page.entries;
    entries.iter_mut().for_each(|entry| entry.stored = true);
    let signers = of_old.status(pb::StatusRequest::default()).await.unwrap().into_inner().signers;
    old.stop().await;

    let new = Running::start(None, 1 << 30).await;
    let restore = pb::RestoreRequest { entries, signers };
    let restored = client(&new).await.restore(restore).await.unwrap().into_inner().restored;
    assert_eq!(restored, 1);
    let refused = new.load(&made.key).await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable(_)), "{refused:?}");
    assert!(refused.to_string().contains("object.url"), "{refused}");
    assert!(new.index().lookup(&made.key).await.unwrap().is_some(), "nothing is given up");
    new.stop().await;
}
