//! The reference interpreter: runs a core program on the CPU.
//!
//! Invariant: it computes what `core` documents, in `f64` and `i64`, each
//! result rounded once to its type; nothing here is shared with the code
//! generator, so that each can judge the other.

mod index;
mod map;
mod movement;
mod number;
mod product;
mod reduce;
mod run;
mod step;
mod tensor;
mod threads;

use kiln_proto::{Failure, FailureKind};

pub use run::run;
pub use tensor::Tensor;

/// What becomes of a float between operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// It is rounded to its type.
    #[default]
    Rounded,
    /// It stays `f64`, in the outputs too: the judge of rounded results.
    Exact,
}

/// How to run a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Of floats.
    pub precision: Precision,
    /// Most memory for tensors, at 8 bytes an element.
    pub memory_bytes: u64,
}

impl Default for Settings {
    /// Rounded, 64 GiB.
    fn default() -> Self {
        Self { precision: Precision::Rounded, memory_bytes: 64 << 30 }
    }
}

fn invalid(why: impl Into<String>) -> Failure {
    Failure::new(FailureKind::InvalidInput, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
