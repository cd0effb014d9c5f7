//! What came of a spot check.
//!
//! Invariant: the name of a reason never changes: metrics are labelled with it.

use kiln_proto::{Digest, Manifest, NodeId};

use crate::compiler::Output;

/// What compiling an artifact once more showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The same bytes.
    Equal,
    /// Other bytes, twice the same ones.
    Different {
        /// Which file, and how it differs.
        what: String,
        /// The node whose signature the wrong one has.
        signer: NodeId,
        /// What became of it.
        removed: Removed,
    },
    /// Nothing.
    Skipped(Skip),
}

/// What became of an artifact that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// This check removed it from the fleet.
    Now,
    /// Somebody was faster.
    Before,
    /// It is still served; why.
    Not(String),
}

/// Why an artifact was not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// This node signed it: what it compiles again proves nothing against it.
    Own,
    /// Its compiler may give other bytes for one input.
    Compiler,
    /// It is stitched of pieces, each of which is compared by itself.
    Pieces,
    /// This node does not have the toolchain that it is of.
    Toolchain,
    /// What it was compiled of is not kept, and nobody has it at hand.
    Request,
    /// Compilers, or the queue of spot checks, have enough to do.
    Busy,
    /// This node compared it before.
    Known,
    /// Two compiles here gave two results.
    Unsteady,
    /// It could not be compiled here.
    Failed,
    /// The compiler here refuses its source, which may be this node's fault.
    Refused,
    /// Its source asks for the time of its compilation.
    Time,
}

impl Skip {
    /// The name in metrics and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Compiler => "compiler",
            Self::Pieces => "pieces",
            Self::Toolchain => "toolchain",
            Self::Request => "request",
            Self::Busy => "busy",
            Self::Known => "known",
            Self::Unsteady => "unsteady",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Time => "time",
        }
    }

    /// For people.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Own => "this node signed it: ask another node",
            Self::Compiler => "its compiler may give other bytes for the same input",
            Self::Pieces => "it is stitched of pieces: verify these (kiln inspect names them)",
            Self::Toolchain => {
                "this node does not make this key with the toolchain that it has: ask a node that \
                 has the artifact's"
            }
            Self::Request => {
                "the cluster did not keep what it was compiled of (compile.keep_requests): give \
                 the source file in place of the key"
            }
            Self::Busy => "the compilers have other work: try again",
            Self::Known => "this node compared it before",
            Self::Unsteady => "two compiles on this node differ from each other, too",
            Self::Failed => "it could not be compiled here now: see this node's log",
            Self::Refused => {
                "the compiler of this node refuses its source (see its log): ask another node, and if \
                 that one refuses it too, see what else its signer made"
            }
            Self::Time => {
                "its source says when it is compiled (__DATE__, __TIME__ or __TIMESTAMP__)"
            }
        }
    }
}

impl Verdict {
    /// The name in metrics and in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Different { .. } => "different",
            Self::Skipped(skip) => skip.name(),
        }
    }
}

/// How the files of `output` differ from those that `manifest` says; `None`: they do not.
pub(super) fn difference(manifest: &Manifest, output: &Output) -> Option<String> {
    let mut made: Vec<_> = output.files.iter().collect();
    // A manifest has them in the order of their paths.
    made.sort_by(|a, b| a.0.cmp(&b.0));
    for (stored, (path, bytes)) in manifest.files.iter().zip(&made) {
        if stored.path != *path {
            return Some(format!("it has a file {:?} where compiling makes {path:?}", stored.path));
        }
        let (size, digest) = (bytes.len() as u64, Digest::of(bytes));
        if (stored.size, stored.digest) != (size, digest) {
            return Some(format!(
                "its {path} has {} bytes with the digest {}, and compiling makes {size} bytes with \
                 the digest {digest}",
                stored.size, stored.digest
            ));
        }
    }
    let (stored, made) = (manifest.files.len(), made.len());
    (stored != made).then(|| format!("it has {stored} files, and compiling makes {made}"))
}
