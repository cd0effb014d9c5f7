//! A line of the audit log.
//!
//! Invariant: fields are only added; a line that has more than this program knows is read,
//! and its digest is of all of its bytes.

use serde::{Deserialize, Serialize};

/// The event of a line that says from which line on the log goes: those before were let go
/// of, as its bounds say.
pub(super) const LET_GO: &str = "let_go";

/// What a line says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Rises by one with each line of a node.
    pub sequence: u64,
    /// When, in RFC 3339 by this node's clock.
    pub at: String,
    /// What was done.
    pub event: String,
    /// Who asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// Of which artifact, node or token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// In which namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Events before this one that are in no line.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// BLAKE3 of the line before, in hex; zeros for the first.
    pub previous: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde wants
fn is_zero(number: &u64) -> bool {
    *number == 0
}
