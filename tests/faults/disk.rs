//! Disks that are full, fail, or give back other bytes.
//!
//! Invariant: what was mounted is unmounted, and a tracer ended, when its value is
//! dropped.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::payload::Chance;

/// A small disk in memory.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, mebibytes: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(at)?;
        let size = format!("size={mebibytes}m");
        let words = ["-t", "tmpfs", "-o", &size, "kiln-faults"];
        let done = std::process::Command::new("mount").args(words).arg(at).output()?;
        let why = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "mount a tmpfs: {why}");
        Ok(Self(at.to_owned()))
    }

    /// Leaves no byte free.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let mut file = std::fs::File::create(self.filler())?;
        let chunk = vec![0; 64 << 10];
        while file.write_all(&chunk).is_ok() {}
        for byte in std::iter::repeat_n(0, 64 << 10) {
            if file.write_all(&[byte]).is_err() {
                return Ok(());
            }
        }
        anyhow::bail!("the disk is not full")
    }

    pub(crate) fn free(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: its processes were killed, and may not be gone yet.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// System calls of a process that fail while this lives.
pub(crate) struct Failing {
    strace: Child,
    told: tempfile::NamedTempFile,
}

impl Failing {
    /// `inject` as strace has it: `fsync,fdatasync:error=EIO`.
    pub(crate) async fn attach(pid: u32, inject: &str) -> anyhow::Result<Self> {
        let calls = inject.split(':').next().unwrap_or_default();
        let told = tempfile::NamedTempFile::new()?;
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &pid.to_string(), "-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={inject}"), "-o"]).arg(told.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut strace = command.kill_on_drop(true).spawn().context("start strace")?;
        let mut lines = BufReader::new(strace.stderr.take().context("no stderr")?).lines();
        let line = timeout(Duration::from_secs(10), lines.next_line()).await??;
        let line = line.unwrap_or_default();
        ensure!(line.contains("attached"), "strace: {line}");
        // What it says later shall not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { strace, told })
    }

    /// How many calls failed so.
    pub(crate) async fn detach(mut self) -> anyhow::Result<usize> {
        if let Some(pid) = self.strace.id().and_then(|p| rustix::process::Pid::from_raw(p as i32)) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        timeout(Duration::from_secs(10), self.strace.wait()).await.context("strace stays")??;
        let told = std::fs::read_to_string(self.told.path())?;
        Ok(told.matches("INJECTED").count())
    }
}

/// Makes a file another: one bit flipped, its end torn off, or zeros in it.
pub(crate) fn damage(file: &Path, chance: &mut Chance) -> anyhow::Result<&'static str> {
    let mut bytes = std::fs::read(file)?;
    ensure!(!bytes.is_empty(), "{} is empty", file.display());
    let at = chance.below(bytes.len());
    let how = match chance.below(3) {
        0 => {
            bytes[at] ^= 1 << chance.below(8);
            "a bit flipped"
        }
        1 => {
            bytes.truncate(at);
            "torn"
        }
        _ => {
            let end = bytes.len().min(at + 512);
            let changes = bytes[at..end].iter().any(|byte| *byte != 0);
            bytes[at..end].fill(if changes { 0 } else { 0xff });
            "a sector lost"
        }
    };
    std::fs::write(file, bytes)?;
    Ok(how)
}
