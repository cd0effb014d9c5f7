//! Python's worker processes: limits, crashes, and that nothing stays.
//!
//! The interpreter is a real Python that runs the real worker, with what needs
//! torch exchanged: these hold on any machine. `tests/cluster/inductor.rs` and
//! `python/tests` have the real torch.

use super::{interpreter::interpreter, *};

struct Inductor {
    node: Node,
    _interpreter: tempfile::TempDir,
}

impl Inductor {
    async fn start(compile: &str) -> Self {
        let (folder, interpreter) = interpreter(compile);
        let nowhere = folder.path().to_owned();
        let node = Node::with(nowhere, |settings| {
            settings.python.interpreter = Some(interpreter);
        })
        .await;
        Self { node, _interpreter: folder }
    }

    async fn compile(&self, limits: &Limits) -> Result<Output, Failure> {
        let mut input = exported("block_f32_dynamic.new.pt2");
        input.target = kiln_proto::Target::any();
        input.options.insert("cpp.threads".into(), "4".into());
        let compiler = self.node.compilers.select("inductor-standalone", &input)?;
        compiler.settled().await;
        let prepared = compiler.prepare(&input, &compiler.fingerprint()?)?;
        compiler.compile(&prepared, limits, CancellationToken::new()).await
    }

    /// Waits until no worker but the spare is left, and what it was forked from, then ends
    /// those too: no process and no folder remains.
    async fn leaves_nothing(self) {
        // The fork, and the process that stands for it.
        self.node.until(|found| found.len() <= 3).await;
        let Node { compilers, folder } = self.node;
        drop(compilers);
        processes_in(folder.path(), <[Pid]>::is_empty).await;
        let left = std::fs::read_dir(folder.path().join("python")).unwrap().count();
        assert_eq!(left, 0, "folders of workers");
    }
}

#[tokio::test]
async fn a_job_crosses_to_python_and_its_files_come_back() {
    let inductor = Inductor::start(
        "assert job.options == {'cpp.dynamic_threads': True, 'cpp.threads': 4}, job.options; \
         assert (job.runtime_shape, job.device, job.compute) == (None, 'cpu', 0); \
         assert (job.memory_bytes, job.cpu_seconds > 0) == (4 << 30, True); \
         return {'meta.json': b'{}', 'artifact.bin': bytes(range(256)) * 8192}",
    )
    .await;
    let done = inductor.compile(&Limits::default()).await.unwrap();
    let names: Vec<&str> = done.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["artifact.bin", "meta.json"]);
    assert_eq!(done.files[0].1.len(), 2 << 20);
    assert!(done.files[0].1.chunks(256).all(|chunk| chunk.iter().copied().eq(0..=255)));
    let names: Vec<String> =
        inductor.node.compilers.fingerprints().iter().map(ToString::to_string).collect();
    assert_eq!(
        names[1..],
        ["inductor cuda=none torch=1.2", "inductor-standalone cuda=none torch=1.2"]
    );
    inductor.leaves_nothing().await;
}

#[tokio::test]
async fn a_compile_that_hangs_is_ended_with_all_that_it_started() {
    let inductor =
        Inductor::start("subprocess.Popen(['/bin/sleep', '1000']); time.sleep(1000)").await;
    let limits = Limits { time: Duration::from_secs(2), ..Limits::default() };
    let failed = inductor.compile(&limits).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::Timeout, "{failed}");
    inductor.leaves_nothing().await;
}

