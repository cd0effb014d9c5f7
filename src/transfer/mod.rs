//! The byte paths: blobs between nodes, artifacts to clients on the same node.
//!
//! ```text
//!   node A                                  node B
//!   tiers -> Blob (sealed memfd)            Tiers, manager
//!              |            |                   ^
//!              |            | sendfile          | BlobWriter: hashed as it comes,
//!              |            v                   | finish_as(digest) judges
//!              |       serve_peers --- TCP ---> PeerClient
//!              | descriptor
//!              v
//!        serve_socket --- unix socket ---> LocalClient -> Mapped (same memory)
//! ```
//!
//! Requests and answers are frames (see `transfer.proto`): four bytes of
//! length, then a message. Over TCP the raw bytes follow; over the unix socket
//! the descriptor of the blob came along, and the client maps it.
//!
//! Invariant: a node gives away only verified, sealed blobs, and takes bytes
//! only into a [`BlobWriter`](crate::cache::BlobWriter) that hashes all of them;
//! every wait has an end.

mod client;
mod error;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod local;
mod peers;
mod pool;
mod provider;
mod server;
mod settings;
mod socket;
mod socket_file;

pub use client::PeerClient;
pub use error::TransferError;
pub use local::{LocalArtifact, LocalClient, Mapped};
pub(crate) use peers::PeerServer;
pub use peers::serve_peers;
pub use provider::{PeerAddress, Provider, Refusal};
pub use settings::{ClientSettings, ServerSettings};
pub(crate) use socket::SocketServer;
pub use socket::serve_socket;
pub use socket_file::{SocketFile, bind_socket};

#[cfg(test)]
mod tests;
