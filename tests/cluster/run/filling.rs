//! A folder that is being filled: who waits, for how long, and what comes meanwhile.

use std::fs;

use rustix::process::Signal;

use super::bench::{Bench, WAIT_FOR, grpc, manifest, paths};
use crate::harness::{TestCluster, eventually};

/// `make NAME` compiles a kernel that is not there; what was compiled is counted.
const MAKE: &str = "make() { mkdir -p $D; [ -e $D/$1 ] || \
                    { echo $1 >> $H/compiled; echo code > $D/$1; }; }; ";
/// No silence of a test's length ends the filling.
const PATIENT: [&str; 2] = ["--filled", "1h"];

/// A run that compiles `one`, and `two` and `three` each when its gate is open.
fn kernels() -> String {
    format!("{WAIT_FOR}{MAKE} make one; wait_for $H/gate2; make two; wait_for $H/gate3; make three")
}

#[tokio::test(flavor = "multi_thread")]
async fn others_wait_through_a_silent_compiler_and_have_what_there_is() {
    let (cluster, bench) = (TestCluster::start(3).await, Bench::new());
    let first = bench.start(&grpc(&cluster.nodes[0]), "a", &PATIENT, &kernels());
    eventually("the first kernel", async || bench.path("a/one").exists().then_some(())).await;
    let mut second = bench.start(&grpc(&cluster.nodes[1]), "b", &[], &kernels());
    second.says("another process fills it").await;
    let mut third = bench.start(&grpc(&cluster.nodes[2]), "c", &[], &kernels());
    third.says("another process fills it").await;
    // The first one is silent, and what it has made so far reaches who waits for it.
    for (folder, gate, kernel) in [("b", "gate2", "one"), ("c", "gate3", "two")] {
        eventually(kernel, async || {
            bench.path(&format!("{folder}/{kernel}")).exists().then_some(())
        })
        .await;
        bench.open(gate);
    }
    let first = first.done().await.ok();
    assert_eq!(first.outcome(), "miss");
    for waiter in [second, third] {
        let done = waiter.done().await.ok();
        assert_eq!(
            (done.outcome(), done.restored(), done.captures()),
            ("waited", 3, 0),
            "{done:?}"
        );
    }
    assert_eq!(bench.lines("compiled"), 3);
    let last = manifest(&cluster.nodes[1], &first.key()).await;
    let files: Vec<_> = last.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(files, [".kiln/folder.json", "one", "three", "two"], "it is marked no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_goes_on_where_a_filler_died() {
    let (cluster, bench) = (TestCluster::start(3).await, Bench::new());
    let first = bench.start(&grpc(&cluster.nodes[0]), "a", &PATIENT, &kernels());
    let mut second = {
        eventually("the first kernel", async || bench.path("a/one").exists().then_some(())).await;
        bench.start(&grpc(&cluster.nodes[1]), "b", &PATIENT, &kernels())
    };
    second.says("another process fills it").await;
    eventually("a part", async || bench.path("b/one").exists().then_some(())).await;
    first.signal(Signal::KILL);
    second.says("its filler ended early").await;
    // One that comes now has a part as well, and still waits for the whole.
    let mut third = bench.start(&grpc(&cluster.nodes[2]), "c", &[], &kernels());
    third.says("another process fills it").await;
    bench.open("gate2");
    bench.open("gate3");
    let (second, third) = (second.done().await.ok(), third.done().await.ok());
    assert_eq!(second.folder()["takes_over"], true, "{second:?}");
    assert_eq!((third.outcome(), third.restored()), ("waited", 3), "{third:?}");
    // The first one's command died with it, or made its second kernel before it did.
    let compiled = fs::read_to_string(bench.path("compiled")).unwrap();
    assert_eq!(compiled.lines().filter(|line| *line == "three").count(), 1, "{compiled}");
    let fourth = bench.run(&cluster.nodes[0], "d", &[], "true").await.ok();
    assert_eq!((fourth.outcome(), fourth.folder()["takes_over"].clone()), ("hit", false.into()));
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_ends_early_starts_with_what_there_is() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let node = &cluster.nodes[0];
    let first = bench.start(&grpc(node), "a", &PATIENT, &kernels());
    eventually("the first kernel", async || bench.path("a/one").exists().then_some(())).await;
    // Whether its wait is longer than the first kernel takes to arrive is not known.
    let second = bench.start(&grpc(node), "b", &["--wait", "30s"], "ls $D");
    eventually("a part", async || bench.path("b/one").exists().then_some(())).await;
    drop(second);
    for arguments in [["--wait", "1ms"].as_slice(), &["--no-wait"]] {
        let done = bench.run(node, "c", arguments, "test -e $D/one").await.ok();
        assert_eq!(done.outcome(), "waited", "{done:?}");
        assert!(done.stderr.contains("another process still fills it"), "{done:?}");
    }
    bench.open("gate2");
    bench.open("gate3");
    first.done().await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_run_makes_reaches_those_that_run_already() {
    let (cluster, bench) = (TestCluster::start(3).await, Bench::new());
    let base = "mkdir -p $D; echo warm > $D/warm; echo old > $D/old";
    bench.run(&cluster.nodes[0], "base", &[], base).await.ok();
    // It removes a file that was restored, has one of its own, and waits for a new one.
    let serve = format!(
        "{WAIT_FOR} rm $D/old; echo mine > $D/both; : > $H/serves; wait_for $D/sub/new; \
         cat $D/sub/new; ls $D"
    );
    let mut server = bench.start(&grpc(&cluster.nodes[1]), "b", &[], &serve);
    eventually("the server", async || bench.path("serves").exists().then_some(())).await;
    let make = "mkdir $D/sub; echo theirs > $D/both; echo new > $D/sub/new";
    bench.run(&cluster.nodes[2], "c", &[], make).await.ok();
    let mut out = String::new();
    let stdout = server.child.stdout.as_mut().unwrap();
    tokio::io::AsyncReadExt::read_to_string(stdout, &mut out).await.unwrap();
    let server = server.done().await.ok();
    assert_eq!(out, "new\nboth\nsub\nwarm\n");
    assert_eq!(fs::read(bench.path("b/both")).unwrap(), b"mine\n", "its own stays");
    assert_eq!(server.folder()["restored"]["live_files"], 1, "{server:?}");
    assert_eq!(paths(&bench.path("b")), ["both", "sub/new", "warm"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filler_that_is_told_to_end_leaves_the_rest_to_the_next() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let node = &cluster.nodes[0];
    let script =
        format!("trap 'exit 0' TERM; {WAIT_FOR}{MAKE} make one; : > $H/made; wait_for $H/gate");
    let first = bench.start(&grpc(node), "a", &PATIENT, &script);
    eventually("the first kernel", async || bench.path("made").exists().then_some(())).await;
    first.signal(Signal::TERM);
    let first = first.done().await.ok();
    assert_eq!(first.captures(), 1, "{first:?}");
    for takes_over in [true, false] {
        let next = bench.run(node, "b", &[], "true").await.ok();
        assert_eq!((next.outcome(), &next.folder()["takes_over"]), ("hit", &takes_over.into()));
    }
}
