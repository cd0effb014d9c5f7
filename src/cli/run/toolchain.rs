//! The versions that decide what a cache folder holds.
//!
//! Invariant: asking is bounded and changes nothing: Python packages are asked
//! for their metadata and never imported, and a tool that does not answer in
//! time counts as absent. No path, host or user enters an answer.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use kiln_proto::{Digest, Target};
use tokio::process::Command;

use crate::cli::python;

/// Something whose version can matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tool {
    Python,
    Torch,
    Triton,
    Vllm,
    Flashinfer,
    DeepGemm,
    /// The C library that compiled code is linked to.
    Libc,
    /// The host compiler.
    Cxx,
    Nvcc,
    /// The kernel's CUDA driver.
    Driver,
    /// Instruction sets of the CPU: host code is compiled for all that it has.
    Isa,
}

/// For a folder about which nothing is known.
pub(crate) const ALL: &[Tool] = &[
    Tool::Python,
    Tool::Torch,
    Tool::Triton,
    Tool::Vllm,
    Tool::Flashinfer,
    Tool::DeepGemm,
    Tool::Libc,
    Tool::Cxx,
    Tool::Nvcc,
    Tool::Driver,
    Tool::Isa,
];

/// What stands for a tool that is not there.
const NONE: &str = "none";
const PATIENCE: Duration = Duration::from_secs(10);
const PROBE: &str = include_str!("probe.py");

impl Tool {
    /// Its name in the fingerprint.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Torch => "torch",
            Self::Triton => "triton",
            Self::Vllm => "vllm",
            Self::Flashinfer => "flashinfer",
            Self::DeepGemm => "deep_gemm",
            Self::Libc => "libc",
            Self::Cxx => "cxx",
            Self::Nvcc => "nvcc",
            Self::Driver => "driver",
            Self::Isa => "isa",
        }
    }

    fn asks_python(self) -> bool {
        !matches!(self, Self::Cxx | Self::Nvcc | Self::Driver | Self::Isa)
    }
}

/// Version by tool.
pub(crate) type Versions = BTreeMap<&'static str, String>;

/// Asks for the versions of `tools`. `command` is what will run: its interpreter
/// is asked, or `python` where one is named.
pub(crate) async fn versions(tools: &[Tool], command: &OsStr, python: Option<&Path>) -> Versions {
    let wants = |tool| tools.contains(&tool);
    let probe = async {
        match tools.iter().any(|tool| tool.asks_python()) {
            true => ask_python(&python.map_or_else(|| interpreter(command), PathBuf::from)).await,
            false => BTreeMap::new(),
        }
    };
    let cxx = async {
        let cxx = std::env::var("CXX").ok().filter(|name| !name.is_empty());
        let name = cxx.unwrap_or_else(|| "c++".into());
        match wants(Tool::Cxx) {
            true => output(OsStr::new(&name), &["--version"]).await.and_then(|o| first_line(&o)),
            false => None,
        }
    };
    let nvcc = async {
        match wants(Tool::Nvcc) {
            true => output(nvcc().as_os_str(), &["--version"]).await.and_then(|o| nvcc_version(&o)),
            false => None,
        }
    };
    let (mut probed, cxx, nvcc) = tokio::join!(probe, cxx, nvcc);
    let answer = |tool: &Tool| {
        let version = match tool {
            Tool::Cxx => cxx.clone(),
            Tool::Nvcc => nvcc.clone(),
            Tool::Driver => driver(),
            Tool::Isa => fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| isa(&text)),
            tool => probed.remove(tool.name()),
        };
        (tool.name(), version.unwrap_or_else(|| NONE.into()))
    };
    tools.iter().map(answer).collect()
}

async fn ask_python(python: &Path) -> BTreeMap<String, String> {
    let answer = printed(python::asking(python.as_os_str(), PROBE)).await;
    answer.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// The Python that `command` starts: itself, or the one that its first line names.
fn interpreter(command: &OsStr) -> PathBuf {
    let is_python = |path: &Path| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("python"))
    };
    let found = which(command);
    let shebang = found.as_deref().and_then(shebang).filter(|path| is_python(path));
    match (found, shebang) {
        (Some(path), _) if is_python(&path) => path,
        (_, Some(python)) => python,
        _ => "python3".into(),
    }
}

/// `#!/usr/bin/env python3` names python3, `#!/venv/bin/python -s` that one.
fn shebang(script: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    let start = BufReader::new(fs::File::open(script).ok()?).take(512);
    let mut start = start;
    start.read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8(line).ok()?;
    let mut words = line.strip_prefix("#!")?.split_whitespace();
    let first = Path::new(words.next()?);
    match first.file_name() == Some(OsStr::new("env")) {
        true => words.find(|word| !word.starts_with('-') && !word.contains('=')).map(PathBuf::from),
        false => Some(first.into()),
    }
}

