//! What trust costs, and how fast it ends: TLS and signatures against plain text, and
//! revocations.
//!
//! `cargo bench --bench trust [hits|revoked] [-- --json]` starts clusters of three `kiln serve`
//! processes on loopback, with default settings but for what is said here.
//!
//! - hits: one cluster in plain text, and one with everything that is there against strangers: TLS
//!   among members whose certificates name them, TLS for clients, a token that is judged at each
//!   call, and a root without whose certificate no signer is believed. One node of each is asked
//!   for what it has in memory: 1 MiB on `CONNECTIONS` connections at once (8), and 16 KiB on one,
//!   one call after the other. They take turns of `TURN` (1) seconds, `ROUNDS` times (7), in an order
//!   that changes. A third one asks the second cluster, and checks each manifest's signature and
//!   the digest of each pack too, as Kiln's own clients do.
//! - revoked: `EVENTS` times each (5), the time from the answer to a revocation until the last node
//!   refuses what was revoked, with everybody asked again and again: a token, a signer's key, a
//!   member; a token and a key while a follower is paused, from the moment when it wakes; and a node
//!   that hears of nobody, which gives up tokens after `access.offline`.
//!
//! Prints tables; `--json` adds one line of JSON with every sample. `KILN_BINARY` names another
//! `kiln` to run. Certificates, roots and tokens are made by that `kiln`.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

mod door;
mod hits;
mod revoked;
mod table;

#[path = "../failover/nodes.rs"]
mod nodes;

use serde_json::{Map, Value};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |part: &str| named.is_empty() || named.iter().any(|name| *name == part);
    let mut all = Map::new();
    if wanted("hits") {
        all.insert("hits".into(), hits::measure().await);
    }
    if wanted("revoked") {
        all.insert("revoked".into(), revoked::measure().await);
    }
    if arguments.iter().any(|argument| argument == "--json") {
        println!("{}", Value::Object(all));
    }
}

/// The number that the environment gives for `name`.
fn number(name: &str, else_: usize) -> usize {
    std::env::var(name).map_or(else_, |text| text.parse().unwrap())
}
