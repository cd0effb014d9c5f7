//! The failure ladder: what answers a request whose compile failed.
//!
//! ```text
//! error -> its kind -> table: the rungs below the one that was tried
//!       -> variants: the request of the first of them that there is -> asked like any other
//! ```
//!
//! Of a whole in pieces of which some fail, these alone go down first ([`patch`]).
//!
//! What a rung gives is an artifact of its own compiler and options, under the key that it
//! has anywhere else. The answer says what was wanted, what was tried and for how long it
//! is to be used; meanwhile the node compiles what was wanted ([`behind`]).
//!
//! Invariant: nothing that a lower rung made is published under the key that was wanted;
//! each rung is below the one before, so a descent ends; and it ends before the caller's
//! deadline, but for [`GRACE`], whatever hangs.

mod behind;
mod descent;
mod event;
mod patch;
mod pauses;
mod reached;
mod remembered;
mod rung;
mod table;
mod variants;
mod wire;

use std::time::Duration;

pub(super) use behind::Behind;
pub use event::Event;
pub(super) use event::Events;
pub(super) use remembered::Remembered;
pub use rung::{Fallback, FallbackPolicy, PieceFallback, Rung, Tried};

/// What eager may take beyond the caller's deadline: late is better than nothing.
const GRACE: Duration = Duration::from_millis(700);
