//! Folders of builds: an output is current where its inputs' bytes are the same, whatever
//! their times. With real ninja and make, and a compiler of three lines.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::bench::{Bench, Done, paths};
use crate::harness::{TestCluster, TestNode};

/// `compile OUTPUT SOURCE HEADER`: both in one file, with a depfile; what is compiled is
/// counted. Run in the folder, as ninja and make do.
const COMPILER: &str =
    "#!/bin/sh\necho $1 >> $H/compiled\ncat $2 $3 > $1\necho \"$1: $2 $3\" > $1.d\n";
/// A time long ago, and one further back.
const OLD: &str = "2025-01-01";
const OLDER: &str = "2024-01-01";

/// Sources outside the shared folder, and a build of them in it.
struct Build<'a> {
    bench: Bench,
    node: &'a TestNode,
    script: String,
    runs: usize,
}

impl<'a> Build<'a> {
    /// `operations` are folders, each with an output `k` of its own source and one header.
    fn new(node: &'a TestNode, operations: &[&str], tool: fn(&Path, &[&str]) -> String) -> Self {
        let bench = Bench::new();
        fs::create_dir(bench.path("pkg")).unwrap();
        let compiler = bench.path("compile");
        fs::write(&compiler, COMPILER).unwrap();
        let script = tool(&bench.path("pkg"), operations);
        let build = Self { bench, node, script, runs: 0 };
        for operation in operations {
            build.source(&format!("{operation}.c"), operation, OLD);
        }
        build.source("k.h", "header 1", OLD);
        build
    }

