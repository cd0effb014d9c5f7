//! The compiler layer with real NVRTC and real worker processes. No GPU needed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use kiln::compiler::{
    CompileInput, Compiler, CompilerSettings, Compilers, CudaSource, Environment, Limits, Output,
    Source,
};
use kiln_proto::{Failure, FailureKind};
use tokio_util::sync::CancellationToken;

const KILN: &str = env!("CARGO_BIN_EXE_kiln");
const SAXPY: &str = r#"
extern "C" __global__ void saxpy(float a, const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"#;

/// A folder that the environment must name.
fn folder(variable: &str) -> PathBuf {
    let hint = "unpack the wheel nvidia-cuda-nvrtc and set it to the folder of libnvrtc.so";
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: {hint}")).into()
}

struct Node {
    compilers: Compilers,
    folder: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        Self::with(folder("KILN_NVRTC_DIR"), |_| {}).await
    }

    async fn with(nvrtc: PathBuf, change: impl FnOnce(&mut CompilerSettings)) -> Self {
        let mut settings = CompilerSettings::default();
        settings.toolchain.nvrtc = Some(nvrtc);
        change(&mut settings);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("compiler");
        let environment = Environment::default();
        let compilers = Compilers::start(&settings, &environment, Path::new(KILN), &at).await;
        Self { compilers, folder }
    }

    async fn compile(&self, input: &CompileInput) -> Result<Output, Failure> {
        self.compile_within(input, &Limits::default()).await
    }

    async fn compile_within(
        &self,
        input: &CompileInput,
        limits: &Limits,
    ) -> Result<Output, Failure> {
        let compiler = self.compilers.select("auto", &input.source)?;
        let prepared = compiler.prepare(input, &compiler.fingerprint()?)?;
        compiler.compile(&prepared, limits, CancellationToken::new()).await
    }
}

fn cuda(source: &str, target: &str) -> CompileInput {
    let cuda = CudaSource {
        name: "test.cu".into(),
        source: Bytes::copy_from_slice(source.as_bytes()),
        ..CudaSource::default()
    };
    CompileInput {
        source: Source::Cuda(cuda),
        target: target.parse().unwrap(),
        options: BTreeMap::new(),
        namespace: String::new(),
    }
}

#[tokio::test]
async fn saxpy_for_several_targets() {
    let node = Node::start().await;
    for target in ["sm_80", "sm_90", "sm_90a"] {
        let output = node.compile(&cuda(SAXPY, target)).await.unwrap();
        let [(path, bytes)] = output.files.as_slice() else { panic!("{:?}", output.files) };
        assert_eq!(path, "module.cubin");
        assert!(bytes.starts_with(b"\x7fELF"));
        assert!(output.compile_seconds > 0.0);
    }
    for target in ["compute_80", "compute_90"] {
        let output = node.compile(&cuda(SAXPY, target)).await.unwrap();
        let text = String::from_utf8(output.files[0].1.to_vec()).unwrap();
        assert_eq!(output.files[0].0, "module.ptx");
        let sm = target.replace("compute", "sm");
        assert!(text.contains(&format!(".target {sm}")) && text.contains("saxpy"), "{text}");
    }
}

#[tokio::test]
async fn a_source_cannot_read_the_host() {
    let node = Node::start().await;
    let refused = node.compile(&cuda("#include \"/etc/hostname\"\n", "sm_90")).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Incompatible, "{refused}");
    if !node.compilers.toolchain().unwrap().confined {
        return; // A kernel without Landlock: only what is spelled plainly is refused.
    }
    let hidden = "#define FILE \"/etc/hostname\"\n#include FILE\n";
    let refused = node.compile(&cuda(hidden, "sm_90")).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::CompileError, "{refused}");
    assert!(refused.message.contains("cannot open source file"), "{refused}");
}

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

#[tokio::test]
async fn half_precision_and_tensor_cores() {
    let node = Node::start().await;
    let output = node.compile(&cuda(HALF, "sm_90")).await.unwrap();
    assert!(output.files[0].1.starts_with(b"\x7fELF"));
}
