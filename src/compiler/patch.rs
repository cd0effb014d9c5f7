//! A whole with other artifacts in the place of pieces that could not be compiled.
//!
//! Invariant: its key is never that of the whole as it was planned, nor one that any request
//! is planned to; what a piece computes stays as it is, whoever compiles it.

use std::{collections::BTreeMap, sync::Arc};

use kiln_native::split::stitch::Stitching;
use kiln_proto::{Component, Failure, FailureKind, KeyField, component};

use super::{CompileInput, Job, Prepared, Stitch, StitchPiece, generated};

impl Prepared {
    /// The same whole with `others` in the place of the pieces at these positions. `input` is
    /// what the whole was prepared of.
    pub fn patched(
        &self,
        input: &CompileInput,
        others: &BTreeMap<usize, Arc<Prepared>>,
    ) -> Result<Self, Failure> {
        let crashed = |why: String| Failure::new(FailureKind::Crashed, why);
        let Some(stitch) = self.stitch() else {
            return Err(crashed("what is no whole has no piece to be replaced".into()));
        };
        let mut stitching = Stitching::read(stitch.stitching())
            .map_err(|e| crashed(format!("the stitching is wrong: {e}")))?;
        let mut pieces = stitch.pieces.clone();
        // Named as well: in `generated` nobody sees which piece is another's.
        let mut replaced = Vec::with_capacity(others.len());
        for (position, other) in others {
            let (Some(piece), Some(interface)) =
                (pieces.get_mut(*position), stitching.pieces.get_mut(*position))
            else {
                return Err(crashed(format!("no piece {position}: it has {}", pieces.len())));
            };
            let compiler = &other.fingerprint.compiler;
            interface.compiler = (*compiler != self.fingerprint.compiler).then(|| compiler.clone());
            piece.prepared = Arc::clone(other);
            replaced.push(KeyField::new(format!("patched.{position}"), compiler));
        }
        let stitching = stitching.to_bytes();
        let keys: Vec<_> = pieces.iter().map(StitchPiece::key).collect();
        let keys = keys.iter().map(|key| key.as_bytes().as_slice());
        let generated = generated(std::iter::once(&stitching[..]).chain(keys));
        let own = [component::GRAPH, component::INPUTS, component::OPTIONS].map(|name| {
            let fields = self.components.iter().find(|part| part.name == name);
            let mut fields = fields.map(|part| part.fields.clone()).unwrap_or_default();
            if name == component::OPTIONS {
                fields.append(&mut replaced);
            }
            Component::new(name, fields)
        });
        let job = Job::Stitch(Arc::new(Stitch::patched(stitching.into(), pieces)));
        let whole = Self::new(input, &self.fingerprint, own, Some(generated), &self.label, job);
        let mut whole = whole.standing_for(self);
        whole.planned = self.planned.clone();
        Ok(whole)
    }
}
