//! Calls that bring bytes, and Redis clients'.
//!
//! Invariant: what is taken down as read is the digest of the bytes that came, whatever
//! the node says of them.

use kiln_proto::{Digest, Target, pb};
use tonic::Status;

use super::{Caller, NAMESPACE, bytes_of, pack_of};
use crate::{
    door::Door,
    history::{Call, End, Kind},
    payload,
};

impl Caller {
    /// The bytes of `name`.
    pub(crate) async fn fetch(&self, door: &Door, name: &str) -> Call {
        let call = self.begin(door, Kind::Fetch, name);
        let key = self.shared.key(name);
        let fetched = async {
            let request = pb::FetchRequest {
                key: bytes_of(&key),
                namespace: NAMESPACE.into(),
                ..Default::default()
            };
            let mut chunks = door.client().fetch(request).await?.into_inner();
            let (mut says, mut pack) = (None, Vec::new());
            while let Some(chunk) = chunks.message().await? {
                match chunk.chunk {
                    Some(pb::fetch_chunk::Chunk::Header(header)) => says = pack_of(header.manifest),
                    Some(pb::fetch_chunk::Chunk::Data(bytes)) => pack.extend_from_slice(&bytes),
                    None => {}
                }
            }
            let (of, says) = says.ok_or_else(|| Status::internal("no manifest came"))?;
            Ok((of == key, says, payload::name(&Digest::of(&pack))))
        };
        let answer = door.call(fetched).await;
        self.end(call, answer, |call, (same_key, says, came)| {
            if !same_key || says != came {
                call.why = format!("the manifest says {says}; of this key: {same_key}");
            }
            call.read = Some(came);
        })
    }

    /// SET: its OK is no promise, so nothing is known of it.
    pub(crate) async fn set(&mut self, door: &Door, name: &str, bytes: &[u8]) -> Call {
        let mut call = self.begin(door, Kind::Set, name);
        call.wrote = Some(payload::name(&Digest::of(bytes)));
        let resp = self.resp.entry(door.node).or_default();
        let answer = door.call(resp.set(door.resp, name, bytes)).await;
        let answer = answer.map(|answer| answer.map_err(Status::unknown));
        self.end(call, answer, |call, ()| call.ended = End::Unknown)
    }

    pub(crate) async fn get(&mut self, door: &Door, name: &str) -> Call {
        let call = self.begin(door, Kind::Get, name);
        let resp = self.resp.entry(door.node).or_default();
        let answer = door.call(resp.get(door.resp, name)).await;
        let answer = answer.map(|answer| answer.map_err(Status::unknown));
        self.end(call, answer, |call, value| {
            call.read = value.map(|bytes| payload::name(&Digest::of(&bytes)));
        })
    }

    /// Compiles the kernel `name`, or has it from the cache.
    pub(crate) async fn compile(&self, door: &Door, name: &str, deadline_ms: u64) -> Call {
        let call = self.begin(door, Kind::Compile, name);
        let request = pb::CompileRequest { deadline_ms, ..saxpy(name) };
        let compiled = async {
            let mut events = door.client().compile(request).await?.into_inner();
            while let Some(event) = events.message().await? {
                if let Some(pb::compile_event::Event::Done(done)) = event.event {
                    return Ok(done);
                }
            }
            Err(Status::internal("the stream ended without a result"))
        };
        let answer = door.call(compiled).await;
        self.end(call, answer, |call, done| {
            call.made = Some(done.outcome() == pb::Outcome::Compiled);
            if let Some((key, pack)) = pack_of(done.manifest) {
                self.shared.learn(name, key);
                call.read = Some(pack);
            }
        })
    }
}

/// A kernel whose name, and so whose key, is `name`.
fn saxpy(name: &str) -> pb::CompileRequest {
    let source = format!(
        "extern \"C\" __global__ void {name}(int n, float a, const float* x, float* y) {{\n\
         int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] += a * x[i]; }}\n"
    );
    let name = "faults.cu".into();
    let cuda = pb::CudaSource { name, source: source.into_bytes().into(), ..Default::default() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Cuda(cuda)),
        targets: vec![Target::cubin(90).into()],
        namespace: NAMESPACE.into(),
        ..Default::default()
    }
}
