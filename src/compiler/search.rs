//! Where an NVRTC may lie, and which of several is taken.
//!
//! Invariants: this process only looks at file names. A setting comes before the
//! environment, and that before the system; Kiln's own cache folder comes last, so that
//! it changes nothing where there is another NVRTC: the library's version is a part of
//! every key.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
};

use kiln_proto::{Failure, FailureKind};

/// Where to look. All of it is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolchainSettings {
    /// NVRTC itself or its folder; then nowhere else is looked.
    pub nvrtc: Option<PathBuf>,
    /// CUDA's `include` folder, instead of what NVRTC brings or lies beside it.
    pub include: Option<PathBuf>,
    /// Python installations or virtual environments that may have NVRTC's wheel, before
    /// the active one.
    pub pythons: Vec<PathBuf>,
}

const VIRTUAL_ENV: &str = "VIRTUAL_ENV";

/// The environment variables that matter here, taken once.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<&'static str, OsString>);

impl Environment {
    /// The variables that say where the libraries are.
    pub const VARIABLES: [&str; 9] = [
        "KILN_NVRTC_DIR",
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_PATH",
        VIRTUAL_ENV,
        "CONDA_PREFIX",
        "KILN_CACHE",
        "XDG_CACHE_HOME",
        "HOME",
    ];

    /// What this process was started with.
    pub fn of_process() -> Self {
        let set = Self::VARIABLES.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let found = Self(set.collect());
        match std::env::current_exe() {
            Ok(program) => found.beside(&program),
            Err(_) => found,
        }
    }

    /// A program inside a virtual environment is in that one, activated or not.
    fn beside(self, program: &Path) -> Self {
        let inside = program.parent().and_then(Path::parent);
        match inside.filter(|folder| folder.join("pyvenv.cfg").is_file()) {
            Some(folder) if !self.0.contains_key(VIRTUAL_ENV) => self.with(VIRTUAL_ENV, folder),
            _ => self,
        }
    }

    /// An environment with one more variable; those that mean nothing here are ignored.
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        if let Some(name) = Self::VARIABLES.iter().find(|known| **known == name) {
            self.0.insert(name, value.into());
        }
        self
    }

    /// What `deploy/toolchain.sh` fetches lies here.
    fn cache(&self) -> Option<PathBuf> {
        let folder = |name: &str| self.0.get(name).map(PathBuf::from).filter(|p| p.is_absolute());
        folder("KILN_CACHE")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("kiln")))
            .or_else(|| Some(folder("HOME")?.join(".cache/kiln")))
    }

    fn paths(&self, name: &str) -> Vec<PathBuf> {
        let value = self.0.get(name).map(|value| std::env::split_paths(value).collect());
        let value: Vec<PathBuf> = value.unwrap_or_default();
        value.into_iter().filter(|path| path.is_absolute()).collect()
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
    let looked = match folders.is_empty() {
        true => "any usual folder".to_owned(),
        false => {
            let names: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            names.join(", ")
        }
    };
    Err(Failure::new(
        FailureKind::ToolchainMissing,
        format!(
            "no NVRTC (libnvrtc.so.13 or .12) in {looked}. Install it with `pip install \
             nvidia-cuda-nvrtc` in the virtual environment in which the node starts, or with \
             the CUDA toolkit, or name its folder: compile.nvrtc (KILN_COMPILE_NVRTC)"
        ),
    ))
}

/// Folders that may have it: what the environment names, then the system's, then what
/// Kiln itself fetched.
fn usual_folders(settings: &ToolchainSettings, environment: &Environment) -> Vec<PathBuf> {
    let mut folders = environment.paths("KILN_NVRTC_DIR");
    folders.extend(environment.paths("LD_LIBRARY_PATH"));
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        folders.extend(environment.paths(variable).iter().flat_map(|each| of_toolkit(each)));
    }
    let active = [VIRTUAL_ENV, "CONDA_PREFIX"].into_iter().flat_map(|name| environment.paths(name));
    let pythons = settings.pythons.iter().cloned().chain(active);
    folders.extend(pythons.flat_map(|python| of_python(&python)));

    let installed = sorted_children(Path::new("/usr/local"), "cuda").into_iter();
    let installed = installed.chain(["/opt/cuda".into()]);
    folders.extend(installed.flat_map(|toolkit| of_toolkit(&toolkit)));
    folders.push("/usr/lib/x86_64-linux-gnu".into());
    let user = environment.paths("HOME").into_iter().map(|home| home.join(".local"));
    let pythons = user.chain(["/usr/local".into(), "/usr".into()]);
    folders.extend(pythons.flat_map(|python| of_python(&python)));

    folders.extend(environment.cache().iter().flat_map(|cache| fetched(cache)));
    folders.retain(|folder| folder.is_dir());
    let mut seen = BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Where a CUDA toolkit has its libraries.
fn of_toolkit(toolkit: &Path) -> [PathBuf; 2] {
    [toolkit.join("lib64"), toolkit.join("targets/x86_64-linux/lib")]
}

/// Where NVIDIA's wheels put libraries in a Python installation or virtual environment.
fn of_python(python: &Path) -> Vec<PathBuf> {
    let versions = sorted_children(&python.join("lib"), "python3").into_iter();
    let packages = versions.flat_map(|version| {
        ["site-packages", "dist-packages"].map(|packages| version.join(packages))
    });
    packages.flat_map(|packages| of_packages(&packages)).collect()
}

