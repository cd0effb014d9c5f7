//! The door of the gRPC ports: nobody's call is looked at before it is known who asks.
//!
//! Invariant: a call that this lets through has [`Asks`] with the role that its method
//! needs; a handler that finds none refuses. What is refused is counted.

use std::{
    net::IpAddr,
    ops::Deref,
    sync::Arc,
    task::{Context, Poll},
};

use kiln_cluster::{Caller, tell_of_unproved};
use tonic::{
    Request, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
};
use tower::Layer;

use crate::{
    access::{self, Access, Denied, Grant, Identity, Right, Shown},
    error::Error,
};

/// How a header names a token.
const SCHEME: &str = "bearer ";

/// What the user that runs a node may ask of it at its socket in any case: its pod is told to
/// leave before it ends.
const OWN: [&str; 2] = ["Status", "Leave"];

/// Judges the callers of a port.
#[derive(Clone)]
pub struct Guard {
    access: Arc<Access>,
    /// Whether it is the members' port, where who connects was judged before.
    members: bool,
    /// Whether who has not joined is refused there, and not only counted.
    needs_proof: bool,
}

impl Guard {
    /// Of a port for clients.
    pub fn of_clients(access: Arc<Access>) -> Self {
        Self { access, members: false, needs_proof: false }
    }

    /// Of the members' port.
    ///
    /// `needs_proof`: whether who has not joined is refused, and not only counted.
    pub fn of_members(access: Arc<Access>, needs_proof: bool) -> Self {
        Self { access, members: true, needs_proof }
    }

    /// A token of an issuer whose keys are not all known, maybe.
    fn may_be_new(&self, request: &http::Request<Body>) -> Option<String> {
        if self.members {
            return None;
        }
        let bearer = shown(request.headers(), None).bearer?;
        let from = address(request.extensions().get::<Caller>());
        self.access.wants_keys_of(&bearer, from).then_some(bearer)
    }

    fn judge(&self, request: &http::Request<Body>) -> Result<Option<Grant>, Refused> {
        let path = request.uri().path();
        let caller = request.extensions().get::<Caller>();
        if self.members {
            let who = Identity::Member(caller.and_then(|caller| caller.node));
            if !access::of_members(path) {
                return Err(Refused { denied: Denied::NotMembers, who });
            }
            // What else members say to each other is judged where it is taken.
            let has_joined = caller.is_none_or(|caller| self.access.has_joined(caller));
            if !has_joined && access::is_of_api(path) {
                if self.needs_proof {
                    return Err(Refused { denied: Denied::NotJoined, who });
                }
                tell_of_unproved("api", &format!("{who} calls {path}"));
            }
            return Ok(Some(self.access.all(who)));
        }
        let right = access::method(path);
        if right == Some(Right::Open) {
            return Ok(None);
        }
        let shown = shown(request.headers(), caller);
        if let (Some(uid), None, true) =
            (shown.uid, &shown.bearer, OWN.contains(&access::name(path)))
            && self.access.is_own(uid)
        {
            return Ok(Some(self.access.all(Identity::User(uid))));
        }
        let known = self.access.ask(&shown, address(caller));
        let grant = known.map_err(|(denied, who)| Refused { denied, who })?;
        let allowed = match right {
            Some(Right::Needs(role)) => grant.needs(role),
            Some(Right::NeedsAll(role)) => grant.needs_all(role),
            // Who has all rights is told that there is no such method.
            Some(Right::Open) | None => grant.needs_all(access::Role::Admin),
        };
        match allowed {
            Ok(()) => Ok(Some(grant)),
            Err(denied) => Err(Refused { denied, who: grant.who().clone() }),
        }
    }
}

/// Where a caller is.
fn address(caller: Option<&Caller>) -> Option<IpAddr> {
    caller.and_then(|caller| caller.from).map(|from| from.ip())
}

struct Refused {
    denied: Denied,
    who: Identity,
}

/// What the headers and the connection of a request show.
pub(super) fn shown(headers: &http::HeaderMap, caller: Option<&Caller>) -> Shown {
    let mut named = headers.get_all(http::header::AUTHORIZATION).iter();
    let bearer = named.next().map(|value| {
        let text = value.to_str().unwrap_or_default();
        // Two of them: whichever is meant, neither is taken.
        let one = named.next().is_none();
        let token = text.get(..SCHEME.len()).filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
        token.filter(|_| one).map_or_else(String::new, |_| text[SCHEME.len()..].trim().to_owned())
    });
    Shown {
        bearer,
        certificate: caller.and_then(|caller| caller.names.clone()),
        uid: caller.and_then(|caller| caller.uid),
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service behind a [`Guard`].
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if let Some(bearer) = self.guard.may_be_new(&request) {
            // The one that is ready is the one that is called.
            let next = self.inner.clone();
            let inner = std::mem::replace(&mut self.inner, next);
            let mut guarded = Self { inner, guard: self.guard.clone() };
            return Box::pin(async move {
                let from = address(request.extensions().get::<Caller>());
                guarded.guard.access.freshen(&bearer, from).await;
                guarded.judged(request).await
            });
        }
        self.judged(request)
    }
}

impl<S> Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    fn judged(
        &mut self,
        mut request: http::Request<Body>,
    ) -> BoxFuture<http::Response<Body>, S::Error> {
        match self.guard.judge(&request) {
            Ok(grant) => {
                // What it showed goes no further.
                request.headers_mut().remove(http::header::AUTHORIZATION);
                if let Some(grant) = grant {
                    let method = access::name(request.uri().path());
                    let from = address(request.extensions().get::<Caller>());
                    request.extensions_mut().insert(Asks { grant, method, from });
                }
                Box::pin(self.inner.call(request))
            }
            Err(Refused { denied, who }) => {
                let door = if self.guard.members { "members" } else { "grpc" };
                self.guard.access.refused(denied, door, access::name(request.uri().path()), &who);
                let status = Status::from(Error::from(denied));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

/// Who asks, in a handler.
#[derive(Clone)]
pub(super) struct Asks {
    pub(super) grant: Grant,
    method: &'static str,
    /// Where from.
    pub(super) from: Option<IpAddr>,
}

impl Asks {
    /// The method that was called.
    pub(super) fn method(&self) -> &'static str {
        self.method
    }
}

impl Deref for Asks {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

/// Who sent a request, and what it says. A request that came past every guard is refused.
pub(super) fn asks<T>(request: Request<T>) -> Result<(Asks, T), Status> {
    let Some(asks) = request.extensions().get::<Asks>().cloned() else {
        return Err(Status::internal("nobody has judged who asks"));
    };
    Ok((asks, request.into_inner()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn bearer(values: &[&str]) -> Option<String> {
        let mut headers = http::HeaderMap::new();
        for value in values {
            headers.append(http::header::AUTHORIZATION, value.parse().unwrap());
        }
        shown(&headers, None).bearer
    }

    #[test]
    fn a_header_that_names_no_one_token_is_not_as_none() {
        assert_eq!(bearer(&[]), None);
        assert_eq!(bearer(&["Bearer kiln_1"]).as_deref(), Some("kiln_1"));
        assert_eq!(bearer(&["bearer  kiln_1 "]).as_deref(), Some("kiln_1"));
        for bad in [&["Basic eDp5"][..], &["Bearer"], &["kiln_1"], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(bad).as_deref(), Some(""), "{bad:?}");
        }
    }
}
