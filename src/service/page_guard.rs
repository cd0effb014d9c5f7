//! The door of what the HTTP port tells of artifacts: the dashboard's questions.
//!
//! Invariant: where access is required, only who may read all namespaces is answered; the
//! page itself, which says nothing of any cluster, health and metrics have no door here.

use std::sync::Arc;

use axum::{
    Json,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{guard, http::PeerIp};
use crate::{
    access::{Access, Denied, Grant, Role, Shown},
    error,
};

/// A browser asks its user: any name, and the token as the password.
const ASK: HeaderValue =
    HeaderValue::from_static("Basic realm=\"kiln: any name, token as password\"");

/// Lets a question through to who may ask it.
pub(super) async fn judged(
    State(access): State<Arc<Access>>,
    mut request: Request,
    next: Next,
) -> Response {
    let shown = shown(request.headers());
    let from = request.extensions().get::<ConnectInfo<PeerIp>>().and_then(|from| from.0.0);
    if let Some(bearer) = &shown.bearer {
        access.freshen(bearer, from).await;
    }
    let judged = access.ask(&shown, from).and_then(|grant| {
        let allowed = grant.needs_all(Role::Read);
        allowed.map_err(|denied| (denied, grant.who().clone())).map(|()| grant)
    });
    match judged {
        Ok(grant) => {
            request.headers_mut().remove(header::AUTHORIZATION);
            request.extensions_mut().insert::<Grant>(grant);
            next.run(request).await
        }
        Err((denied, who)) => {
            access.refused(denied, "http", request.uri().path(), &who);
            refusal(denied)
        }
    }
}

fn refusal(denied: Denied) -> Response {
    let (status, code) = match denied {
        Denied::Limit(..) => (StatusCode::TOO_MANY_REQUESTS, None),
        denied if denied.is_passing() => (StatusCode::SERVICE_UNAVAILABLE, None),
        denied if denied.is_known() => (StatusCode::FORBIDDEN, Some(error::NOT_ALLOWED)),
        _ => (StatusCode::UNAUTHORIZED, Some(error::UNAUTHENTICATED)),
    };
    let body = Json(json!({ "error": denied.to_string(), "code": code }));
    let mut response = (status, body).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, ASK);
    }
    if let Some(after) = denied.retry_after() {
        let seconds = HeaderValue::from(error::whole_seconds(after));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

/// A token, or the password of what a browser sends.
fn shown(headers: &HeaderMap) -> Shown {
    let mut shown = guard::shown(headers, None);
    if shown.bearer.as_deref() == Some("") {
        let mut named = headers.get_all(header::AUTHORIZATION).iter();
        let one = named.next().filter(|_| named.next().is_none());
        let basic = one.and_then(|value| {
            let text = value.to_str().ok()?;
            let coded = text.strip_prefix("Basic ").or_else(|| text.strip_prefix("basic "))?;
            let named = String::from_utf8(STANDARD.decode(coded.trim()).ok()?).ok()?;
            Some(named.split_once(':')?.1.to_owned())
        });
        shown.bearer = Some(basic.unwrap_or_default());
    }
    shown
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_browser_shows_the_token_as_a_password() {
        let bearer = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            shown(&headers).bearer.unwrap()
        };
        assert_eq!(bearer(&format!("Basic {}", STANDARD.encode("me:kiln_1"))), "kiln_1");
        assert_eq!(bearer("Bearer kiln_1"), "kiln_1");
        for bad in ["Basic", "Basic !", "Basic eA==", "Digest x"] {
            assert_eq!(bearer(bad), "", "{bad}");
        }
        assert_eq!(shown(&HeaderMap::new()).bearer, None);
    }
}
