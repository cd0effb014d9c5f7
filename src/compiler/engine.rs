//! NVRTC as this node has it: looked at once, in the background, and then used
//! through a pool of worker processes.
//!
//! Invariants: nothing waits for a look but who asks what it found; and what was
//! found stays for as long as the node runs, so that a fingerprint once told holds.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_proto::{Failure, FailureKind, Fingerprint};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Environment, Limits, PoolSettings, PoolUse, Prepared, Toolchain, ToolchainSettings,
    search::find,
    toolchain::unprepared,
    worker::{Compiled, Nvrtc, Pool, remove_left},
};

/// After the first look at a library that failed; twice as long after each other one.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(300);
/// After headers could not be written.
const HEADERS_AGAIN: Duration = Duration::from_secs(10);

/// What the compilers share: one toolchain and its workers, or why there is none.
#[derive(Debug)]
pub(super) struct Engine {
    state: watch::Sender<State>,
    _look: AbortOnDropHandle<()>,
}

#[derive(Debug, Clone)]
enum State {
    /// The first look is not over.
    Looking,
    Found(Arc<Found>),
    Missing(Failure),
}

#[derive(Debug)]
struct Found {
    toolchain: Toolchain,
    pool: Pool<Nvrtc>,
    /// Where the workers are, and what they run.
    folder: PathBuf,
    program: PathBuf,
    headers: tokio::sync::Mutex<Written>,
}

/// Whether the library's own headers are where the workers look.
#[derive(Debug)]
enum Written {
    NotYet,
    Done,
    /// Not at the last try: why, and when that was.
    Failed(Failure, Instant),
}

impl Found {
    /// Puts the library's headers where the workers look, once: a node that compiles nothing, or
    /// nothing that includes a file, starts without them.
    async fn need_headers(&self) -> Result<(), Failure> {
        let mut written = self.headers.lock().await;
        match &*written {
            Written::Done => return Ok(()),
            Written::Failed(why, at) if at.elapsed() < HEADERS_AGAIN => return Err(why.clone()),
            Written::NotYet | Written::Failed(..) => {}
        }
        let writing = self.toolchain.install_headers(&self.program, &self.folder).await;
        let written_now = writing.map_err(|failure| match failure.kind.follows_from_request() {
            // The request is not what failed.
            true => Failure::new(FailureKind::Crashed, failure.message),
            false => failure,
        });
        *written = match &written_now {
            Ok(()) => Written::Done,
            Err(why) => {
                tracing::warn!("sources that include CUDA's headers do not compile here: {why}");
                Written::Failed(why.clone(), Instant::now())
            }
        };
        written_now
    }
}

/// Where to look, and with what.
struct Look {
    toolchain: ToolchainSettings,
    pool: PoolSettings,
    environment: Environment,
    program: PathBuf,
    folder: PathBuf,
}

impl Engine {
    /// Starts to look. `program` is the `kiln` executable; `folder` is made, and is
    /// for the workers alone.
    pub(super) fn start(
        toolchain: &ToolchainSettings,
        pool: &PoolSettings,
        environment: &Environment,
        program: &Path,
        folder: &Path,
    ) -> Arc<Self> {
        let look = Look {
            toolchain: toolchain.clone(),
            pool: pool.clone(),
            environment: environment.clone(),
            program: program.to_owned(),
            folder: folder.to_owned(),
        };
        let (state, _) = watch::channel(State::Looking);
        let looking = tokio::spawn(look.until_found(state.clone()));
        Arc::new(Self { state, _look: AbortOnDropHandle::new(looking) })
    }

    /// Returns once the first look is over.
    pub(super) async fn settled(&self) {
        let mut state = self.state.subscribe();
        // An error means that nobody will ever tell: then what is known is all.
        let _ = state.wait_for(|state| !matches!(state, State::Looking)).await;
    }

