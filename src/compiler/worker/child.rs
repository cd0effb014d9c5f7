//! `kiln worker`: the process in which a compiler runs.
//!
//! Invariant: the library is loaded and has compiled something before the process says
//! that it is ready, and its limits are set before it sees a source.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use bytes::Bytes;
use kiln_proto::{BinaryKind, Digest, Failure, FailureKind, Hasher, Target};
use rustix::process::Resource;

use super::{
    addresses, layout,
    nvrtc::Nvrtc,
    protocol::{Answer, Bundled, Octets, Program, Ready, Setup},
    service,
};
use crate::compiler::sandbox;

/// Compiled once before the first job: it makes NVRTC load and link all it has.
const WARM_UP: &[u8] = b"extern \"C\" __global__ void kiln() {}\n";

/// Runs one worker on this process's stdin and stdout. Call it from `main`
/// before anything else has been started.
pub fn worker_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kiln worker: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let fixed = addresses::fix();
    service::serve(
        false,
        |setup: Setup| {
            let (nvrtc, ready) = load(&setup, fixed)?;
            Ok(((nvrtc, setup, ready.confined), ready))
        },
        |(nvrtc, setup, confined), job: Program| {
            service::limit(Resource::Data, job.memory_bytes)?;
            service::limit(Resource::Cpu, job.cpu_seconds)?;
            let own = std::env::current_dir().map_err(unfit)?;
            let (named, mut include) = layout::lay_out(&job)?;
            if !confined {
                sandbox::keep_to_opens(&readable(&setup), &own)?;
            }
            include.extend(setup.include);
            nvrtc.compile(&Program { headers: named, ..job }, &include)
        },
    )
}

fn load(setup: &Setup, fixed: bool) -> Answer<(Nvrtc, Ready)> {
    let nvrtc = Nvrtc::load(&setup.library)?;
    let architectures = nvrtc.architectures()?;
    let target = Target {
        compute: architectures.iter().copied().max().unwrap_or(90),
        arch_specific: false,
        kind: BinaryKind::Ptx,
        min_driver: 0,
    };
    let warm_up = Program {
        source: Octets(Bytes::from_static(WARM_UP)),
        headers: Default::default(),
        options: Vec::new(),
        tree: None,
        name_expressions: Vec::new(),
        target,
        memory_bytes: 0,
        cpu_seconds: 0,
    };
    let ptx = nvrtc.compile(&warm_up, &[])?.module;
    let version = nvrtc.version(&ptx.0)?;
    // The machine code generator starts up separately.
    nvrtc.compile(
        &Program { target: Target { kind: BinaryKind::Cubin, ..target }, ..warm_up },
        &[],
    )?;
    let bundled = match &setup.install_headers {
        _ if !nvrtc.has_headers() => Bundled::None,
        None => Bundled::Brought,
        Some(folder) => {
            nvrtc.install_headers(folder)?;
            Bundled::Installed
        }
    };
    let headers = match setup.hash_headers {
        true => Some(headers(&setup.include)?),
        false => None,
    };
    let confined = sandbox::keep_to_files(&readable(setup), Path::new("."))?;
    Ok((nvrtc, Ready { version, architectures, bundled, headers, confined, fixed }))
}

/// What a source may read besides its own headers: CUDA's, and what lies beside the library.
fn readable(setup: &Setup) -> Vec<PathBuf> {
    let beside = setup.library.parent().map(Path::to_owned);
    setup.include.iter().map(PathBuf::from).chain(beside).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unfit(e: io::Error) -> Failure {
    Failure::new(FailureKind::Crashed, format!("the worker's folder: {e}"))
}

/// Version and digest of a toolkit's headers: `13.0-<12 digits>`. Equal digests
/// mean equal files under equal names, wherever they lie.
fn headers(folders: &[String]) -> Answer<String> {
    let unreadable = |e: io::Error| {
        Failure::new(FailureKind::ToolchainMissing, format!("read CUDA's headers: {e}"))
    };
    let mut hasher = Hasher::new();
    let mut version = None;
    for folder in folders {
        let mut files = Vec::new();
        collect(Path::new(folder), Path::new(""), &mut files).map_err(unreadable)?;
        files.sort();
        for file in files {
            let mut bytes = Vec::new();
            File::open(Path::new(folder).join(&file))
                .and_then(|mut f| f.read_to_end(&mut bytes))
                .map_err(unreadable)?;
            if file == Path::new("cuda.h") {
                version = cuda_version(&bytes);
            }
            hasher.update(&Digest::of(file.as_os_str().as_encoded_bytes()).as_bytes()[..]);
            hasher.update(&Digest::of(&bytes).as_bytes()[..]);
        }
    }
    let digest = Digest::from(hasher.finalize()).to_string();
    Ok(format!("{}-{}", version.as_deref().unwrap_or("unversioned"), &digest[..12]))
}

fn collect(root: &Path, below: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let path = below.join(entry?.file_name());
        match std::fs::metadata(root.join(&path)) {
            Ok(meta) if meta.is_dir() => collect(root, &path, files)?,
            Ok(meta) if meta.is_file() => files.push(path),
            // A dangling link or a device is no header.
            _ => {}
        }
    }
    Ok(())
}

/// `#define CUDA_VERSION 13000` -> `13.0`.
fn cuda_version(header: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(header);
    let line = text.lines().find_map(|line| line.trim().strip_prefix("#define CUDA_VERSION "))?;
    let number: u32 = line.trim().parse().ok()?;
    Some(format!("{}.{}", number / 1000, number % 1000 / 10))
}
