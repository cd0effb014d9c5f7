//! How far the flight of a key is, as those who wait for it see it.
//!
//! Invariant: [`Stage::Ended`] is the last one.

use kiln_proto::Token;

use super::Answer;
use crate::error::Error;

/// How far the flight of a key is.
#[derive(Debug, Clone)]
pub enum Stage {
    /// Asking the cluster.
    Acquiring,
    /// Another node holds the lease.
    Waiting,
    /// This node compiles under the token.
    Compiling(Token),
    /// Over.
    Ended(Box<Result<Answer, Error>>),
}
