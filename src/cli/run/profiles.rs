//! The JIT caches that `kiln run` knows by name.
//!
//! Invariant: a profile's folder is the one that the tool itself would use with
//! the environment as it is, and the environment that [`Profile::variables`] sets
//! pins it there: the folder is at the same path in each run with the same
//! environment.

use std::path::{Path, PathBuf};

use super::toolchain::Tool;

/// What `kiln run` knows about one tool's cache folder.
#[derive(Debug)]
pub(crate) struct Profile {
    /// As given to `--profile`.
    pub(crate) name: &'static str,
    /// For `--list-profiles`.
    pub(crate) about: &'static str,
    /// Variables that name the folder, in the tool's own order; all are set for
    /// the command.
    pub(crate) variables: &'static [&'static str],
    /// Where the tool keeps it otherwise.
    default: Default,
    /// The cache's folder below what the variables name.
    below: &'static str,
    /// Its variables are set even where none was: setting them does not change
    /// the tool's own layout.
    pins: bool,
    /// The tool writes absolute paths of the folder into its files, so what one
    /// path has is of no use at another: the path's digest is part of the key.
    pub(crate) path_bound: bool,
    /// What decides the folder's content.
    pub(crate) tools: &'static [Tool],
    /// Files that are never taken along, beside [`NEVER`].
    pub(crate) skip: &'static [&'static str],
}

