//! The compiler layer with real NVRTC and real worker processes. No GPU needed.
//!
//! `KILN_NVRTC_DIR` names the folder of one NVRTC, `KILN_NVRTC_ALT_DIR` that of
//! another version.
#![allow(clippy::unwrap_used, missing_docs)]

mod eager;
mod hostile;
mod inductor;
mod inspect;
#[path = "../support/python.rs"]
mod interpreter;
mod keys;
mod looking;
mod mixed;
#[path = "../support/odd.rs"]
mod odd;
mod outputs;
mod processes;
mod python;

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kiln::compiler::{
    CompileInput, CompilerSettings, Compilers, CudaSource, Environment, Headers, Limits, Output,
    Prepared, Source, StaticSize,
};
use kiln_proto::{Failure, FailureKind, Fingerprint};
use rustix::process::{Pid, Signal};
use tokio_util::sync::CancellationToken;

const KILN: &str = env!("CARGO_BIN_EXE_kiln");

const SAXPY: &str = r#"
extern "C" __global__ void saxpy(float a, const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"#;

const HALF: &str = r#"
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
using namespace nvcuda;
__device__ __half twice(__half x) { return __hadd(x, x); }
__device__ __nv_bfloat16 twice(__nv_bfloat16 x) { return __hadd(x, x); }
extern "C" __global__ void tile(const half* a, const half* b, float* c, __nv_bfloat16* d) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> z;
    wmma::fill_fragment(z, __half2float(twice(a[0])));
    wmma::load_matrix_sync(x, a, 16);
    wmma::load_matrix_sync(y, b, 16);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(c, z, 16, wmma::mem_row_major);
    d[threadIdx.x] = twice(d[threadIdx.x]);
}
"#;

/// Many unrolled kernels: a minute and a gigabyte, for a compiler that is let.
fn endless() -> String {
    let mut source = String::from(
        "template<int N> __device__ float f(float x) {\n float r = x;\n#pragma unroll\n \
         for (int i = 0; i < 64; i++) r = r * x + sinf(r + N * i);\n return r;\n}\n",
    );
    for i in 0..1000 {
        source += &format!(
            "extern \"C\" __global__ void k{i}(float* x) {{ x[threadIdx.x] = f<{i}>(x[0]); }}\n"
        );
    }
    source
}

/// A folder that the environment must name.
fn nvrtc(variable: &str) -> PathBuf {
    let hint = "unpack the wheel nvidia-cuda-nvrtc and set it to the folder of libnvrtc.so";
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: {hint}")).into()
}

/// The compilers of one node, and the folder in which its workers run.
struct Node {
    compilers: Compilers,
    folder: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        Self::with(nvrtc("KILN_NVRTC_DIR"), |_| {}).await
    }

    async fn with(nvrtc: PathBuf, change: impl FnOnce(&mut CompilerSettings)) -> Self {
        Self::run_by(Path::new(KILN), nvrtc, change).await
    }

    async fn run_by(
        program: &Path,
        nvrtc: PathBuf,
        change: impl FnOnce(&mut CompilerSettings),
    ) -> Self {
        let node = Self::looking(program, nvrtc, change);
        node.compilers.settled().await;
        node
    }

    /// One that has not looked at its toolchain yet.
    fn looking(program: &Path, nvrtc: PathBuf, change: impl FnOnce(&mut CompilerSettings)) -> Self {
        let mut settings = CompilerSettings::default();
        settings.toolchain.nvrtc = Some(nvrtc);
        change(&mut settings);
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment::default();
        let compilers = Compilers::start(&settings, &environment, program, folder.path());
        Self { compilers, folder }
    }

    fn prepare(&self, input: &CompileInput) -> Result<Prepared, Failure> {
        let compiler = self.compilers.select("auto", input)?;
        compiler.prepare(input, &compiler.fingerprint()?)
    }

    async fn compile(&self, input: &CompileInput) -> Result<Output, Failure> {
        self.compile_within(input, &Limits::default(), CancellationToken::new()).await
    }

    async fn compile_within(
        &self,
        input: &CompileInput,
        limits: &Limits,
        stop: CancellationToken,
    ) -> Result<Output, Failure> {
        let prepared = self.prepare(input)?;
        let compiler = self.compilers.select("auto", input)?;
        compiler.compile(&prepared, limits, stop).await
    }

    /// Waits until `processes` of this node are as `wanted` says.
    async fn until(&self, wanted: impl Fn(&[Pid]) -> bool) -> Vec<Pid> {
        processes_in(self.folder.path(), wanted).await
    }
}

/// An executable script that stands in for `kiln`.
fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    (folder, path)
}

/// Polls the processes that run in `folder` until they are as `wanted` says.
async fn processes_in(folder: &Path, wanted: impl Fn(&[Pid]) -> bool) -> Vec<Pid> {
    let folder = folder.canonicalize().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let here = all.filter(|e| {
            std::fs::read_link(e.path().join("cwd")).is_ok_and(|c| c.starts_with(&folder))
        });
        let pids = here.filter_map(|e| Pid::from_raw(e.file_name().to_str()?.parse().ok()?));
        let mut found: Vec<Pid> = pids.collect();
        found.sort_by_key(|pid| pid.as_raw_nonzero());
        if wanted(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "processes after a minute: {found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn cuda(source: &str, target: &str) -> CompileInput {
    cuda_with(source, target, |_| {})
}

fn cuda_with(source: &str, target: &str, change: impl FnOnce(&mut CudaSource)) -> CompileInput {
    let mut cuda = CudaSource {
        name: "test.cu".into(),
        source: Bytes::copy_from_slice(source.as_bytes()),
        ..CudaSource::default()
    };
    change(&mut cuda);
    CompileInput {
        source: Source::Cuda(cuda),
        target: target.parse().unwrap(),
        options: BTreeMap::new(),
        namespace: String::new(),
    }
}

fn exported(file: &str) -> CompileInput {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let archive = std::fs::read(fixtures.join(file)).unwrap().into();
    let source = Source::Program { name: file.into(), archive, size: None };
    CompileInput { source, ..cuda("", "sm_90") }
}
