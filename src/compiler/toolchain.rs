//! One NVRTC with CUDA's headers: what it is, and what of it enters keys.
//!
//! Invariant: this process only looks at file names. What a library is, a probe
//! in a worker process says.

use std::path::{Path, PathBuf};

use kiln_proto::{Failure, FailureKind};

use super::{
    Environment, ToolchainSettings,
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
        Self::look_at(search::find(settings, environment)?, settings, program, folder).await
    }

    /// Asks a worker (`program worker`, in `folder`) what `library` is.
    pub(super) async fn look_at(
        library: PathBuf,
        settings: &ToolchainSettings,
        program: &Path,
        folder: &Path,
    ) -> Result<Self, Failure> {
        let toolkit = settings.include.clone();
        // A worker's first look: version, and its own headers unless others are asked for.
        // A folder above them is theirs as well: `..` from where they lie leads to nothing.
        let own = folder.join("cuda-headers/bundled");
        let install_headers = toolkit.is_none().then(|| own.clone());
        let mut setup =
            Setup { library, include: Vec::new(), install_headers, hash_headers: false };
        let probe = async |setup: &Setup| {
            let (program, folder) = (program.to_owned(), folder.to_owned());
            Pool::probe(&Nvrtc::new(program, folder, setup.clone()).map_err(unprepared)?).await
        };
        let ready = probe(&setup).await?;
        let beside = || beside(&setup.library);
        let (headers, include) = match (ready.bundled, toolkit.or_else(beside)) {
            (Bundled::Installed, _) => {
                (Headers::Bundled, vec![text(&own)?, text(&own.join("cccl"))?])
            }
            (Bundled::None, None) => (Headers::None, Vec::new()),
            (Bundled::None, Some(include)) => {
                let mut folders = vec![text(&include)?];
                // CUDA 13 keeps the C++ core libraries in a folder of their own.
                if include.join("cccl").is_dir() {
                    folders.push(text(&include.join("cccl"))?);
                }
                setup.include = vec![text(&include)?];
                (setup.install_headers, setup.hash_headers) = (None, true);
                let hashed = probe(&setup).await?;
                (Headers::Toolkit(hashed.headers.unwrap_or_default()), folders)
            }
        };
        Ok(Self {
            library: setup.library,
            version: ready.version,
            architectures: ready.architectures,
            headers,
            include,
            confined: ready.confined,
        })
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
