#![allow(clippy::unwrap_used)]

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kiln_cluster::tokens::NewToken;

use super::*;
use crate::scan::tests::Filled;

fn settings() -> Settings {
    let row = |name: &str, role, namespace: &str| Row {
        name: name.into(),
        role,
        namespaces: vec![namespace.into()],
    };
    Settings {
        required: true,
        shared: vec!["release".into()],
        certificates: vec![
            row("spiffe://prod/trainer*", Role::Write, "team"),
            row("admin.kiln", Role::Admin, "*"),
        ],
        oidc: Vec::new(),
        socket_admin: SocketAdmin::First,
        offline: Duration::from_secs(3600),
        limits: Limits::default(),
    }
}

fn bearer(token: &str) -> Shown {
    Shown { bearer: Some(token.into()), ..Shown::default() }
}

fn certificate(names: &[&str]) -> Shown {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    Shown { certificate: Some(names.into()), ..Shown::default() }
}

fn user(uid: u32) -> Shown {
    Shown { uid: Some(uid), ..Shown::default() }
}

async fn made(index: &Index, role: Role, lifetime_ms: Option<u64>) -> (u64, String) {
    let (id, secret) = Secret::mint().unwrap();
    let (namespaces, digest) = (vec!["*".to_owned()], secret.digest());
    let (name, by) = ("ci".to_owned(), "test".to_owned());
    let token = NewToken { id, digest, name, role, namespaces, lifetime_ms, by };
    index.issue_token(token).await.unwrap();
    (id, secret.token(id))
}

#[test]
fn who_shows_nothing_gets_nothing_unless_nobody_has_to() {
    let access = Access::new(settings(), Audit::off());
    assert_eq!(access.judge(&Shown::default()).unwrap_err(), Denied::NoCredential);
    assert_eq!(access.judge(&bearer("kiln_x")).unwrap_err(), Denied::Malformed);
    assert_eq!(access.judge(&bearer("")).unwrap_err(), Denied::Malformed);
    let token = Secret::mint().map(|(id, secret)| secret.token(id)).unwrap();
    assert_eq!(access.judge(&bearer(&token)).unwrap_err(), Denied::NotYet, "no index yet");
    let open = Access::new(Settings { required: false, ..settings() }, Audit::off());
    for shown in [Shown::default(), bearer("nonsense"), certificate(&["x"]), user(4711)] {
        let grant = open.judge(&shown).unwrap();
        assert_eq!(grant.needs_all(Role::Admin), Ok(()), "{shown:?}");
    }
}

