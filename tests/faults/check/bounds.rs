//! Whether every call ended in time.
//!
//! Invariant: a call has its bound whatever becomes of other nodes; only while its own
//! node is paused or cut off from clients does the clock not count.

use super::{Verdict, shown};
use crate::{
    clients::{DEADLINE, WHOLE},
    history::{Call, Fault, History, Kind},
};

const SECOND: i64 = 1_000_000_000;
/// How long a call waits for a leader, one election, and what a loaded machine adds.
const CLUSTER: i64 = (8 + 2 + 5) * SECOND;
/// What a copy of the bytes may take to come from elsewhere.
const BYTES: i64 = 10 * SECOND;

pub(super) fn check(history: &History, verdict: &mut Verdict) {
    for call in &history.calls {
        let bound = match call.kind {
            Kind::Whole | Kind::Piece => WHOLE.as_nanos() as i64 + CLUSTER,
            Kind::Lease | Kind::Compile => DEADLINE.as_nanos() as i64 + CLUSTER,
            Kind::Fetch | Kind::Get => BYTES + CLUSTER,
            _ => CLUSTER,
        };
        let excused = history.faults.iter().any(|fault| excuses(fault, call));
        if call.end - call.start > bound && !excused {
            verdict.breaks("bound", &call.key, shown(call));
        }
    }
}

fn excuses(fault: &Fault, call: &Call) -> bool {
    let Fault::Away { node, start, end } = fault else { return false };
    *node == call.node && *start < call.end && *end > call.start
}
