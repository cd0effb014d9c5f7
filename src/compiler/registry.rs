//! The compilers of a node, and which of them a request gets.
//!
//! Invariant: a node without a toolchain has the same compilers and gives the
//! same keys; it only cannot run them, and says why.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln_proto::{Failure, FailureKind, Fingerprint, Target};
use tokio_util::sync::CancellationToken;

use super::{
    CompileInput, Compiler, CudaCompiler, EagerCompiler, Environment, InductorCompiler, Limits,
    NativeCompiler, PoolSettings, Prepared, PythonSettings, Source, Toolchain, ToolchainSettings,
    python::Python,
    toolchain::unprepared,
    worker::{Compiled, Nvrtc, Pool},
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

/// Every compiler of this node.
pub struct Compilers {
    all: Vec<Arc<dyn Compiler>>,
    engine: Arc<Engine>,
    python: Arc<Python>,
}

/// What the compilers share: one toolchain and its workers, or why there is none.
#[derive(Debug)]
pub(super) struct Engine(Result<(Toolchain, Pool<Nvrtc>), Failure>);

impl Compilers {
    /// Looks for a toolchain and starts a first worker. `program` is the `kiln`
    /// executable; `folder` is made, and is for the workers alone.
    pub async fn start(
        settings: &CompilerSettings,
        environment: &Environment,
        program: &Path,
        folder: &Path,
    ) -> Self {
        let started = Engine::start(settings, environment, program, folder).await;
        match &started {
            Ok((toolchain, _)) => tracing::info!(
                nvrtc = toolchain.version,
                library = %toolchain.library.display(),
                headers = ?toolchain.headers,
                confined = toolchain.confined,
                "found NVRTC"
            ),
            Err(failure) => tracing::warn!("this node cannot compile: {failure}"),
        }
        let engine = Arc::new(Engine(started));
        let python = Python::start(&settings.python, folder);
        let mut all: Vec<Arc<dyn Compiler>> = vec![
            Arc::new(CudaCompiler::new(Arc::clone(&engine))),
            Arc::new(NativeCompiler::new(Arc::clone(&engine))),
            Arc::new(EagerCompiler),
        ];
        for name in InductorCompiler::NAMES {
            all.push(Arc::new(InductorCompiler::new(name, Arc::clone(&python))));
        }
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

    /// What this node can compile with: `eager` alone without a toolchain.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.all.iter().filter_map(|compiler| compiler.fingerprint().ok()).collect()
    }

    /// Wakes whenever [`fingerprints`](Self::fingerprints) may have changed.
    pub fn changes(&self) -> impl Future<Output = ()> + Send + 'static {
        self.python.changes()
    }

    /// This node's toolchain, or why it has none.
    pub fn toolchain(&self) -> Result<&Toolchain, &Failure> {
        self.engine.toolchain()
    }
}

impl Engine {
    async fn start(
        settings: &CompilerSettings,
        environment: &Environment,
        program: &Path,
        folder: &Path,
    ) -> Result<(Toolchain, Pool<Nvrtc>), Failure> {
        let folder = std::path::absolute(folder).and_then(|folder| {
            std::fs::create_dir_all(&folder)?;
            Ok(folder)
        });
        let folder: PathBuf = folder.map_err(|e| {
            Failure::new(FailureKind::ToolchainMissing, format!("make the workers' folder: {e}"))
        })?;
        let toolchain =
            Toolchain::discover(&settings.toolchain, environment, program, &folder).await?;
        let tongue = Nvrtc::new(program.to_owned(), folder, toolchain.setup());
        let pool = Pool::new(tongue.map_err(unprepared)?, settings.pool.clone());
        pool.warm_up();
        Ok((toolchain, pool))
    }

    /// The toolchain, or why there is none.
    pub(super) fn toolchain(&self) -> Result<&Toolchain, &Failure> {
        self.0.as_ref().map(|(toolchain, _)| toolchain)
    }

    /// Runs a job if its key names `ours`, this node's own fingerprint.
    pub(super) async fn run(
        &self,
        ours: &Fingerprint,
        prepared: &Prepared,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Compiled, Failure> {
        let (_, pool) = self.0.as_ref().map_err(Failure::clone)?;
        if *ours != prepared.fingerprint {
            let why = format!("the key asks for {}, this node has {ours}", prepared.fingerprint);
            return Err(Failure::new(FailureKind::ToolchainMissing, why));
        }
        pool.run(prepared.nvrtc()?.0, limits, stop).await
    }
}
