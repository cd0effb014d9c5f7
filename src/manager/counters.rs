//! What the manager did, counted once, for `kiln status` and `/metrics` alike.
//!
//! Invariant: counters only rise; each request adds to exactly one outcome.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use kiln_proto::{Check, Failure};

use super::{Answer, Origin, Outcome, Verdict};
use crate::{counters::CounterSource, error::Error};

/// Counts since the node started.
#[derive(Debug, Default)]
pub struct Counters {
    hits_memory: AtomicU64,
    hits_disk: AtomicU64,
    hits_peer: AtomicU64,
    hits_object: AtomicU64,
    coalesced: AtomicU64,
    compiled: AtomicU64,
    failed: AtomicU64,
    compiler_runs: AtomicU64,
    saved: AtomicU64,
    corrupt: AtomicU64,
    loaded: AtomicU64,
    unused: AtomicU64,
    lost: AtomicU64,
    unreachable: AtomicU64,
    unpublished: AtomicU64,
    forwarded: AtomicU64,
    pieces_taken: AtomicU64,
    piece_lists_refused: AtomicU64,
    retired_manifests: AtomicU64,
    unbelieved: AtomicU64,
    checks_passed: AtomicU64,
    checks_failed: AtomicU64,
    checks_not_run: AtomicU64,
    fallbacks: AtomicU64,
    fallbacks_replaced: AtomicU64,
    pieces_fallen: AtomicU64,
    spot_equal: AtomicU64,
    spot_different: AtomicU64,
    spot_skipped: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Counts how a request ended.
    pub fn ended(&self, result: &Result<Answer, Error>) {
        match result {
            Ok(answer) => self.answered(answer),
            Err(e) => self.failed(e),
        }
    }

    /// A request was answered with an artifact.
    pub fn answered(&self, answer: &Answer) {
        let tier = answer.origin.map_or("none", origin_name);
        let outcome = answer.outcome.name();
        request(outcome, tier);
        // A value of another tool may have cost nothing that anybody knows of.
        let seconds = answer.manifest.compile_seconds;
        if answer.outcome != Outcome::Compiled && seconds > 0.0 {
            metrics::histogram!("kiln_saved_compile_seconds", "outcome" => outcome).record(seconds);
        }
        add(match (answer.outcome, answer.origin) {
            (Outcome::Compiled, _) => &self.compiled,
            (Outcome::Coalesced, _) => &self.coalesced,
            (Outcome::Hit, Some(Origin::Disk)) => &self.hits_disk,
            (Outcome::Hit, Some(Origin::Peer)) => &self.hits_peer,
            (Outcome::Hit, Some(Origin::Object)) => &self.hits_object,
            (Outcome::Hit, _) => &self.hits_memory,
        });
    }

    /// A request was answered with an error.
    pub fn failed(&self, error: &Error) {
        request("failed", "none");
        add(&self.failed);
        if let Error::Failed(f) | Error::Unsound(f) = error {
            let (code, kind) = (f.kind.code(), f.kind.name());
            metrics::counter!("kiln_failures_total", "code" => code, "kind" => kind).increment(1);
        }
    }

    /// A request for a compile took so long.
    pub fn took(&self, result: &Result<Answer, Error>, time: Duration) {
        let outcome = result.as_ref().map_or("failed", |answer| answer.outcome.name());
        metrics::histogram!("kiln_request_seconds", "outcome" => outcome).record(time);
    }

    /// The bytes of something stored are here after so long.
    pub fn brought(&self, origin: Origin, time: Duration) {
        metrics::histogram!("kiln_load_seconds", "tier" => origin_name(origin)).record(time);
    }

    /// An artifact of this node was committed to the index.
    pub fn saved(&self) {
        add(&self.saved);
        metrics::counter!("kiln_saved_total").increment(1);
    }

    /// Something had to be compiled, for the `reason` that its key is not stored.
    pub fn missed(&self, reason: impl Into<metrics::SharedString>) {
        metrics::counter!("kiln_misses_total", "reason" => reason.into()).increment(1);
    }

    /// A compiler ran here; `seconds` is what a hit saves.
    pub fn ran(&self, compiler: &'static str, seconds: Option<f64>) {
        add(&self.compiler_runs);
        let ok = if seconds.is_some() { "true" } else { "false" };
        metrics::counter!("kiln_compiler_runs_total", "compiler" => compiler, "ok" => ok)
            .increment(1);
        if let Some(seconds) = seconds {
            metrics::histogram!("kiln_compile_seconds", "compiler" => compiler).record(seconds);
        }
    }

    /// A copy did not match its digest (C002) and another source was asked.
    pub fn corrupt(&self) {
        add(&self.corrupt);
        metrics::counter!("kiln_corrupt_copies_total").increment(1);
    }

    /// Engines of clients loaded `artifacts` artifacts, which they had fetched.
    pub fn loaded(&self, artifacts: u64) {
        self.loaded.fetch_add(artifacts, Ordering::Relaxed);
        metrics::counter!("kiln_loaded_total").increment(artifacts);
    }

    /// An artifact was restored for a program that then opened none of its files.
    pub fn unused(&self) {
        add(&self.unused);
        metrics::counter!("kiln_unused_restores_total").increment(1);
    }

    /// An entry's bytes may be somewhere that did not answer: a miss for now.
    pub fn unreachable(&self) {
        add(&self.unreachable);
        metrics::counter!("kiln_unreachable_packs_total").increment(1);
    }

