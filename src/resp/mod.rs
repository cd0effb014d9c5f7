//! The port for Redis clients: what any node's client SETs, any node's client GETs.
//!
//! ```text
//!  server -> requests -> commands -> transaction, get, strings, keys, info -> connection
//!                                              |                   |
//!       values -> names, tiers, manager, index <+    decode, session, outgoing -> socket
//! ```
//!
//! A value is an artifact of `kiln_proto::value`: it goes through the same tiers,
//! index, eviction and peers as what Kiln compiles. The first client that GETs
//! a key in vain holds its lease; others wait for its SET ([`get`]), where that
//! is worth a wait ([`families`]).
//!
//! Invariant: a SET is always answered, a GET waits at most as long as it was
//! told, and what a client sends or does not send costs bounded memory.

mod commands;
mod connection;
mod counters;
mod decode;
mod families;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod get;
mod info;
mod keys;
mod many;
mod misses;
mod names;
mod outgoing;
mod pattern;
mod quorum;
mod reply;
mod requests;
mod rights;
mod server;
mod session;
mod settings;
mod sizes;
mod socket;
mod strings;
mod table;
mod transaction;
mod users;
mod values;

pub use self::{counters::Counters, server::Resp, settings::Settings, values::Parts};
