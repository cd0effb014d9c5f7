//! What a compiler's process cannot do: real ones that try, and a node that goes on.
//!
//! `tests/support/hostile.c` tries each thing, in the place of NVRTC and in Python's worker.
//! What this machine's kernel lacks is not asked for: see `Kernel::lacks`.

use std::{
    fs,
    net::TcpListener,
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use kiln::compiler::Kernel;

use super::{interpreter::interpreter, *};

/// What a node has that is none of a compiler's business, and the library that tries to get it.
struct Victim {
    folder: tempfile::TempDir,
    port: TcpListener,
    _socket: UnixListener,
    /// Another process of the same user.
    other: Child,
    /// Open, and not closed by an exec.
    _leaked: fs::File,
    library: PathBuf,
}

impl Victim {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("signing.key"), "secret").unwrap();
        fs::set_permissions(at("signing.key"), PermissionsExt::from_mode(0o600)).unwrap();
        fs::create_dir(at("beside")).unwrap();
        fs::create_dir(at("library")).unwrap();
        let library = at("library/libnvrtc.so.13");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/hostile.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
        assert!(cc.status().unwrap().success(), "a C compiler is needed");
        let leaked = fs::File::open(at("signing.key")).unwrap();
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
        assert!(leaked.as_raw_fd() > 2);
        // It ends with the test, whose pipe it reads.
        let other = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self {
            port: TcpListener::bind("127.0.0.1:0").unwrap(),
            _socket: UnixListener::bind(at("socket")).unwrap(),
            other: other.unwrap(),
            _leaked: leaked,
            library,
            folder,
        }
    }

    /// What the hostile process is told of it.
    fn told(&self) -> String {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let port = self.port.local_addr().unwrap().port();
        let (daemon, other) = (std::process::id(), self.other.id());
        let folder = self.folder.path().display();
        let (socket, key, beside) = (at("socket"), at("signing.key"), at("beside"));
        format!("{daemon} {other} {port} {socket} {key} {folder} {beside}")
    }

    /// Nothing of it was touched.
    fn is_whole(&self) {
        let key = self.folder.path().join("signing.key");
        assert_eq!(fs::read(&key).unwrap(), b"secret");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!self.folder.path().join("written").exists());
        assert!(fs::read_dir(self.folder.path().join("beside")).unwrap().next().is_none());
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

/// Every attempt was refused; those that only a newer kernel refuses are left out.
fn all_refused(told: &str) {
    let kernel = Kernel::of_machine();
    assert!(kernel.seccomp, "this machine has no seccomp filters");
    let has_gpu = Path::new("/dev/nvidiactl").exists();
    let excused = |line: &str| {
        let files = ["read", "list", "write", "link", "rename", "descriptors"];
        (kernel.landlock < 6 && line.starts_with("signal another"))
            || (kernel.landlock < 1 && files.iter().any(|word| line.contains(word)))
            || (has_gpu && line.starts_with("memory that is a file"))
    };
    let done: Vec<&str> =
        told.lines().filter(|line| line.ends_with(" DONE") && !excused(line)).collect();
    assert_eq!(done, [""; 0], "the kernel let it, {kernel:?}");
    assert!(told.contains("\nend refused"), "it did not get to its end:\n{told}");
    assert!(told.matches(" refused").count() > 50, "{told}");
}

#[tokio::test]
async fn what_takes_the_place_of_nvrtc_gets_nowhere() {
    let victim = Victim::new();
    let node = Node::with(victim.library.clone(), |_| {}).await;
    let source = format!("hostile: {}", victim.told());
    let done = node.compile(&cuda(&source, "compute_90")).await.unwrap();
    all_refused(std::str::from_utf8(&done.files[0].1).unwrap());
    victim.is_whole();
    node.compile(&cuda(SAXPY, "compute_90")).await.unwrap();
}

/// A node whose Python compiles by running `hostile`.
struct Inductor {
    node: Node,
    _interpreter: tempfile::TempDir,
}

impl Inductor {
    async fn start(hostile: &str) -> Self {
        let (folder, interpreter) = interpreter(hostile);
        let node = Node::with(folder.path().to_owned(), |settings| {
            settings.python.interpreter = Some(interpreter);
            // What is out of memory has that of all places, once.
            settings.python.pool.workers = std::num::NonZero::<usize>::MIN;
        })
        .await;
        Self { node, _interpreter: folder }
    }

    async fn compile(&self, limits: &Limits) -> Result<Output, Failure> {
        let input = CompileInput {
            target: kiln_proto::Target::any(),
            ..exported("block_f32_dynamic.new.pt2")
        };
        let compiler = self.node.compilers.select("inductor-standalone", &input)?;
        compiler.settled().await;
        let prepared = compiler.prepare(&input, &compiler.fingerprint()?)?;
        compiler.compile(&prepared, limits, CancellationToken::new()).await
    }