#[derive(Debug)]
enum Default {
    /// Below the home folder.
    Home(&'static str),
    /// Below `XDG_CACHE_HOME`, or `~/.cache`.
    Cache(&'static str),
    /// `torchinductor_USER` below the folder for temporary files.
    Inductor,
}

/// Locks, temporary files and Kiln's own: of no use to another process, and a
/// lock file that is restored would be waited for.
pub(crate) const NEVER: &[&str] = &[
    "lock",
    "*.lock",
    "*.kiln-lock",
    "*.tmp",
    "*.temp",
    "tmp.*",
    ".tmp*",
    ".nfs*",
    "*~",
    ".kiln*",
];

/// All of them, as `--list-profiles` shows them.
pub(crate) const PROFILES: &[Profile] = &[
    Profile {
        name: "inductor",
        about: "torch.compile's Inductor, with the Triton kernels below it",
        variables: &["TORCHINDUCTOR_CACHE_DIR"],
        default: Default::Inductor,
        below: "",
        pins: true,
        path_bound: true,
        tools: &[Tool::Python, Tool::Torch, Tool::Triton, Tool::Libc, Tool::Cxx, Tool::Isa],
        skip: &["/locks", "/tmp"],
    },
    Profile {
        name: "triton",
        about: "Triton kernels",
        variables: &["TRITON_CACHE_DIR"],
        default: Default::Home(".triton/cache"),
        below: "",
        pins: true,
        // `__grp__*.json` lists a kernel's files by their absolute paths.
        path_bound: true,
        tools: &[Tool::Python, Tool::Triton, Tool::Libc],
        skip: &[],
    },
    Profile {
        name: "vllm",
        about: "vLLM's compiled graphs and DeepGEMM kernels",
        variables: &["VLLM_CACHE_ROOT"],
        default: Default::Cache("vllm"),
        below: "",
        pins: true,
        path_bound: true,
        tools: &[
            Tool::Python,
            Tool::Torch,
            Tool::Triton,
            Tool::Vllm,
            Tool::Libc,
            Tool::Cxx,
            Tool::Isa,
        ],
        // Downloads, and what is true of one machine only.
        skip: &["/assets", "/gpu_p2p_access_cache*", "/modelinfos"],
    },
    Profile {
        name: "flashinfer",
        about: "FlashInfer's ninja-built kernels",
        variables: &["FLASHINFER_WORKSPACE_BASE"],
        default: Default::Home(""),
        below: ".cache/flashinfer",
        pins: true,
        // build.ninja and .ninja_log.
        path_bound: true,
        tools: &[Tool::Python, Tool::Torch, Tool::Flashinfer, Tool::Libc, Tool::Cxx, Tool::Nvcc],
        // Downloaded, not compiled.
        skip: &["/cubins"],
    },
    Profile {
        name: "deep_gemm",
        about: "DeepGEMM kernels",
        variables: &["DG_JIT_CACHE_DIR", "DG_CACHE_DIR"],
        default: Default::Home(".deep_gemm"),
        below: "",
        pins: true,
        path_bound: false,
        tools: &[Tool::Python, Tool::Torch, Tool::DeepGemm, Tool::Libc, Tool::Nvcc],
        skip: &["/tmp", "/cache/tmp"],
    },
    Profile {
        name: "cuda",
        about: "the CUDA driver's ComputeCache: PTX that it finished compiling",
        variables: &["CUDA_CACHE_PATH"],
        default: Default::Home(".nv/ComputeCache"),
        below: "",
        pins: true,
        path_bound: false,
        tools: &[Tool::Driver],
        skip: &[],
    },
    Profile {
        name: "torch-extensions",
        about: "torch.utils.cpp_extension.load: ninja builds",
        variables: &["TORCH_EXTENSIONS_DIR"],
        default: Default::Cache("torch_extensions"),
        below: "",
        // Set, it takes the Python and CUDA versions out of the tool's paths.
        pins: false,
        path_bound: true,
        tools: &[Tool::Python, Tool::Torch, Tool::Libc, Tool::Cxx, Tool::Nvcc, Tool::Isa],
        skip: &[],
    },
];

impl Profile {
    /// The profile called `name`.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        PROFILES
            .iter()
            .find(|profile| profile.name == name.replace('_', "-") || profile.name == name)
    }

    /// The cache folder, and what its variables are set to for the command.
    pub(crate) fn locate(&self, env: &Environment<'_>) -> Option<(PathBuf, Option<PathBuf>)> {
        let set = self.variables.iter().find_map(|name| env.path(name));
        let pinned = set.is_some() || self.pins;
        let base = set.or_else(|| self.default.path(env))?;
        let base = env.absolute(&base);
        let folder = env.absolute(&base.join(self.below));
        Some((folder, pinned.then_some(base)))
    }
}

impl Default {
    fn path(&self, env: &Environment<'_>) -> Option<PathBuf> {
        match self {
            Self::Home(below) => Some(env.path("HOME")?.join(below)),
            Self::Cache(below) => match env.path("XDG_CACHE_HOME") {
                Some(cache) => Some(cache.join(below)),
                None => Some(env.path("HOME")?.join(".cache").join(below)),
            },
            Self::Inductor => {
                let temporary = ["TMPDIR", "TEMP", "TMP"].iter().find_map(|name| env.path(name));
                let user = ["LOGNAME", "USER", "LNAME", "USERNAME"];
                let user = user.iter().find_map(|name| env.text(name));
                let user = user.unwrap_or_else(|| match rustix::process::getuid().as_raw() {
                    0 => "root".into(),
                    id => format!("uid_{id}"),
                });
                let user: String = user
                    .chars()
                    .map(|c| if r#"\/:*?"<>|"#.contains(c) { '_' } else { c })
                    .collect();
                let temporary = temporary.unwrap_or_else(|| "/tmp".into());
                Some(temporary.join(format!("torchinductor_{user}")))
            }
        }
    }
}

/// The variables and the working folder that the command will have.
pub(crate) struct Environment<'a> {
    /// A variable's value.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<std::ffi::OsString>,
    /// The working folder.
    pub(crate) folder: &'a Path,
}

impl Environment<'_> {
    fn path(&self, name: &str) -> Option<PathBuf> {
        (self.variable)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    fn text(&self, name: &str) -> Option<String> {
        (self.variable)(name)?.into_string().ok().filter(|value| !value.is_empty())
    }

    /// `path` seen from the root, without `.` and `..` parts.
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        let home = (self.variable)("HOME").map(PathBuf::from);
        let path = match (path.strip_prefix("~"), home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => self.folder.join(path),
        };
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                std::path::Component::ParentDir => {
                    plain.pop();
                }
                std::path::Component::CurDir => {}
                part => plain.push(part),
            }
        }
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(name: &str, variables: &[(&str, &str)]) -> (String, Option<String>) {
        let variable = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).into())
        };
        let env = Environment { variable: &variable, folder: Path::new("/srv") };
        let (folder, pinned) = Profile::named(name).unwrap().locate(&env).unwrap();
        (folder.display().to_string(), pinned.map(|path| path.display().to_string()))
    }

    #[test]
    fn a_folder_is_where_the_tool_itself_would_have_it() {
        let home = [("HOME", "/home/u"), ("USER", "u")];
        for (name, folder) in [
            ("inductor", "/tmp/torchinductor_u"),
            ("triton", "/home/u/.triton/cache"),
            ("vllm", "/home/u/.cache/vllm"),
            ("flashinfer", "/home/u/.cache/flashinfer"),
            ("deep_gemm", "/home/u/.deep_gemm"),
            ("cuda", "/home/u/.nv/ComputeCache"),
            ("torch-extensions", "/home/u/.cache/torch_extensions"),
        ] {
            assert_eq!(locate(name, &home).0, folder);
        }
    }

    #[test]
    fn the_tools_own_variable_decides_and_is_pinned() {
        let set = [("HOME", "/home/u"), ("TRITON_CACHE_DIR", "a/../b")];
        assert_eq!(locate("triton", &set), ("/srv/b".into(), Some("/srv/b".into())));
        let set = [("HOME", "/home/u"), ("FLASHINFER_WORKSPACE_BASE", "/w")];
        assert_eq!(locate("flashinfer", &set), ("/w/.cache/flashinfer".into(), Some("/w".into())));
        let set = [("HOME", "/home/u"), ("DG_CACHE_DIR", "/old")];
        assert_eq!(locate("deep_gemm", &set).0, "/old");
        let set = [("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x")];
        assert_eq!(locate("vllm", &set).0, "/x/vllm");
    }

    #[test]
    fn extensions_keep_the_layout_that_they_have_without_a_variable() {
        assert_eq!(locate("torch-extensions", &[("HOME", "/h")]).1, None);
        assert_eq!(locate("torch_extensions", &[("TORCH_EXTENSIONS_DIR", "/e")]).1.unwrap(), "/e");
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::HashSet<_> = PROFILES.iter().map(|p| p.name).collect();
        assert_eq!(names.len(), PROFILES.len());
    }
}
