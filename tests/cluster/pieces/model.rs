//! Requests for a language model of sixteen equal layers, and for others that differ from it by
//! little.

use kiln_proto::{Target, pb};

pub(crate) use crate::layers::archive;
use crate::layers::{self, LAYERS, NORMS, with_epsilons};

/// Different pieces of the language model: embedding and positions; before, at and
/// after attention; the head.
pub(super) const PIECES: usize = 5;
const NAMESPACE: &str = "default";

/// The language model with another epsilon in the norm of that number.
pub(super) fn changed(norm: usize) -> Vec<u8> {
    with_epsilons(|at, epsilon| if at == norm { 0.5 } else { epsilon })
}

/// The norm before attention in one layer.
pub(super) const fn in_layer(layer: usize) -> usize {
    NORMS * layer
}

/// The norm of the head, which is after all layers.
pub(super) const HEAD: usize = NORMS * LAYERS;

/// A request for an archive.
pub(crate) fn request(archive: Vec<u8>, piecewise: pb::Piecewise) -> pb::CompileRequest {
    pb::CompileRequest {
        // What fails is to be seen.
        fallback: pb::FallbackPolicy::None.into(),
        ..layers::request(archive, piecewise, NAMESPACE)
    }
}

/// A request for the interpreter's own artifacts in pieces: what runs without a GPU.
pub(super) fn eager(archive: Vec<u8>, verify: pb::Verify) -> pb::CompileRequest {
    pb::CompileRequest {
        targets: vec![Target::any().into()],
        backend: "eager".into(),
        verify: verify.into(),
        ..request(archive, pb::Piecewise::Always)
    }
}

/// The language model in pieces.
pub(crate) fn whole() -> pb::CompileRequest {
    request(archive("qwen3_lm_f32_static.new"), pb::Piecewise::Always)
}
