//! Attention in one kernel: `softmax(scale * q k^T + mask) v` with an online
//! softmax, so that no score reaches memory.
//!
//! Invariant: every variant computes every problem that it is chosen for, at
//! any sizes within its bounds; the choice never decides what is computed.

mod choose;
mod emit;

#[cfg(test)]
pub(crate) use choose::Choice;
pub(crate) use choose::{Bounds, Problem, choose};
pub(super) use emit::emit;
