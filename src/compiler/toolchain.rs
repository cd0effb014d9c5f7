//! Where NVRTC and CUDA's headers are.
//!
//! Invariant: this process only looks at file names. What a library is, a probe
//! in a worker process says.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use kiln_proto::{Failure, FailureKind};

use super::{
    request::HEADERS,
    worker::{Bundled, Nvrtc, Pool, Setup},
};

/// Where to look. All of it is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolchainSettings {
    /// NVRTC itself or its folder; then nowhere else is looked.
    pub nvrtc: Option<PathBuf>,
    /// CUDA's `include` folder, instead of what NVRTC brings or lies beside it.
    pub include: Option<PathBuf>,
    /// Python installations or virtual environments that may have NVRTC's wheel.
    pub pythons: Vec<PathBuf>,
}

/// The environment variables that matter here, taken once.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<&'static str, OsString>);

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

impl Environment {
    /// The variables that say where the libraries are.
    pub const VARIABLES: [&str; 7] = [
        "KILN_NVRTC_DIR",
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "HOME",
    ];

    /// What this process was started with.
    pub fn of_process() -> Self {
        Self(
            Self::VARIABLES
                .iter()
                .filter_map(|name| Some((*name, std::env::var_os(name)?)))
                .collect(),
        )
    }

    /// An environment with one more variable; those that mean nothing here are ignored.
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        if let Some(name) = Self::VARIABLES.iter().find(|known| **known == name) {
            self.0.insert(name, value.into());
        }
        self
    }

    fn paths(&self, name: &str) -> Vec<PathBuf> {
        let value = self.0.get(name).map(|value| std::env::split_paths(value).collect());
        let value: Vec<PathBuf> = value.unwrap_or_default();
        value.into_iter().filter(|path| path.is_absolute()).collect()
    }
}

