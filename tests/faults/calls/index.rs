//! Calls that move no bytes out of a node: writes of values, and reads of the index.
//!
//! Invariant: a lookup is taken down with its epoch and the digest of the entry's pack.

use kiln_proto::{Digest, pb, pb::publish_chunk::Chunk, value};

use super::{Caller, NAMESPACE, bytes_of, pack_of};
use crate::{
    door::Door,
    history::{Call, Kind},
    payload,
};

impl Caller {
    /// Replaces the value `name`.
    pub(crate) async fn put(&self, door: &Door, name: &str, bytes: &[u8]) -> Call {
        let mut call = self.begin(door, Kind::Put, name);
        let digest = Digest::of(bytes);
        call.wrote = Some(payload::name(&digest));
        let manifest = value::manifest(NAMESPACE, name.as_bytes(), digest, bytes.len() as u64, 0.0);
        let manifest = Some((&manifest).into());
        let header = pb::PublishHeader { manifest, replace: true, ..Default::default() };
        let answer = door.call(send(door, header, bytes)).await;
        self.end(call, answer, |call, answer| call.made = Some(answer.committed))
    }

    pub(crate) async fn remove(&self, door: &Door, name: &str) -> Call {
        let call = self.begin(door, Kind::Remove, name);
        let key = bytes_of(&self.shared.key(name));
        let mut client = door.client();
        let asked = client.tombstone(pb::TombstoneRequest { key, reason: "faults".into() });
        let answer = door.call(asked).await;
        self.end(call, answer, |call, answer| call.made = Some(answer.into_inner().existed))
    }

    /// The entry of `name`: the leader's, or the one of the node's own replica.
    pub(crate) async fn lookup(&self, door: &Door, name: &str, latest: bool) -> Call {
        let kind = if latest { Kind::Latest } else { Kind::Local };
        let call = self.begin(door, kind, name);
        let key = bytes_of(&self.shared.key(name));
        let namespace = NAMESPACE.into();
        let mut client = door.client();
        let asked = client.lookup(pb::LookupRequest { key, linearizable: latest, namespace });
        let answer = door.call(asked).await;
        self.end(call, answer, |call, answer| {
            let Some(entry) = answer.into_inner().entry else { return };
            call.epoch = Some(entry.epoch);
            call.read = pack_of(entry.manifest).map(|(_, pack)| pack);
        })
    }

    pub(crate) async fn pin(&self, door: &Door, name: &str, pinned: bool) -> Call {
        let call = self.begin(door, Kind::Pin, name);
        let key = bytes_of(&self.shared.key(name));
        let mut client = door.client();
        let answer = door.call(client.pin(pb::PinRequest { key, pinned })).await;
        self.end(call, answer, |_, _| {})
    }

    pub(crate) async fn list(&self, door: &Door) -> Call {
        let call = self.begin(door, Kind::List, "");
        let mut client = door.client();
        let answer = door.call(client.list(pb::ListRequest { limit: 50, ..Default::default() }));
        self.end(call, answer.await, |_, _| {})
    }
}

/// Sends a publication.
pub(super) async fn send(
    door: &Door,
    header: pb::PublishHeader,
    pack: &[u8],
) -> Result<pb::PublishResponse, tonic::Status> {
    let data = prost::bytes::Bytes::copy_from_slice(pack);
    let chunks = [Chunk::Header(header), Chunk::Data(data)];
    let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
    let sent = door.client().publish(futures::stream::iter(chunks)).await?;
    Ok(sent.into_inner())
}
