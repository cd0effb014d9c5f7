//! Requests and answers of the API, from and to the wire.
//!
//! Invariant: a request that is too large, empty or contradictory is refused
//! here, with the field named, before anything is done for it.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use kiln_cluster::{Cluster, Entry, Role};
use kiln_proto::{ArtifactKey, NAMESPACE_RULE, convert, is_namespace, pb};

use crate::{
    compiler::{CompileInput, CudaSource, Source},
    error::Error,
    manager::{Answer, Outcome, Request},
};

/// Most targets in one call.
const MOST_TARGETS: usize = 32;
/// Longest bound that a caller may ask for.
const LONGEST_DEADLINE: Duration = Duration::from_secs(3600);

/// One request per target, in request order.
pub(super) fn requests(
    wire: pb::CompileRequest,
    default_deadline: Duration,
) -> Result<Vec<Request>, Error> {
    let invalid = |field, why: &str| Error::from(convert::InvalidField::new(field, why));
    if wire.targets.is_empty() || wire.targets.len() > MOST_TARGETS {
        return Err(invalid("targets", "give 1 to 32 targets"));
    }
    let source = match wire.source.ok_or_else(|| invalid("source", "missing"))? {
        pb::compile_request::Source::Cuda(cuda) => Source::Cuda(CudaSource {
            name: cuda.name,
            source: cuda.source,
            headers: cuda.headers.into_iter().collect(),
            options: cuda.options,
            name_expressions: cuda.name_expressions,
        }),
        pb::compile_request::Source::Program(program) => {
            Source::Program { name: program.name, archive: program.archive }
        }
    };
    let mut options = BTreeMap::new();
    for option in wire.options {
        if options.insert(option.name, option.value).is_some() {
            return Err(invalid("options", "an option is given twice"));
        }
    }
    if !is_namespace(&wire.namespace) {
        return Err(invalid("namespace", NAMESPACE_RULE));
    }
    let backend = match wire.backend.as_str() {
        "" => "auto".to_owned(),
        named => named.to_owned(),
    };
    let deadline = tokio::time::Instant::now() + bound(wire.deadline_ms, default_deadline);
    wire.targets
        .iter()
        .map(|target| {
            Ok(Request {
                input: CompileInput {
                    source: source.clone(),
                    target: convert::target(target)?,
                    options: options.clone(),
                    namespace: wire.namespace.clone(),
                },
                backend: backend.clone(),
                disable_cache: wire.disable_cache,
                forwarded: wire.forwarded,
                deadline,
            })
        })
        .collect()
}

/// A caller's bound in milliseconds; 0 means `default`.
pub(super) fn bound(deadline_ms: u64, default: Duration) -> Duration {
    match deadline_ms {
        0 => default,
        ms => Duration::from_millis(ms).min(LONGEST_DEADLINE),
    }
}

/// The end of one target's compile.
pub(super) fn done(answer: &Answer, node: u64, elapsed: Duration) -> pb::Done {
    let outcome = match answer.outcome {
        Outcome::Hit => pb::Outcome::Hit,
        Outcome::Compiled => pb::Outcome::Compiled,
        Outcome::Coalesced => pb::Outcome::Coalesced,
    };
    pb::Done {
        manifest: Some((&*answer.signed).into()),
        outcome: outcome.into(),
        tier: answer.origin.unwrap_or_default().into(),
        node,
        elapsed_seconds: elapsed.as_secs_f64(),
    }
}

/// A key.
pub(super) fn key(key: &ArtifactKey) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// An index entry.
pub(super) fn entry(entry: &Entry) -> pb::Entry {
    pb::Entry {
        manifest: Some((&*entry.manifest).into()),
        epoch: entry.epoch,
        stored: entry.stored,
        generation: entry.generation,
        pinned: entry.pinned,
        holders: entry.holders.clone(),
        hits: entry.hits,
    }
}

/// A node's role, as `kiln status` and `/readyz` show it.
pub(super) fn role(cluster: &Cluster, role: Role) -> &'static str {
    match role {
        _ if cluster.has_left() => "removed",
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Waiting => "waiting",
        Role::Stopped => "stopped",
    }
}
