//! Worker processes: limits, crashes, cancellation, and that nothing stays.

use super::*;

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

/// Eight kernels at a time take more than one after the other, and than one compiler has; two
/// have enough.
#[tokio::test]
async fn what_has_too_little_memory_has_more_alone_or_takes_less() {
    let limits = Limits { time: Duration::from_secs(120), memory_bytes: 64 << 20 };
    let stop = CancellationToken::new;
    let workers = |workers: usize| {
        Node::with(nvrtc("KILN_NVRTC_DIR"), move |settings| {
            settings.pool.workers = workers.try_into().unwrap();
        })
    };
    let (one, two) = (workers(1).await, workers(2).await);
    let block = exported("block_f32.new.pt2");
    let failed = one.compile_within(&block, &limits, stop()).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::OutOfMemory, "{failed}");
    let compiler = one.compilers.select("native", &block).unwrap();
    let saving = compiler.saving(&block.options).expect("it can do with less");
    assert_eq!(compiler.saving(&saving), None, "but not with less than that");
    let saving = CompileInput { options: saving, ..block.clone() };
    let small = one.compile_within(&saving, &limits, stop()).await.unwrap();
    let alone = two.compile_within(&block, &limits, stop()).await.unwrap();
    assert_eq!(small.files.len(), alone.files.len(), "a module and what it needs");
    // Each is what its options make: an artifact of its own.
    assert_ne!(
        one.prepare(&saving).unwrap().components.key(),
        one.prepare(&block).unwrap().components.key()
    );
}

/// Waits until nothing of a process is left but its exit status, which its parent may read then.
async fn has_died(process: Pid) {
    let threads = format!("/proc/{}/task", process.as_raw_nonzero());
    let stands = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("stat")));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_dir(&threads).is_ok_and(|mut threads| threads.any(stands)) {
        assert!(Instant::now() < deadline, "{process:?} lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_killed_worker_fails_its_compile_alone() {
    let node = Node::start().await;
    // The spare may die as well: it is replaced.
    let spare = node.until(|found| found.len() == 1).await[0];
    rustix::process::kill_process(spare, Signal::KILL).unwrap();
    has_died(spare).await;
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
            refused = third => assert_eq!(refused.kind, FailureKind::Busy, "{refused}"),
        }
        node.until(|found| found.len() == 1).await;
    }
    node.compile(&quick).await.unwrap();
}

#[tokio::test]
async fn a_dead_daemon_leaves_no_worker() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::daemon_that_compiles_for_ever", "--ignored"])
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
    let compilers = Compilers::start(&settings, &environment, program, Path::new(&folder));
    compilers.settled().await;
    let input = cuda(&endless(), "sm_90");
    let compiler = compilers.select("cuda", &input).unwrap();
    let prepared = compiler.prepare(&input, &compiler.fingerprint().unwrap()).unwrap();
    let _ = compiler.compile(&prepared, &Limits::default(), CancellationToken::new()).await;
}
