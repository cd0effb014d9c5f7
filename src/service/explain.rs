//! Why a key was not answered: its nearest stored neighbour, and the fields
//! that keep them apart.
//!
//! Invariant: what is told differs in the fields named, and in no others.

use std::{net::SocketAddr, time::SystemTime};

use kiln_cluster::Index;
use kiln_proto::{ArtifactKey, Components, Difference, Manifest, NodeId, convert, pb};
use tokio_util::sync::CancellationToken;

use super::{blocking::blocking, guard::Asks, parts::Parts, wire};
use crate::{
    access::Grant,
    error::Error,
    scan::{
        Bounds, Scanned,
        nearest::{Nearest, nearest},
    },
};

/// Most bytes of a reason to remove an artifact.
const MOST_REASON: usize = 1024;

/// A key held against the entry that is nearest to it.
pub(super) struct Explanation {
    pub(super) components: Components,
    pub(super) nearest: Option<(ArtifactKey, Vec<Difference>)>,
    /// How many entries were looked at.
    pub(super) scanned: Scanned,
}

/// Explains the key of `components` by what `grant` may read, within `bounds`; ends early when `stop` says so.
/// Blocks: not for runtime threads.
pub(super) fn explain(
    index: &Index,
    components: &Components,
    grant: &Grant,
    bounds: Bounds,
    stop: &CancellationToken,
) -> Result<Explanation, Error> {
    let may_read = |namespace: &str| grant.may_read(namespace);
    let mut searches = [Nearest::new(components).within(&may_read)];
    let scanned = nearest(index, bounds, stop, &mut searches)?;
    let [search] = searches;
    Ok(Explanation { components: components.clone(), nearest: search.found(), scanned })
}

/// The components of a stored key.
pub(super) async fn components_of(index: &Index, key: &ArtifactKey) -> Result<Components, Error> {
    let entry = index.lookup(key).await?.ok_or(Error::NotFound(*key))?;
    let manifest: Manifest = entry.manifest.read_unverified()?;
    Ok(manifest.components)
}

/// What there is to say of a key without an artifact: why its last one is no more.
pub(super) async fn ended(index: &Index, key: &ArtifactKey) -> Result<pb::ExplainResponse, Error> {
    let ended = index.ended(key).await?.ok_or(Error::NotFound(*key))?;
    Ok(pb::ExplainResponse { key: wire::key(key), ended, ..Default::default() })
}

/// Answers why a key was, or would be, missed.
pub(super) async fn answer(
    parts: &Parts,
    asks: Asks,
    request: pb::ExplainRequest,
) -> Result<pb::ExplainResponse, Error> {
    use pb::explain_request::Subject;
    let subject = request.subject;
    let components = match subject.ok_or(Error::Invalid("name a key or a request".into()))? {
        Subject::Key(bytes) => {
            let key = convert::key("key", &bytes)?;
            parts.not_anothers(&asks, &key).await?;
            match components_of(&parts.index, &key).await {
                // What was removed has no components any more, and a reason. Whose it was
                // is not known any more, so it is told to who may read all.
                Err(Error::NotFound(_)) if asks.reads_all() => {
                    return ended(&parts.index, &key).await;
                }
                components => components?,
            }
        }
        Subject::Request(wire) => {
            parts.may(&asks, asks.reads(parts.namespace(&wire.namespace)))?;
            let requests = parts.requests(wire)?;
            parts.manager.prepare(&requests[0]).await?.components.clone()
        }
    };
    let key = components.key();
    let stored = parts.index.lookup(&key).await?.is_some();
    let ended = match stored {
        true => None,
        false => parts.index.ended(&key).await?,
    };
    let index = parts.index.clone();
    // A client that leaves ends the search.
    let stop = CancellationToken::new();
    let (_ended, stopped) = (stop.clone().drop_guard(), stop);
    let search = move || explain(&index, &components, &asks.grant, Bounds::default(), &stopped);
    let found = blocking(search).await??;
    let (nearest, differences) = match &found.nearest {
        Some((key, differences)) => (wire::key(key), differences.iter().map(Into::into).collect()),
        None => (bytes::Bytes::new(), Vec::new()),
    };
    Ok(pb::ExplainResponse {
        key: wire::key(&found.components.key()),
        stored,
        components: found.components.iter().map(Into::into).collect(),
        nearest,
        differences,
        looked_at: found.scanned.entries,
        entries: parts.cluster.status().entries,
        cut: !found.scanned.complete,
        ended: ended.unwrap_or_default(),
    })
}

/// A reason to remove an artifact, with when that was asked for, where, and by whom: for
/// whoever asks later, of whichever node. Refused where it is long, or not one line of text.
pub(super) fn removal(
    reason: &str,
    node: NodeId,
    from: Option<SocketAddr>,
    now: SystemTime,
) -> Result<String, Error> {
    if reason.len() > MOST_REASON {
        return Err(Error::Invalid(format!("a reason has at most {MOST_REASON} bytes")));
    }
    if reason.chars().any(char::is_control) {
        return Err(Error::Invalid("a reason is one line, without control characters".into()));
    }
    let from = from.map(|from| format!(", asked from {}", from.ip())).unwrap_or_default();
    let at = humantime::format_rfc3339_seconds(now);
    Ok(format!("{reason} (removed {at} by node {node}{from})"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use kiln_cluster::tokens::Role;
    use kiln_proto::value;

    use super::*;
    use crate::{access::Identity, scan::tests::Filled};

    #[tokio::test(flavor = "multi_thread")]
    async fn the_nearest_entry_is_found_on_whichever_page_it_lies() {
        let filled = Filled::start(20).await;
        // One field apart from the entry of the same name, two from all others.
        let wanted = value::components("another", b"name-7");
        let near = value::components("test", b"name-7").key();
        let stop = CancellationToken::new();
        let bounds = |time| Bounds { page: 3, time };
        let grant = |namespace: &str| {
            let namespaces = [namespace.to_owned()];
            Grant::new(Identity::Anyone, Role::Read, &namespaces, Vec::new().into())
        };
        let of_another = grant("team");
        let blind = explain(&filled.index, &wanted, &of_another, bounds(Duration::MAX), &stop);
        assert_eq!(blind.unwrap().nearest, None, "it may not read any of them");
        let grant = grant("test");
        let all = explain(&filled.index, &wanted, &grant, bounds(Duration::MAX), &stop).unwrap();
        assert_eq!(all.nearest.unwrap().0, near);
        assert_eq!(all.scanned, Scanned { entries: 20, complete: true });
        let cut = explain(&filled.index, &wanted, &grant, bounds(Duration::ZERO), &stop).unwrap();
        assert_eq!(cut.scanned, Scanned { entries: 0, complete: false });
        filled.stop().await;
    }
}
