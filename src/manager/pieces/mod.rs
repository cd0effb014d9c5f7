//! Programs in pieces: compiled each under its own key, and put together.
//!
//! A whole is an artifact like any other: it has a key, a lease, a flight. What its
//! compile is, is here: the pieces that are missing, and then the file that says how
//! they make the whole.
//!
//! ```text
//! stitch: follow (what is missing -> wanted list in the index -> ends) -> whole
//! pull:   wanted lists -> order, memory, requests -> try a piece's lease -> compile
//! ```
//!
//! Invariant: a whole is published only with pieces that are published, by the packs
//! that it was put together of; and what one piece fails of takes nothing from the
//! others.

mod follow;
mod hit;
mod order;
mod own;
mod pull;
mod requests;
mod state;
mod stitch;
mod whole;
mod wire;

pub(super) use own::{OwnLists, Tell};
pub use pull::Puller;
use state::States;
pub use state::{PieceReport, PieceStage};
pub(super) use stitch::{Made, Whole};
pub(super) use whole::all_failed;
pub(crate) use wire::told;
