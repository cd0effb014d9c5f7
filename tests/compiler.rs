//! The compiler layer with real NVRTC and real worker processes. No GPU needed.
//!
//! `KILN_NVRTC_DIR` names the folder of one NVRTC, `KILN_NVRTC_ALT_DIR` that of
//! another version.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kiln::compiler::{
    CompileInput, CompilerSettings, Compilers, CudaSource, Environment, Headers, Limits, Output,
    Prepared, Source,
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
        let mut settings = CompilerSettings::default();
        settings.toolchain.nvrtc = Some(nvrtc);
        change(&mut settings);
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment::default();
        let compilers = Compilers::start(&settings, &environment, program, folder.path()).await;
        Self { compilers, folder }
    }

    fn prepare(&self, input: &CompileInput) -> Result<Prepared, Failure> {
        let compiler = self.compilers.select("auto", &input.source)?;
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
        let compiler = self.compilers.select("auto", &input.source)?;
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
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let here =
            all.filter(|e| std::fs::read_link(e.path().join("cwd")).is_ok_and(|c| c == folder));
        let pids = here.filter_map(|e| Pid::from_raw(e.file_name().to_str()?.parse().ok()?));
        let mut found: Vec<Pid> = pids.collect();
        found.sort_by_key(|pid| pid.as_raw_nonzero());
        if wanted(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "processes after 30 s: {found:?}");
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
async fn another_nvrtc_differs_in_that_alone() {
    let (one, other) = (Node::start().await, nvrtc("KILN_NVRTC_ALT_DIR"));
    let other = Node::with(other, |_| {}).await;
    let input = cuda(SAXPY, "sm_90");
    assert!(other.compile(&input).await.unwrap().files[0].1.starts_with(b"\x7fELF"));
    let (ours, theirs) = (one.prepare(&input).unwrap(), other.prepare(&input).unwrap());
    assert_ne!(ours.components.key(), theirs.components.key());
    let found = ours.components.differences(&theirs.components);
    let [difference] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (difference.component.as_str(), difference.field.as_str()),
        ("fingerprint", "nvrtc")
    );
    assert!(difference.ours.split('.').count() == 3, "{difference:?}");
    // A key of another toolchain is not compiled with this one.
    let compiler = one.compilers.select("cuda", &input.source).unwrap();
    let limits = Limits::default();
    let refused = compiler.compile(&theirs, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::ToolchainMissing, "{refused}");
}

#[tokio::test]
async fn bytes_are_equal_across_workers_and_header_folders() {
    let (one, other) = (Node::start().await, Node::start().await);
    let toolchain = one.compilers.toolchain().unwrap();
    if toolchain.headers == Headers::None {
        panic!("{} has no headers: set KILN_NVRTC_DIR to 13.5 or newer", toolchain.version);
    }
    let input = cuda(HALF, "sm_90");
    let first = one.compile(&input).await.unwrap();
    assert!(first.files[0].1.starts_with(b"\x7fELF"));
    assert_eq!(first.files, one.compile(&input).await.unwrap().files);
    assert_eq!(first.files, other.compile(&input).await.unwrap().files);
    let keys = [&one, &other].map(|n| n.prepare(&input).unwrap().components.key());
    assert_eq!(keys[0], keys[1]);

    if toolchain.headers != Headers::Bundled {
        return;
    }
    // The same headers as a toolkit's folder: other key, same bytes.
    let include = Some(PathBuf::from(&toolchain.include[0]));
    let set = |s: &mut CompilerSettings| s.toolchain.include = include;
    let toolkit = Node::with(nvrtc("KILN_NVRTC_DIR"), set).await;
    assert_eq!(first.files, toolkit.compile(&input).await.unwrap().files);
    let (ours, theirs) = (one.prepare(&input).unwrap(), toolkit.prepare(&input).unwrap());
    let found = ours.components.differences(&theirs.components);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].field, "headers");
}

#[tokio::test]
async fn the_name_of_a_source_changes_nothing() {
    let node = Node::start().await;
    // Names of static variables are mangled with the name of the file.
    let source = "static __device__ int n; namespace { __device__ int m; }\n\
                  __global__ void k(int* x) { *x = n + m; n = 1; m = 2; }";
    let inputs =
        ["one.cu", "two.cu"].map(|name| cuda_with(source, "sm_90", |cuda| cuda.name = name.into()));
    let keys = inputs.each_ref().map(|i| node.prepare(i).unwrap().components.key());
    assert_eq!(keys[0], keys[1]);
    let [one, two] = inputs;
    assert_eq!(node.compile(&one).await.unwrap().files, node.compile(&two).await.unwrap().files);
}

#[tokio::test]
async fn names_of_template_instances_are_lowered() {
    let node = Node::start().await;
    let source =
        "#include \"scale.h\"\ntemplate<class T> __global__ void scale(T* x) { x[0] *= S; }";
    let input = cuda_with(source, "sm_90", |cuda| {
        cuda.headers = BTreeMap::from([("scale.h".into(), Bytes::from("#define S FACTOR\n"))]);
        cuda.options = vec!["-DFACTOR=3".into()];
        cuda.name_expressions = vec!["scale<float>".into(), "scale<double>".into()];
    });
    let output = node.compile(&input).await.unwrap();
    let paths: Vec<&str> = output.files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["module.cubin", "names.json"]);
    let names = r#"{"scale<float>":"_Z5scaleIfEvPT_","scale<double>":"_Z5scaleIdEvPT_"}"#;
    assert_eq!(output.files[1].1, names);
}