impl Toolchain {
    /// Asks a worker (`program worker`, in `folder`) what `library` is.
    pub(super) async fn look_at(
        library: PathBuf,
        settings: &ToolchainSettings,
        program: &Path,
        folder: &Path,
    ) -> Result<Self, Failure> {
        let toolkit = settings.include.clone();
        // A worker's first look: version, and its own headers unless others are asked for.
        let own = folder.join("cuda-headers");
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

/// The library's path, or a failure that says where it was looked for.
pub(super) fn find(
    settings: &ToolchainSettings,
    environment: &Environment,
) -> Result<PathBuf, Failure> {
    let folders = match &settings.nvrtc {
        Some(file) if file.is_file() => return absolute(file),
        Some(folder) => vec![folder.clone()],
        None => usual_folders(settings, environment),
    };
    for folder in &folders {
        if let Some(library) = newest_in(folder) {
            return absolute(&library);
        }
    }
    let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    Err(Failure::new(
        FailureKind::ToolchainMissing,
        format!(
            "no NVRTC (libnvrtc.so.13 or .12) in {}. Install it with `pip install \
             nvidia-cuda-nvrtc` or with the CUDA toolkit, and name its folder in \
             KILN_NVRTC_DIR or the configuration",
            looked.join(", ")
        ),
    ))
}

/// Folders that may have it, most specific first.
fn usual_folders(settings: &ToolchainSettings, environment: &Environment) -> Vec<PathBuf> {
    let mut folders = environment.paths("KILN_NVRTC_DIR");
    folders.extend(environment.paths("LD_LIBRARY_PATH"));
    let mut toolkits = environment.paths("CUDA_HOME");
    toolkits.extend(environment.paths("CUDA_PATH"));
    toolkits.extend(sorted_children(Path::new("/usr/local"), "cuda"));
    toolkits.push("/opt/cuda".into());
    for toolkit in toolkits {
        folders.push(toolkit.join("lib64"));
        folders.push(toolkit.join("targets/x86_64-linux/lib"));
    }
    folders.push("/usr/lib/x86_64-linux-gnu".into());
    let mut pythons = settings.pythons.clone();
    pythons.extend(environment.paths("VIRTUAL_ENV"));
    pythons.extend(environment.paths("CONDA_PREFIX"));
    pythons.extend(environment.paths("HOME").iter().map(|home| home.join(".local")));
    pythons.extend(["/usr/local".into(), "/usr".into()]);
    for python in pythons {
        for version in sorted_children(&python.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = version.join(packages).join("nvidia");
                folders.extend(sorted_children(&nvidia, "").iter().map(|part| part.join("lib")));
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    let mut seen = std::collections::BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Children whose name starts with `prefix`, the highest name first.
fn sorted_children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    // A folder that cannot be read has nothing for us.
    let children = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = children
        .filter(|child| child.file_name().to_string_lossy().starts_with(prefix))
        .map(|child| child.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

/// `libnvrtc.so.13` before `libnvrtc.so.12`.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let libraries = sorted_children(folder, "libnvrtc.so.").into_iter();
    libraries
        .filter_map(|path| {
            let version = path.file_name()?.to_str()?.strip_prefix("libnvrtc.so.")?.to_owned();
            let parts: Option<Vec<u32>> = version.split('.').map(|p| p.parse().ok()).collect();
            Some((parts?, path))
        })
        .max()
        .map(|(_, path)| path)
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

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| {
        Failure::new(FailureKind::ToolchainMissing, format!("{}: {e}", path.display()))
    })
}

fn text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        let why = format!("the path of CUDA's headers is not UTF-8: {}", path.display());
        Failure::new(FailureKind::ToolchainMissing, why)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn library(root: &Path, folder: &str, name: &str) -> PathBuf {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), "").unwrap();
        folder.join(name)
    }

    #[test]
    fn the_most_specific_place_wins() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let wheel =
            library(root, "venv/lib/python3.12/site-packages/nvidia/cu13/lib", "libnvrtc.so.13");
        let settings = ToolchainSettings { pythons: vec![root.join("venv")], ..Default::default() };
        let mut environment = Environment::default();
        assert!(usual_folders(&settings, &environment).contains(&wheel.parent().unwrap().into()));

        let places = [
            ("CUDA_HOME", "cuda", library(root, "cuda/lib64", "libnvrtc.so.13.0.88")),
            ("LD_LIBRARY_PATH", "path", library(root, "path", "libnvrtc.so.12")),
            ("KILN_NVRTC_DIR", "own", library(root, "own", "libnvrtc.so.13")),
        ];
        for (variable, folder, expected) in places {
            environment = environment.with(variable, root.join(folder));
            assert_eq!(find(&settings, &environment).unwrap(), expected);
        }
        let file = wheel.clone();
        let settings = ToolchainSettings { nvrtc: Some(file), ..settings };
        assert_eq!(find(&settings, &environment).unwrap(), wheel);
    }

    #[test]
    fn the_newest_library_of_a_folder_wins() {
        let root = tempfile::tempdir().unwrap();
        let names = ["libnvrtc.so", "libnvrtc.alt.so.13", "libnvrtc.so.9", "libnvrtc.so.12"];
        for name in names {
            library(root.path(), "", name);
        }
        assert_eq!(newest_in(root.path()).unwrap(), root.path().join("libnvrtc.so.12"));
        library(root.path(), "", "libnvrtc.so.13");
        assert_eq!(newest_in(root.path()).unwrap(), root.path().join("libnvrtc.so.13"));
    }

    #[test]
    fn a_configured_place_is_the_only_one() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = library(root.path(), "own", "libnvrtc.so.13");
        let environment =
            Environment::default().with("KILN_NVRTC_DIR", elsewhere.parent().unwrap());
        let nvrtc = Some(root.path().join("nowhere"));
        let settings = ToolchainSettings { nvrtc, ..Default::default() };
        let missing = find(&settings, &environment).unwrap_err();
        assert_eq!(missing.kind, FailureKind::ToolchainMissing);
        assert!(missing.message.contains("nowhere"), "{missing}");
    }
}
