//! Calls of clients, each taken down with what came of it.
//!
//! Invariant: an outcome is only certain where the answer says so: a call that failed
//! before it was sent or was refused as malformed has no effect, any other failed write
//! may still have one.

mod bytes;
mod index;
mod leases;
mod wholes;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
};

use kiln_proto::{ArtifactKey, SignedManifest, pb, value};
use parking_lot::Mutex;
use tonic::{Code, Status};

use crate::{
    door::Door,
    history::{Call, End, Kind, Recorder},
    payload,
    resp::Resp,
};

/// The tenant of every call.
const NAMESPACE: &str = "default";

/// What all clients of a run share.
pub(crate) struct Shared {
    pub(crate) recorder: Recorder,
    /// Whether clients ask for no models now: only a strike does.
    pub(crate) models_rest: AtomicBool,
    /// Keys whose names do not tell them.
    keys: Mutex<BTreeMap<String, ArtifactKey>>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            recorder: Recorder::new(),
            models_rest: AtomicBool::new(false),
            keys: Mutex::default(),
        }
    }

    /// The key that histories call `name`.
    pub(crate) fn key(&self, name: &str) -> ArtifactKey {
        let known = self.keys.lock().get(name).copied();
        known.unwrap_or_else(|| value::components(NAMESPACE, name.as_bytes()).key())
    }

    pub(crate) fn learn(&self, name: &str, key: ArtifactKey) {
        self.keys.lock().insert(name.to_owned(), key);
    }
}

/// One client: it makes one call at a time.
pub(crate) struct Caller {
    pub(crate) client: u32,
    pub(crate) shared: Arc<Shared>,
    resp: BTreeMap<usize, Resp>,
}

impl Caller {
    pub(crate) fn new(client: u32, shared: Arc<Shared>) -> Self {
        Self { client, shared, resp: BTreeMap::new() }
    }

    fn begin(&self, door: &Door, kind: Kind, key: &str) -> Call {
        Call {
            client: self.client,
            node: door.node,
            life: door.life.load(std::sync::atomic::Ordering::Relaxed),
            kind,
            key: key.to_owned(),
            start: self.shared.recorder.now(),
            end: i64::MAX,
            ended: End::Unknown,
            wrote: None,
            read: None,
            epoch: None,
            token: None,
            made: None,
            why: String::new(),
        }
    }

    /// Takes down the end of `call`, whose success `learn` completes.
    fn end<T>(
        &self,
        mut call: Call,
        answer: Option<Result<T, Status>>,
        learn: impl FnOnce(&mut Call, T),
    ) -> Call {
        call.end = self.shared.recorder.now();
        match answer {
            Some(Ok(answer)) => {
                call.ended = End::Ok;
                learn(&mut call, answer);
            }
            Some(Err(status)) => {
                call.ended = failed(call.kind, &status);
                call.why = format!("{:?}: {}", status.code(), status.message());
            }
            None => {
                call.ended = failed(call.kind, &Status::cancelled(""));
                call.why = "given up".into();
            }
        }
        self.shared.recorder.call(call.clone());
        call
    }
}

/// Whether a call that failed so may have an effect.
fn failed(kind: Kind, status: &Status) -> End {
    let reads = kind.compiles()
        || matches!(kind, Kind::Latest | Kind::Local | Kind::Fetch | Kind::Get | Kind::List);
    let never_sent = format!("{status:?}").contains("ConnectError");
    match reads || never_sent || status.code() == Code::InvalidArgument {
        true => End::Failed,
        false => End::Unknown,
    }
}

fn bytes_of(key: &ArtifactKey) -> prost::bytes::Bytes {
    prost::bytes::Bytes::copy_from_slice(key.as_bytes())
}

/// How histories name the pack of a manifest.
fn pack_of(manifest: Option<pb::SignedManifest>) -> Option<(ArtifactKey, String)> {
    let manifest = SignedManifest::from(manifest?).read_unverified().ok()?;
    Some((manifest.key, payload::name(&manifest.pack_digest)))
}
