//! `kiln run`: real processes, real folders, small shell scripts as COMMAND.

mod bench;
mod builds;
mod filling;
mod using;

use std::{fs, os::unix::fs::symlink, path::Path};

use kiln_proto::{Digest, Manifest, pb, pb::publish_chunk::Chunk};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use self::bench::{Bench, WAIT_FOR, grpc, manifest, paths, tree};
use crate::harness::{TestCluster, TestNode, eventually};

const FILL: &str = "[ -e $D/f ] || { mkdir -p $D; echo compiled >> $H/compiled; echo one > $D/f; }";

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_filled_another_restores_as_it_was() {
    let (cluster, bench) = (TestCluster::start(3).await, Bench::new());
    let fill = "mkdir -p $D/k/deep; echo kernel > $D/k/deep/k.cubin; : > $D/empty; \
                head -c 3000000 /dev/zero | tr '\\0' x > $D/large; \
                echo '#!' > $D/k/run.so; chmod 755 $D/k/run.so; chmod 600 $D/empty; \
                touch -d '2021-02-03 04:05:06.123456789' $D/k/deep/k.cubin; \
                echo x > $D/k/lock; mkdir $D/k/tmp.pid_1; echo x > $D/k/tmp.pid_1/k";
    let filled = bench.run(&cluster.nodes[0], "a", &[], fill).await.ok();
    assert_eq!((filled.outcome(), filled.captures()), ("miss", 1), "{filled:?}");
    let mut expected = tree(&bench.path("a"));
    expected.retain(|path, _| !path.contains("lock") && !path.contains("tmp."));
    assert_eq!(expected.len(), 4);

    let restored = bench.run(&cluster.nodes[2], "b", &[], "test -x $D/k/run.so").await.ok();
    assert_eq!((restored.outcome(), restored.captures()), ("hit", 0), "{restored:?}");
    assert_eq!(tree(&bench.path("b")), expected);

    // Nothing is fetched where all is there, and what differs stays.
    fs::write(bench.path("b/empty"), "my own").unwrap();
    let again = bench.run(&cluster.nodes[2], "b", &[], "true").await.ok();
    let told = &again.folder()["restored"];
    assert_eq!((&told["files"], &told["same"], &told["kept"]), (&0.into(), &3.into(), &1.into()));
    assert_eq!(fs::read(bench.path("b/empty")).unwrap(), b"my own");
    // Another tag is another key.
    let other = bench.run(&cluster.nodes[0], "c", &["--tag", "t"], "true").await.ok();
    assert_eq!((other.outcome(), paths(&bench.path("c"))), ("miss", vec![]));
    assert_ne!(other.key(), again.key());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_once_one_fills_and_the_other_waits() {
    let (cluster, bench) = (TestCluster::start(3).await, Bench::new());
    let script = format!("{WAIT_FOR} : > $H/started; wait_for $H/gate; {FILL}");
    let first = bench.start(&grpc(&cluster.nodes[0]), "a", &[], &script);
    eventually("the first command", async || bench.path("started").exists().then_some(())).await;
    let mut second = bench.start(&grpc(&cluster.nodes[2]), "b", &[], FILL);
    second.says("another process fills it").await;
    bench.open("gate");
    let (first, second) = (first.done().await.ok(), second.done().await.ok());
    assert_eq!((first.outcome(), second.outcome()), ("miss", "waited"));
    assert_eq!(bench.lines("compiled"), 1);
    assert_eq!(tree(&bench.path("a")), tree(&bench.path("b")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filler_that_is_killed_is_followed_by_a_waiter() {
    let (cluster, bench) = (TestCluster::start(3).await, Bench::new());
    let script = format!("{WAIT_FOR} echo $$ > $H/pid.new; mv $H/pid.new $H/pid; wait_for $H/gate");
    let first = bench.start(&grpc(&cluster.nodes[0]), "a", &[], &script);
    let pid = eventually("the first command", async || {
        fs::read_to_string(bench.path("pid")).ok()?.trim().parse::<i32>().ok()
    });
    let pid = pid.await;
    let mut second = bench.start(&grpc(&cluster.nodes[2]), "b", &[], FILL);
    second.says("another process fills it").await;
    first.signal(Signal::KILL);
    let second = second.done().await.ok();
    assert_eq!((second.outcome(), second.captures()), ("miss", 1), "{second:?}");
    eventually("the end of the first command", async || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .await;
    let third = bench.run(&cluster.nodes[1], "c", &[], FILL).await.ok();
    assert_eq!((third.outcome(), bench.lines("compiled")), ("hit", 1));
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_command_publishes_nothing_unless_it_is_to() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let node = &cluster.nodes[0];
    let failing = format!("{FILL}; exit 7");
    let failed = bench.run(node, "a", &[], &failing).await;
    assert_eq!((failed.status.code(), failed.captures()), (Some(7), 0), "{failed:?}");
    let next = bench.run(node, "b", &["--publish-failed"], &failing).await;
    assert_eq!((next.status.code(), next.outcome(), next.captures()), (Some(7), "miss", 1));
    let third = bench.run(node, "c", &[], "true").await.ok();
    assert_eq!((third.outcome(), third.restored()), ("hit", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_go_on_when_the_folder_settles_and_later_files_are_added() {
    let (cluster, bench) = (TestCluster::start(3).await, Bench::new());
    let script = format!(
        "{WAIT_FOR} mkdir -p $D $H/made; : > $H/started; echo 1 > $H/made/one; echo 2 > $H/made/two; \
         mv $H/made $D/pair; wait_for $H/gate; echo 3 > $D/three; wait_for $H/end"
    );
    let first = bench.start(&grpc(&cluster.nodes[0]), "a", &[], &script);
    eventually("the first command", async || bench.path("started").exists().then_some(())).await;
    let second = bench.run(&cluster.nodes[1], "b", &[], "true").await.ok();
    assert_eq!(paths(&bench.path("b")), ["pair/one", "pair/two"], "{second:?}");
    // What the second adds stays when the first adds more.
    let fourth = "echo 4 > $D/four";
    let added = bench.run(&cluster.nodes[1], "b", &[], fourth).await.ok();
    assert_eq!((added.outcome(), added.captures()), ("hit", 1), "{added:?}");
    bench.open("gate");
    let all = eventually("the third file", async || {
        let files = manifest(&cluster.nodes[2], &added.key()).await.files;
        let files: Vec<_> = files.into_iter().map(|file| file.path).collect();
        files.contains(&"three".to_owned()).then_some(files)
    })
    .await;
    assert_eq!(all, [".kiln/folder.json", "four", "pair/one", "pair/two", "three"]);
    bench.open("end");
    first.done().await.ok();
    let third = bench.run(&cluster.nodes[2], "c", &[], "true").await.ok();
    assert_eq!((third.outcome(), third.restored()), ("hit", 4), "{third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_rests_is_left_out_and_the_rest_goes() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let script = "mkdir -p $D; : > $H/started; echo 1 > $D/good; i=0; \
         while [ ! -e $H/gate ] && [ $i -lt 3000 ]; do echo x >> $D/restless; sleep 0.02; i=$((i+1)); done";
    let first = bench.start(&grpc(&cluster.nodes[0]), "a", &[], script);
    eventually("the first command", async || bench.path("started").exists().then_some(())).await;
    let second = bench.run(&cluster.nodes[0], "b", &[], "true").await.ok();
    assert_eq!(paths(&bench.path("b")), ["good"], "{second:?}");
    bench.open("gate");
    first.done().await.ok();
    bench.run(&cluster.nodes[0], "c", &[], "true").await.ok();
    assert_eq!(paths(&bench.path("c")), ["good", "restless"], "it rests in the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outside_the_folder_is_read_or_written() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let node = &cluster.nodes[0];
    fs::create_dir(bench.path("outside")).unwrap();
    fs::write(bench.path("outside/secret"), "s").unwrap();
    let script = "mkdir -p $D/sub; echo 1 > $D/sub/f; ln -s $H/outside $D/folder; \
                  ln -s $H/outside/secret $D/sub/link; mkfifo $D/pipe";
    let filled = bench.run(node, "a", &[], script).await.ok();
    assert_eq!(filled.folder()["published"]["unfit"], 3, "{filled:?}");
    let mut manifest = manifest(node, &filled.key()).await;
    let files: Vec<_> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(files, [".kiln/folder.json", "sub/f"]);

    // A link in a folder's place is not followed: the command starts cold.
    fs::create_dir(bench.path("b")).unwrap();
    symlink(bench.path("outside"), bench.path("b/sub")).unwrap();
    let cold = bench.run(node, "b", &[], "exit 3").await;
    assert_eq!((cold.status.code(), cold.outcome()), (Some(3), "cold"), "{cold:?}");
    assert_eq!(paths(&bench.path("outside")), ["secret"]);

    // A manifest that points outside is not even accepted.
    for path in ["../escape", "/tmp/escape", "sub/../../escape"] {
        let mut evil = manifest.clone();
        let bytes = b"evil";
        evil.files.truncate(1);
        evil.files[0] = kiln_proto::FileEntry {
            path: path.into(),
            offset: 0,
            size: 4,
            digest: Digest::of(bytes),
        };
        (evil.pack_digest, evil.pack_size) = (Digest::of(bytes), 4);
        assert!(replace(node, &evil, bytes).await.is_err(), "{path}");
    }
    // One whose index asks for more than a file may have gets what is allowed.
    let index = br#"{"version":1,"files":{"sub/f":{"mode":3565,"mtime":[1,2]}}}"#;
    let pack = [index.as_slice(), b"new"].concat();
    let sizes = [index.len() as u64, 3];
    for (file, (size, bytes)) in
        manifest.files.iter_mut().zip(sizes.into_iter().zip([index.as_slice(), b"new"]))
    {
        (file.size, file.digest) = (size, Digest::of(bytes));
    }
    manifest.files[1].offset = sizes[0];
    (manifest.pack_digest, manifest.pack_size) = (Digest::of(&pack), pack.len() as u64);
    replace(node, &manifest, &pack).await.unwrap();
    bench.run(node, "c", &[], "true").await.ok();
    let restored = tree(&bench.path("c"));
    assert_eq!(restored["sub/f"].0, b"new");
    assert_eq!(restored["sub/f"].1 & 0o7000, 0, "never set-user-id");
    assert_eq!(restored.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cluster_the_command_runs_all_the_same() {
    let bench = Bench::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let script = "cat; echo out; echo err >&2; exit 3";
    let done = bench.start(&closed.to_string(), "a", &[], script).done().await;
    assert_eq!((done.status.code(), done.outcome()), (Some(3), "cold"), "{done:?}");
    assert!(done.stderr.contains("starts cold: no node can be reached"), "{done:?}");
    assert!(done.stderr.contains("err\n"));
    let mut json = bench.start(&closed.to_string(), "b", &["--json"], "echo out");
    let mut out = String::new();
    json.child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "out\n", "stdout is the command's");
    let json = json.done().await.ok();
    let told: Value = serde_json::from_str(&json.stderr).unwrap();
    assert_eq!(told, json.report);
    assert_eq!(told["folders"][0]["outcome"], "cold");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_command_and_what_is_whole_is_captured() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let endpoint = grpc(&cluster.nodes[0]);
    // One that ends well when it is told to.
    let tidy = "mkdir -p $D; trap 'echo bye > $D/last; exit 0' TERM; : > $H/started; \
                i=0; while [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done; exit 9";
    let job = bench.start(&endpoint, "a", &[], tidy);
    eventually("the command", async || bench.path("started").exists().then_some(())).await;
    job.signal(Signal::TERM);
    let done = job.done().await.ok();
    assert_eq!(done.captures(), 1, "{done:?}");
    bench.run(&cluster.nodes[0], "b", &[], "true").await.ok();
    assert_eq!(paths(&bench.path("b")), ["last"]);

    // One that just dies: what it wrote a moment before may be half a file.
    let rude = "mkdir -p $D; echo 1 > $D/whole; touch $D/half; n=0; while :; do echo x >> $D/half; \
                n=$((n+1)); [ $n = 40 ] && : > $H/rude; sleep 0.02; done";
    // A hit, so that nothing is captured before the end.
    let base = ["--tag", "rude"];
    bench.run(&cluster.nodes[0], "base", &base, "mkdir -p $D; echo 0 > $D/base").await.ok();
    let arguments = ["--tag", "rude", "--every", "1h"];
    let job = bench.start(&endpoint, "c", &arguments, rude);
    eventually("the command", async || bench.path("rude").exists().then_some(())).await;
    job.signal(Signal::TERM);
    let done = job.done().await;
    assert_eq!((done.status.code(), done.captures()), (Some(143), 1), "{done:?}");
    bench.run(&cluster.nodes[0], "d", &["--tag", "rude"], "true").await.ok();
    assert_eq!(paths(&bench.path("d")), ["base", "whole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_from_before_are_published_only_where_asked_for() {
    let (cluster, bench) = (TestCluster::start(1).await, Bench::new());
    let node = &cluster.nodes[0];
    fs::create_dir(bench.path("a")).unwrap();
    fs::write(bench.path("a/old"), "from another toolchain").unwrap();
    let plain = bench.run(node, "a", &[], "echo new > $D/new").await.ok();
    let files = |manifest: Manifest| -> Vec<_> {
        manifest.files.into_iter().map(|file| file.path).collect()
    };
    assert_eq!(files(manifest(node, &plain.key()).await), [".kiln/folder.json", "new"]);
    bench.run(node, "a", &["--seed"], "true").await.ok();
    assert_eq!(files(manifest(node, &plain.key()).await), [".kiln/folder.json", "new", "old"]);
    // Ranks of one node restore the same folder at the same time.
    let ranks: Vec<_> =
        (0..4).map(|_| bench.start(&grpc(node), "ranks", &[], "cat $D/new $D/old")).collect();
    let mut written = false;
    for rank in ranks {
        let rank = rank.done().await;
        assert!(rank.status.success(), "{rank:?}");
        written |= rank.stderr.contains("restored 2 files");
    }
    assert_eq!(paths(&bench.path("ranks")), ["new", "old"]);
    assert!(written, "one of them restored it");
    // Too many bytes: the newest stay.
    let large = "head -c 9000 /dev/zero > $D/large; sleep 0.1; echo newest > $D/newest";
    let arguments = ["--tag", "large", "--max-bytes", "8000B"];
    let done = bench.run(node, "l", &arguments, &format!("mkdir -p $D; {large}")).await.ok();
    assert_eq!(done.folder()["published"]["beyond_limits"], 1, "{done:?}");
    assert_eq!(files(manifest(node, &done.key()).await), [".kiln/folder.json", "newest"]);
}

async fn replace(
    node: &TestNode,
    manifest: &Manifest,
    pack: &[u8],
) -> Result<pb::PublishResponse, tonic::Status> {
    let manifest = Some(manifest.into());
    let header = pb::PublishHeader { manifest, replace: true, ..Default::default() };
    let data = prost::bytes::Bytes::copy_from_slice(pack);
    let chunks = [Chunk::Header(header), Chunk::Data(data)];
    let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
    let sent = node.client().await.publish(futures::stream::iter(chunks)).await?;
    Ok(sent.into_inner())
}
