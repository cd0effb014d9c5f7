//! Tokens of another issuer open each door, for whom a row names, and only while they are good.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kiln::config::OidcConfig;
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const ISSUER: &str = "https://issuer.example.com";

struct Key(Ed25519KeyPair);

impl Key {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn jwk(&self, id: &str) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": x })
    }

    fn token(&self, id: &str, subject: &str, audience: &str, lives: i64) -> String {
        let now = i64::try_from(kiln::clock::unix_ms() / 1000).unwrap();
        let header = json!({ "alg": "EdDSA", "kid": id });
        let claims = json!({ "iss": ISSUER, "aud": audience, "sub": subject, "exp": now + lives });
        let [header, claims] =
            [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// An issuer's keys over HTTPS, by a certificate of the authority in `folder`.
struct Issuer {
    address: std::net::SocketAddr,
    keys: Arc<parking_lot::Mutex<Value>>,
    asked: Arc<AtomicUsize>,
    ca: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Issuer {
    async fn start(folder: &Path) -> Self {
        let certs = |words: &str| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
            let made = command.arg("certs").args(words.split(' ')).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        };
        let dir = folder.display();
        certs(&format!("init --dir {dir}"));
        certs(&format!("issue server --dir {dir} --out {dir} --name issuer --host 127.0.0.1"));
        let file = |end: &str| folder.join(format!("issuer-server.{end}"));
        let chain = CertificateDer::pem_file_iter(file("pem")).unwrap().map(Result::unwrap);
        let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.collect(), key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Arc::new(parking_lot::Mutex::new(json!({ "keys": [] })));
        let asked = Arc::<AtomicUsize>::default();
        let (served, counted) = (keys.clone(), asked.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let body = served.lock().to_string();
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                // Whoever left has no answer.
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { address, keys, asked, ca: folder.join("clients-ca.pem"), task }
    }

    fn config(&self, rows: &[&str]) -> OidcConfig {
        OidcConfig {
            issuer: ISSUER.into(),
            audience: "kiln".into(),
            jwks: Some(format!("https://{}/keys", self.address)),
            ca: Some(self.ca.clone()),
            bearer_file: None,
            rows: rows.iter().map(|row| (*row).to_owned()).collect(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_is_known_at_each_door_by_its_own_token() {
    let mut cluster = TestCluster::start_with(1, required).await;
    let folder = cluster.folder.path().join("issuer");
    std::fs::create_dir(&folder).unwrap();
    let issuer = Issuer::start(&folder).await;
    let key = Key::new();
    *issuer.keys.lock() = json!({ "keys": [key.jwk("one")] });
    let node = &mut cluster.nodes[0];
    node.terminate().await;
    node.config.access.oidc =
        vec![issuer.config(&["system:serviceaccount:team:* write team", "ops read *"])];
    node.restart().await;
    let node = &cluster.nodes[0];

    let subject = "system:serviceaccount:team:trainer";
    let good = key.token("one", subject, "kiln", 600);
    let mut team = client(node, Some(&good));
    eventually("the issuer's keys", async || team.list(pb::ListRequest::default()).await.ok())
        .await;
    publish(&mut team, "team", "ours").await.unwrap();
    assert_denied(&publish(&mut team, "other", "theirs").await.unwrap_err(), "A002");
    let status = team.status(pb::StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.access.unwrap().caller, format!("subject {subject} of {ISSUER}"));
    // The other doors.
    let mut redis = Redis::connect(node).await;
    assert_eq!(text(redis.command(["AUTH", &good]).await), "OK");
    assert_eq!(text(redis.command(["SET", "a", "b"]).await), "OK");
    let (code, said) = kiln(&grpc(node), Some(&good), &["ls"]).await;
    assert_eq!(code, Some(0), "{said}");
    let ops = key.token("one", "ops", "kiln", 600);
    assert_eq!(page(node, "/api/v1/state", &ops).await, 200);
    assert_eq!(page(node, "/api/v1/state", &good).await, 403, "one namespace is not all");

    // Each that is no good, at each door.
    let stranger = Key::new();
    for (bad, why) in [
        (key.token("one", subject, "kiln", -600), "expired"),
        (key.token("one", subject, "other", 600), "audience"),
        (key.token("one", "system:serviceaccount:x:y", "kiln", 600), "subject"),
        (stranger.token("one", subject, "kiln", 600), "signature"),
        (stranger.token("none", subject, "kiln", 600), "signature"),
        (format!("{good}x"), "signature"),
        (good.replace('.', "!"), "malformed"),
    ] {
        let before = refused(node, "grpc", why).await;
        let told = client(node, Some(&bad)).list(pb::ListRequest::default()).await.unwrap_err();
        assert_denied(&told, "A001");
        assert!(refused(node, "grpc", why).await > before, "{why}");
        let mut redis = Redis::connect(node).await;
        assert!(text(redis.command(["AUTH", &bad]).await).starts_with("WRONGPASS"), "{why}");
        assert_eq!(page(node, "/api/v1/state", &bad).await, 401, "{why}");
    }

    // A key that its issuer has since a moment: the first call already is served.
    let asked = issuer.asked.load(Ordering::SeqCst);
    eventually("the bound on fetches to allow another", async || {
        let next = Key::new();
        *issuer.keys.lock() = json!({ "keys": [key.jwk("one"), next.jwk("next")] });
        let token = next.token("next", subject, "kiln", 600);
        client(node, Some(&token)).list(pb::ListRequest::default()).await.ok()
    })
    .await;
    let fetches = issuer.asked.load(Ordering::SeqCst) - asked;
    assert!(fetches <= 2, "{fetches} fetches");
    // At the door of Redis too, where nobody asked by that key before: AUTH itself fetches it.
    eventually("AUTH by a key of a moment ago", async || {
        let next = Key::new();
        *issuer.keys.lock() = json!({ "keys": [key.jwk("one"), next.jwk("later")] });
        let token = next.token("later", subject, "kiln", 600);
        let mut redis = Redis::connect(node).await;
        (text(redis.command(["AUTH", &token]).await) == "OK").then_some(())
    })
    .await;
    // A connection of before goes with its token's time.
    let short = key.token("one", subject, "kiln", -20);
    let mut redis = Redis::connect(node).await;
    assert_eq!(text(redis.command(["AUTH", &short]).await), "OK", "clocks may differ");
    eventually("its end", async || {
        text(redis.command(["GET", "a"]).await).starts_with("NOAUTH").then_some(())
    })
    .await;
}
