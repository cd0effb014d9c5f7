//! What a part of the node counts, for `kiln status`.
//!
//! Invariant: a source's values only rise while the node runs, and its names are
//! its own: no two sources of a node share one.

/// A part of the node that counts.
pub trait CounterSource: Send + Sync {
    /// Name and value of each counter.
    fn snapshot(&self) -> Vec<(&'static str, u64)>;
}
