//! What compiles take beside what they were thought to take.
//!
//! An estimate is a rule of thumb over a graph: see `kiln_native::split`. The index has the
//! seconds that compiles took, in their manifests. Wherever this node has both, of a piece
//! that it asked for or of one that it found, it keeps their ratio, and corrects what it
//! tells and asks for by the median of these, for each compiler and target.
//!
//! What is corrected: the seconds by which nodes take pieces (those that take longest
//! first), which travel with the list of whoever wants them, so that all nodes sort one
//! list alike; and what people are told. What is not: where a graph is cut, and whether it
//! is compiled in pieces at all. Two nodes that learned different things would give one
//! request two keys, and the cluster would compile it twice and keep both; a rule of thumb
//! that all nodes share is worth more there than a better number that they do not.
//!
//! Invariant: nothing here enters a key, and what a node learned follows from the set of
//! artifacts that it met, not from their order or number.

use std::collections::{BTreeMap, HashMap};

use kiln_proto::{ArtifactKey, Target};
use parking_lot::Mutex;

use crate::compiler::{Correction, Prepared};

/// Ratios that are kept of each compiler and target: those of the least keys. Keys are
/// digests, so these are a fair sample, and the same one on every node that met the same.
const KEPT: usize = 256;
/// Compiles from which something is learned: one may be a machine under load.
const LEAST: usize = 5;
/// Furthest correction either way: more is no compile but an accident.
const FURTHEST: f64 = 100.0;

/// Ratios by compiler and target.
#[derive(Default)]
pub(super) struct Learned(Mutex<HashMap<(String, Target), BTreeMap<ArtifactKey, f64>>>);

impl Learned {
    /// An artifact of what was prepared was met, which took so many seconds to compile.
    pub(super) fn observe(&self, prepared: &Prepared, key: &ArtifactKey, taken: f64) {
        let Some(expected) = prepared.estimated_seconds else { return };
        let ratio = taken / expected;
        // Manifests come from other nodes, and a clock may stand still.
        if !ratio.is_finite() || ratio <= 0.0 {
            return;
        }
        let of = (prepared.fingerprint.compiler.clone(), prepared.target);
        let mut all = self.0.lock();
        let ratios = all.entry(of).or_default();
        ratios.insert(*key, ratio);
        if ratios.len() > KEPT {
            ratios.pop_last();
        }
    }

    /// How estimates of a compiler for a target are to be corrected.
    pub(super) fn correction(&self, prepared: &Prepared) -> Option<Correction> {
        let of = (prepared.fingerprint.compiler.clone(), prepared.target);
        let all = self.0.lock();
        let ratios = all.get(&of).filter(|ratios| ratios.len() >= LEAST)?;
        let mut sorted: Vec<f64> = ratios.values().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        let factor = median.clamp(1.0 / FURTHEST, FURTHEST);
        Some(Correction { factor, compiles: sorted.len() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
