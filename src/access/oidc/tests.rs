#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Json, Router, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    },
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::clock;

const AUDIENCE: &str = "kiln";
const SUBJECT: &str = "system:serviceaccount:team-a:trainer";

/// The RSA key of RFC 7515, appendix A.2.1.
const RSA: [(&str, &str); 8] = [
    (
        "n",
        "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    ),
    ("e", "AQAB"),
    (
        "d",
        "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
    ),
    (
        "p",
        "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
    ),
    (
        "q",
        "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
    ),
    (
        "dP",
        "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
    ),
    (
        "dQ",
        "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
    ),
    (
        "qi",
        "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
    ),
];

fn coded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that signs tokens.
enum Signing {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
}

impl Signing {
    fn ed() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn ec() -> Self {
        let (alg, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(alg, &random).unwrap();
        Self::Ec(EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &random).unwrap())
    }

    fn rsa() -> Self {
        let [n, e, d, p, q, dp, dq, qi] =
            RSA.map(|(_, part)| URL_SAFE_NO_PAD.decode(part).unwrap());
        let public_key = rsa::PublicKeyComponents { n, e };
        let parts = rsa::KeyPairComponents { public_key, d, p, q, dP: dp, dQ: dq, qInv: qi };
        Self::Rsa(rsa::KeyPair::from_components(&parts).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed(_) => "EdDSA",
            Self::Ec(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Ed(key) => json!({
                "kty": "OKP", "crv": "Ed25519", "kid": id, "x": coded(key.public_key()),
            }),
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                let (x, y) = (coded(&point[1..33]), coded(&point[33..]));
                json!({ "kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "x": x, "y": y })
            }
            Self::Rsa(_) => json!({
                "kty": "RSA", "alg": "RS256", "kid": id, "n": RSA[0].1, "e": RSA[1].1,
            }),
        }
    }

    fn sign(&self, message: &str) -> Vec<u8> {
        let (random, bytes) = (SystemRandom::new(), message.as_bytes());
        match self {
            Self::Ed(key) => key.sign(bytes).as_ref().to_vec(),
            Self::Ec(key) => key.sign(&random, bytes).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature).unwrap();
                signature
            }
        }
    }

    fn token(&self, id: &str, claims: &Value) -> String {
        let header = json!({ "alg": self.algorithm(), "kid": id });
        let message = format!("{}.{}", coded(header.to_string()), coded(claims.to_string()));
        let signature = coded(self.sign(&message));
        format!("{message}.{signature}")
    }
}

fn now() -> u64 {
    clock::unix_ms() / 1000
}

fn claims(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": [AUDIENCE], "sub": SUBJECT, "exp": now() + 600, "nbf": now() - 1,
        "email": "ci@example.com", "email_verified": true,
    })
}

/// An issuer that serves its keys over HTTP.
struct Server {
    issuer: String,
    keys: Arc<Mutex<Value>>,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(json!({ "keys": keys })));
        let asked = Arc::<AtomicUsize>::default();
        let discovered = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") });
        let (served, counted) = (keys.clone(), asked.clone());
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(async move || Json(discovered)))
            .route(
                "/keys",
                get(async move || {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let keys = served.lock().clone();
                    Json(keys)
                }),
            );
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { issuer, keys, asked, task }
    }

    fn settings(&self) -> Settings {
        let row = |claim: &str, value: &str, role| Row {
            claim: claim.into(),
            value: value.into(),
            role,
            namespaces: vec!["team-a".into()],
        };
        Settings {
            issuer: self.issuer.clone(),
            audience: AUDIENCE.into(),
            source: source(None, &self.issuer).unwrap(),
            ca: None,
            bearer: None,
            rows: vec![
                row("sub", "system:serviceaccount:team-a:*", Role::Write),
                row("email", "ci@example.com", Role::Read),
            ],
            offline: Duration::from_secs(3600),
        }
    }
}

/// Issuers whose keys are followed until the guard goes.
async fn followed(settings: Settings) -> (Issuers, tokio_util::sync::DropGuard) {
    let stop = CancellationToken::new();
    let issuers = Issuers::new(vec![settings]);
    for task in issuers.follow(&stop).unwrap() {
        tokio::spawn(task);
    }
    let mut fetched = issuers.0[0].fetched.subscribe();
    let came = fetched.wait_for(|fetched| *fetched > 0);
    tokio::time::timeout(Duration::from_secs(60), came).await.unwrap().unwrap();
    (issuers, stop.drop_guard())
}

