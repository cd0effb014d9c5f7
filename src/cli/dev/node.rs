//! One child process of `kiln dev`.
//!
//! Invariant: a child that was started is waited for; it gets a moment to stop
//! by itself, then it is killed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context;
use kiln::{
    compiler::Environment,
    node::{MissingCompiler, ReadyInfo as Ready},
};
use rustix::process::{Pid, Signal as UnixSignal};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use crate::cli::CliError;

/// How much of a log is shown where its node did not start.
const TAIL_LINES: usize = 5;

/// A node as the ready line tells it.
#[derive(Debug, Serialize)]
pub(super) struct NodeView {
    pub(super) id: u64,
    pub(super) grpc: String,
    pub(super) http: String,
    pub(super) transfer: String,
    pub(super) socket: Option<PathBuf>,
    pub(super) resp: Option<String>,
    pub(super) resp_socket: Option<PathBuf>,
    pub(super) pid: u32,
    pub(super) data: PathBuf,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    /// For people: `kiln status --json` has what a node has later too.
    #[serde(skip)]
    pub(super) compilers: Vec<String>,
    #[serde(skip)]
    pub(super) missing: Vec<MissingCompiler>,
}

/// A running child.
pub(super) struct Node {
    number: usize,
    config_file: PathBuf,
    child: Child,
}

/// Tells when its node is ready.
pub(super) struct Signal {
    plan: Plan,
    pid: u32,
    stdout: ChildStdout,
}

/// How a node ended.
pub(super) struct Ended {
    number: usize,
    config_file: PathBuf,
    status: std::io::Result<ExitStatus>,
}

impl Node {
    /// Starts `kiln serve` with the planned configuration.
    pub(super) fn spawn(plan: Plan) -> Result<(Self, Signal), CliError> {
        let log = log_file(&plan.folder);
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log);
        let stderr = stderr.with_context(|| format!("open {}", log.display()))?;
        let program = std::env::current_exe().context("find the kiln program")?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&plan.config_file);
        // The file says all: this shell's variables are in it already.
        for name in kiln::config::environment_names().iter().map(String::as_str) {
            command.env_remove(name);
        }
        command.env_remove("KILN_CONFIG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        // A group of its own: ctrl-C is ours to pass on. Killed where we are killed.
        command.process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let mut child = command.spawn().context("start kiln serve")?;
        let (Some(pid), Some(stdout)) = (child.id(), child.stdout.take()) else {
            return Err(anyhow::anyhow!("kiln serve ended at once").into());
        };
        let node = Self { number: plan.number, config_file: plan.config_file.clone(), child };
        Ok((node, Signal { plan, pid, stdout }))
    }

    /// Waits until the node ends, or ends it when `stop` says so.
    pub(super) async fn watch(mut self, stop: CancellationToken, grace: Duration) -> Ended {
        let status = tokio::select! {
            status = self.child.wait() => status,
            () = stop.cancelled() => self.end(grace).await,
        };
        Ended { number: self.number, config_file: self.config_file, status }
    }

    async fn end(&mut self, grace: Duration) -> std::io::Result<ExitStatus> {
        // While the child is not waited for, its pid is no one else's.
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, UnixSignal::TERM)?;
        }
        match tokio::time::timeout(grace, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                eprintln!("node {} did not stop within {grace:?}: killed", self.number);
                self.child.kill().await?;
                self.child.wait().await
            }
        }
    }
}

impl Signal {
    /// Waits for the node's ready line.
    pub(super) async fn ready(self) -> Result<NodeView, CliError> {
        let Self { plan, pid, stdout } = self;
        let log = log_file(&plan.folder);
        let line = BufReader::new(stdout).lines().next_line().await?;
        let Some(line) = line else {
            return Err(
                anyhow::anyhow!("node {} did not start:\n{}", plan.number, tail(&log)).into()
            );
        };
        let ready: Ready =
            serde_json::from_str(&line).with_context(|| format!("node {}", plan.number))?;
        Ok(NodeView {
            id: ready.id,
            grpc: ready.grpc,
            http: ready.http,
            transfer: ready.transfer,
            socket: ready.socket,
            resp: ready.resp,
            resp_socket: ready.resp_socket,
            pid,
            data: plan.config.data_dir,
            config: plan.config_file,
            log,
            compilers: ready.compilers,
            missing: ready.missing,
        })
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serve = restart(&self.config_file, |name| std::env::var(name).ok());
        match &self.status {
            Ok(status) => write!(f, "node {} ended ({status})", self.number)?,
            Err(e) => write!(f, "node {} cannot be waited for ({e})", self.number)?,
        }
        write!(f, "; start it again with: {serve}")
    }
}

/// The command that starts a node again in another shell, with what this one has set and
/// the node's file does not say: where the compilers' libraries are.
fn restart(config_file: &Path, variable: impl Fn(&str) -> Option<String>) -> String {
    // The shell's own are set in every shell.
    let told = Environment::VARIABLES.iter().filter(|name| !matches!(**name, "HOME"));
    let set = told.filter_map(|name| Some((name, variable(name).filter(|v| !v.is_empty())?)));
    let set = set.map(|(name, value)| format!("{name}={} ", quoted(&value)));
    let path = config_file.display().to_string();
    format!("{}kiln serve --config {}", set.collect::<String>(), quoted(&path))
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=,+@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|e| format!("{}: {e}", log.display()));
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Has the kernel kill the child when the thread that started it ends.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id().cast_signed();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(UnixSignal::KILL))?;
        // The parent may have ended before the line above.
        match rustix::process::getppid().map(Pid::as_raw_pid) {
            Some(pid) if pid == parent => Ok(()),
            _ => Err(std::io::ErrorKind::NotConnected.into()),
        }
    };
    // SAFETY: between fork and exec it makes two plain system calls and
    // allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_starts_again_with_the_compilers_that_it_had() {
        let variable = |name: &str| match name {
            "KILN_NVRTC_DIR" => Some("/opt/my cuda/lib".to_owned()),
            "HOME" => Some("/root".to_owned()),
            _ => None,
        };
        assert_eq!(
            restart(Path::new("/d/node-1/config.toml"), variable),
            "KILN_NVRTC_DIR='/opt/my cuda/lib' kiln serve --config /d/node-1/config.toml"
        );
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn the_json_shape_holds() {
        let view = NodeView {
            id: 1,
            grpc: "127.0.0.1:1".into(),
            http: "127.0.0.1:2".into(),
            transfer: "127.0.0.1:3".into(),
            socket: None,
            resp: None,
            resp_socket: None,
            pid: 4,
            data: "/d/node-1/data".into(),
            config: "/d/node-1/config.toml".into(),
            log: "/d/node-1/log".into(),
            compilers: Vec::new(),
            missing: Vec::new(),
        };
        let json = serde_json::to_value(&view).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let addresses = ["id", "grpc", "http", "transfer", "socket", "resp", "resp_socket"];
        assert_eq!(fields, [&addresses[..], &["pid", "data", "config", "log"]].concat());
    }

    #[tokio::test]
    async fn a_child_that_does_not_listen_is_killed_in_time() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo ready; while :; do :; done"]);
        command.stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        let node = Node { number: 1, config_file: PathBuf::new(), child };
        let stop = CancellationToken::new();
        stop.cancel();
        let ended = node.watch(stop, Duration::from_millis(50)).await;
        let status = ended.status.as_ref().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(status), Some(9));
        assert!(ended.to_string().contains("node 1 ended"));
    }
}
