//! Attestations of artifacts: who signed them, of which files.

use std::path::Path;

use kiln_proto::pb;
use serde_json::Value;

use crate::{
    asked::kiln,
    harness::{TestCluster, eventually, saxpy},
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attestation_is_of_its_files_and_by_a_signer_who_is_believed() {
    let cluster = TestCluster::start(3).await;
    let [maker, other, third] = &cluster.nodes[..] else { unreachable!() };
    let made = maker.compile(saxpy("kernel")).await.unwrap();
    eventually("the entry", async || other.lookup(&made.key).await.unwrap()).await;
    let (file, files) = (cluster.folder.path().join("a.json"), cluster.folder.path().join("files"));
    let key = made.key.to_string();
    // Any node attests what any node made.
    let (code, told) = kiln(other, &["attest", &key, "--out", text(&file)]).await;
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = kiln(other, &["get", &key, "--output", text(&files)]).await;
    assert_eq!(code, Some(0), "{told}");
    let verify = ["attest", "--verify", text(&file), "--files", text(&files)];
    let (code, told) = kiln(third, &verify).await;
    assert_eq!((code, &told["files"]), (Some(0), &Value::from(1)), "{told}");
    let predicate = &told["statement"]["predicate"];
    let builder = predicate["runDetails"]["builder"]["id"].as_str().unwrap();
    assert!(builder.starts_with(&format!("kiln://node/{}/", maker.id)), "{builder}");
    let parameters = &predicate["buildDefinition"]["externalParameters"];
    assert_eq!(
        (&parameters["key"], &parameters["target"]),
        (&key.as_str().into(), &"sm_90".into())
    );

    // Of changed files, and by somebody who is not believed.
    let cubin = files.join("module.cubin");
    let mut bytes = std::fs::read(&cubin).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&cubin, bytes).unwrap();
    let (code, told) = kiln(third, &verify).await;
    assert_eq!(code, Some(12), "{told}");
    let stranger =
        hex::encode(ed25519_dalek::SigningKey::from_bytes(&[5; 32]).verifying_key().as_bytes());
    let by_another = ["attest", "--verify", text(&file), "--signer", &stranger];
    let (code, told) = kiln(third, &by_another).await;
    assert!(code == Some(12) && told.to_string().contains("no signature"), "{told}");
    let verify = ["attest", "--verify", text(&file)];
    assert_eq!(kiln(third, &verify).await.0, Some(0));
    let revoke = pb::RevokeSignerRequest {
        node: other.id,
        reason: "x".into(),
        keep: false,
        ..Default::default()
    };
    third.client().await.revoke_signer(revoke).await.unwrap();
    assert_eq!(kiln(third, &verify).await.0, Some(12), "its signer was revoked");

    let (code, _) = kiln(other, &["attest", &"0".repeat(64)]).await;
    assert_eq!(code, Some(20));
    let (code, told) = kiln(maker, &["attest", &made.key.to_string(), "--out", text(&file)]).await;
    assert_ne!(code, Some(0), "the file is there: {told}");
}
