//! What the node offers: the gRPC API and the plain HTTP port.
//!
//! Invariant: services translate and bound; every decision is the manager's or
//! the cluster's.

pub mod api;
mod explain;
pub mod http;
mod leases;
mod publish;
mod restore;
mod wire;

/// Largest gRPC message in bytes, either way; larger data is streamed.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Bytes in one chunk of a stream.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Whether a namespace may have this name.
pub(crate) fn is_namespace(name: &str) -> bool {
    wire::namespace(name).is_ok()
}
