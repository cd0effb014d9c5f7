//! The object tier on a folder and on a real S3 server.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytesize::ByteSize;
use kiln_proto::Digest;
use tempfile::TempDir;

use super::*;
use crate::cache::{
    BlobError, Hints, Tier, Usage,
    conformance::{self, blob},
};

#[path = "../../../tests/support/ports.rs"]
mod ports;
#[path = "../../../tests/support/seaweed.rs"]
pub(crate) mod seaweed;

use seaweed::Seaweed;

/// Generation 0 of every pack, as a tier.
#[async_trait]
impl Tier for ObjectTier {
    fn name(&self) -> TierName {
        TierName::Object
    }

    async fn get(&self, digest: &Digest) -> Result<Option<Blob>, TierError> {
        let Some(found) = self.stat(&first(digest)).await? else { return Ok(None) };
        let mut writer = BlobWriter::with_size(found.size).unwrap();
        if !self.fill(&first(digest), &mut writer).await? {
            return Ok(None);
        }
        writer.finish_as(*digest).map(Some).map_err(|e| match e {
            BlobError::Corrupt { .. } => self.corrupt(&first(digest), e.to_string()),
            e => panic!("{e}"),
        })
    }

    async fn put(&self, blob: &Blob, _: Hints) -> Result<(), TierError> {
        ObjectTier::put(self, &first(&blob.digest()), blob).await
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, TierError> {
        let found = self.stat(&first(digest)).await?.is_some();
        self.delete(&first(digest)).await.map(|()| found)
    }

    async fn contains(&self, digest: &Digest) -> Result<bool, TierError> {
        Ok(self.stat(&first(digest)).await?.is_some())
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

fn first(digest: &Digest) -> ObjectName {
    ObjectName { pack: *digest, generation: 0 }
}

pub(crate) fn in_folder(dir: &TempDir) -> ObjectTier {
    let url = format!("file://{}", dir.path().join("l3").display());
    ObjectTier::from_url(&url, &ObjectSettings::default()).unwrap()
}

fn settings_for(server: &Seaweed) -> ObjectSettings {
    ObjectSettings {
        endpoint: Some(server.endpoint()),
        access_key_id: Some(seaweed::ACCESS_KEY_ID.into()),
        secret_access_key: Some(seaweed::SECRET_ACCESS_KEY.into()),
        part_size: ByteSize::mib(5),
        retries: 1,
        ..ObjectSettings::default()
    }
}

pub(crate) fn on_server(server: &Seaweed) -> ObjectTier {
    let url = format!("s3://{}/some/prefix", seaweed::BUCKET);
    ObjectTier::from_url(&url, &settings_for(server)).unwrap()
}

fn object_file(dir: &TempDir, blob: &Blob) -> PathBuf {
    let name = blob.digest().to_string();
    dir.path().join("l3/packs").join(&name[..2]).join(&name)
}

/// What both stores must do beyond the common suite.
async fn beyond_the_suite(tier: &ObjectTier) {
    lists_what_is_there(tier).await;
    resumes_where_a_transfer_broke(tier).await;
    concurrent_puts_agree(tier).await;
}

async fn lists_what_is_there(tier: &ObjectTier) {
    let blobs: Vec<_> = (0..5).map(|n| blob(n, 1000 + n as usize)).collect();
    for blob in &blobs {
        Tier::put(tier, blob, Hints::default()).await.unwrap();
    }
    let mut listed: Vec<_> =
        tier.list().map(|p| p.map(|p| (p.name.pack, p.size))).try_collect().await.unwrap();
    listed.sort();
    let mut expected: Vec<_> = blobs.iter().map(|b| (b.digest(), b.size())).collect();
    expected.sort();
    assert_eq!(listed, expected);
    assert!(
        tier.stat(&first(&blobs[0].digest())).await.unwrap().unwrap().modified_ms
            > 1_600_000_000_000
    );
    for blob in &blobs {
        assert!(tier.remove(&blob.digest()).await.unwrap());
    }
    assert_eq!(tier.list().count().await, 0);
}

async fn resumes_where_a_transfer_broke(tier: &ObjectTier) {
    let whole = blob(7, 3 << 20);
    Tier::put(tier, &whole, Hints::default()).await.unwrap();
    for already in [0, 1, 1 << 20, (3 << 20) - 1, 3 << 20] {
        let mut writer = BlobWriter::with_size(whole.size()).unwrap();
        writer.write(&whole[..already]).unwrap();
        assert!(tier.fill(&first(&whole.digest()), &mut writer).await.unwrap());
        assert_eq!(&*writer.finish_as(whole.digest()).unwrap(), &*whole);
    }
    let mut other_size = BlobWriter::with_size(whole.size() + 1).unwrap();
    let refused = tier.fill(&first(&whole.digest()), &mut other_size).await.unwrap_err();
    assert!(matches!(refused, TierError::Corrupt { .. }), "{refused}");
    tier.remove(&whole.digest()).await.unwrap();
    let mut writer = BlobWriter::with_size(whole.size()).unwrap();
    assert!(!tier.fill(&first(&whole.digest()), &mut writer).await.unwrap());
}

async fn concurrent_puts_agree(tier: &ObjectTier) {
    let blob = blob(8, 200_000);
    let puts = (0..16).map(|_| Tier::put(tier, &blob, Hints::default()));
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
    assert_eq!(&*tier.get(&blob.digest()).await.unwrap().unwrap(), &*blob);
    assert!(tier.remove(&blob.digest()).await.unwrap());
}

#[tokio::test]
async fn a_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let tier = in_folder(&dir);
    conformance::suite(&tier).await;
    beyond_the_suite(&tier).await;
}

/// One server for all of it: it takes seconds to start.
#[tokio::test]
async fn s3_conforms() {
    let mut server = Seaweed::start().await;
    let tier = on_server(&server);
    conformance::suite(&tier).await;
    beyond_the_suite(&tier).await;
    a_corrupt_object_is_replaced(&tier, &on_server(&server)).await;
    wrong_credentials_are_refused(&server).await;
    a_store_that_is_away_is_said_and_comes_back(&mut server, &tier).await;
}

/// `vandal` writes into the bucket what nobody signed for.
async fn a_corrupt_object_is_replaced(tier: &ObjectTier, vandal: &ObjectTier) {
    for size in [1000, 6 << 20] {
        let blob = blob(size as u64, size);
        let mut altered = blob.to_vec();
        altered[size / 2] ^= 1;
        let forged = PutPayload::from(altered);
        vandal.store.put(&first(&blob.digest()).path(&vandal.prefix), forged).await.unwrap();
        let refused = tier.get(&blob.digest()).await.unwrap_err();
        assert!(matches!(refused, TierError::Corrupt { .. }), "{refused}");
        assert_eq!(tier.health(), Health::Up, "the store works, the object is bad");
        // It looks as if it were there: another node, which never read it, uploads.
        Tier::put(tier, &blob, Hints::default()).await.unwrap();
        assert_eq!(&*tier.get(&blob.digest()).await.unwrap().unwrap(), &*blob);
        // A truncated one is noticed by its size.
        let cut = PutPayload::from(blob[..size / 2].to_vec());
        vandal.store.put(&first(&blob.digest()).path(&vandal.prefix), cut).await.unwrap();
        Tier::put(tier, &blob, Hints::default()).await.unwrap();
        assert_eq!(&*tier.get(&blob.digest()).await.unwrap().unwrap(), &*blob);
        tier.remove(&blob.digest()).await.unwrap();
    }
}

async fn wrong_credentials_are_refused(server: &Seaweed) {
    let settings =
        ObjectSettings { secret_access_key: Some("wrong".into()), ..settings_for(server) };
    let tier = ObjectTier::from_url(&format!("s3://{}", seaweed::BUCKET), &settings).unwrap();
    let refused = Tier::put(&tier, &blob(1, 10), Hints::default()).await.unwrap_err();
    assert!(matches!(refused, TierError::Unavailable { .. }), "{refused}");
    assert!(matches!(tier.health(), Health::Down { .. }));
}

async fn a_store_that_is_away_is_said_and_comes_back(server: &mut Seaweed, tier: &ObjectTier) {
    let blob = blob(9, 100_000);
    Tier::put(tier, &blob, Hints::default()).await.unwrap();
    server.stop();
    let refused = tier.get(&blob.digest()).await.unwrap_err();
    assert!(matches!(refused, TierError::Unavailable { .. }), "{refused}");
    assert!(matches!(tier.health(), Health::Down { .. }));
    let asked = Instant::now();
    assert!(tier.get(&blob.digest()).await.is_err());
    assert!(asked.elapsed() < Duration::from_millis(100), "no second time-out");
    server.resume().await;
    let found = once_it_answers(tier, &blob.digest()).await;
    assert_eq!(found.unwrap().digest(), blob.digest());
    assert_eq!(tier.health(), Health::Up);
}

async fn once_it_answers(tier: &ObjectTier, digest: &Digest) -> Option<Blob> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match tier.get(digest).await {
            Ok(found) => return found,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_corrupt_file_in_a_folder_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    a_corrupt_object_is_replaced(&in_folder(&dir), &in_folder(&dir)).await;
}

#[tokio::test]
async fn an_unmounted_folder_is_unavailable_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let tier = in_folder(&dir);
    let blob = blob(1, 1000);
    Tier::put(&tier, &blob, Hints::default()).await.unwrap();
    fs::rename(dir.path().join("l3"), dir.path().join("away")).unwrap();
    assert!(matches!(tier.get(&blob.digest()).await, Err(TierError::Unavailable { .. })));
    let refused = Tier::put(&tier, &blob, Hints::default()).await.unwrap_err();
    assert!(matches!(refused, TierError::Unavailable { .. }), "{refused}");
    assert!(!object_file(&dir, &blob).exists(), "nothing goes onto the wrong device");
    fs::rename(dir.path().join("away"), dir.path().join("l3")).unwrap();
    assert!(once_it_answers(&tier, &blob.digest()).await.is_some());
}

#[test]
fn urls_that_name_no_store_are_refused() {
    for url in ["", "l3", "http://h/b", "s3://", "file://relative/path"] {
        let refused = ObjectTier::from_url(url, &ObjectSettings::default());
        assert!(matches!(refused.err(), Some(TierError::Settings { .. })), "{url}");
    }
}

/// An S3 like older Ceph's (or another's) that answers `status` to a condition.
struct Unconditional {
    endpoint: String,
    puts: Arc<parking_lot::Mutex<Vec<&'static str>>>,
}

impl Unconditional {
    async fn start(conditional: u16, plain: u16) -> Self {
        use axum::http::{HeaderMap, Method, StatusCode};
        let puts = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = Arc::clone(&puts);
        let answer = move |method: Method, headers: HeaderMap| async move {
            let status = match (&method, headers.contains_key("if-none-match")) {
                (&Method::PUT, true) => {
                    seen.lock().push("conditional");
                    conditional
                }
                (&Method::PUT, false) => {
                    seen.lock().push("plain");
                    plain
                }
                // Not even that, as in shared case 03.
                (&Method::HEAD, _) => 501,
                _ => 404,
            };
            (StatusCode::from_u16(status).unwrap(), [("etag", "\"x\"")])
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { endpoint, puts }
    }

    fn tier(&self) -> ObjectTier {
        let settings = ObjectSettings {
            endpoint: Some(self.endpoint.clone()),
            access_key_id: Some("x".into()),
            secret_access_key: Some("y".into()),
            retries: 0,
            ..ObjectSettings::default()
        };
        ObjectTier::from_url("s3://b/k", &settings).unwrap()
    }
}

/// Shared case 03: every upload failed, and the gate closed.
#[tokio::test]
async fn a_store_without_conditional_writes_gets_plain_ones() {
    for status in [501, 400, 405] {
        let server = Unconditional::start(status, 200).await;
        let tier = server.tier();
        for n in 0..3 {
            Tier::put(&tier, &blob(n, 100), Hints::default()).await.unwrap();
        }
        assert_eq!(*server.puts.lock(), ["conditional", "plain", "plain", "plain"], "{status}");
        assert_eq!(tier.health(), Health::Up);
    }
}

#[tokio::test]
async fn a_store_that_refuses_the_writer_stays_an_error() {
    for (conditional, plain) in [(403, 200), (401, 200), (503, 200), (501, 403)] {
        let server = Unconditional::start(conditional, plain).await;
        let tier = server.tier();
        let refused = Tier::put(&tier, &blob(1, 100), Hints::default()).await.unwrap_err();
        assert!(matches!(refused, TierError::Unavailable { .. }), "{refused}");
        assert!(!tier.unconditional.load(Ordering::Relaxed));
    }
}

#[test]
fn the_secret_is_not_printed() {
    let settings =
        ObjectSettings { secret_access_key: Some("s3cr3t".into()), ..Default::default() };
    assert!(!format!("{settings:?}").contains("s3cr3t"));
}
