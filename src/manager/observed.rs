//! What the manager saw since somebody last asked: runs of compilers, time-outs, publications.
//!
//! Counters say how many; here is how long each took, and whether it failed for a reason of
//! this node. One asks, the monitor, and takes all of it away.
//!
//! Invariant: bounded whether anybody asks or not; of very many runs a fair part is kept.

use std::{collections::BTreeMap, mem};

use kiln_proto::{Failure, FailureKind};
use parking_lot::Mutex;

use crate::compiler::Output;

/// Seconds that are kept of one compiler.
const KEPT: usize = 512;

/// What was seen.
#[derive(Debug, Default)]
pub struct Observed(Mutex<Seen>);

/// Since it was last taken.
#[derive(Debug, Default)]
pub struct Seen {
    /// By compiler.
    pub runs: BTreeMap<&'static str, Runs>,
    /// Publications that clients made, and not this node's own compiles.
    pub published: u64,
    /// Of these, those of keys that had been given out a moment before.
    pub republished: u64,
    /// Compiles that passed a time limit or their caller's deadline.
    pub timed_out: u64,
    /// The last one of these, for people.
    pub last_timed_out: String,
}

/// Runs of one compiler's processes.
#[derive(Debug, Default)]
pub struct Runs {
    /// Seconds of those that ended well, or of a part of them.
    pub seconds: Vec<f64>,
    /// How many ended well.
    pub succeeded: u64,
    /// How many failed as they would anywhere.
    pub refused: u64,
    /// How many failed for a reason of this node.
    pub broken: u64,
    /// How many had too little memory.
    pub out_of_memory: u64,
}

impl Observed {
    /// A compiler ran here, or should have.
    pub(super) fn ran(&self, compiler: &'static str, result: &Result<Output, Failure>) {
        let mut seen = self.0.lock();
        let runs = seen.runs.entry(compiler).or_default();
        match result {
            Ok(output) => {
                runs.succeeded += 1;
                // The latest, in turn over all places.
                let at = usize::try_from(runs.succeeded).unwrap_or(0) % KEPT;
                match runs.seconds.len() < KEPT {
                    true => runs.seconds.push(output.compile_seconds),
                    false => runs.seconds[at] = output.compile_seconds,
                }
            }
            Err(failure) => match failure.kind {
                FailureKind::OutOfMemory => runs.out_of_memory += 1,
                // As many at once as there may be: nothing is broken.
                FailureKind::Busy => {}
                // A time-out is told to the whole cluster as if it were the request's, but
                // where every compile takes too long it is the node.
                FailureKind::Timeout => runs.broken += 1,
                kind if kind.follows_from_request() => runs.refused += 1,
                _ => runs.broken += 1,
            },
        }
    }

    /// A client published; `again`: a key that had been given out a moment before.
    pub(super) fn published(&self, again: bool) {
        let mut seen = self.0.lock();
        seen.published += 1;
        seen.republished += u64::from(again);
    }

    /// A compile passed a time limit or its caller's deadline.
    pub(super) fn timed_out(&self, what: String) {
        let mut seen = self.0.lock();
        seen.timed_out += 1;
        seen.last_timed_out = what;
    }

    /// All since the last call.
    pub fn take(&self) -> Seen {
        mem::take(&mut self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(compile_seconds: f64) -> Output {
        Output { files: Vec::new(), compile_seconds, log: String::new() }
    }

    #[test]
    fn it_is_bounded_and_taken_once() {
        let observed = Observed::default();
        (0..2000).for_each(|n| observed.ran("cuda", &Ok(output(f64::from(n)))));
        let seen = observed.take();
        let runs = &seen.runs["cuda"];
        assert_eq!((runs.succeeded, runs.seconds.len()), (2000, KEPT));
        assert!(runs.seconds.contains(&1999.0), "the latest are there");
        assert!(observed.take().runs.is_empty());
    }

    #[test]
    fn a_full_queue_is_no_failure_and_a_syntax_error_is_not_this_nodes() {
        let observed = Observed::default();
        use FailureKind::*;
        for kind in [Busy, CompileError, Crashed, Timeout, ToolchainMissing, OutOfMemory] {
            observed.ran("cuda", &Err(Failure::new(kind, "x")));
        }
        let runs = &observed.take().runs["cuda"];
        assert_eq!((runs.refused, runs.broken, runs.out_of_memory), (1, 3, 1));
    }
}
