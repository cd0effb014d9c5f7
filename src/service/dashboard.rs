//! The dashboard at the HTTP port: its page, the view behind it, and news of it.
//!
//! Invariant: a page of another site can neither be shown as ours nor read what is told
//! here, and no text of a request or an artifact is ever markup; whoever reads slowly is
//! let go.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
};

use axum::{
    Extension, Json, Router,
    extract::{Path, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{
        IntoResponse, Redirect, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures::{Stream, stream};
use kiln_proto::ArtifactKey;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::page_guard::judged;
use crate::{
    access::{Access, Grant},
    dashboard::{Dashboard, files},
};

/// News that wait for a reader: whoever leaves more unread is let go.
const UNREAD: usize = 4;

/// Nothing but what this node serves is loaded, run or shown, and nobody else frames it.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; object-src 'none'";

/// The dashboard, once this node has one.
#[derive(Clone, Default)]
pub struct Page(Arc<OnceLock<Arc<Dashboard>>>);

impl Page {
    /// From now on questions are answered by `dashboard`.
    pub fn open(&self, dashboard: Arc<Dashboard>) {
        // A second call would be a second node in one process: the first one stays.
        let _ = self.0.set(dashboard);
    }
}

#[derive(Clone)]
struct Answers {
    page: Page,
    access: Arc<Access>,
    stop: CancellationToken,
}

/// All routes; news end at `stop`.
pub(super) fn routes(page: Page, access: Arc<Access>, stop: CancellationToken) -> Router {
    let answers = Router::new()
        .route("/api/v1/state", get(state))
        .route("/api/v1/events", get(events))
        .route("/api/v1/artifacts/{key}", get(artifact))
        .route_layer(middleware::from_fn_with_state(access.clone(), judged));
    Router::new()
        .route("/", get(async || Redirect::temporary("/ui/")))
        .route("/ui", get(async || Redirect::temporary("/ui/")))
        .route("/ui/", get(async || file("")))
        .route("/ui/{*path}", get(async |Path(path): Path<String>| file(&path)))
        .merge(answers)
        .layer(middleware::from_fn(guarded))
        .with_state(Answers { page, access, stop })
}

/// What a browser may do with the answer.
async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    // Another version of the node has another page.
    set(header::CACHE_CONTROL, "no-cache");
    response
}

fn file(path: &str) -> Response {
    match files::file(path) {
        Some(file) => ([(header::CONTENT_TYPE, file.kind)], file.bytes).into_response(),
        None => refused(StatusCode::NOT_FOUND, "there is no such file").into_response(),
    }
}

/// A question without an answer.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(code, why) = self;
        (code, Json(json!({ "error": why }))).into_response()
    }
}

fn refused(code: StatusCode, why: impl Into<String>) -> Refused {
    Refused(code, why.into())
}

impl Answers {
    fn dashboard(&self) -> Result<&Arc<Dashboard>, Refused> {
        let joining = || refused(StatusCode::SERVICE_UNAVAILABLE, "this node is still joining");
        self.page.0.get().ok_or_else(joining)
    }
}

async fn state(State(answers): State<Answers>) -> Result<Response, Refused> {
    let shown = answers.dashboard()?.shown(false).await;
    let none = || refused(StatusCode::SERVICE_UNAVAILABLE, "there is no view yet: try again");
    Ok(Json(&shown.ok_or_else(none)?.view).into_response())
}

async fn artifact(
    State(answers): State<Answers>,
    Path(key): Path<String>,
) -> Result<Response, Refused> {
    let key: ArtifactKey = key
        .parse()
        .map_err(|_| refused(StatusCode::BAD_REQUEST, "a key has 64 lower-case hex digits"))?;
    match answers.dashboard()?.artifact(&key).await {
        Ok(Some(found)) => Ok(Json(found).into_response()),
        Ok(None) => Err(refused(StatusCode::NOT_FOUND, "nothing is known of this key")),
        Err(e) => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
    }
}

async fn events(
    State(answers): State<Answers>,
    Extension(grant): Extension<Grant>,
) -> Result<Response, Refused> {
    let watcher = answers.dashboard()?.watch();
    let enough = || refused(StatusCode::SERVICE_UNAVAILABLE, "enough browsers watch this node");
    let mut watcher = watcher.ok_or_else(enough)?;
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(UNREAD);
    let (stop, access) = (answers.stop, answers.access);
    tokio::spawn(async move {
        loop {
            let shown = tokio::select! {
                shown = watcher.next() => shown,
                // The reader left.
                () = sender.closed() => return,
                () = stop.cancelled() => return,
            };
            let Some(shown) = shown else { return };
            // A token may end while its bearer looks on.
            if access.still(&grant).is_err() {
                return;
            }
            // Full: the reader has left several unread. Its place goes to somebody else.
            if sender.try_send(Ok(Event::default().data(&shown.news))).is_err() {
                return;
            }
        }
    });
    Ok(news(ReceiverStream::new(receiver)).into_response())
}

/// Told first: how soon to come again after an end.
fn news(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + Send + 'static> {
    let retry = Event::default().retry(std::time::Duration::from_secs(1));
    Sse::new(futures::StreamExt::chain(stream::iter([Ok(retry)]), events))
}
