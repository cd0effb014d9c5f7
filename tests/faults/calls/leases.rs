//! The right to compile a key, and publications under it.
//!
//! Invariant: a lease lives until its [`Held`] is dropped, unless it expires before.

use kiln_proto::{
    Component, Components, Digest, FileEntry, Fingerprint, KeyField, Manifest, Target,
    claimed_components, pb, pb::lease_event::Event,
};
use tonic::{Status, Streaming};

use super::{Caller, NAMESPACE, bytes_of, index::send, pack_of};
use crate::{
    door::Door,
    history::{Call, Kind},
    payload,
};

/// A lease that was granted.
pub(crate) struct Held {
    granted: pb::Granted,
    _stream: Option<Streaming<pb::LeaseEvent>>,
}

impl Held {
    /// Gives the lease back; what is left shows a token that is over.
    pub(crate) fn end(self) -> Self {
        Self { granted: self.granted, _stream: None }
    }
}

impl Caller {
    /// Asks for the right to publish `name`: granted, or the key has an artifact.
    pub(crate) async fn lease(
        &self,
        door: &Door,
        name: &str,
        deadline_ms: u64,
    ) -> (Call, Option<Held>) {
        let call = self.begin(door, Kind::Lease, name);
        let key = artifact(name, b"").key;
        self.shared.learn(name, key);
        let asked = async {
            let request = pb::LeaseRequest { key: bytes_of(&key), deadline_ms };
            let mut stream = door.client().lease(request).await?.into_inner();
            while let Some(event) = stream.message().await? {
                match event.event {
                    Some(Event::Granted(granted)) => return Ok((Some((granted, stream)), None)),
                    Some(Event::Ready(manifest)) => return Ok((None, pack_of(Some(manifest)))),
                    Some(Event::Failed(failure)) => return Err(Status::aborted(failure.message)),
                    Some(Event::Waiting(_)) | None => {}
                }
            }
            Err(Status::unknown("the stream ended"))
        };
        let mut held = None;
        let answer = door.call(asked).await;
        let call = self.end(call, answer, |call, (granted, ready)| {
            call.read = ready.map(|(_, pack)| pack);
            if let Some((granted, stream)) = granted {
                call.token = Some(granted.token);
                held = Some(Held { granted, _stream: Some(stream) });
            }
        });
        (call, held)
    }

    /// Publishes `bytes` as the artifact `name`.
    pub(crate) async fn publish(&self, door: &Door, name: &str, held: &Held, bytes: &[u8]) -> Call {
        let mut call = self.begin(door, Kind::Publish, name);
        let manifest = artifact(name, bytes);
        call.wrote = Some(payload::name(&manifest.pack_digest));
        let pb::Granted { token, grant } = held.granted.clone();
        call.token = Some(token);
        let manifest = Some((&manifest).into());
        let header = pb::PublishHeader { token, manifest, replace: false, grant };
        let answer = door.call(send(door, header, bytes)).await;
        self.end(call, answer, |call, answer| {
            call.made = Some(answer.committed);
            call.read = pack_of(answer.manifest).map(|(_, pack)| pack);
        })
    }
}

/// The artifact `name`, compiled by hand.
fn artifact(name: &str, pack: &[u8]) -> Manifest {
    let fields = vec![KeyField::new("name", name)];
    let (fingerprint, target) = (Fingerprint::new("faults", [("version", "1")]), Target::cubin(90));
    let claims = claimed_components(&fingerprint, &target, NAMESPACE);
    let graph = Component::new("graph", fields);
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let digest = Digest::of(pack);
    let size = pack.len() as u64;
    Manifest {
        key: components.key(),
        namespace: NAMESPACE.into(),
        components,
        fingerprint,
        target,
        files: vec![FileEntry { path: "out.bin".into(), offset: 0, size, digest }],
        pack_digest: digest,
        pack_size: size,
        producer: 0,
        compile_seconds: 1.0,
        created_unix_ms: 0,
        label: name.into(),
        pieces: Vec::new(),
        check: None,
    }
}