    /// An entry's bytes were proven to be nowhere: it was retired.
    pub fn lost(&self) {
        add(&self.lost);
        metrics::counter!("kiln_lost_packs_total").increment(1);
    }

    /// A compile was answered but could not be published.
    pub fn unpublished(&self) {
        add(&self.unpublished);
        metrics::counter!("kiln_unpublished_compiles_total").increment(1);
    }

    /// A request went to a node that has the compiler.
    pub fn forwarded(&self) {
        add(&self.forwarded);
        metrics::counter!("kiln_forwarded_compiles_total").increment(1);
    }

    /// This node began with a piece that another one wants.
    pub fn took_piece(&self) {
        add(&self.pieces_taken);
        metrics::counter!("kiln_pieces_taken_total").increment(1);
    }

    /// Pieces that another node wants do not have the keys that it says.
    pub fn refused_pieces(&self) {
        add(&self.piece_lists_refused);
        metrics::counter!("kiln_piece_lists_refused_total").increment(1);
    }

    /// An artifact was to be run, to see whether it is right.
    pub fn checked(&self, result: &Result<Check, Failure>) {
        let (counter, ended) = match result {
            Ok(Check::Passed { .. }) => (&self.checks_passed, "passed"),
            Ok(Check::Not { .. }) => (&self.checks_not_run, "not_run"),
            Err(_) => (&self.checks_failed, "failed"),
        };
        add(counter);
        metrics::counter!("kiln_checks_total", "result" => ended).increment(1);
    }

    /// A request was answered by another rung of the ladder, as what it asked for failed of
    /// `kind`.
    pub fn fell(&self, rung: &'static str, kind: &'static str) {
        add(&self.fallbacks);
        metrics::counter!("kiln_fallbacks_total", "rung" => rung, "kind" => kind).increment(1);
    }

    /// A piece of a whole was answered by that rung, in place of what failed so.
    pub fn piece_fell(&self, rung: &'static str, kind: &'static str) {
        add(&self.pieces_fallen);
        metrics::counter!("kiln_piece_fallbacks_total", "rung" => rung, "kind" => kind)
            .increment(1);
    }

    /// What was wanted where a fallback answered is compiled at last.
    pub fn replaced(&self) {
        add(&self.fallbacks_replaced);
        metrics::counter!("kiln_fallbacks_replaced_total").increment(1);
    }

    /// A stored artifact was to be compared with a new compile.
    pub fn spot_checked(&self, verdict: &Verdict) {
        let (counter, reason) = match verdict {
            Verdict::Equal => (&self.spot_equal, ""),
            Verdict::Different { .. } => (&self.spot_different, ""),
            Verdict::Skipped(skip) => (&self.spot_skipped, skip.name()),
        };
        add(counter);
        let result = if reason.is_empty() { verdict.name() } else { "skipped" };
        metrics::counter!("kiln_spot_checks_total", "result" => result, "reason" => reason)
            .increment(1);
    }

    /// An artifact was not given out: its signer is not believed.
    pub fn unbelieved(&self) {
        add(&self.unbelieved);
        metrics::counter!("kiln_unbelieved_total").increment(1);
    }

    /// A manifest in the index failed its checks.
    pub fn bad_manifest(&self) {
        add(&self.retired_manifests);
        metrics::counter!("kiln_bad_manifests_total").increment(1);
    }
}

impl CounterSource for Counters {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("hits_memory", read(&self.hits_memory)),
            ("hits_disk", read(&self.hits_disk)),
            ("hits_peer", read(&self.hits_peer)),
            ("hits_object", read(&self.hits_object)),
            ("coalesced", read(&self.coalesced)),
            ("compiled", read(&self.compiled)),
            ("failed", read(&self.failed)),
            ("compiler_runs", read(&self.compiler_runs)),
            ("saved", read(&self.saved)),
            ("corrupt_copies", read(&self.corrupt)),
            ("loaded", read(&self.loaded)),
            ("unused_restores", read(&self.unused)),
            ("lost_packs", read(&self.lost)),
            ("unreachable_packs", read(&self.unreachable)),
            ("unpublished_compiles", read(&self.unpublished)),
            ("forwarded_compiles", read(&self.forwarded)),
            ("pieces_taken", read(&self.pieces_taken)),
            ("piece_lists_refused", read(&self.piece_lists_refused)),
            ("bad_manifests", read(&self.retired_manifests)),
            ("unbelieved", read(&self.unbelieved)),
            ("checks_passed", read(&self.checks_passed)),
            ("checks_failed", read(&self.checks_failed)),
            ("checks_not_run", read(&self.checks_not_run)),
            ("fallbacks", read(&self.fallbacks)),
            ("fallbacks_replaced", read(&self.fallbacks_replaced)),
            ("pieces_fallen", read(&self.pieces_fallen)),
            ("spot_checks_equal", read(&self.spot_equal)),
            ("spot_checks_different", read(&self.spot_different)),
            ("spot_checks_skipped", read(&self.spot_skipped)),
        ]
    }
}

fn request(outcome: &'static str, tier: &'static str) {
    metrics::counter!("kiln_requests_total", "outcome" => outcome, "tier" => tier).increment(1);
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Memory => "memory",
        Origin::Disk => "disk",
        Origin::Peer => "peer",
        Origin::Object => "object",
        Origin::Unspecified => "none",
    }
}
