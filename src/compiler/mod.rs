//! Compilers: a source and a target in, files out.
//!
//! Invariants: [`Compiler::prepare`] does no I/O and decides the key, so every
//! node gives one request the same key, with or without a compiler; and no
//! compiler library is ever loaded into this process: all of it happens in
//! children that `worker::Pool` starts, bounds and ends.

mod cuda;
mod eager_compiler;
mod engine;
mod header_tree;
mod inductor;
mod mixed;
mod native_compiler;
mod options;
mod others;
mod patch;
mod pieces;
mod prepared;
mod python;
mod registry;
mod request;
pub(crate) mod room;
pub(crate) mod sandbox;
mod search;
mod toolchain;
pub(crate) mod worker;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use kiln_proto::{Failure, FailureKind, Fingerprint, graph::Graph};
use tokio_util::sync::CancellationToken;

use self::prepared::{Files, Job, generated};
pub use cuda::CudaCompiler;
pub use eager_compiler::EagerCompiler;
pub use header_tree::HeaderTree;
pub use inductor::InductorCompiler;
pub use kiln_native::split::{Choice, Estimates, Piecewise};
pub use mixed::MixedCompiler;
pub use native_compiler::NativeCompiler;
pub use prepared::{Correction, Planned, Prepared, Stitch, StitchPiece};
pub use python::PythonSettings;
pub use registry::{CompilerSettings, Compilers, PoolName};
pub use request::{CompileInput, CudaSource, Source, StaticSize};
pub use sandbox::{Kernel, LAUNCHER, launcher_main};
pub use search::{Environment, ToolchainSettings};
pub use toolchain::{Headers, Toolchain};
pub use worker::{PoolSettings, PoolUse, worker_main};

/// One way to turn a source into an artifact's files.
#[async_trait]
pub trait Compiler: Send + Sync {
    /// The name by which a request selects it, and the fingerprint's compiler.
    fn name(&self) -> &'static str;

    /// Whether it compiles this form of source.
    fn accepts(&self, source: &Source) -> bool;

    /// Returns once [`fingerprint`](Self::fingerprint) is an answer: some toolchains
    /// take seconds to be looked at.
    async fn settled(&self) {}

    /// This node's toolchain, or why it has none. A node without one can still
    /// [`prepare`](Self::prepare) with a fingerprint of another node.
    fn fingerprint(&self) -> Result<Fingerprint, Failure>;

    /// Validates `input` and works out its key and the job. Pure, and for an
    /// exported program worth a blocking thread: milliseconds of computing.
    fn prepare(&self, input: &CompileInput, fingerprint: &Fingerprint)
    -> Result<Prepared, Failure>;

    /// The same, in pieces where that is asked for, or where the graph suggests it.
    fn plan(
        &self,
        input: &CompileInput,
        fingerprint: &Fingerprint,
        piecewise: Piecewise,
    ) -> Result<Prepared, Failure> {
        if piecewise == Piecewise::Always {
            let why = format!("the {} compiler compiles nothing in pieces", self.name());
            return Err(Failure::new(FailureKind::Incompatible, why));
        }
        self.prepare(input, fingerprint)
    }

    /// One piece of a program by itself: a graph of its own. `input` says for what, and with
    /// which options.
    fn piece(
        &self,
        _input: &CompileInput,
        _fingerprint: &Fingerprint,
        _graph: &Graph,
    ) -> Result<Prepared, Failure> {
        let why = format!("the {} compiler compiles no pieces by themselves", self.name());
        Err(Failure::new(FailureKind::Incompatible, why))
    }

    /// Refuses a program for a size that it does not take, or that this compiler does not.
    /// Pure, and cheaper than [`prepare`](Self::prepare).
    fn check_size(&self, source: &Source) -> Result<(), Failure> {
        source.program(self.name()).map(drop)
    }

    /// `options` with those by which a compile takes less memory; `None`: it has no such, or
    /// they are given.
    fn saving(&self, _options: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
        None
    }

    /// `options` with those that leave optimisations out, which may be what it failed of;
    /// `None`: it has no such, or they are given.
    fn fewer(&self, _options: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
        None
    }

    /// Whether one input always gives the same bytes, on every node with the same
    /// fingerprint: then who stored other ones is found (`trust.spot_checks`).
    fn is_deterministic(&self) -> bool {
        false
    }

    /// Whether the source may say when it is compiled: then this one gives other bytes later.
    fn asks_the_time(&self, _prepared: &Prepared) -> bool {
        false
    }

    /// How many jobs could run at once from now on.
    fn free(&self) -> usize;

    /// Returns when a job could run at once.
    async fn until_free(&self);

    /// Runs the job in a child process. Ends early, with the child and all that
    /// it started gone, when `stop` fires, a limit passes or the future drops.
    async fn compile(
        &self,
        prepared: &Prepared,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Output, Failure>;
}

/// An artifact's files, before they are packed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Relative path and bytes, in path order, at least one.
    pub files: Vec<(String, Bytes)>,
    /// Seconds that the compiler itself took: what a hit saves.
    pub compile_seconds: f64,
    /// What the compiler said besides: warnings.
    pub log: String,
}

/// Bounds on one compile.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Wall time from the moment a worker is free; then the process group is killed.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    /// Private memory of the child in bytes.
    pub memory_bytes: u64,
}

impl Default for Limits {
    /// 10 minutes, 4 GiB: 400 unrolled kernels in one file took 36 s and 1 GB.
    fn default() -> Self {
        Self { time: Duration::from_secs(600), memory_bytes: 4 << 30 }
    }
}
