//! The compilers of a node, and which of them a request gets.
//!
//! Invariant: a node without a toolchain has the same compilers and gives the
//! same keys; it only cannot run them, and says why.

use std::{num::NonZero, path::Path, sync::Arc};

use kiln_proto::{Failure, FailureKind, Fingerprint, Target};

use super::{
    CompileInput, Compiler, CudaCompiler, EagerCompiler, Environment, InductorCompiler, Limits,
    MixedCompiler, NativeCompiler, PoolSettings, PoolUse, PythonSettings, Source, Toolchain,
    ToolchainSettings, engine::Engine, python::Python, sandbox,
};

/// The `[compiler]` section of a node's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompilerSettings {
    /// Where NVRTC is.
    pub toolchain: ToolchainSettings,
    /// How many compile at once.
    pub pool: PoolSettings,
    /// Bounds on each.
    pub limits: Limits,
    /// The interpreter that has torch.
    pub python: PythonSettings,
}

/// A pool of compiler processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolName {
    /// NVRTC's.
    Nvrtc,
    /// Inductor's.
    Python,
}

impl PoolName {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nvrtc => "nvrtc",
            Self::Python => "python",
        }
    }
}

/// Every compiler of this node.
pub struct Compilers {
    all: Vec<Arc<dyn Compiler>>,
    engine: Arc<Engine>,
    python: Arc<Python>,
}

impl Compilers {
    /// Starts to look for toolchains, in the background. `program` is the `kiln`
    /// executable; `folder` is made, and is for the workers alone.
    pub fn start(
        settings: &CompilerSettings,
        environment: &Environment,
        program: &Path,
        folder: &Path,
    ) -> Self {
        sandbox::tell();
        let CompilerSettings { toolchain, pool, .. } = settings;
        let engine = Engine::start(toolchain, pool, environment, program, folder);
        let python = Python::start(&settings.python, program, folder);
        let native = Arc::new(NativeCompiler::new(Arc::clone(&engine)));
        let [ahead, standalone] = InductorCompiler::NAMES
            .map(|name| Arc::new(InductorCompiler::new(name, Arc::clone(&python))));
        let mixed = MixedCompiler::new(Arc::clone(&native), Arc::clone(&standalone));
        let mixed_eager = MixedCompiler::with_eager(Arc::clone(&native));
        let all: Vec<Arc<dyn Compiler>> = vec![
            Arc::new(CudaCompiler::new(Arc::clone(&engine))),
            native,
            Arc::new(EagerCompiler),
            ahead,
            standalone,
            Arc::new(mixed),
            Arc::new(mixed_eager),
        ];
        Self { all, engine, python }
    }

    /// The compiler for a request's `backend`: a name, or `auto`, which goes by
    /// the source and the target alone, so that every node takes the same.
    pub fn select(
        &self,
        backend: &str,
        input: &CompileInput,
    ) -> Result<Arc<dyn Compiler>, Failure> {
        let source = &input.source;
        let refuse = |why: String| Err(Failure::new(FailureKind::Incompatible, why));
        let names = || self.all.iter().map(|c| c.name()).collect::<Vec<_>>().join(", ");
        let backend = match (backend, source) {
            ("" | "auto", Source::Cuda(_)) => "cuda",
            ("" | "auto", Source::Program { .. }) if input.target == Target::any() => "eager",
            ("" | "auto", Source::Program { .. }) => "native",
            (name, _) => name,
        };
        match self.all.iter().find(|compiler| compiler.name() == backend) {
            Some(compiler) if compiler.accepts(source) => Ok(Arc::clone(compiler)),
            Some(_) => refuse(format!("backend {backend:?} takes no {}", source.form())),
            None => refuse(format!("no backend {backend:?}; there are auto, {}", names())),
        }
    }

    /// Another compiler, for what the one that `auto` chose refuses for `why`: what
    /// `native` does not know may be Inductor's, in pieces.
    pub fn instead(
        &self,
        backend: &str,
        chosen: &dyn Compiler,
        why: &Failure,
    ) -> Option<Arc<dyn Compiler>> {
        let is_chosen = matches!(backend, "" | "auto") && chosen.name() == "native";
        let other = self.all.iter().find(|compiler| compiler.name() == MixedCompiler::NAME);
        other.filter(|_| is_chosen && why.kind == FailureKind::UnsupportedOp).cloned()
    }

    /// Whether what `compiler` made may answer a request for `backend`, of a program or of CUDA,
    /// that nothing took the place of: those of [`select`](Self::select) and
    /// [`instead`](Self::instead), for whoever asks a node.
    pub fn may_answer(compiler: &str, backend: &str, is_program: bool) -> bool {
        match (backend, is_program) {
            ("" | "auto", false) => compiler == "cuda",
            ("" | "auto", true) => {
                ["native", EagerCompiler::NAME, MixedCompiler::NAME].contains(&compiler)
            }
            (named, _) => compiler == named,
        }
    }

    /// The compiler of that name.
    pub fn named(&self, name: &str) -> Option<Arc<dyn Compiler>> {
        self.all.iter().find(|compiler| compiler.name() == name).cloned()
    }

    /// The compiler of this node that has this very toolchain.
    pub fn having(&self, fingerprint: &Fingerprint) -> Option<Arc<dyn Compiler>> {
        let named = self.all.iter().find(|compiler| compiler.name() == fingerprint.compiler);
        named.filter(|compiler| compiler.fingerprint().as_ref() == Ok(fingerprint)).cloned()
    }

    /// How busy each pool of processes is, of those that this node has.
    pub fn pools(&self) -> Vec<(PoolName, PoolUse)> {
        let nvrtc = self.engine.load().map(|load| (PoolName::Nvrtc, load));
        let python = self.python.load().map(|load| (PoolName::Python, load));
        nvrtc.into_iter().chain(python).collect()
    }

    /// So many jobs of a pool at once from now on; false: this node has no such pool, or
    /// not yet.
    pub fn resize(&self, pool: PoolName, workers: NonZero<usize>) -> bool {
        match pool {
            PoolName::Nvrtc => self.engine.resize(workers),
            PoolName::Python => self.python.resize(workers),
        }
    }

    /// Returns once the first look at NVRTC is over. Torch takes seconds even on an
    /// idle machine: whoever wants that waits for its [`Compiler::settled`].
    pub async fn settled(&self) {
        self.engine.settled().await;
    }

    /// What this node can compile with, as far as it is known: `eager` alone without a
    /// toolchain.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.all.iter().filter_map(|compiler| compiler.fingerprint().ok()).collect()
    }

    /// The compilers that this node does not have now, by their names, and why.
    pub fn missing(&self) -> Vec<(&'static str, Failure)> {
        let why = |compiler: &Arc<dyn Compiler>| {
            compiler.fingerprint().err().map(|failure| (compiler.name(), failure))
        };
        self.all.iter().filter_map(why).collect()
    }

    /// Wakes whenever [`fingerprints`](Self::fingerprints) may have changed.
    pub fn changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let (nvrtc, torch) = (self.engine.changes(), self.python.changes());
        async move {
            tokio::select! {
                () = nvrtc => {}
                () = torch => {}
            }
        }
    }

    /// This node's toolchain, or why it has none.
    pub fn toolchain(&self) -> Result<Toolchain, Failure> {
        self.engine.toolchain(Toolchain::clone)
    }
}
