//! Compile leases: their time, which a leader counts, and the ones this node holds.
//!
//! Invariant: a lease ends by a command in the log, never by a clock alone.

mod deadlines;
mod held;

pub use self::held::Lease;
pub(crate) use self::{
    deadlines::{Deadlines, Lifetimes},
    held::Leases,
};