#[tokio::test]
async fn a_broken_source_is_told_in_nvrtcs_words() {
    let node = Node::start().await;
    let failed = node.compile(&cuda("__global__ void k() { oops; }", "sm_90")).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::CompileError);
    assert!(failed.message.contains("test.cu(1): error"), "{failed}");
    assert!(failed.message.contains("\"oops\" is undefined"), "{failed}");
    let failed = node.compile(&cuda(SAXPY, "sm_199")).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::Incompatible, "{failed}");
    assert!(failed.message.contains("gpu-architecture"), "{failed}");
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

#[tokio::test]
async fn the_time_limit_ends_the_whole_process_group() {
    // A worker that started something of its own.
    let (_folder, program) = script(&format!("/bin/sleep 1000 &\nexec {KILN} \"$@\""));
    let node = Node::run_by(&program, nvrtc("KILN_NVRTC_DIR"), |_| {}).await;
    // The spare worker and what it started.
    node.until(|found| found.len() == 2).await;

    let limits = Limits { time: Duration::from_secs(1), ..Limits::default() };
    let started = Instant::now();
    let slow = cuda(&endless(), "sm_90");
    let failed = node.compile_within(&slow, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::Timeout, "{failed}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // Only the next spare is left, and the pool goes on.
    node.until(|found| found.len() == 2).await;
    node.compile(&cuda(SAXPY, "sm_90")).await.unwrap();
}

#[tokio::test]
async fn the_memory_limit_is_told_as_such() {
    let node = Node::start().await;
    let limits = Limits { time: Duration::from_secs(60), memory_bytes: 48 << 20 };
    let big = cuda(&endless(), "sm_90");
    let failed = node.compile_within(&big, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::OutOfMemory, "{failed}");
    node.compile_within(&cuda(SAXPY, "sm_90"), &limits, CancellationToken::new()).await.unwrap();
}

#[tokio::test]
async fn a_killed_worker_fails_its_compile_alone() {
    let node = Node::start().await;
    // The spare may die as well: it is replaced.
    let spare = node.until(|found| found.len() == 1).await[0];
    rustix::process::kill_process(spare, Signal::KILL).unwrap();
    let slow = cuda(&endless(), "sm_90");
    let kill = async {
        // The one at work, and the next spare; ids rise.
        let found = node.until(|found| found.len() == 2 && !found.contains(&spare)).await;
        rustix::process::kill_process(found[0], Signal::KILL).unwrap();
    };
    let (failed, ()) = tokio::join!(node.compile(&slow), kill);
    let failed = failed.unwrap_err();
    assert_eq!(failed.kind, FailureKind::Crashed, "{failed}");
    assert!(failed.message.contains("signal: 9"), "{failed}");
    node.compile(&cuda(SAXPY, "sm_90")).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_talks_rubbish_has_crashed() {
    let cases = [
        ("echo not a frame at all", "a message of"),
        ("printf '\\000\\000\\000\\003abc'", "did not answer sensibly"),
        ("exec 1>&-; exec /bin/sleep 1000", "closed its stdout"),
        ("yes kiln | head -c 1000000 >&2; exit 3", "exit status: 3: "),
        ("kill -SEGV $$", "signal: 11"),
    ];
    for (text, told) in cases {
        let (_folder, program) = script(text);
        let node = Node::run_by(&program, nvrtc("KILN_NVRTC_DIR"), |_| {}).await;
        let failure = node.compilers.toolchain().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Crashed, "{text}: {failure}");
        assert!(failure.message.contains(told), "{text}: {failure}");
        assert!(failure.message.len() < 20_000, "{} bytes", failure.message.len());
        node.until(<[Pid]>::is_empty).await;
    }
}

#[tokio::test]
async fn what_is_cancelled_or_dropped_leaves_nothing() {
    // Each worker is two processes: itself, and something that it started.
    let (_folder, program) = script(&format!("/bin/sleep 1000 &\nexec {KILN} \"$@\""));
    let node = Node::run_by(&program, nvrtc("KILN_NVRTC_DIR"), |_| {}).await;
    let slow = cuda(&endless(), "sm_90");
    let stop = CancellationToken::new();
    let cancel = async {
        node.until(|found| found.len() == 4).await;
        stop.cancel();
    };
    let limits = Limits::default();
    let (failed, ()) = tokio::join!(node.compile_within(&slow, &limits, stop.clone()), cancel);
    assert_eq!(failed.unwrap_err().kind, FailureKind::Crashed);
    node.until(|found| found.len() == 2).await;

    tokio::select! {
        _ = node.compile(&slow) => panic!("it ended"),
        _ = node.until(|found| found.len() == 4) => {}
    }
    node.until(|found| found.len() == 2).await;

    let Node { compilers, folder } = node;
    drop(compilers);
    processes_in(folder.path(), <[Pid]>::is_empty).await;
}

#[tokio::test]
async fn a_spare_that_nobody_needs_goes() {
    let keep_warm = Duration::from_millis(100);
    let set = |settings: &mut CompilerSettings| settings.pool.keep_warm = keep_warm;
    let node = Node::with(nvrtc("KILN_NVRTC_DIR"), set).await;
    node.until(<[Pid]>::is_empty).await;
    node.compile(&cuda(SAXPY, "sm_90")).await.unwrap();
    node.until(<[Pid]>::is_empty).await;
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let node = Node::with(nvrtc("KILN_NVRTC_DIR"), |settings| {
        settings.pool.workers = std::num::NonZero::<usize>::MIN;
        settings.pool.queue = 1;
    })
    .await;
    let (slow, quick) = (cuda(&endless(), "sm_90"), cuda(SAXPY, "sm_90"));
    // Twice: a place in the queue comes free when its request goes.
    for _ in 0..2 {
        let third = async {
            node.until(|found| found.len() == 2).await;
            let (second, third) = (node.compile(&quick), node.compile(&quick));
            tokio::select! {
                biased;
                _ = second => panic!("the only worker is busy"),
                refused = third => refused.unwrap_err(),
            }
        };
        tokio::select! {
            _ = node.compile(&slow) => panic!("it ended"),
            refused = third => assert!(refused.message.contains("busy"), "{refused}"),
        }
        node.until(|found| found.len() == 1).await;
    }
    node.compile(&quick).await.unwrap();
}

#[tokio::test]
async fn a_node_without_nvrtc_has_keys_and_says_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let node = Node::with(empty.path().into(), |_| {}).await;
    let input = cuda(SAXPY, "sm_90");
    let compiler = node.compilers.select("auto", &input.source).unwrap();
    let missing = compiler.fingerprint().unwrap_err();
    assert_eq!(missing.kind, FailureKind::ToolchainMissing);
    let path = empty.path().to_str().unwrap();
    for part in [path, "libnvrtc.so", "pip install"] {
        assert!(missing.message.contains(part), "{missing}");
    }
    assert!(node.compilers.fingerprints().is_empty());

    let elsewhere = Fingerprint::new("cuda", [("nvrtc", "13.5.37")]);
    let prepared = compiler.prepare(&input, &elsewhere).unwrap();
    let limits = Limits::default();
    let failed = compiler.compile(&prepared, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failed, missing);

    // A file that is no library is named.
    std::fs::write(empty.path().join("libnvrtc.so.13"), "text").unwrap();
    let node = Node::with(empty.path().into(), |_| {}).await;
    let missing = node.compilers.toolchain().unwrap_err();
    assert_eq!(missing.kind, FailureKind::ToolchainMissing, "{missing}");
    assert!(missing.message.contains("libnvrtc.so.13"), "{missing}");
}

