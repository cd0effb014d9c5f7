//! The rungs, and what is told of them.
//!
//! Invariant: rungs are ordered, the one that was asked for first and eager last.

use std::time::Duration;

use kiln_proto::{ArtifactKey, Failure, FailureKind};

/// A way to answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// As it was asked for.
    Wanted,
    /// The same once more, after a pause.
    Again,
    /// As it was asked for, but for pieces that failed: these by rungs of their own.
    Patched,
    /// With the compiler's default options.
    Defaults,
    /// With options by which the compiler takes less memory.
    Saving,
    /// With fewer optimisations.
    Fewer,
    /// In pieces.
    Pieces,
    /// In pieces, those that the compiler does not know by Inductor, or as the graph itself
    /// where nobody has that.
    Mixed,
    /// By the next compiler.
    Other,
    /// The graph as it is.
    Eager,
}

impl Rung {
    /// The name on the wire, in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Again => "again",
            Self::Patched => "patched",
            Self::Defaults => "defaults",
            Self::Saving => "saving",
            Self::Fewer => "fewer",
            Self::Pieces => "pieces",
            Self::Mixed => "mixed",
            Self::Other => "other",
            Self::Eager => "eager",
        }
    }
}

/// What may answer a request whose compile fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FallbackPolicy {
    /// Where the compiler was left to Kiln, anything down to eager; of one that was asked for
    /// by name, what that compiler makes itself.
    #[default]
    Auto,
    /// Anything down to eager, whoever was asked for.
    Any,
    /// Nothing: the caller wants the error.
    None,
}

/// A rung that gave nothing.
#[derive(Debug, Clone)]
pub struct Tried {
    /// For which piece alone; `None`: for all of the request.
    pub piece: Option<usize>,
    /// Which.
    pub rung: Rung,
    /// The key that it would have filled; `None`: it came to none.
    pub key: Option<ArtifactKey>,
    /// Why it gave nothing.
    pub failure: Failure,
    /// What that took.
    pub took: Duration,
}

/// An answer that is not what was asked for.
#[derive(Debug, Clone)]
pub struct Fallback {
    /// What was: the key; `None`: the request came to none.
    pub wanted: Option<ArtifactKey>,
    /// Who answered.
    pub rung: Rung,
    /// For how long it is to be used before it is asked for again.
    pub valid: Duration,
    /// Of a whole that was patched: what stands for which of its pieces.
    pub pieces: Vec<PieceFallback>,
}

/// What stands for a piece of a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceFallback {
    /// Its position.
    pub index: usize,
    /// Its own key, which nothing fills.
    pub wanted: ArtifactKey,
    /// What that failed of.
    pub failed_of: FailureKind,
    /// Who answered for it.
    pub rung: Rung,
}