#[tokio::test]
async fn every_end_of_a_worker_has_its_kind() {
    for (compile, kind, told) in [
        ("os.kill(os.getpid(), 11)", FailureKind::Crashed, "signal: 11"),
        ("print('the end', file=sys.stderr); os._exit(3)", FailureKind::Crashed, "the end"),
        ("return {'a': bytearray(1 << 40)}", FailureKind::OutOfMemory, "MemoryError"),
        ("raise RuntimeError('no kernel')", FailureKind::CompileError, "no kernel"),
        ("raise Refused(2, 'aten.odd')", FailureKind::UnsupportedOp, "aten.odd"),
        ("raise RuntimeError('cc1plus: out of memory')", FailureKind::OutOfMemory, "cc1plus"),
        ("os.write(1, b'noise'); print('noise'); return {'a': b''}", FailureKind::Timeout, ""),
    ] {
        let inductor = Inductor::start(compile).await;
        let limits = Limits { memory_bytes: 1 << 30, ..Limits::default() };
        match (inductor.compile(&limits).await, kind) {
            // What a library prints is no answer.
            (Ok(done), FailureKind::Timeout) => assert_eq!(done.files[0].0, "a"),
            (Ok(_), _) => panic!("{compile}: compiled"),
            (Err(failed), kind) => {
                assert_eq!(failed.kind, kind, "{compile}: {failed}");
                assert!(failed.message.contains(told), "{compile}: {failed}");
            }
        }
        inductor.leaves_nothing().await;
    }
}

#[tokio::test]
async fn a_torch_that_was_exchanged_compiles_nothing_under_the_old_key() {
    let inductor = Inductor::start("return {'a': b''}").await;
    let mut input = exported("block_f32_dynamic.new.pt2");
    input.target = kiln_proto::Target::any();
    let compiler = inductor.node.compilers.select("inductor", &input).unwrap();
    compiler.settled().await;
    let old = Fingerprint::new("inductor", [("torch", "1.1"), ("cuda", "none")]);
    let prepared = compiler.prepare(&input, &old).unwrap();
    let limits = Limits::default();
    let failed = compiler.compile(&prepared, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::ToolchainMissing, "{failed}");
    drop(compiler);
    inductor.leaves_nothing().await;
}

/// Nothing needs the process that workers are forked from.
#[tokio::test]
async fn a_fork_server_that_is_killed_costs_nothing_but_time() {
    let inductor = Inductor::start("return {'a': b'made'}").await;
    inductor.compile(&Limits::default()).await.unwrap();
    let socket = inductor.node.folder.path().join("python/forks");
    assert!(socket.exists(), "workers were no forks");
    // The server was started first.
    let all = inductor.node.until(|found| found.len() == 3).await;
    let server = *all.first().unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    // The spare ends with it, or was not forked yet, and loads by itself.
    inductor.node.until(|found| found.len() <= 1).await;
    for _ in 0..2 {
        let done = inductor.compile(&Limits::default()).await.unwrap();
        assert_eq!(done.files[0].1, &b"made"[..]);
    }
    inductor.leaves_nothing().await;
}

/// The second start knows at once what the first one found.
#[tokio::test]
async fn what_was_found_is_remembered() {
    let (_folder, interpreter) = interpreter("return {}");
    let data = tempfile::tempdir().unwrap();
    let mut settings = CompilerSettings::default();
    settings.toolchain.nvrtc = Some(data.path().to_owned());
    settings.python.interpreter = Some(interpreter.clone());
    let environment = Environment::default();
    let start = || Compilers::start(&settings, &environment, Path::new(KILN), data.path());
    let input = exported("block_f32.new.pt2");
    let first = start();
    let eager = first.fingerprints();
    assert_eq!(eager.len(), 1, "not looked at yet");
    first.select("inductor", &input).unwrap().settled().await;
    let found = first.fingerprints();
    assert_eq!(found.len(), 3);
    drop(first);
    assert_eq!(start().fingerprints(), found);
    // Another interpreter at that place is another one.
    std::fs::write(&interpreter, "#!/bin/sh\nexit 1\n").unwrap();
    let other = start();
    assert_eq!(other.fingerprints(), eager);
    let compiler = other.select("inductor", &input).unwrap();
    compiler.settled().await;
    assert_eq!(compiler.fingerprint().unwrap_err().kind, FailureKind::ToolchainMissing);
}
