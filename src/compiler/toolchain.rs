//! One NVRTC with CUDA's headers: what it is, and what of it enters keys.
//!
//! Invariant: this process only looks at file names. What a library is, a probe
//! in a worker process says.

use std::path::{Path, PathBuf};

use kiln_proto::{Failure, FailureKind};

use super::{
    Environment, PoolSettings, ToolchainSettings,
    request::HEADERS,
    search,
    worker::{Bundled, Nvrtc, Pool, Setup},
};

/// One NVRTC with its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// Absolute path of the library.
    pub library: PathBuf,
    /// Full version: `13.5.37`.
    pub version: String,
    /// Compute capabilities times ten that it compiles for.
    pub architectures: Vec<u32>,
    /// Which headers a source may include beyond its own.
    pub headers: Headers,
    /// Folders of those.
    pub include: Vec<String>,
    /// Whether the kernel keeps sources from reading other files (Landlock).
    pub confined: bool,
    /// Whether it gives the same bytes each time: its workers have the same addresses.
    pub fixed: bool,
}

/// Headers beyond those of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Headers {
    /// None: a source that includes `cuda_fp16.h` does not compile here.
    None,
    /// The library's own: they follow from its version.
    Bundled,
    /// A toolkit's, by version and digest: `13.0-1f0c...`.
    Toolkit(String),
}

impl Toolchain {
    /// The NVRTC that a node of these settings compiles with: found, and looked at in a
    /// worker, a child (`program worker`) that works in `folder`.
    pub async fn find(
        settings: &ToolchainSettings,
        environment: &Environment,
        program: &Path,
        folder: &Path,
    ) -> Result<Self, Failure> {
        let library = search::find(settings, environment)?;
        let pool = PoolSettings::default();
        Self::look_at(library, settings, &pool, program, folder).await.map(|(found, _)| found)
    }

    /// Asks a worker (`program worker`, in `folder`) what `library` is: the answer, and workers
    /// that compile with it, of which one is warm.
    pub(super) async fn look_at(
        library: PathBuf,
        settings: &ToolchainSettings,
        pool: &PoolSettings,
        program: &Path,
        folder: &Path,
    ) -> Result<(Self, Pool<Nvrtc>), Failure> {
        let workers = |setup: &Setup| {
            let worker = Nvrtc::new(program.to_owned(), folder.to_owned(), setup.clone());
            Ok::<_, Failure>(Pool::new(worker.map_err(unprepared)?, pool.clone()))
        };
        let toolkit = settings.include.clone();
        let own = own_headers(folder);
        let own = vec![text(&own)?, text(&own.join("cccl"))?];
        let mut setup =
            Setup { library, include: Vec::new(), install_headers: None, hash_headers: false };
        if toolkit.is_none() {
            // Most libraries bring their headers, and then the first worker is one to work with.
            // A folder above them is theirs as well: `..` from where they lie leads to nothing.
            std::fs::create_dir_all(&own[1]).map_err(unprepared)?;
            setup.include = own.clone();
        }
        let first = workers(&setup)?;
        let ready = first.look().await?;
        let include = match ready.bundled {
            Bundled::None => toolkit.or_else(|| beside(&setup.library)),
            Bundled::Brought | Bundled::Installed => toolkit,
        };
        let (headers, include) = match (ready.bundled, include) {
            (Bundled::None, None) => (Headers::None, Vec::new()),
            (_, None) => (Headers::Bundled, own),
            (_, Some(include)) => {
                let mut folders = vec![text(&include)?];
                // CUDA 13 keeps the C++ core libraries in a folder of their own.
                if include.join("cccl").is_dir() {
                    folders.push(text(&include.join("cccl"))?);
                }
                let include = vec![text(&include)?];
                let hashing = Setup { include, hash_headers: true, ..setup.clone() };
                let hashed = workers(&hashing)?.look().await?;
                (Headers::Toolkit(hashed.headers.unwrap_or_default()), folders)
            }
        };
        let toolchain = Self {
            library: setup.library.clone(),
            version: ready.version,
            architectures: ready.architectures,
            headers,
            include,
            confined: ready.confined,
            fixed: ready.fixed,
        };
        let pool = if toolchain.setup() == setup {
            first
        } else {
            let pool = workers(&toolchain.setup())?;
            pool.warm_up();
            pool
        };
        Ok((toolchain, pool))
    }

    /// Writes the headers that the library brings, some 2,300 files, to where sources find them;
    /// `program` and `folder` are those of [`Self::find`]. Nothing to do where they are a toolkit's.
    pub(super) async fn install_headers(
        &self,
        program: &Path,
        folder: &Path,
    ) -> Result<(), Failure> {
        if self.headers != Headers::Bundled {
            return Ok(());
        }
        let install_headers = Some(own_headers(folder));
        let setup = Setup { install_headers, ..self.setup() };
        let worker = Nvrtc::new(program.to_owned(), folder.to_owned(), setup);
        Pool::probe(&worker.map_err(unprepared)?).await.map(drop)
    }

    /// What a worker is told.
    pub(super) fn setup(&self) -> Setup {
        Setup {
            library: self.library.clone(),
            include: self.include.clone(),
            install_headers: None,
            hash_headers: false,
        }
    }

    /// The versions of a fingerprint: headers that the library brings follow from its own.
    pub(super) fn versions(&self) -> Vec<(String, String)> {
        let mut versions = vec![("nvrtc".to_owned(), self.version.clone())];
        if let Headers::Toolkit(version) = &self.headers {
            versions.push((HEADERS.to_owned(), version.clone()));
        }
        versions
    }
}

/// Where the library's own headers are.
fn own_headers(folder: &Path) -> PathBuf {
    folder.join("cuda-headers/bundled")
}

/// `include` beside the library's folder, if it is a toolkit's.
fn beside(library: &Path) -> Option<PathBuf> {
    let real = library.canonicalize().ok()?;
    let folders = [library.parent()?, real.parent()?];
    let includes = folders.iter().filter_map(|folder| Some(folder.parent()?.join("include")));
    includes.into_iter().find(|include| include.join("cuda_fp16.h").is_file())
}

/// The workers' folder cannot be used.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn unprepared(e: std::io::Error) -> Failure {
    Failure::new(FailureKind::ToolchainMissing, format!("prepare the workers' folder: {e}"))
}

fn text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        let why = format!("the path of CUDA's headers is not UTF-8: {}", path.display());
        Failure::new(FailureKind::ToolchainMissing, why)
    })
}