    /// Only spares are left, and what they were forked from.
    async fn is_rid_of_it(&self) {
        self.node.until(|found| found.len() <= 3).await;
    }
}

#[tokio::test]
async fn what_runs_in_pythons_worker_gets_nowhere() {
    let victim = Victim::new();
    let library: String =
        fs::read(&victim.library).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    let told = victim.told();
    let hostile = format!(
        "import ctypes; own = folder / 'h.so'; own.write_bytes(bytes.fromhex('{library}')); \
         out = ctypes.create_string_buffer(1 << 16); \
         ctypes.CDLL(str(own)).attempts(0, b'{told}', out, ctypes.c_size_t(len(out))); \
         return {{'told': out.value}}"
    );
    let inductor = Inductor::start(&hostile).await;
    // A fork, and later others that were forked or loaded Python themselves.
    for _ in 0..2 {
        let done = inductor.compile(&Limits::default()).await.unwrap();
        all_refused(std::str::from_utf8(&done.files[0].1).unwrap());
        victim.is_whole();
    }
    inductor.is_rid_of_it().await;
}

/// Ends the compile, with its kind, and nothing else.
async fn ends_alone(hostile: &str, kind: FailureKind, told: &str) {
    let inductor = Inductor::start(hostile).await;
    let limits = Limits { memory_bytes: 256 << 20, ..Limits::default() };
    let failed = inductor.compile(&limits).await.unwrap_err();
    assert_eq!(failed.kind, kind, "{failed}");
    assert!(failed.message.contains(told), "{failed}");
    inductor.is_rid_of_it().await;
}

#[tokio::test]
async fn memory_without_end() {
    let hostile = "x = [bytearray(1 << 20) for _ in range(1 << 20)]";
    ends_alone(hostile, FailureKind::OutOfMemory, "MemoryError").await;
}

/// Which is in no limit that the kernel has for one process.
#[tokio::test]
async fn shared_memory_without_end() {
    let hostile = "import mmap; x = []\n    while True: x.append(mmap.mmap(-1, 16 << 20)); \
                   x[-1].write(b'x' * (16 << 20)); time.sleep(0.05)";
    ends_alone(hostile, FailureKind::OutOfMemory, "share").await;
}

#[tokio::test]
async fn processes_without_end() {
    let hostile = "[os.fork() or time.sleep(1000) for _ in range(1200)]; time.sleep(1000)";
    ends_alone(hostile, FailureKind::Crashed, "processes, at most").await;
}

#[tokio::test]
async fn a_full_disk() {
    let hostile = "[os.posix_fallocate(os.open(str(n), 0o102), 0, 1 << 30) for n in range(5)]; \
                   time.sleep(1000)";
    ends_alone(hostile, FailureKind::Crashed, "it wrote").await;
}

/// Empty ones fill a disk too.
#[tokio::test]
async fn files_without_end() {
    let hostile = "[(folder / str(n)).mkdir() for n in range(20_001)]; time.sleep(1000)";
    ends_alone(hostile, FailureKind::Crashed, "it wrote").await;
}

/// What it leaves behind, with its parent gone, goes when the job does.
#[tokio::test]
async fn a_process_that_wants_to_outlive_its_job_does_not() {
    let hostile = "os.fork() or (os.fork() or time.sleep(1000)); \
                   return {'a': b'made'}";
    let inductor = Inductor::start(hostile).await;
    // Whichever of them answers, it is one job.
    let _ = inductor.compile(&Limits::default()).await;
    inductor.is_rid_of_it().await;
}

/// Runs `kiln` on a kernel that has no Landlock, as far as `kiln` can tell.
fn without_landlock() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln");
    let text = format!(
        r#"#!/usr/bin/env python3
import ctypes, os, struct, sys
step = lambda *of: struct.pack("=HBBI", *of)
# No such call: 444 to 446.
steps = step(0x20, 0, 0, 0) + step(0x35, 0, 2, 444) + step(0x25, 1, 0, 446)
steps += step(6, 0, 0, 0x50026) + step(6, 0, 0, 0x7FFF0000)
class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(steps) // 8, steps))) == 0
os.execv({KILN:?}, [{KILN:?}, *sys.argv[1:]])
"#
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    (folder, path)
}

