//! Wall clocks that can be set for each process, by a library loaded before it.
//!
//! Invariant: the machine's own clock is never touched, nor is any monotonic one.

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

pub(crate) struct Clocks {
    folder: PathBuf,
}

impl Clocks {
    /// Compiles the library.
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Self> {
        let source = folder.join("clock.c");
        std::fs::write(&source, include_str!("clock.c"))?;
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(folder.join("clock.so"));
        let done = command.arg(&source).arg("-ldl").output().context("run cc")?;
        ensure!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr));
        Ok(Self { folder: folder.to_owned() })
    }

    /// What a node is started with.
    pub(crate) fn environment(&self, at: usize) -> anyhow::Result<Vec<(String, String)>> {
        self.set(at, 0)?;
        let library = self.folder.join("clock.so").display().to_string();
        let file = self.file(at).display().to_string();
        Ok(vec![("LD_PRELOAD".into(), library), ("FAULTS_CLOCK".into(), file)])
    }

    /// The node's clock is so many seconds ahead from now on.
    pub(crate) fn set(&self, at: usize, seconds: i64) -> anyhow::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(self.file(at))?;
        Ok(file.write_all_at(&seconds.to_le_bytes(), 0)?)
    }

    fn file(&self, at: usize) -> PathBuf {
        self.folder.join(format!("clock-{at}"))
    }
}
