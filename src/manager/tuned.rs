//! Limits of a compile that may change while the node runs.
//!
//! Invariant: a compile keeps the limits with which it began.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::compiler::Limits;

/// What may change.
#[derive(Debug)]
pub(super) struct Tuned {
    memory_bytes: AtomicU64,
}

impl Tuned {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { memory_bytes: AtomicU64::new(limits.memory_bytes) }
    }

    /// `limits`, with what changed.
    pub(super) fn apply(&self, limits: &Limits) -> Limits {
        Limits { memory_bytes: self.memory_bytes.load(Ordering::Relaxed), ..limits.clone() }
    }

    pub(super) fn set_memory(&self, bytes: u64) {
        self.memory_bytes.store(bytes, Ordering::Relaxed);
    }
}