/// Each spelling of a file of the node that was not sent; `FILE` is its absolute path.
const SPELLINGS: &[&str] = &[
    "#include \"FILE\"",
    "#include <FILE>",
    "#include_next \"FILE\"",
    "#include_next <FILE>",
    "#import \"FILE\"",
    "%:include \"FILE\"",
    "%:%\n:include \"FILE\"",
    "??=include \"FILE\"",
    "#inc\\\nlude \"FILE\"",
    "#/**/include/**/\"FILE\"",
    "#define F \"FILE\"\n#include F",
    "#define F <FILE>\n#include F",
    "#define S(x) #x\n#define T(x) S(x)\n#define U FILE\n#include T(U)",
    "#include \"UPFILE\"",
    "#include <UPFILE>",
    "#include \"deep/UPFILE\"",
    "#include \"//FILE\"",
    "#include \"/proc/self/rootFILE\"",
    "#include \"/proc/self/cwd/UPFILE\"",
    "#define V 471101\n#if __has_include(\"FILE\")\n#undef V\n#define V 471102\n#endif",
    "#define V 471101\n#if __has_include(<UPFILE>)\n#undef V\n#define V 471102\n#endif",
    "#define H(x) __has_include(x)\n#if H(\"FILE\")\n#define V 471102\n#endif",
    "#define V 471101\n#define C(a, b) a##b\n#if C(__has_inc, lude)(\"FILE\")\n#undef V\n#define V 471102\n#endif",
    "const char t[] = {\n#embed \"FILE\"\n};",
    "#define V 471101\n#if __has_embed(\"FILE\")\n#undef V\n#define V 471102\n#endif",
];

#[tokio::test]
async fn no_spelling_reads_a_file_that_was_not_sent() {
    let secret = tempfile::tempdir().unwrap();
    let file = secret.path().canonicalize().unwrap().join("secret.h");
    fs::write(&file, "#define V 471102\n").unwrap();
    let (_folder, without) = without_landlock();
    for program in [Path::new(KILN), &without] {
        let node = Node::run_by(program, nvrtc("KILN_NVRTC_DIR"), |_| {}).await;
        let has = program == Path::new(KILN) && Kernel::of_machine().landlock > 0;
        assert_eq!(node.compilers.toolchain().unwrap().confined, has);
        for (tree, spelling) in [true, false]
            .into_iter()
            .flat_map(|tree| SPELLINGS.iter().map(move |spelling| (tree, *spelling)))
        {
            let up = format!("{}{}", "../".repeat(40).trim_end_matches('/'), file.display());
            let text = spelling.replace("UPFILE", &up).replace("FILE", file.to_str().unwrap());
            let text = format!("{text}\nextern \"C\" __global__ void k(int* x) {{ x[0] = V; }}\n");
            let input = cuda_with(&text, "compute_90", |cuda| {
                cuda.options = vec!["--std=c++14".into()];
                if tree {
                    let options = ["--source-folder=src", "--include-path=inc"];
                    cuda.options.extend(options.map(String::from));
                    cuda.headers.insert("src/deep/own.h".into(), "".into());
                }
            });
            match node.compile(&input).await {
                Ok(done) => {
                    let ptx = String::from_utf8_lossy(&done.files[0].1).into_owned();
                    assert!(ptx.contains("471101"), "{program:?} {tree} {text}\n{ptx}");
                }
                Err(refused) => {
                    let kinds = [FailureKind::CompileError, FailureKind::Incompatible];
                    assert!(kinds.contains(&refused.kind), "{text}: {refused}");
                    assert!(!refused.message.contains("471102"), "{text}: {refused}");
                }
            }
        }
        // What was sent is found, and CUDA's headers are.
        let text = "#include \"../inc/../inc/own.h\"\n#include <own.h>\n#include <cuda_fp16.h>\n\
                    extern \"C\" __global__ void k(int* x) { x[0] = V; }\n";
        let input = cuda_with(text, "compute_90", |cuda| {
            let options = ["--source-folder=src", "--include-path=inc"];
            cuda.options = options.map(String::from).to_vec();
            cuda.headers.insert("inc/own.h".into(), "#define V 471101\n".into());
        });
        let done = node.compile(&input).await.unwrap();
        assert!(String::from_utf8_lossy(&done.files[0].1).contains("471101"));
    }
}

/// A worker's folder goes with it, and with the next start where its daemon was killed.
#[tokio::test]
async fn what_a_killed_node_left_is_removed() {
    let node = Node::start().await;
    node.compile(&cuda(SAXPY, "sm_90")).await.unwrap();
    let Node { compilers, folder } = node;
    drop(compilers);
    processes_in(folder.path(), <[Pid]>::is_empty).await;
    let left = folder.path().join("job-left");
    fs::create_dir_all(left.join("headers")).unwrap();
    let mut settings = CompilerSettings::default();
    settings.toolchain.nvrtc = Some(nvrtc("KILN_NVRTC_DIR"));
    let environment = Environment::default();
    let again = Compilers::start(&settings, &environment, Path::new(KILN), folder.path());
    again.settled().await;
    assert!(!left.exists());
}
