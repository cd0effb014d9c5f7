//! What stores that speak S3 answer otherwise than S3 does: MinIO, Ceph, R2, Google's.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use axum::{
    body::Bytes as Body,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use bytesize::ByteSize;
use parking_lot::Mutex;

use super::*;
use crate::cache::{Hints, Tier, conformance::blob};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quirk {
    /// The first conditional PUT meets another one.
    Conflict,
    /// It says that the object is there, and it is not.
    FalsePrecondition,
    /// As R2 and HTTP have it for a condition that does not hold.
    NotModified,
    /// No answer has a tag.
    NoTags,
    /// The first requests come too fast.
    SlowDown,
    /// There is no call to delete several.
    NoBulkDelete,
    /// The end of a multipart upload is a success, by its status, the first time.
    ErrorInSuccess,
}

struct Server {
    quirk: Quirk,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    parts: Mutex<BTreeMap<u32, Vec<u8>>>,
    /// Times that the quirk was shown.
    shown: Mutex<u32>,
}

type Answer = (StatusCode, HeaderMap, Vec<u8>);

impl Server {
    /// Whether to show the quirk once more: `times` in all.
    fn shows(&self, quirk: Quirk, times: u32) -> bool {
        let mut shown = self.shown.lock();
        let shows = self.quirk == quirk && *shown < times;
        *shown += u32::from(shows);
        shows
    }

    fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Answer {
        let code = |status: u16, body: &str| {
            let mut headers = HeaderMap::new();
            if self.quirk != Quirk::NoTags {
                headers.insert("etag", "\"x\"".parse().unwrap());
            }
            headers.insert("last-modified", "Sat, 28 Nov 2026 08:00:00 GMT".parse().unwrap());
            (StatusCode::from_u16(status).unwrap(), headers, body.as_bytes().to_vec())
        };
        let error =
            |status, name: &str| code(status, &format!("<Error><Code>{name}</Code></Error>"));
        if self.shows(Quirk::SlowDown, 2) {
            return error(503, "SlowDown");
        }
        let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default());
        let mut objects = self.objects.lock();
        match *method {
            Method::POST if query.starts_with("uploads") => code(
                200,
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
            ),
            Method::POST if query.starts_with("uploadId") => {
                if self.shows(Quirk::ErrorInSuccess, 1) {
                    return error(200, "InternalError");
                }
                let whole = self.parts.lock().values().flatten().copied().collect();
                objects.insert(path, whole);
                code(
                    200,
                    "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>",
                )
            }
            Method::POST => error(501, "NotImplemented"),
            Method::PUT if query.contains("partNumber=") => {
                let number = query.split(['=', '&']).nth(1).unwrap().parse().unwrap();
                self.parts.lock().insert(number, body.to_vec());
                code(200, "")
            }
            Method::PUT => {
                if headers.contains_key("if-none-match") {
                    if self.shows(Quirk::Conflict, 1) {
                        return error(409, "ConditionalRequestConflict");
                    }
                    if self.shows(Quirk::FalsePrecondition, 1) || objects.contains_key(&path) {
                        let status = if self.quirk == Quirk::NotModified { 304 } else { 412 };
                        return error(status, "PreconditionFailed");
                    }
                }
                objects.insert(path, body.to_vec());
                code(200, "")
            }
            Method::DELETE => match objects.remove(&path) {
                Some(_) => code(204, ""),
                None => error(404, "NoSuchKey"),
            },
            _ => match objects.get(&path) {
                None => error(404, "NoSuchKey"),
                Some(bytes) => {
                    let (status, mut headers, _) = code(200, "");
                    if *method == Method::HEAD {
                        headers.insert("content-length", bytes.len().into());
                        return (status, headers, Vec::new());
                    }
                    let end = bytes.len() - 1;
                    let range = format!("bytes 0-{end}/{}", bytes.len());
                    headers.insert("content-range", range.parse().unwrap());
                    (StatusCode::PARTIAL_CONTENT, headers, bytes.clone())
                }
            },
        }
    }
}

/// A tier on a store of its own with `quirk`.
async fn with(quirk: Quirk) -> (ObjectTier, Arc<Server>) {
    let server = Arc::new(Server {
        quirk,
        objects: Mutex::default(),
        parts: Mutex::default(),
        shown: Mutex::default(),
    });
    let answers = Arc::clone(&server);
    let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: Body| async move {
        answers.answer(&method, &uri, &headers, &body)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let app =
        axum::Router::new().fallback(answer).layer(axum::extract::DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let settings = ObjectSettings {
        endpoint: Some(endpoint),
        access_key_id: Some("x".into()),
        secret_access_key: Some("y".into()),
        part_size: ByteSize::mib(5),
        ..ObjectSettings::default()
    };
    (ObjectTier::from_url("s3://b/k", &settings).unwrap(), server)
}

#[tokio::test]
async fn what_a_store_answers_otherwise_is_understood() {
    use Quirk::{
        Conflict, ErrorInSuccess, FalsePrecondition, NoBulkDelete, NoTags, NotModified, SlowDown,
    };
    // Of more than a part each.
    const LARGE: usize = 6 << 20;
    for (quirk, size) in [
        (Conflict, 1000),
        (FalsePrecondition, 1000),
        (NotModified, 1000),
        (NoTags, 1000),
        (NoTags, LARGE),
        (SlowDown, 1000),
        (SlowDown, LARGE),
        (NoBulkDelete, 1000),
        (ErrorInSuccess, LARGE),
    ] {
        let (tier, server) = with(quirk).await;
        let blob = blob(1, size);
        // Twice: another node may have been first.
        for _ in 0..2 {
            let stored = Tier::put(&tier, &blob, Hints::default()).await;
            stored.unwrap_or_else(|e| panic!("{quirk:?}: {e}"));
        }
        assert!(server.objects.lock().values().eq([&blob.to_vec()]), "{quirk:?}");
        let got = tier.get(&blob.digest()).await.unwrap().unwrap();
        assert_eq!(got.digest(), blob.digest(), "{quirk:?}");
        // The second finds nothing to delete, which is as good.
        for was_there in [true, false] {
            assert_eq!(tier.remove(&blob.digest()).await.unwrap(), was_there, "{quirk:?}");
        }
        let name = ObjectName { pack: blob.digest(), generation: 0 };
        tier.delete(&name).await.unwrap();
        assert!(server.objects.lock().is_empty(), "{quirk:?}");
        assert_eq!(tier.health(), Health::Up, "{quirk:?}");
    }
}