#[tokio::test]
async fn tokens_of_each_algorithm_have_the_rights_of_their_row() {
    let keys = [Signing::ed(), Signing::ec(), Signing::rsa()];
    let jwks: Vec<_> = keys.iter().map(|key| key.jwk(key.algorithm())).collect();
    let server = Server::start(&jwks).await;
    let (issuers, _following) = followed(server.settings()).await;
    for key in &keys {
        let token = key.token(key.algorithm(), &claims(&server.issuer));
        let judged = issuers.judge(&token).unwrap_or_else(|e| panic!("{}: {e}", key.algorithm()));
        assert!(judged.name.starts_with(SUBJECT) && judged.name.ends_with(&server.issuer));
        assert_eq!(judged.row.role, Role::Write);
        assert!(judged.expires > now());
    }
    let mut other = claims(&server.issuer);
    other["sub"] = "repo:x".into();
    let judged = issuers.judge(&keys[0].token("EdDSA", &other)).unwrap();
    assert_eq!(judged.row.role, Role::Read, "by another claim");
    for unverified in [json!(false), json!("true"), Value::Null] {
        let mut other = other.clone();
        other["email_verified"] = unverified;
        assert_eq!(
            issuers.judge(&keys[0].token("EdDSA", &other)).unwrap_err(),
            Denied::NoSubject,
            "anybody may have written it"
        );
    }
    other["email"] = "x@example.com".into();
    assert_eq!(issuers.judge(&keys[0].token("EdDSA", &other)).unwrap_err(), Denied::NoSubject);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_token_it_is_refused() {
    let (ed, ec, rsa) = (Signing::ed(), Signing::ec(), Signing::rsa());
    let server = Server::start(&[ed.jwk("ed"), ec.jwk("ec"), rsa.jwk("rsa")]).await;
    let (issuers, _following) = followed(server.settings()).await;
    let good = claims(&server.issuer);
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    for (claims, why) in [
        (with("exp", (now() - 40).into()), Denied::Expired),
        (with("exp", "soon".into()), Denied::Signature),
        (with("nbf", (now() + 600).into()), Denied::Signature),
        (with("aud", "other".into()), Denied::Audience),
        (with("aud", json!([])), Denied::Audience),
        (with("iss", "https://other".into()), Denied::Unknown),
        (with("iss", json!([server.issuer])), Denied::Malformed),
        (without("exp"), Denied::Signature),
        (without("aud"), Denied::Signature),
        (without("iss"), Denied::Malformed),
        (without("sub"), Denied::Signature),
    ] {
        assert_eq!(issuers.judge(&ed.token("ed", &claims)).unwrap_err(), why, "{claims}");
    }

    // Signed for one, and changed to another after that.
    let token = ed.token("ed", &good);
    let parts: Vec<_> = token.split('.').collect();
    let other = with("sub", "system:serviceaccount:team-a:other".into());
    let changed = format!("{}.{}.{}", parts[0], coded(other.to_string()), parts[2]);
    assert_eq!(issuers.judge(&changed).unwrap_err(), Denied::Signature);
    // A row's beginning ends where it says.
    let mut near = with("sub", "system:serviceaccount:team-ab:x".into());
    near["email"] = "none".into();
    assert_eq!(issuers.judge(&ed.token("ed", &near)).unwrap_err(), Denied::NoSubject);

    // Another's key under a known id, an id that there is not, and none.
    assert_eq!(issuers.judge(&Signing::ed().token("ed", &good)).unwrap_err(), Denied::Signature);
    assert_eq!(issuers.judge(&ed.token("none", &good)).unwrap_err(), Denied::Signature);
    let forged = |header: Value, signature: Vec<u8>| {
        let message = format!("{}.{}", coded(header.to_string()), coded(good.to_string()));
        format!("{message}.{}", coded(signature))
    };
    let signature = |header: &Value| {
        ed.sign(&format!("{}.{}", coded(header.to_string()), coded(good.to_string())))
    };
    let no_id = json!({ "alg": "EdDSA" });
    assert_eq!(
        issuers.judge(&forged(no_id.clone(), signature(&no_id))).unwrap_err(),
        Denied::Signature
    );
    // No signature at all; the public key as a shared secret; an algorithm of another key.
    for header in [
        json!({ "alg": "none", "kid": "ed" }),
        json!({ "alg": "HS256", "kid": "rsa" }),
        json!({ "alg": "HS256", "kid": "ed" }),
        json!({ "alg": "RS256", "kid": "ed" }),
        json!({ "alg": "ES256", "kid": "rsa" }),
        json!({ "alg": "EdDSA", "kid": "rsa" }),
    ] {
        let message = format!("{}.{}", coded(header.to_string()), coded(good.to_string()));
        let secret = RSA[0].1.as_bytes();
        let mac = ring::hmac::sign(
            &ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret),
            message.as_bytes(),
        );
        for signature in [Vec::new(), mac.as_ref().to_vec(), signature(&header), rsa.sign(&message)]
        {
            let refused = issuers.judge(&forged(header.clone(), signature)).unwrap_err();
            assert!(
                matches!(refused, Denied::Signature | Denied::Malformed),
                "{header}: {refused:?}"
            );
        }
    }
    let long = format!("ey{}.a.b", "A".repeat(LONGEST));
    for text in ["", "ey", "ey.a", "ey.a.b", "ey.a.b.c", "eyJ9.e30.", &long] {
        assert_eq!(issuers.judge(text).unwrap_err(), Denied::Malformed, "{text:.20}");
    }
}

