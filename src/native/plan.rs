//! The launch plan: which kernels run on which memory, in which order.
//!
//! Invariant: two values whose lives overlap never share a byte of the
//! workspace, and a plan names nothing that the key does not decide.

mod call;
mod expr;
mod place;

use kiln_proto::graph::DType;
use serde::{Deserialize, Serialize};

pub use call::{Base, Call, CallError, Launch, Layout, Tile, Value, shown};
pub(crate) use place::{Sized, place_sized};

/// Of the format below: the latest.
pub const VERSION: u32 = 3;
/// The oldest that is read, and that of plans that change none of their inputs and have no
/// tensor map of 8 bits: earlier programs read these.
pub const PLAIN: u32 = 2;
/// Bytes at which every tensor starts.
pub const ALIGNMENT: u64 = 256;
/// The kind of an input that is in the module already.
pub const CONSTANT: &str = "constant";

/// The version of a plan of these kernels that changes these inputs.
pub(crate) fn version_for(updates: &[usize], kernels: &[Kernel]) -> u32 {
    let mut args = kernels.iter().flat_map(|kernel| &kernel.args);
    let short = args.any(|arg| matches!(arg, Arg::Map(map) if map.dtype.bytes() == 1));
    if updates.is_empty() && !short { PLAIN } else { VERSION }
}

/// How to run a module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAIN`] to [`VERSION`].
    pub version: u32,
    /// What the module runs on: `sm_90`.
    pub target: String,
    /// Sizes that are known when the program is called; none: all is fixed.
    pub symbols: Vec<Symbol>,
    /// What the caller gives, in the order of the exported program.
    pub inputs: Vec<Tensor>,
    /// What the caller gets.
    pub outputs: Vec<Tensor>,
    /// Bytes of scratch memory for one run.
    pub workspace_bytes: Expr,
    /// What lies in it, to show.
    pub buffers: Vec<Buffer>,
    /// In the order of launching.
    pub kernels: Vec<Kernel>,
}

/// A whole number over the plan's symbols; in JSON `3`, `{"symbol": 0}` or
/// `{"add": [.., ..]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expr {
    /// The value of [`Plan::symbols`] at that position.
    Symbol(usize),
    /// The sum of all.
    Add(Vec<Expr>),
    /// The product of all.
    Mul(Vec<Expr>),
    /// The first by the second, rounded down.
    Div(Box<[Expr; 2]>),
    /// What that leaves: of the divisor's sign.
    Mod(Box<[Expr; 2]>),
    /// The greatest.
    Max(Vec<Expr>),
    /// The least.
    Min(Vec<Expr>),
    /// Known.
    #[serde(untagged)]
    Known(i64),
}

/// A size that the caller's tensors decide: `(size - offset) / scale` of one
/// input's dimension, which must leave no remainder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Least value: calls with less are refused.
    pub min: i64,
    /// Greatest value; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// Which input.
    pub input: usize,
    /// Which of its dimensions.
    pub dim: usize,
    /// Factor of the symbol in that size.
    pub scale: i64,
    /// What is added to it.
    pub offset: i64,
}

/// A tensor that the caller holds, starting at a multiple of 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// `in0`, `out0`: by position, as an artifact serves every program of its key.
    pub name: String,
    /// `parameter`, `buffer`, `user`; `constant` is in the module already; `output`.
    pub kind: String,
    /// Of the elements.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<Expr>,
    /// In elements.
    pub strides: Vec<Expr>,
    /// An input in which each run leaves what the next one is to find there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub updated: bool,
}

/// A value in the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Of the elements.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<Expr>,
    /// Bytes into the workspace.
    pub offset: Expr,
    /// Position of the kernel that writes it.
    pub from: usize,
    /// Position of the last kernel that reads it.
    pub to: usize,
}

/// One launch. None takes place if the grid has no blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// In the module.
    pub name: String,
    /// `map`, `rows`, `product`, `attention`, ...: how it was generated.
    pub kind: String,
    /// Which of several ways was chosen, and why: tile sizes, to show.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Blocks.
    pub grid: [Expr; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory; above 48 KiB the function must be told.
    pub shared_bytes: u32,
    /// It waits by itself for what it reads, so that it may begin before the launch
    /// before it in the plan has ended (programmatic dependent launch).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlaps: bool,
    /// It waits for what it reads of `user` inputs too, so that the first launch of a
    /// plan may begin before one has ended that writes these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows: bool,
    /// In the order of the kernel's parameters.
    pub args: Vec<Arg>,
    /// The operations that it computes, numbered in canonical order.
    pub computes: Vec<String>,
}

/// A kernel's parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arg {
    /// A pointer.
    Memory(Memory),
    /// A whole number of 64 bits.
    Size(Expr),
    /// What `cuTensorMapEncodeTiled` makes of this, 128 bytes by value.
    Map(TensorMap),
}

/// Where a pointer points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The start of an input.
    Input(usize),
    /// The start of an output.
    Output(usize),
    /// Bytes into the workspace.
    Workspace(Expr),
}

/// A view of memory for the tensor memory accelerator (sm_90), innermost
/// dimension first, zeros outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMap {
    /// Its first element.
    pub memory: Memory,
    /// Elements from there to the first one of the view.
    pub offset: Expr,
    /// Of the elements.
    pub dtype: DType,
    /// Sizes, one to five; the first is dense.
    pub sizes: Vec<Expr>,
    /// In elements, from the second dimension on: multiples of 16 bytes.
    pub strides: Vec<Expr>,
    /// Elements of a tile.
    pub tile: Vec<u32>,
    /// 0 (none), 32, 64 or 128 bytes.
    pub swizzle: u32,
}
