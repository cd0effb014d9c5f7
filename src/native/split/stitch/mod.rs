//! How pieces make the whole: what is called in which order, and on which memory.
//!
//! A stitching names pieces by position in a list; the artifact that has it says
//! which key and digest each of them is. What a piece gives is dense; what the
//! caller of the whole gives is as the caller has it, and is read where it lies.
//!
//! Invariant: a stitching follows from the graph and the settings alone, names
//! nothing that they do not decide, and two values that are alive together share
//! no byte, but for a result that takes the place of what it is made of.

mod build;
mod check;
mod in_place;
mod layout;
mod linked;
mod run;

use kiln_proto::{Digest, graph::DType};
use serde::{Deserialize, Serialize};

use crate::plan::{Expr, Memory, Symbol, Tensor};
pub use build::stitch;
pub use check::Broken;
pub use layout::{Laid, Place};
pub use linked::{Copied, Linked, LinkedCall};
pub use run::{RunPiece, run, run_with};

/// Of the format below.
pub const VERSION: u32 = 1;
/// The file of an artifact that has it.
pub const STITCHING: &str = "stitching.json";

/// How pieces make the whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stitching {
    /// [`VERSION`].
    pub version: u32,
    /// Sizes that are known when the whole is called.
    pub symbols: Vec<Symbol>,
    /// What the caller gives, in the order of the exported program.
    pub inputs: Vec<Tensor>,
    /// What the caller gets.
    pub outputs: Vec<Tensor>,
    /// Bytes of memory for what pieces leave each other.
    pub workspace_bytes: Expr,
    /// The different ones.
    pub pieces: Vec<Interface>,
    /// What calls leave.
    pub values: Vec<Value>,
    /// In the order of running.
    pub calls: Vec<Call>,
    /// Outputs that no call writes: after all calls.
    pub copies: Vec<Copy>,
}

/// What a piece takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Digest of its key's component `graph`.
    #[serde(with = "text")]
    pub graph: Digest,
    /// Digest of its key's component `inputs`.
    #[serde(with = "text")]
    pub inputs: Digest,
    /// Who compiles it, where the whole does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiler: Option<String>,
    /// In the order of its inputs.
    pub takes: Vec<Spec>,
    /// In the order of its outputs.
    pub gives: Vec<Spec>,
}

/// A tensor, as far as it is known before a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Of the elements.
    pub dtype: DType,
    /// Sizes; those that depend on symbols are not known.
    pub shape: Vec<Option<u64>>,
    /// It is in the piece already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub constant: bool,
}

/// A tensor that one call leaves to others or to the caller: dense.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// Of the elements.
    pub dtype: DType,
    /// Sizes, over the symbols of the whole.
    pub shape: Vec<Expr>,
    /// Where it lies: an output of the whole, or the workspace.
    pub memory: Memory,
    /// The call that makes it.
    pub from: usize,
    /// The last call that reads it; `from`: none.
    pub to: usize,
}

/// One run of a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Position in [`Stitching::pieces`].
    pub piece: usize,
    /// For each input of the piece.
    pub args: Vec<Arg>,
    /// For each output of the piece a position in [`Stitching::values`].
    pub results: Vec<usize>,
    /// The argument whose memory the only result takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place: Option<usize>,
}

/// What a piece is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arg {
    /// An input of the whole.
    Input(usize),
    /// What a call before left.
    Value(usize),
    /// Nothing: it is in the piece.
    Constant,
}

/// An output of the whole that is a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// Which output.
    pub output: usize,
    /// Of what: an input of the whole, or a value that is another output.
    pub from: Arg,
}

/// Digests as people see them.
mod text {
    use kiln_proto::Digest;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
