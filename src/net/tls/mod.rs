//! TLS with rustls: who is let in, whom this node connects to, and with which files.
//!
//! Invariant: members and clients are judged by certificate authorities of their own, and
//! neither's certificate is any good with the other; nothing is accepted in plain text
//! where the mode is [`Mode::Require`]; a file that cannot be used never replaces one that
//! can.

mod accept;
mod client;
mod dial;
mod files;
mod identity;
mod reload;
mod verify;

pub(crate) use self::{
    accept::{Acceptor, SILENT, Whose, Witness},
    reload::Trust,
};
pub use self::{
    client::ClientTls,
    dial::Dialer,
    files::{Files, TlsError},
    identity::Identity,
};

use serde::{Deserialize, Serialize};

/// What is spoken on a port, or with members: from plain text to TLS in three restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Plain text.
    Off,
    /// TLS is taken, and plain text too; this node connects in plain text.
    Accept,
    /// TLS is taken, and plain text too; this node connects in TLS.
    Dial,
    /// TLS alone.
    Require,
}

/// Whether who connects shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// None is asked for.
    Off,
    /// One that is shown must be of the authority; none need be.
    Optional,
    /// One of the authority.
    Required,
}

/// The protocol that gRPC names in a handshake.
pub(crate) const GRPC: &[u8] = b"h2";
/// The protocol of bytes between members.
pub(crate) const BYTES: &[u8] = b"kiln-bytes/1";
