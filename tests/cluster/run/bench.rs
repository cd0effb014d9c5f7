//! Scratch folders and runs under way, for the tests of `kiln run`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use kiln_proto::{ArtifactKey, Manifest, SignedManifest};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use crate::harness::{SOON, TestNode, eventually};

/// Scratch folders of one test, and the runs in it.
pub(super) struct Bench {
    home: tempfile::TempDir,
}

/// A run under way.
pub(super) struct Job {
    pub(super) child: Child,
    stderr: BufReader<ChildStderr>,
    report: PathBuf,
}

/// A run that ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) status: ExitStatus,
    /// Null where it never got that far.
    pub(super) report: Value,
    pub(super) stderr: String,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Starts `script` with `folder` shared through the node at `endpoint`. `$D`
    /// is the folder, `$H` the bench; it settles soon.
    pub(super) fn start(
        &self,
        endpoint: &str,
        folder: &str,
        arguments: &[&str],
        script: &str,
    ) -> Job {
        let (folder, report) = (self.path(folder), self.path(&format!("{folder}.report")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(["run", "--endpoint", endpoint, "--target", "any"])
            .args(["--settle", "400ms", "--python", "/nonexistent"])
            .arg(format!("--dir=cache={}", folder.display()))
            .arg(format!("--report={}", report.display()))
            .args(arguments);
        if !arguments.contains(&"--every") {
            command.args(["--every", "300ms"]);
        }
        command
            .args(["--", "sh", "-c", script])
            .env("D", &folder)
            .env("H", self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for name in ["KILN_SOCKET", "KILN_NAMESPACE", "KILN_SIGNERS", "KILN_DISABLE", "WORLD_SIZE"]
        {
            command.env_remove(name);
        }
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Job { child, stderr, report }
    }

    pub(super) async fn run(
        &self,
        node: &TestNode,
        folder: &str,
        arguments: &[&str],
        script: &str,
    ) -> Done {
        self.start(&grpc(node), folder, arguments, script).done().await
    }

    pub(super) fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.path(name)).unwrap_or_default().lines().count()
    }

    pub(super) fn open(&self, gate: &str) {
        fs::write(self.path(gate), "").unwrap();
    }
}

impl Job {
    pub(super) async fn done(mut self) -> Done {
        let status = timeout(SOON, self.child.wait()).await.expect("ends in time").unwrap();
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).await.unwrap();
        let report = fs::read(&self.report).unwrap_or_default();
        let report = serde_json::from_slice(&report).unwrap_or_default();
        Done { status, report, stderr }
    }

    /// Reads stderr until a line has `text`.
    pub(super) async fn says(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = timeout(SOON, self.stderr.read_line(&mut line)).await;
            assert!(read.expect("in time").unwrap() > 0, "it never says {text:?}");
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = self.child.id().unwrap().cast_signed();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

impl Done {
    pub(super) fn folder(&self) -> &Value {
        &self.report["folders"][0]
    }

    pub(super) fn outcome(&self) -> &str {
        self.folder()["outcome"].as_str().unwrap_or("no report")
    }

    pub(super) fn captures(&self) -> u64 {
        self.folder()["published"]["captures"].as_u64().unwrap()
    }

    pub(super) fn restored(&self) -> u64 {
        self.folder()["restored"]["files"].as_u64().unwrap()
    }

    pub(super) fn key(&self) -> ArtifactKey {
        self.folder()["key"].as_str().unwrap().parse().unwrap()
    }

    #[track_caller]
    pub(super) fn ok(self) -> Self {
        assert!(self.status.success(), "{self:?}");
        self
    }
}

pub(super) fn grpc(node: &TestNode) -> String {
    format!("http://{}", node.config.grpc_listen)
}

/// Bytes, mode and time of files by path.
pub(super) type Tree = BTreeMap<String, (Vec<u8>, u32, (i64, i64))>;

/// All files below `folder`.
pub(super) fn tree(folder: &Path) -> Tree {
    fn walk(folder: &Path, prefix: &str, found: &mut Tree) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap();
            let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let data = entry.path().symlink_metadata().unwrap();
            if data.is_dir() {
                walk(&entry.path(), &format!("{path}/"), found);
            } else {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                let mode = data.permissions().mode() & 0o7777;
                found.insert(path, (bytes, mode, (data.mtime(), data.mtime_nsec())));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, "", &mut found);
    found
}

pub(super) fn paths(folder: &Path) -> Vec<String> {
    tree(folder).into_keys().collect()
}

/// `wait_for FILE` in a script waits for a file; a test that fails does not leave it waiting.
pub(super) const WAIT_FOR: &str = "wait_for() { i=0; while [ ! -e \"$1\" ] && [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done; }; ";
/// The manifest of `key` as the node's index has it.
pub(super) async fn manifest(node: &TestNode, key: &ArtifactKey) -> Manifest {
    let entry = eventually("the entry", async || node.lookup(key).await.unwrap()).await;
    SignedManifest::from(entry.manifest.unwrap()).read_unverified().unwrap()
}
