//! Why a compile has no artifact, with the stable codes C001 to C005.
//!
//! Invariant: a kind maps to one code for ever; codes are part of the API.

use std::fmt;

/// What went wrong, by what the caller should do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// C001: the compiler rejected the source; its log is the message.
    CompileError,
    /// C001: the graph has operations this compiler does not know.
    UnsupportedOp,
    /// C001: the source is malformed or beyond a limit.
    InvalidInput,
    /// C002: bytes or signature do not match what was committed.
    Corrupt,
    /// C003: the request asks for a combination that cannot be, or another version's artifact.
    Incompatible,
    /// C004: the time limit passed.
    Timeout,
    /// C005: no usable compiler library on this node.
    ToolchainMissing,
    /// C005: the compiler exceeded its memory limit.
    OutOfMemory,
    /// C005: the compiler process died.
    Crashed,
    /// C005: all compilers are at work and enough requests wait: later, or elsewhere.
    Busy,
    /// C002: the artifact does not compute what its program does.
    WrongOutput,
}

impl FailureKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::CompileError,
        Self::UnsupportedOp,
        Self::InvalidInput,
        Self::Corrupt,
        Self::WrongOutput,
        Self::Incompatible,
        Self::Timeout,
        Self::ToolchainMissing,
        Self::OutOfMemory,
        Self::Crashed,
        Self::Busy,
    ];

    /// The stable code: `C001` to `C005`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::CompileError | Self::UnsupportedOp | Self::InvalidInput => "C001",
            Self::Corrupt | Self::WrongOutput => "C002",
            Self::Incompatible => "C003",
            Self::Timeout => "C004",
            Self::ToolchainMissing | Self::OutOfMemory | Self::Crashed | Self::Busy => "C005",
        }
    }

    /// The exit code of the command line: ten, and the code's number.
    pub const fn exit_code(self) -> u8 {
        10 + self.code().as_bytes()[3] - b'0'
    }

    /// The name in logs, metrics and metadata.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CompileError => "compile_error",
            Self::UnsupportedOp => "unsupported_op",
            Self::InvalidInput => "invalid_input",
            Self::Corrupt => "corrupt",
            Self::WrongOutput => "wrong_output",
            Self::Incompatible => "incompatible",
            Self::Timeout => "timeout",
            Self::ToolchainMissing => "toolchain_missing",
            Self::OutOfMemory => "out_of_memory",
            Self::Crashed => "crashed",
            Self::Busy => "busy",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the same request would fail in the same way on any node: such a
    /// failure is told to all waiters and remembered for the whole cluster.
    pub const fn follows_from_request(self) -> bool {
        matches!(
            self,
            Self::CompileError
                | Self::UnsupportedOp
                | Self::InvalidInput
                | Self::Incompatible
                | Self::Timeout
                | Self::OutOfMemory
        )
    }
}

/// A compile that ended without an artifact.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub struct Failure {
    /// The class.
    pub kind: FailureKind,
    /// For people: what happened and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of `kind` with its message.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind.code(), self.kind.name(), self.message)
    }
}