#[tokio::test]
async fn a_wrong_combination_is_c003() {
    let empty = tempfile::tempdir().unwrap();
    let node = Node::with(empty.path().into(), |_| {}).await;
    let input = cuda(SAXPY, "sm_90");
    for backend in ["inductor", "CUDA", "native"] {
        let Err(refused) = node.compilers.select(backend, &input.source) else {
            panic!("{backend} was accepted");
        };
        assert_eq!(refused.kind.code(), "C003", "{refused}");
    }
    let compiler = node.compilers.select("cuda", &input.source).unwrap();
    let fingerprint = Fingerprint::new("cuda", [("nvrtc", "13.5.37")]);
    let mut odd = input.clone();
    odd.options.insert("fuse".into(), "true".into());
    let lined = cuda_with(SAXPY, "sm_90", |cuda| cuda.options = vec!["-lineinfo".into()]);
    for bad in [odd, lined] {
        assert_eq!(compiler.prepare(&bad, &fingerprint).unwrap_err().kind.code(), "C003");
    }
}

#[tokio::test]
async fn a_dead_daemon_leaves_no_worker() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon_that_compiles_for_ever", "--ignored"])
        .env("KILN_TEST_FOLDER", folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    processes_in(folder.path(), |found| found.len() == 2).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    processes_in(folder.path(), <[Pid]>::is_empty).await;
}

#[tokio::test]
#[ignore = "the daemon that another test starts and kills"]
async fn daemon_that_compiles_for_ever() {
    let folder = std::env::var_os("KILN_TEST_FOLDER").unwrap();
    let mut settings = CompilerSettings::default();
    settings.toolchain.nvrtc = Some(nvrtc("KILN_NVRTC_DIR"));
    let environment = Environment::default();
    let program = Path::new(KILN);
    let compilers = Compilers::start(&settings, &environment, program, Path::new(&folder)).await;
    let input = cuda(&endless(), "sm_90");
    let compiler = compilers.select("cuda", &input.source).unwrap();
    let prepared = compiler.prepare(&input, &compiler.fingerprint().unwrap()).unwrap();
    let _ = compiler.compile(&prepared, &Limits::default(), CancellationToken::new()).await;
}