fn of_packages(packages: &Path) -> Vec<PathBuf> {
    let parts = sorted_children(&packages.join("nvidia"), "").into_iter();
    parts.map(|part| part.join("lib")).collect()
}

/// What `deploy/toolchain.sh` fetched into `nvrtc-CHECKSUM`, the newest version first: a
/// checksum says nothing of it. `nvrtc-alt-CHECKSUM` is for tests alone.
fn fetched(cache: &Path) -> Vec<PathBuf> {
    const NAME: &str = "nvrtc-";
    let folders = sorted_children(cache, NAME).into_iter().filter(|folder| {
        let sum = folder.file_name().and_then(|name| name.to_str()?.strip_prefix(NAME));
        sum.is_some_and(|sum| !sum.is_empty() && sum.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let mut versions: Vec<_> = folders.map(|folder| (wheel_version(&folder), folder)).collect();
    versions.sort();
    versions.into_iter().rev().flat_map(|(_, folder)| of_packages(&folder)).collect()
}

/// The version of NVRTC's wheel that was unpacked into `folder`, as its metadata's name
/// has it: `nvidia_cuda_nvrtc-13.5.37.dist-info`.
fn wheel_version(folder: &Path) -> Option<Vec<u32>> {
    let wheels = sorted_children(folder, "nvidia_cuda_nvrtc").into_iter();
    let versions = wheels.filter_map(|wheel| {
        let name = wheel.file_name()?.to_str()?.strip_suffix(".dist-info")?;
        numbers(name.rsplit_once('-')?.1)
    });
    versions.max()
}

/// `13.5.37` in numbers.
fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
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
            Some((numbers(&version)?, path))
        })
        .max()
        .map(|(_, path)| path)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| {
        Failure::new(FailureKind::ToolchainMissing, format!("{}: {e}", path.display()))
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

    /// Everything that the usual folders are made from, below `root`.
    fn at_home(root: &Path) -> Environment {
        Environment::default().with("HOME", root.join("home"))
    }

    fn fetched_version(root: &Path, sum: &str, version: &str) -> PathBuf {
        let folder = format!("home/.cache/kiln/nvrtc-{sum}");
        let metadata = root.join(&folder).join(format!("nvidia_cuda_nvrtc-{version}.dist-info"));
        std::fs::create_dir_all(metadata).unwrap();
        library(root, &format!("{folder}/nvidia/cu13/lib"), "libnvrtc.so.13")
    }

    #[test]
    fn the_environment_comes_before_the_system_and_what_kiln_fetched_comes_last() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let fetched = fetched_version(root, "123", "13.5.37");
        let packages = "lib/python3.12/site-packages/nvidia/cu13/lib";
        library(root, &format!("home/.local/{packages}"), "libnvrtc.so.13");
        let venv = library(root, &format!("venv/{packages}"), "libnvrtc.so.13");
        let environment = at_home(root).with(VIRTUAL_ENV, root.join("venv"));
        let folders = usual_folders(&ToolchainSettings::default(), &environment);
        let place = |of: &Path| folders.iter().position(|folder| folder == of).unwrap();
        let system = place(Path::new("/usr/lib/x86_64-linux-gnu"));
        let user = place(&root.join("home/.local").join(packages));
        assert_eq!(place(venv.parent().unwrap()), 0);
        assert!(system < user && user < place(fetched.parent().unwrap()), "{folders:?}");
        assert_eq!(folders.last().map(PathBuf::as_path), fetched.parent());
    }

    #[test]
    fn of_what_kiln_fetched_the_newest_version_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fetched_version(root, "999", "13.0.88");
        let newest = fetched_version(root, "111", "13.10.1");
        fetched_version(root, "555", "13.9.7");
        // Another one for tests, and one that is not complete yet.
        fetched_version(root, "alt-777", "14.0.1");
        fetched_version(root, "888.part", "14.0.2");
        let cache = at_home(root).cache().unwrap();
        let found = super::fetched(&cache);
        assert_eq!(found.first().map(PathBuf::as_path), newest.parent());
        assert_eq!(found.len(), 3, "{found:?}");

        // As deploy/toolchain.sh has it, empty variables included.
        let environment = at_home(root).with("XDG_CACHE_HOME", "/xdg").with("KILN_CACHE", "");
        assert_eq!(environment.cache().unwrap(), Path::new("/xdg/kiln"));
        assert_eq!(environment.with("KILN_CACHE", "/own").cache().unwrap(), Path::new("/own"));
    }

    #[test]
    fn a_program_in_a_virtual_environment_looks_there() {
        let root = tempfile::tempdir().unwrap();
        let venv = root.path().join("venv");
        std::fs::create_dir_all(venv.join("bin")).unwrap();
        let program = venv.join("bin/kiln");
        assert!(at_home(root.path()).beside(&program).paths(VIRTUAL_ENV).is_empty());
        std::fs::write(venv.join("pyvenv.cfg"), "").unwrap();
        assert_eq!(at_home(root.path()).beside(&program).paths(VIRTUAL_ENV), [venv]);
        let active = at_home(root.path()).with(VIRTUAL_ENV, "/active").beside(&program);
        assert_eq!(active.paths(VIRTUAL_ENV), [PathBuf::from("/active")]);
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
