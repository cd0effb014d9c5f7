//! Programs in pieces: each compiled once for the cluster, and kept whatever becomes of
//! the others.

mod failing;
mod inductor;
mod learned;
pub(crate) mod model;
mod one_node;
mod spread;
mod verified;
mod warm;
mod without_quorum;
pub(crate) mod workers;
mod wrong;

use kiln_proto::{Manifest, pb};

use crate::harness::Compiled;

/// What each piece ended with.
fn outcomes(compiled: &Compiled) -> Vec<pb::Outcome> {
    compiled.pieces.iter().map(pb::Piece::outcome).collect()
}

fn manifest(compiled: &Compiled) -> Manifest {
    compiled.manifest.read_unverified().unwrap()
}
