#![allow(clippy::unwrap_used)]

use std::io::{Error, ErrorKind};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use kiln_proto::{
    ArtifactKey, Component, Components, Fingerprint, KeyField, NodeIdentity, PieceRef, Target,
    claimed_components,
};

use super::*;

fn node(id: u64) -> NodeIdentity {
    NodeIdentity::new(id, SigningKey::from_bytes(&[id as u8; 32]))
}

/// A statement that node 3 signed, and who that is.
fn attested() -> (Value, Envelope) {
    let files = vec![("k.cubin".to_owned(), Bytes::from("abc")), ("p/plan".into(), Bytes::new())];
    let (blob, entries) = artifact::pack(files).unwrap();
    let (fingerprint, target) = (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
    let graph = Component::new("graph", vec![KeyField::new("structure", "s")]);
    let claims = claimed_components(&fingerprint, &target, "team");
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let piece = PieceRef {
        key: ArtifactKey::from_bytes([7; 32]),
        pack: kiln_proto::Digest::of(b"piece"),
        pack_size: 5,
    };
    let manifest = Manifest {
        key: components.key(),
        namespace: "team".into(),
        components,
        fingerprint,
        target,
        files: entries,
        pack_digest: blob.digest(),
        pack_size: blob.size(),
        producer: 3,
        compile_seconds: 1.0,
        created_unix_ms: 1_700_000_000_123,
        label: "k".into(),
        pieces: vec![piece],
        check: None,
    };
    let signed = node(3).sign(manifest.clone()).unwrap();
    let said = statement(&signed, &manifest, &blob, &node(3).verifying_key()).unwrap();
    let envelope = Envelope::sign(&node(3), &serde_json::to_vec(&said).unwrap());
    (said, envelope)
}

fn files(name: &str) -> std::io::Result<Vec<u8>> {
    match name {
        "k.cubin" => Ok(b"abc".to_vec()),
        "p/plan" => Ok(Vec::new()),
        _ => Err(Error::from(ErrorKind::NotFound)),
    }
}

#[test]
fn it_says_what_the_artifact_is_and_of_which_bytes() {
    let (said, envelope) = attested();
    let keys = [node(9).verifying_key(), node(3).verifying_key()];
    let (read, by) = read(&envelope, &keys).unwrap();
    assert_eq!((&read, by), (&said, keys[1]));
    assert_eq!(read["_type"], "https://in-toto.io/Statement/v1");
    // Of "abc", as FIPS 180 has it.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(read["subject"][0]["name"], "k.cubin");
    assert_eq!(read["subject"][0]["digest"]["sha256"], abc);
    let predicate = &read["predicate"];
    let parameters = &predicate["buildDefinition"]["externalParameters"];
    assert_eq!(parameters["components"]["graph"]["structure"], "s");
    assert_eq!(
        (&parameters["namespace"], &parameters["target"]),
        (&"team".into(), &"sm_90".into())
    );
    let versions = &predicate["buildDefinition"]["internalParameters"]["versions"];
    assert_eq!(versions["nvrtc"], "13.0");
    let key = hex::encode(node(3).verifying_key().as_bytes());
    assert_eq!(predicate["runDetails"]["builder"]["id"], format!("kiln://node/3/{key}"));
    assert_eq!(predicate["runDetails"]["metadata"]["finishedOn"], "2023-11-14T22:13:20.123Z");
    let pieces = predicate["buildDefinition"]["resolvedDependencies"].as_array().unwrap();
    assert_eq!(pieces.len(), 1);
    assert_eq!(check_files(&read, files).unwrap(), 2);
}

#[test]
fn what_nobody_signed_who_is_believed_is_not_read() {
    let (_, envelope) = attested();
    let keys = [node(3).verifying_key()];
    assert!(matches!(read(&envelope, &[]), Err(AttestError::Signature)));
    assert!(matches!(read(&envelope, &[node(4).verifying_key()]), Err(AttestError::Signature)));
    let payload = STANDARD.decode(&envelope.payload).unwrap();
    for at in 0..payload.len() {
        let mut altered = payload.clone();
        altered[at] ^= 1;
        let altered = Envelope { payload: STANDARD.encode(altered), ..envelope.clone() };
        assert!(read(&altered, &keys).is_err(), "byte {at}");
    }
    let other = Envelope { payload_type: "text/plain".into(), ..envelope.clone() };
    assert!(matches!(read(&other, &keys), Err(AttestError::Malformed(_))));
    for signatures in [vec![], vec![EnvelopeSignature { keyid: String::new(), sig: "!".into() }]] {
        assert!(read(&Envelope { signatures, ..envelope.clone() }, &keys).is_err());
    }
    // Signed, and of another form all the same.
    for wrong in [json!({}), json!([]), json!({ "_type": STATEMENT_TYPE }), Value::Null] {
        let envelope = Envelope::sign(&node(3), wrong.to_string().as_bytes());
        let told = read(&envelope, &keys);
        assert!(matches!(told, Err(AttestError::Malformed(_))), "{wrong}: {told:?}");
    }
}

#[test]
fn other_files_are_not_what_it_is_about() {
    let (said, _) = attested();
    let altered = |name: &str| files(name).map(|bytes| [&bytes[..], b"x"].concat());
    assert!(matches!(check_files(&said, altered), Err(AttestError::OtherFiles(_))));
    let missing = |_: &str| Err(Error::from(ErrorKind::NotFound));
    assert!(matches!(check_files(&said, missing), Err(AttestError::OtherFiles(_))));
    let mut outside = said;
    outside["subject"][0]["name"] = "../etc/passwd".into();
    let never = |name: &str| -> std::io::Result<Vec<u8>> {
        assert!(!name.contains(".."), "it was read");
        files(name)
    };
    assert!(matches!(check_files(&outside, never), Err(AttestError::OtherFiles(_))));
}
