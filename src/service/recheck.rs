//! An artifact compared with a new compile, because somebody asks for it.
//!
//! Invariant: who asks may write where the artifact is, for a wrong one is removed.

use kiln_proto::{convert, pb};

use super::{guard::Asks, parts::Parts, wire};
use crate::{
    error::Error,
    manager::{Removed, Verdict},
};

/// Compares, and answers what came of it.
pub(super) async fn recheck(
    parts: &Parts,
    asks: &Asks,
    request: pb::RecheckRequest,
) -> Result<pb::RecheckResponse, Error> {
    use pb::recheck_request::Subject;
    let subject = request.subject.ok_or(Error::Invalid("name a key or a request".into()))?;
    let (key, namespace, request) = match subject {
        Subject::Key(bytes) => {
            let key = convert::key("key", &bytes)?;
            let namespace = parts.own(asks, &key).await?;
            (key, namespace, None)
        }
        Subject::Request(wire) => {
            let namespace = parts.namespace(&wire.namespace).to_owned();
            parts.may(asks, asks.writes(&namespace))?;
            let mut requests = parts.requests(wire)?;
            let (Some(request), true) = (requests.pop(), requests.is_empty()) else {
                return Err(Error::Invalid("one target at a time, and no sizes beside it".into()));
            };
            let key = parts.manager.prepare(&request).await?.components.key();
            (key, namespace, Some(request))
        }
    };
    let (audit, who) = (parts.access.audit(), asks.grant.who());
    let verdict = parts.manager.recheck(key, &namespace, request, audit, who).await?;
    let answer = pb::RecheckResponse {
        key: wire::key(&key),
        result: verdict.name().to_owned(),
        node: parts.node,
        ..Default::default()
    };
    Ok(match verdict {
        Verdict::Equal => answer,
        Verdict::Different { what, signer, removed } => {
            let unremoved = match &removed {
                Removed::Not(why) => why.clone(),
                Removed::Now | Removed::Before => String::new(),
            };
            let removed = removed == Removed::Now;
            pb::RecheckResponse { different: true, why: what, signer, removed, unremoved, ..answer }
        }
        Verdict::Skipped(skip) => {
            pb::RecheckResponse { skipped: true, why: skip.why().to_owned(), ..answer }
        }
    })
}
