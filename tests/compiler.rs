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