fn which(command: &OsStr) -> Option<PathBuf> {
    if command.as_encoded_bytes().contains(&b'/') {
        return Some(command.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(command)).find(|path| path.is_file())
}

fn nvcc() -> PathBuf {
    let home = ["CUDA_HOME", "CUDA_PATH"].iter().find_map(std::env::var_os);
    let home = home.map(|home| PathBuf::from(home).join("bin/nvcc"));
    home.or_else(|| which(OsStr::new("nvcc"))).unwrap_or_else(|| "/usr/local/cuda/bin/nvcc".into())
}

/// `V13.0.88` of nvcc's last lines.
fn nvcc_version(output: &str) -> Option<String> {
    let words = output.split_whitespace();
    words
        .map(|word| word.trim_start_matches('V'))
        .find(|word| {
            word.split('.').count() == 3 && word.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        })
        .map(str::to_owned)
}

fn first_line(output: &str) -> Option<String> {
    output.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// The kernel module's version: `580.65.06`.
fn driver() -> Option<String> {
    driver_version(&fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

fn driver_version(text: &str) -> Option<String> {
    let line = text.lines().next()?;
    let mut words = line.split_whitespace();
    let number =
        |word: &&str| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    words.find(number).map(str::to_owned)
}

/// What `-march=native` may use. The rest of the flags tells of bugs, virtual
/// machines and power, and differs among machines that run the same code.
const ISA: &[&str] = &[
    "3dnow",
    "abm",
    "adx",
    "aes",
    "amx",
    "apx",
    "avx",
    "bmi",
    "cldemote",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cmpccxadd",
    "cx16",
    "cx8",
    "f16c",
    "fma",
    "fsgsbase",
    "fxsr",
    "gfni",
    "hle",
    "lahf_lm",
    "lzcnt",
    "mmx",
    "movbe",
    "movdir",
    "mwaitx",
    "pclmulqdq",
    "popcnt",
    "prefetchwt1",
    "ptwrite",
    "rdpid",
    "rdrand",
    "rdseed",
    "rtm",
    "serialize",
    "sha",
    "sse",
    "ssse3",
    "tbm",
    "tsxldtrk",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "wbnoinvd",
    "xop",
    "xsave",
];

/// A digest of the first processor's instruction sets.
fn isa(cpuinfo: &str) -> Option<String> {
    let line = |name: &str| {
        let found =
            cpuinfo.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
        found.and_then(|line| line.split_once(':')).map(|(_, flags)| flags.split_whitespace())
    };
    let mut flags: Vec<&str> = match line("flags") {
        Some(flags) => flags.filter(|f| ISA.iter().any(|isa| f.starts_with(isa))).collect(),
        // Arm names nothing but instruction sets.
        None => line("Features")?.collect(),
    };
    flags.sort_unstable();
    flags.dedup();
    Some(Digest::of(flags.join(" ").as_bytes()).to_string())
}

/// The GPUs of this machine as files' target: one architecture, or any where
/// there is none, or several, which `shown` then lists.
pub(crate) async fn gpu() -> (Target, String) {
    if !Path::new("/proc/driver/nvidia/version").exists() {
        return (Target::any(), NONE.into());
    }
    let query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
    let answer = output(OsStr::new("nvidia-smi"), &query).await.unwrap_or_default();
    gpu_target(&answer)
}

fn gpu_target(compute_caps: &str) -> (Target, String) {
    let parsed = compute_caps.lines().filter_map(|line| {
        let digits: String = line.trim().split('.').collect();
        format!("gpu_{digits}").parse::<Target>().ok()
    });
    let found: std::collections::BTreeSet<Target> = parsed.collect();
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    match (found.first(), found.len()) {
        (Some(target), 1) => (*target, target.to_string()),
        (Some(_), _) => (Target::any(), shown.join("+")),
        (None, _) => (Target::any(), NONE.into()),
    }
}

/// What a program prints, if it ends well and in time.
async fn output(program: &OsStr, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    printed(command).await
}

async fn printed(mut command: Command) -> Option<String> {
    command.stderr(Stdio::null());
    let output = tokio::time::timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_found_in_what_tools_print() {
        let nvcc = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler.36424714_0\n";
        assert_eq!(nvcc_version(nvcc).unwrap(), "13.0.88");
        let driver = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: gcc 12";
        assert_eq!(driver_version(driver).unwrap(), "580.65.06");
        assert_eq!(driver_version("what"), None);
    }

    #[test]
    fn a_gpu_is_named_by_its_architecture() {
        assert_eq!(gpu_target("9.0\n9.0\n").1, "gpu_90");
        assert_eq!(gpu_target("12.0\n").0.to_string(), "gpu_120");
        assert_eq!(gpu_target("9.0\n8.0\n"), (Target::any(), "gpu_80+gpu_90".into()));
        assert_eq!(gpu_target("No devices were found"), (Target::any(), "none".into()));
    }

    #[test]
    fn only_instruction_sets_count() {
        let digest = |flags: &str| isa(&format!("processor : 0\nflags\t\t: {flags}\n")).unwrap();
        assert_eq!(digest("fpu sse avx2 md_clear"), digest("avx2 sse hypervisor"));
        for more in ["avx512f", "apx_f", "cmpccxadd", "amx_tile"] {
            assert_ne!(digest("sse avx2"), digest(&format!("sse avx2 {more}")), "{more}");
        }
        assert_eq!(isa("nothing"), None);
    }

    #[test]
    fn the_interpreter_is_the_commands_own() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("vllm");
        let named = |first: &str| {
            fs::write(&script, format!("{first}\nimport x\n")).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            interpreter(script.as_os_str())
        };
        assert_eq!(named("#!/venv/bin/python3.11 -s"), Path::new("/venv/bin/python3.11"));
        assert_eq!(named("#!/usr/bin/env -S python3 -u"), Path::new("python3"));
        assert_eq!(named("#!/bin/sh"), Path::new("python3"));
        let python = OsStr::new("/opt/v/bin/python");
        assert_eq!(interpreter(python), Path::new("/opt/v/bin/python"));
    }

    #[tokio::test]
    async fn what_is_not_there_is_none() {
        let missing = Path::new("/nonexistent/python");
        let found = versions(&[Tool::Python, Tool::Torch], OsStr::new("sh"), Some(missing)).await;
        assert_eq!(found["python"], "none");
        assert_eq!(found["torch"], "none");
    }
}
