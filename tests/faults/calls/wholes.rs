//! Compiles in pieces.
//!
//! Invariant: a piece is taken down as the answer for its whole tells it, under its own key.

use kiln_proto::{ArtifactKey, SignedManifest, pb};
use tonic::Status;

use super::Caller;
use crate::{
    door::Door,
    history::{Call, End, Kind},
    layers, payload,
};

/// What is told of one artifact: its key, its pack, whether this request had it made.
type Told = (ArtifactKey, String, bool);

impl Caller {
    /// Compiles the model of that number in pieces, or has it from the cache.
    pub(crate) async fn whole(&self, door: &Door, number: usize, deadline_ms: u64) -> Call {
        let name = format!("w{number}");
        let call = self.begin(door, Kind::Whole, &name);
        let start = call.start;
        let compiled = async {
            // Other norms, so other pieces, than any other model of the run has.
            let factor = 1.0 + number as f64 / f64::from(1 << 22);
            let epsilon = move |_, own: f64| own * factor;
            let making = tokio::task::spawn_blocking(move || layers::with_epsilons(epsilon));
            let archive = making.await.map_err(|e| Status::internal(e.to_string()))?;
            let request = pb::CompileRequest {
                deadline_ms,
                ..layers::request(archive, pb::Piecewise::Always, "default")
            };
            let mut events = door.client().compile(request).await?.into_inner();
            while let Some(event) = events.message().await? {
                if let Some(pb::compile_event::Event::Done(done)) = event.event {
                    return told(&done);
                }
            }
            Err(Status::internal("the stream ended without a result"))
        };
        let answer = door.call(compiled).await;
        let mut pieces = Vec::new();
        let call = self.end(call, answer, |call, ((key, pack, made), told)| {
            call.made = Some(made);
            // A node of another build knows no pieces: what it has is another artifact.
            if !told.is_empty() {
                self.shared.learn(&name, key);
                call.read = Some(pack);
            }
            pieces = told;
        });
        for (key, pack, made) in pieces {
            let name = format!("p{:.16}", key.to_string());
            self.shared.learn(&name, key);
            let piece = Call { start, ..self.begin(door, Kind::Piece, &name) };
            self.end(piece, Some(Ok((pack, made))), |piece, (pack, made)| {
                piece.made = Some(made);
                piece.read = Some(pack);
            });
        }
        debug_assert!(call.ended != End::Unknown, "a compile has no effect that others see");
        call
    }
}

/// The whole, and its pieces.
fn told(done: &pb::Done) -> Result<(Told, Vec<Told>), Status> {
    let made = |outcome| outcome == pb::Outcome::Compiled;
    let signed = SignedManifest::from(done.manifest.clone().unwrap_or_default());
    let manifest = signed.read_unverified().map_err(|e| Status::internal(e.to_string()))?;
    let whole = (manifest.key, payload::name(&manifest.pack_digest), made(done.outcome()));
    let pieces = done.pieces.iter().filter_map(|piece| {
        let key = ArtifactKey::try_from(&piece.key[..]).ok()?;
        let named = manifest.pieces.iter().find(|named| named.key == key)?;
        Some((key, payload::name(&named.pack), made(piece.outcome())))
    });
    Ok((whole, pieces.collect()))
}
