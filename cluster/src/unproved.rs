//! Peers that would be refused if each had to prove that it joined.
//!
//! Invariant: each of them is counted; the log has a line of one of them in [`BETWEEN`].

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Between two lines in the log: such a peer comes with each heartbeat.
const BETWEEN: Duration = Duration::from_secs(60);
/// When the last line was written.
static TOLD: Mutex<Option<Instant>> = Mutex::new(None);

/// Counts a peer that is served at `door` though it has not joined, as far as this node can know;
/// `said`: what its certificate names, for people.
pub fn tell_of_unproved(door: &'static str, said: &str) {
    metrics::counter!("kiln_unproved_peers_total", "door" => door).increment(1);
    let (now, mut told) = (Instant::now(), TOLD.lock());
    if told.is_none_or(|at| now.saturating_duration_since(at) >= BETWEEN) {
        *told = Some(now);
        tracing::warn!(
            door,
            said,
            "a peer that cannot prove that it joined is served: with tls.members.proofs = \
             \"require\" it would be refused (counted in kiln_unproved_peers_total)"
        );
    } else {
        tracing::debug!(door, said, "a peer that cannot prove that it joined is served");
    }
}