    /// Wakes when another look gave something new.
    pub(super) fn changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.state.subscribe();
        async move {
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn found(&self) -> Result<Arc<Found>, Failure> {
        match &*self.state.borrow() {
            State::Found(found) => Ok(Arc::clone(found)),
            State::Missing(failure) => Err(failure.clone()),
            State::Looking => {
                let why = "NVRTC is still being looked at: try again";
                Err(Failure::new(FailureKind::Busy, why))
            }
        }
    }

    /// What `read` reads of the toolchain, or why there is none.
    pub(super) fn toolchain<T>(&self, read: impl FnOnce(&Toolchain) -> T) -> Result<T, Failure> {
        Ok(read(&self.found()?.toolchain))
    }

    /// Jobs that could run at once from now on.
    pub(super) fn free(&self) -> usize {
        self.found().map_or(0, |found| found.pool.free())
    }

    /// Returns when a job could run at once.
    pub(super) async fn until_free(&self) {
        match self.found() {
            Ok(found) => found.pool.until_free().await,
            // Without a toolchain there is nothing to be free.
            Err(_) => std::future::pending().await,
        }
    }

    /// How busy its workers are; `None`: there is no toolchain.
    pub(super) fn load(&self) -> Option<PoolUse> {
        self.found().ok().map(|found| found.pool.load())
    }

    /// So many jobs at once from now on; whether there is a toolchain.
    pub(super) fn resize(&self, workers: NonZero<usize>) -> bool {
        self.found().map(|found| found.pool.resize(workers)).is_ok()
    }

    /// Runs a job if its key names `ours`, this node's own fingerprint.
    pub(super) async fn run(
        &self,
        ours: &Fingerprint,
        prepared: &Prepared,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Compiled, Failure> {
        let found = self.found()?;
        if *ours != prepared.fingerprint {
            let why = format!("the key asks for {}, this node has {ours}", prepared.fingerprint);
            return Err(Failure::new(FailureKind::ToolchainMissing, why));
        }
        let program = prepared.nvrtc()?.0;
        if program.may_include() {
            tokio::select! {
                written = found.need_headers() => written?,
                () = stop.cancelled() => {
                    return Err(Failure::new(FailureKind::Crashed, "the compile was cancelled"));
                }
            }
        }
        found.pool.run(program, limits, stop).await
    }
}

impl Look {
    /// Looks until there is something to tell for good. A library that is there and
    /// cannot be loaded may be on a machine that has no time or memory for it now.
    async fn until_found(self, state: watch::Sender<State>) {
        let mut pause = AGAIN;
        let mut told = None;
        loop {
            let (failure, again) = match self.find().await {
                Ok(library) => match self.load(library).await {
                    Ok(found) => {
                        state.send_replace(State::Found(Arc::new(found)));
                        return;
                    }
                    Err(failure) => (failure, true),
                },
                Err(failure) => (failure, false),
            };
            if told.as_ref() != Some(&failure) {
                tracing::warn!(again, "this node cannot compile: {failure}");
                state.send_replace(State::Missing(failure.clone()));
                told = Some(failure);
            }
            if !again {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_AT_MOST);
        }
    }

    /// Files only, but they may be on a mount that hangs: not on a runtime thread.
    async fn find(&self) -> Result<PathBuf, Failure> {
        let (settings, environment) = (self.toolchain.clone(), self.environment.clone());
        let finding = move || find(&settings, &environment);
        tokio::task::spawn_blocking(finding).await.map_err(|e| unprepared(e.into()))?
    }

    async fn load(&self, library: PathBuf) -> Result<Found, Failure> {
        let folder = std::path::absolute(&self.folder).map_err(unprepared)?;
        std::fs::create_dir_all(&folder).map_err(unprepared)?;
        if let Err(error) = remove_left(&folder) {
            tracing::warn!(%error, folder = %folder.display(), "what a killed node left stays");
        }
        let program = self.program.clone();
        let looking = Toolchain::look_at(library, &self.toolchain, &self.pool, &program, &folder);
        let (toolchain, pool) = looking.await?;
        tracing::info!(
            nvrtc = toolchain.version,
            library = %toolchain.library.display(),
            headers = ?toolchain.headers,
            confined = toolchain.confined,
            fixed = toolchain.fixed,
            "found NVRTC"
        );
        Ok(Found { toolchain, pool, folder, program, headers: Written::NotYet.into() })
    }
}
