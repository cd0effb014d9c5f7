//! The object tier on a folder and on a real S3 server.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use tempfile::TempDir;

use super::*;
use crate::cache::conformance::{self, blob};

#[path = "../../../tests/support/seaweed.rs"]
pub(crate) mod seaweed;

use seaweed::Seaweed;

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
        tier.put(blob, Hints::default()).await.unwrap();
    }
    let mut listed: Vec<_> =
        tier.list().map(|p| p.map(|p| (p.digest, p.size))).try_collect().await.unwrap();
    listed.sort();
    let mut expected: Vec<_> = blobs.iter().map(|b| (b.digest(), b.size())).collect();
    expected.sort();
    assert_eq!(listed, expected);
    assert!(tier.stat(&blobs[0].digest()).await.unwrap().unwrap().modified_ms > 1_600_000_000_000);
    for blob in &blobs {
        assert!(tier.remove(&blob.digest()).await.unwrap());
    }
    assert_eq!(tier.list().count().await, 0);
}

async fn resumes_where_a_transfer_broke(tier: &ObjectTier) {
    let whole = blob(7, 3 << 20);
    tier.put(&whole, Hints::default()).await.unwrap();
    for already in [0, 1, 1 << 20, (3 << 20) - 1, 3 << 20] {
        let mut writer = BlobWriter::with_size(whole.size()).unwrap();
        writer.write(&whole[..already]).unwrap();
        assert!(tier.fill(&whole.digest(), &mut writer).await.unwrap());
        assert_eq!(&*writer.finish_as(whole.digest()).unwrap(), &*whole);
    }
    let mut other_size = BlobWriter::with_size(whole.size() + 1).unwrap();
    let refused = tier.fill(&whole.digest(), &mut other_size).await.unwrap_err();
    assert!(matches!(refused, TierError::Corrupt { .. }), "{refused}");
    tier.remove(&whole.digest()).await.unwrap();
    let mut writer = BlobWriter::with_size(whole.size()).unwrap();
    assert!(!tier.fill(&whole.digest(), &mut writer).await.unwrap());
}

async fn concurrent_puts_agree(tier: &ObjectTier) {
    let blob = blob(8, 200_000);
    let puts = (0..16).map(|_| tier.put(&blob, Hints::default()));
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
        vandal.store.put(&vandal.path(&blob.digest()), forged).await.unwrap();
        // It looks as if it were there, so an upload alone would not replace it.
        tier.put(&blob, Hints::default()).await.unwrap();
        let refused = tier.get(&blob.digest()).await.unwrap_err();
        assert!(matches!(refused, TierError::Corrupt { .. }), "{refused}");
        assert_eq!(tier.health(), Health::Up, "the store works, the object is bad");
        tier.put(&blob, Hints::default()).await.unwrap();
        assert_eq!(&*tier.get(&blob.digest()).await.unwrap().unwrap(), &*blob);
        // A truncated one is noticed by its size.
        let cut = PutPayload::from(blob[..size / 2].to_vec());
        vandal.store.put(&vandal.path(&blob.digest()), cut).await.unwrap();
        tier.put(&blob, Hints::default()).await.unwrap();
        assert_eq!(&*tier.get(&blob.digest()).await.unwrap().unwrap(), &*blob);
        tier.remove(&blob.digest()).await.unwrap();
    }
}

async fn wrong_credentials_are_refused(server: &Seaweed) {
    let settings =
        ObjectSettings { secret_access_key: Some("wrong".into()), ..settings_for(server) };
    let tier = ObjectTier::from_url(&format!("s3://{}", seaweed::BUCKET), &settings).unwrap();
    let refused = tier.put(&blob(1, 10), Hints::default()).await.unwrap_err();
    assert!(matches!(refused, TierError::Unavailable { .. }), "{refused}");
    assert!(matches!(tier.health(), Health::Down { .. }));
}

async fn a_store_that_is_away_is_said_and_comes_back(server: &mut Seaweed, tier: &ObjectTier) {
    let blob = blob(9, 100_000);
    tier.put(&blob, Hints::default()).await.unwrap();
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
    tier.put(&blob, Hints::default()).await.unwrap();
    fs::rename(dir.path().join("l3"), dir.path().join("away")).unwrap();
    assert!(matches!(tier.get(&blob.digest()).await, Err(TierError::Unavailable { .. })));
    let refused = tier.put(&blob, Hints::default()).await.unwrap_err();
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

#[test]
fn the_secret_is_not_printed() {
    let settings =
        ObjectSettings { secret_access_key: Some("s3cr3t".into()), ..Default::default() };
    assert!(!format!("{settings:?}").contains("s3cr3t"));
}
