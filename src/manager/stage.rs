//! How far the flight of a key is, as those who wait for it see it.
//!
//! Invariant: [`Stage::Ended`] is the last one.

use std::sync::Arc;

use kiln_proto::Token;

use super::{Answer, PieceReport};
use crate::{compiler::Prepared, error::Error};

/// How far the flight of a key is.
#[derive(Debug, Clone)]
pub enum Stage {
    /// Asking the cluster.
    Acquiring,
    /// Another node holds the lease.
    Waiting,
    /// This node compiles under the token.
    Compiling(Token),
    /// How it is compiled is known; told once, to each caller.
    Planned(Arc<Prepared>),
    /// How far its pieces are, all of them.
    Pieces(Arc<[PieceReport]>),
    /// Over, with how far the pieces were.
    Ended(Box<Result<Answer, Error>>, Arc<[PieceReport]>),
}