#[tokio::test]
async fn a_key_that_is_new_is_fetched_and_made_up_ones_ask_no_more() {
    let (old, new) = (Signing::ed(), Signing::ec());
    let server = Server::start(&[old.jwk("old")]).await;
    let (issuers, _following) = followed(server.settings()).await;
    *server.keys.lock() = json!({ "keys": [new.jwk("new")] });
    let token = new.token("new", &claims(&server.issuer));
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    issuers.freshen(&token).await;
    assert!(issuers.judge(&token).is_ok());
    let gone = old.token("old", &claims(&server.issuer));
    for n in 0..50 {
        let made_up = old.token(&format!("id-{n}"), &claims(&server.issuer));
        issuers.freshen(&made_up).await;
        assert_eq!(issuers.judge(&made_up).unwrap_err(), Denied::Signature);
    }
    assert_eq!(issuers.judge(&gone).unwrap_err(), Denied::Signature, "it was rotated out");
    assert_eq!(server.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_issuer_that_is_away_is_believed_for_a_while() {
    let key = Signing::ed();
    let server = Server::start(&[key.jwk("a")]).await;
    let token = key.token("a", &claims(&server.issuer));
    let (issuers, _following) = followed(server.settings()).await;
    let short = Settings { offline: Duration::from_millis(1), ..server.settings() };
    let (short, _following_too) = followed(short).await;
    server.task.abort();
    assert!(issuers.judge(&token).is_ok());
    while short.judge(&token).is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(short.judge(&token).unwrap_err(), Denied::NoKeys);
    assert!(Denied::NoKeys.is_passing(), "it may be good");
    assert!(short.want_key_of(&token), "its issuer may be back");
    assert!(short.0[0].asked.lock().is_some(), "it was asked at once");
    // One that never answered is not known to have said anything.
    let (never, _following_three) = followed(server.settings()).await;
    assert_eq!(never.judge(&token).unwrap_err(), Denied::NoKeys);
}

#[tokio::test]
async fn a_bearer_is_shown_to_the_issuers_own_address_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bearer");
    std::fs::write(&file, "secret").unwrap();
    let (own, other) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let at = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let (issuer, stranger) = (at(&own), at(&other));
    let keys = json!({ "keys": [Signing::ed().jwk("a")] });
    let asked = Arc::<Mutex<Vec<(String, bool)>>>::default();
    let mut tasks = Vec::new();
    for listener in [own, other] {
        let (here, issuer, stranger) = (at(&listener), issuer.clone(), stranger.clone());
        let (keys, asked) = (keys.clone(), asked.clone());
        let answer = async move |request: axum::extract::Request| {
            let path = request.uri().path().to_owned();
            let shows = request.headers().contains_key("authorization");
            asked.lock().push((format!("{here}{path}"), shows));
            Json(match path.as_str() {
                "/keys" => keys,
                "/home/.well-known/openid-configuration" => {
                    json!({ "issuer": format!("{issuer}/home"), "jwks_uri": format!("{issuer}/keys") })
                }
                _ => {
                    json!({ "issuer": format!("{issuer}/away"), "jwks_uri": format!("{stranger}/keys") })
                }
            })
        };
        let routes = Router::new().fallback(answer);
        tasks.push(tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() }));
    }
    for name in ["home", "away"] {
        let issuer = format!("{issuer}/{name}");
        let source = source(None, &issuer).unwrap();
        let fetcher = Fetcher::new(source, issuer, None, Some(file.clone())).unwrap();
        assert_eq!(fetcher.fetch().await.unwrap().len(), 1, "{name}");
    }
    let shown = |url: String, shows| (url, shows);
    let discovery = ".well-known/openid-configuration";
    assert_eq!(
        *asked.lock(),
        [
            shown(format!("{issuer}/home/{discovery}"), true),
            shown(format!("{issuer}/keys"), true),
            shown(format!("{issuer}/away/{discovery}"), true),
            shown(format!("{stranger}/keys"), false),
        ]
    );
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