#[test]
fn a_certificate_has_the_rights_of_the_first_row_that_names_it() {
    let access = Access::new(settings(), Audit::off());
    let trainer = access.judge(&certificate(&["x", "spiffe://prod/trainer-7"])).unwrap();
    assert_eq!((trainer.writes("team"), trainer.role()), (Ok(()), Role::Write));
    assert_eq!(trainer.who().to_string(), "certificate spiffe://prod/trainer-7");
    assert_eq!(trainer.reads("release"), Ok(()));
    assert_eq!(access.judge(&certificate(&["admin.kiln"])).unwrap().role(), Role::Admin);
    for strange in [&["spiffe://prod/other"][..], &["admin.kiln.evil"], &[]] {
        assert_eq!(access.judge(&certificate(strange)).unwrap_err(), Denied::NoRow, "{strange:?}");
    }
    // A bad token is not made up for by a good certificate.
    let both = Shown { bearer: Some("x".into()), ..certificate(&["admin.kiln"]) };
    assert_eq!(access.judge(&both).unwrap_err(), Denied::Malformed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_until_it_ends_or_is_revoked() {
    let filled = Filled::start(1).await;
    let access = Access::new(settings(), Audit::off());
    access.know(filled.index.clone(), Some(Duration::ZERO));
    let (id, token) = made(&filled.index, Role::Read, None).await;
    let grant = access.judge(&bearer(&token)).unwrap();
    assert_eq!(
        (grant.role(), grant.who().to_string()),
        (Role::Read, format!("token {id:016x} (ci)"))
    );
    assert_eq!(access.still(&grant), Ok(()));

    // Another secret under its id, and an id that there is not.
    let (_, other) = Secret::mint().unwrap();
    for wrong in [other.token(id), other.token(id ^ 1)] {
        assert_eq!(access.judge(&bearer(&wrong)).unwrap_err(), Denied::Unknown);
    }
    assert!(filled.index.revoke_token(id, "test".into()).await.unwrap());
    assert_eq!(access.judge(&bearer(&token)).unwrap_err(), Denied::Revoked);
    assert_eq!(access.still(&grant), Err(Denied::Revoked), "whoever has a connection, too");

    let (_, short) = made(&filled.index, Role::Read, Some(1)).await;
    let mut judged = access.judge(&bearer(&short));
    // It lives for a millisecond.
    while judged.is_ok() {
        tokio::task::yield_now().await;
        judged = access.judge(&bearer(&short));
    }
    assert_eq!(judged.unwrap_err(), Denied::Expired);
    filled.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_judges_by_what_it_knows_for_a_while() {
    let filled = Filled::start(1).await;
    let (_, token) = made(&filled.index, Role::Read, None).await;
    let of = |offline| {
        let access = Access::new(Settings { offline, ..settings() }, Audit::off());
        access.know(filled.index.clone(), Some(Duration::ZERO));
        access
    };
    assert!(of(Duration::from_secs(3600)).judge(&bearer(&token)).is_ok());
    let short = of(Duration::from_millis(1));
    // It has not heard of its cluster since.
    while short.judge(&bearer(&token)).is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(short.judge(&bearer(&token)).unwrap_err(), Denied::Offline);

    // Nor does a restart begin the time anew.
    let again = |ago| {
        let access = Access::new(settings(), Audit::off());
        access.know(filled.index.clone(), ago);
        access
    };
    assert!(again(Some(Duration::from_secs(1800))).judge(&bearer(&token)).is_ok());
    for ago in [None, Some(Duration::from_secs(3700)), Some(Duration::MAX)] {
        let access = again(ago);
        assert_eq!(access.judge(&bearer(&token)).unwrap_err(), Denied::Offline, "{ago:?}");
        access.hear();
        assert!(access.judge(&bearer(&token)).is_ok());
    }
    filled.stop().await;
}

#[test]
fn for_who_may_try_nothing_no_issuer_is_asked() {
    let name = "https://issuer.example.com";
    let issuer = oidc::Settings {
        issuer: name.into(),
        audience: "kiln".into(),
        source: oidc::source(Some("/nowhere/keys.json"), name).unwrap(),
        ca: None,
        bearer: None,
        rows: Vec::new(),
        offline: Duration::from_secs(3600),
    };
    let limits = Limits { failures_per_minute: 1, ..Limits::default() };
    let settings = Settings { oidc: vec![issuer], limits, ..settings() };
    let access = Access::new(settings, Audit::off());
    let parts = [r#"{"alg":"EdDSA","kid":"new"}"#, &format!(r#"{{"iss":"{name}"}}"#), "signature"];
    let token = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let [from, other] = ["10.0.0.1", "10.0.0.2"].map(|from| Some(from.parse().unwrap()));
    assert!(access.wants_keys_of(&token, from));
    for _ in 0..2 {
        access.tried(Denied::Unknown, from);
    }
    assert!(!access.wants_keys_of(&token, from), "nothing that is shown there is looked at");
    assert!(access.wants_keys_of(&token, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_user_is_an_admin_until_there_is_one() {
    let filled = Filled::start(1).await;
    let of = |socket_admin| {
        let settings = Settings { socket_admin, certificates: Vec::new(), ..settings() };
        let access = Access::new(settings, Audit::off());
        access.know(filled.index.clone(), Some(Duration::ZERO));
        access
    };
    let own = rustix::process::geteuid().as_raw();
    let first = of(SocketAdmin::First);
    for trusted in [own, 0] {
        assert_eq!(first.judge(&user(trusted)).unwrap().needs_all(Role::Admin), Ok(()));
    }
    assert_eq!(first.judge(&user(own + 4711)).unwrap_err(), Denied::NoUser);
    let held = first.judge(&user(own)).unwrap();
    made(&filled.index, Role::Write, None).await;
    assert!(first.judge(&user(own)).is_ok(), "no admin yet");
    let (id, _) = made(&filled.index, Role::Admin, None).await;
    assert_eq!(first.judge(&user(own)).unwrap_err(), Denied::NoUser);
    assert_eq!(first.still(&held), Err(Denied::NoUser));
    assert!(of(SocketAdmin::Always).judge(&user(own)).is_ok());
    assert_eq!(of(SocketAdmin::Never).judge(&user(own)).unwrap_err(), Denied::NoUser);
    // Nor does that admin's end make anybody one: the settings can, as long as it takes.
    filled.index.revoke_token(id, "test".into()).await.unwrap();
    assert_eq!(first.judge(&user(own)).unwrap_err(), Denied::NoUser);
    assert!(!first.is_open_to_own());
    assert!(of(SocketAdmin::Always).judge(&user(own)).is_ok());
    // A certificate's row of an admin is one, too.
    let rows = Access::new(settings(), Audit::off());
    rows.know(filled.index.clone(), Some(Duration::ZERO));
    assert_eq!(rows.judge(&user(own)).unwrap_err(), Denied::NoUser);
    assert!(!rows.is_open_to_own());
    filled.stop().await;
}