    /// Writes a source, last changed at `time`.
    fn source(&self, name: &str, text: &str, time: &str) {
        let path = self.bench.path("pkg").join(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        let path = path.to_str().unwrap();
        let touched = std::process::Command::new("touch").args(["-d", time, path]).status();
        assert!(touched.expect("touch is installed").success());
    }

    /// Builds in a folder that was never there: what was compiled, and the report.
    async fn run(&mut self) -> (Vec<String>, Done) {
        self.runs += 1;
        let compiled = self.bench.path("compiled");
        let _ = fs::remove_file(&compiled);
        let folder = format!("{}/cache", self.runs);
        fs::create_dir(self.bench.path(&self.runs.to_string())).unwrap();
        let done = self.bench.run(self.node, &folder, &[], &self.script).await.ok();
        let text = fs::read_to_string(compiled).unwrap_or_default();
        let mut compiled: Vec<String> = text.lines().map(str::to_owned).collect();
        compiled.sort();
        (compiled, done)
    }

    fn output(&self, operation: &str) -> String {
        let path = PathBuf::from(self.runs.to_string()).join("cache").join(operation).join("k");
        fs::read_to_string(self.bench.path(path.to_str().unwrap())).unwrap()
    }
}

/// One build file and one log for all operations, as FlashInfer has it.
fn ninja(pkg: &Path, operations: &[&str]) -> String {
    let pkg = pkg.display();
    let mut file = format!(
        "pkg = {pkg}\nrule cc\n  command = sh $pkg/../compile $out $in $pkg/k.h\n  \
         depfile = $out.d\n  deps = gcc\nrule link\n  command = cat $in > $out\n"
    );
    for operation in operations {
        file += &format!("build {operation}/k: cc $pkg/{operation}.c\n");
        file += &format!("build {operation}/k.so: link {operation}/k\n");
    }
    let write = format!("mkdir -p $D && cat > $D/new <<'END'\n{file}END\n");
    // A tool leaves its build file alone where it is what it would write.
    let keep = "cmp -s $D/new $D/build.ninja && rm $D/new || mv $D/new $D/build.ninja\n";
    format!("{write}{keep}ninja -C $D >$H/said 2>&1 || {{ cat $H/said >&2; exit 1; }}")
}

/// A makefile that takes in what the compiler wrote; make itself keeps nothing.
fn make(pkg: &Path, operations: &[&str]) -> String {
    let pkg = pkg.display();
    let outputs: Vec<_> = operations.iter().map(|operation| format!("{operation}/k")).collect();
    let mut file = format!("all: {}\n", outputs.join(" "));
    for operation in operations {
        file += &format!("{operation}/k: {pkg}/{operation}.c\n");
        file += &format!("\tmkdir -p {operation} && sh {pkg}/../compile $@ $< {pkg}/k.h\n");
        file += &format!("-include {operation}/k.d\n");
    }
    let write = format!("mkdir -p $D && cat > $D/new <<'END'\n{file}END\n");
    let keep = "cmp -s $D/new $D/Makefile && rm $D/new || mv $D/new $D/Makefile\n";
    format!("{write}{keep}make -C $D >$H/said 2>&1 || {{ cat $H/said >&2; exit 1; }}")
}

async fn content_decides(tool: fn(&Path, &[&str]) -> String) {
    let cluster = TestCluster::start(1).await;
    let mut build = Build::new(&cluster.nodes[0], &["a", "b"], tool);
    let (compiled, _) = build.run().await;
    assert_eq!(compiled, ["a/k", "b/k"]);

    // The same bytes, changed later than the restored outputs were made.
    build.source("k.h", "header 1", "now");
    let (compiled, done) = build.run().await;
    assert_eq!((compiled, done.outcome()), (vec![], "hit"), "{done:?}");
    assert_eq!(build.output("a"), "a\nheader 1\n");

    // Other bytes of the same size, in a file that is older than all outputs.
    build.source("a.c", "A", OLDER);
    let (compiled, done) = build.run().await;
    assert_eq!(compiled, ["a/k"], "only what is made from it: {done:?}");
    assert_eq!(
        (build.output("a"), build.output("b")),
        ("A\nheader 1\n".into(), "b\nheader 1\n".into())
    );
    let told = &done.folder()["restored"];
    assert!(told["outdated"].as_u64().unwrap() >= 1, "{done:?}");
    assert!(told["differs"].as_str().unwrap().ends_with("/pkg/a.c"), "{done:?}");

    // The next one has all of it; and a header that all are made from.
    let (compiled, _) = build.run().await;
    assert_eq!(compiled, Vec::<String>::new());
    build.source("k.h", "header 2", OLDER);
    let (compiled, _) = build.run().await;
    assert_eq!(compiled, ["a/k", "b/k"]);
    assert_eq!(build.output("b"), "b\nheader 2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_ninja_folder_what_has_the_same_inputs_is_not_made_again() {
    content_decides(ninja).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_make_folder_what_has_the_same_inputs_is_not_made_again() {
    content_decides(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ninja_has_here_is_never_contradicted() {
    let cluster = TestCluster::start(1).await;
    let mut build = Build::new(&cluster.nodes[0], &["a", "b"], ninja);
    build.run().await;
    // A folder that ninja has built in, with an output that is gone since: what is in the
    // cluster was made from the same inputs, and ninja's own log says nothing of that.
    let own = build.bench.path("own/cache");
    fs::create_dir_all(own.join("a")).unwrap();
    fs::write(own.join(".ninja_log"), "# ninja log v6\n").unwrap();
    let done = build.bench.run(build.node, "own/cache", &[], "ls $D >&2").await.ok();
    assert_eq!(paths(&own), [".ninja_log", "build.ninja"], "{done:?}");
    assert_eq!(fs::read_to_string(own.join(".ninja_log")).unwrap(), "# ninja log v6\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_is_not_shared_if_its_source_changed_after_it() {
    let cluster = TestCluster::start(1).await;
    let mut build = Build::new(&cluster.nodes[0], &["a", "b"], ninja);
    // The source is edited while the build's process goes on: what `a` was made from is
    // gone, and its time is set back.
    let edit = "\necho X > $H/pkg/a.c; touch -d 2024-06-01 $H/pkg/a.c";
    let script = std::mem::take(&mut build.script);
    build.script = format!("{script}{edit}");
    build.run().await;
    build.script = script;
    let (compiled, done) = build.run().await;
    assert_eq!(compiled, ["a/k"], "{done:?}");
    assert_eq!(build.output("a"), "X\nheader 1\n");
}
