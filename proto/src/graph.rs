//! The graph as Kiln sees it: what an exported program computes.
//!
//! Invariant: every [`ValueId`] in a graph indexes its `values`, a node's
//! tensor arguments are defined before it, and a value has one definition.
//! Names are for people: no decision may depend on one.

use crate::Digest;

/// Index into [`Graph::values`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct ValueId(pub usize);

macro_rules! dtypes {
    ($($variant:ident $name:literal $bytes:literal;)*) => {
        /// The type of a tensor's elements.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(rename_all = "lowercase")]
        pub enum DType {
            $(#[doc = concat!("`", $name, "`, ", stringify!($bytes), " bytes")] $variant,)*
        }

        impl DType {
            /// The short name: `f32`, `bf16`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Bytes of one element.
            pub const fn bytes(self) -> u64 {
                match self { $(Self::$variant => $bytes,)* }
            }
        }
    };
}

dtypes! {
    U8 "u8" 1; I8 "i8" 1; I16 "i16" 2; I32 "i32" 4; I64 "i64" 8; U16 "u16" 2;
    F16 "f16" 2; BF16 "bf16" 2; F32 "f32" 4; F64 "f64" 8;
    C32 "c32" 4; C64 "c64" 8; C128 "c128" 16; Bool "bool" 1;
    F8E4M3 "f8e4m3" 1; F8E5M2 "f8e5m2" 1; F8E4M3Fnuz "f8e4m3fnuz" 1; F8E5M2Fnuz "f8e5m2fnuz" 1;
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One size or stride.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Dim {
    /// Known.
    Static(u64),
    /// An expression over [`Graph::symbols`]: `2*s0 + 1`.
    Symbolic(String),
}

impl Dim {
    /// The size, where it is known.
    pub const fn known(&self) -> Option<u64> {
        match self {
            Self::Static(size) => Some(*size),
            Self::Symbolic(_) => None,
        }
    }
}

/// The values that a symbol may take; `None`: unbounded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Symbol {
    /// As in the expressions.
    pub name: String,
    /// Least value.
    pub min: Option<i64>,
    /// Greatest value.
    pub max: Option<i64>,
}

/// What a tensor looks like.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TensorType {
    /// Elements.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<Dim>,
    /// Distance in elements between neighbours, for each dimension.
    pub strides: Vec<Dim>,
    /// Elements before the first one in its storage.
    pub offset: Dim,
    /// `cpu`, `cuda:0`.
    pub device: String,
}

/// A tensor somewhere in the graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Value {
    /// As exported.
    pub name: String,
    /// As exported; checked against what the operations imply.
    pub ty: TensorType,
}

/// Where an input's data comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum InputKind {
    /// A trained weight: given at run time.
    Parameter,
    /// Other state of the module: given at run time.
    Buffer,
    /// An argument of the call.
    User,
    /// Data baked into the program.
    Constant(Constant),
}

/// A tensor baked into the program, by content.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Constant {
    /// Of `data`.
    pub digest: Digest,
    /// Elements in row-major order, little-endian.
    pub data: Vec<u8>,
}

/// A value that no node defines.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Input {
    /// What the graph calls it.
    pub value: ValueId,
    /// Where its data comes from.
    pub kind: InputKind,
}

/// A whole number that may depend on symbols.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum SymInt {
    /// Known; may be negative.
    Known(i64),
    /// An expression over [`Graph::symbols`], as [`Dim::Symbolic`].
    Symbolic(String),
}

/// An argument of an operation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Argument {
    /// A tensor.
    Tensor(ValueId),
    /// Absent, as good as not given.
    None,
    /// A switch.
    Bool(bool),
    /// A whole number: a dimension, or a scalar operand.
    Int(i64),
    /// A scalar operand.
    Float(f64),
    /// Dimensions, by number.
    Ints(Vec<i64>),
    /// Sizes; -1 (to be inferred) is `None`.
    Sizes(Vec<Option<Dim>>),
    /// A whole number that depends on symbols.
    SymInt(String),
    /// Whole numbers, at least one of which depends on symbols.
    SymInts(Vec<SymInt>),
    /// Numbers.
    Floats(Vec<f64>),
    /// Switches.
    Bools(Vec<bool>),
    /// The name of a mode: `tanh`.
    String(String),
    /// Tensors, some of which may be absent.
    Tensors(Vec<Option<ValueId>>),
    /// Type of elements.
    DType(DType),
    /// `cpu`, `cuda:0`.
    Device(String),
    /// A layout or memory format, by the exporter's number.
    Layout(i64),
    /// Anything else, by the exporter's tag: no compiler here reads it.
    Other(String),
}

impl Argument {
    /// The tensors in it.
    pub fn tensors(&self) -> impl Iterator<Item = ValueId> {
        let (one, many): (_, &[Option<ValueId>]) = match self {
            Self::Tensor(value) => (Some(*value), &[]),
            Self::Tensors(values) => (None, values),
            _ => (None, &[]),
        };
        one.into_iter().chain(many.iter().copied().flatten())
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// As exported: for messages.
    pub name: String,
    /// Namespace, name and overload: `aten.mul.Tensor`.
    pub op: String,
    /// By the names of the operation's schema.
    pub args: Vec<(String, Argument)>,
    /// What it defines.
    pub outputs: Vec<ValueId>,
}

impl Node {
    /// The argument called `name`, unless it is absent.
    pub fn arg(&self, name: &str) -> Option<&Argument> {
        let found = self.args.iter().find(|(n, _)| n == name).map(|(_, arg)| arg);
        found.filter(|arg| **arg != Argument::None)
    }

    /// The tensors that it reads, in the order of its arguments.
    pub fn tensors(&self) -> impl Iterator<Item = ValueId> {
        self.args.iter().flat_map(|(_, arg)| arg.tensors())
    }
}

/// An exported program.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Graph {
    /// All tensors.
    pub values: Vec<Value>,
    /// In the order of the program's signature: the order in which callers give them.
    pub inputs: Vec<Input>,
    /// In an order in which they can run.
    pub nodes: Vec<Node>,
    /// In the order in which callers get them; behind these what is left in `updates`.
    pub outputs: Vec<ValueId>,
    /// Positions of the inputs in which the program leaves something, ascending: the last
    /// outputs, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<usize>,
    /// Of all symbolic sizes.
    pub symbols: Vec<Symbol>,
}

impl Graph {
    /// How many of the outputs callers get.
    pub fn returned(&self) -> usize {
        self.outputs.len().saturating_sub(self.updates.len())
    }

    /// The value behind an id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }
}
