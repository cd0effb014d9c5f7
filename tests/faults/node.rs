//! One real `kiln serve` process.
//!
//! Invariant: no process outlives its [`Node`], and signals go only to processes that
//! this program started.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use kiln::config::Config;
use kiln_proto::pb;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::door::Door;

/// Longest start or tidy end of a process, on a machine with other work.
pub(crate) const START: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) config: Config,
    pub(crate) folder: PathBuf,
    /// What starts the process: `ip netns exec NAME`, or nothing.
    pub(crate) prefix: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// The program that the next start runs.
    pub(crate) binary: PathBuf,
    pub(crate) door: Arc<Door>,
    child: Option<Child>,
}

/// The build that is tested.
pub(crate) fn binary() -> PathBuf {
    std::env::var("KILN_BINARY").unwrap_or(env!("CARGO_BIN_EXE_kiln").into()).into()
}

impl Node {
    pub(crate) fn new(at: usize, folder: PathBuf, config: Config) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let door = Arc::new(Door::new(at, &config)?);
        let (prefix, environment) = (Vec::new(), Vec::new());
        let (id, binary, child) = (0, binary(), None);
        Ok(Self { id, config, folder, prefix, environment, binary, door, child })
    }

    /// Starts the process without waiting for it.
    pub(crate) fn spawn(&mut self) -> anyhow::Result<()> {
        let file = self.folder.join("config.toml");
        std::fs::write(&file, toml::to_string(&self.config)?)?;
        let mut options = std::fs::OpenOptions::new();
        let log = options.create(true).append(true).open(self.folder.join("log"))?;
        let mut words = self.prefix.clone();
        let kiln = self.binary.to_str().context("the binary's path is no text")?;
        words.extend([kiln.into(), "serve".into(), "--config".into()]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&file).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().context("start kiln")?);
        self.door.life.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Waits for the line that says that it serves.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let stdout = self.child.as_mut().and_then(|child| child.stdout.take());
        let mut lines = BufReader::new(stdout.context("it does not run")?).lines();
        let line = timeout(START, lines.next_line()).await.context("not ready in time")??;
        let Some(line) = line else {
            self.ended().await?;
            bail!("it ended early: {}", self.last_words())
        };
        let ready: serde_json::Value = serde_json::from_str(&line)?;
        self.id = ready["id"].as_u64().context("no id")?;
        Ok(())
    }

    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Waits for its end; the exit code.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        let child = self.child.as_mut().context("it does not run")?;
        let ended = timeout(START, child.wait()).await.context("it does not end")??;
        self.child = None;
        Ok(ended.code())
    }

    /// SIGKILL, and the end of it.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        Ok(child.kill().await?)
    }

    /// SIGKILL, from a destructor: waits for the end without a runtime.
    pub(crate) fn end(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
        if let (Ok(()), Some(pid)) = (child.start_kill(), pid) {
            // It may have ended, and been waited for, by itself.
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        }
    }

    /// SIGTERM, and a tidy end.
    pub(crate) async fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let code = self.ended().await?;
        ensure!(code == Some(0), "it ended with {code:?}: {}", self.last_words());
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid as i32));
        Ok(kill_process(pid.context("it does not run")?, signal)?)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// The processes that it started: its compilers.
    pub(crate) fn children(&self) -> Vec<Pid> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
        let all = lists.flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        });
        all.filter_map(Pid::from_raw).collect()
    }

    /// One of the counters in its status; `None` where it does not answer at once.
    pub(crate) async fn counter(&self, name: &str) -> Option<u64> {
        let counters = self.status().await?.counters;
        counters.iter().find(|counter| counter.name == name).map(|counter| counter.value)
    }

    /// Whether the process stands still, every thread of it.
    pub(crate) fn stands_still(&self) -> bool {
        let Some(pid) = self.pid() else { return false };
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat"));
        threads.flatten().filter_map(|t| stat(t).ok()).all(|stat| stat.contains(") T "))
    }

    /// Whether clients may ask it.
    pub(crate) fn serves(&self) -> bool {
        self.pid().is_some() && self.door.open.load(Relaxed)
    }

    /// Whether the process ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(6).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// What it says of itself; `None` where it does not answer at once.
    pub(crate) async fn status(&self) -> Option<pb::StatusResponse> {
        let mut client = self.door.client();
        let asked = client.status(pb::StatusRequest::default());
        Some(timeout(Duration::from_secs(2), asked).await.ok()?.ok()?.into_inner())
    }
}
