//! What a run does about a folder before COMMAND starts.
//!
//! Invariant: a folder that is filled is restored without asking anybody for a
//! right. While another process fills it, what that one has published so far is
//! restored as it comes, so that a wait that ends early was not for nothing.

use std::time::{Duration, Instant};

use anyhow::Context;
use kiln_proto::{FailureKind, Manifest};

use super::{
    fill,
    report::Outcome,
    restore::{self, Lock},
    session::{AT_ONCE, Session, blocking},
    share::Held,
};
use crate::cli::{CliError, view};

/// Ranks of one node restore one after the other for at most this long.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// For an artifact that is replaced while it is looked at.
const TRIES: usize = 3;

/// How waiting for the right to fill ended.
enum Waited {
    Acquired(Result<Box<Held>, CliError>),
    /// Its filler said that it is done, before the right came round.
    Filled(Box<Manifest>),
}

impl Session {
    pub(super) async fn enter(&mut self, waiting: impl Fn(&str)) -> Result<Outcome, CliError> {
        let found = self.share.lookup(&self.key).await?;
        if let Some(manifest) = found.filter(|found| !fill::unfinished(found)) {
            self.restore(&manifest).await?;
            return Ok(Outcome::Hit);
        }
        let began = Instant::now();
        let waited = std::cell::Cell::new(false);
        let note = |label: &str| {
            waited.set(true);
            waiting(label);
        };
        let ended = self.wait_to_fill(note).await;
        self.report.waited_seconds = began.elapsed().as_secs_f64();
        let ready = if waited.get() { Outcome::Waited } else { Outcome::Hit };
        match ended {
            Waited::Filled(manifest) => {
                self.restore(&manifest).await?;
                Ok(ready)
            }
            Waited::Acquired(Ok(held)) => self.fill_on(held, ready).await,
            Waited::Acquired(Err(CliError::Failed { code, .. }))
                if code == FailureKind::Timeout.code() =>
            {
                // What there is of it by now is better than nothing.
                let Some(manifest) = self.share.lookup(&self.key).await? else {
                    return Err(CliError::Refused("another process still fills it".into()));
                };
                self.restore(&manifest).await?;
                self.report.why = Some("another process still fills it".into());
                Ok(ready)
            }
            Waited::Acquired(Err(error)) => Err(error),
        }
    }

    /// Waits until the right to fill is this process's, or is not needed any more.
    async fn wait_to_fill(&mut self, waiting: impl Fn(&str)) -> Waited {
        let (share, label) = (self.share.clone(), self.report.label.clone());
        let (right, wait) = (self.right, self.settings.wait.unwrap_or(AT_ONCE));
        let acquiring = share.acquire(&right, wait, || waiting(&label));
        tokio::pin!(acquiring);
        let every =
            (self.settings.settle / 2).clamp(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            tokio::select! {
                acquired = &mut acquiring => return Waited::Acquired(acquired),
                () = tokio::time::sleep(every) => {}
            }
            // Whatever is wrong here, the wait goes on: it has its own end.
            match share.lookup(&self.key).await {
                Ok(Some(manifest)) if !fill::unfinished(&manifest) => {
                    return Waited::Filled(Box::new(manifest));
                }
                Ok(Some(manifest)) if self.known != Some(manifest.pack_digest) => {
                    if let Err(error) = self.restore(&manifest).await {
                        tracing::debug!(error = error.for_people(), "restore a part");
                    }
                }
                _ => {}
            }
        }
    }

    /// The right to fill is ours: what there is comes first.
    async fn fill_on(&mut self, held: Box<Held>, ready: Outcome) -> Result<Outcome, CliError> {
        let Some(manifest) = self.share.latest(&self.key).await? else {
            self.held = Some(held);
            return Ok(Outcome::Miss);
        };
        let unfinished = fill::unfinished(&manifest);
        self.held = unfinished.then_some(held);
        self.restore(&manifest).await?;
        self.report.takes_over = unfinished;
        Ok(ready)
    }

    pub(super) async fn restore(&mut self, manifest: &Manifest) -> Result<(), CliError> {
        let began = Instant::now();
        let _lock = Lock::acquire(&self.folder.path, LOCK_PATIENCE).await;
        let mut manifest = manifest.clone();
        let mut tries = TRIES;
        while let Err(error) = self.restore_once(&manifest).await {
            tries -= 1;
            // Another process may have replaced it since it was looked up.
            match self.share.lookup(&self.key).await? {
                Some(newer) if newer.pack_digest != manifest.pack_digest && tries > 0 => {
                    manifest = newer;
                }
                _ => return Err(error),
            }
        }
        self.known = Some(manifest.pack_digest);
        self.report.restored.seconds += began.elapsed().as_secs_f64();
        Ok(())
    }

    async fn restore_once(&mut self, manifest: &Manifest) -> Result<(), CliError> {
        let (path, patterns) = (self.folder.path.clone(), self.folder.patterns.clone());
        let wanted = manifest.clone();
        let plan = blocking(move || restore::plan(&path, &wanted, &patterns)).await?;
        let plan = plan.with_context(|| format!("read {}", self.report.directory))?;
        let written = self.write(plan, manifest).await?;
        let restored = &mut self.report.restored;
        restored.files += written.files;
        restored.bytes += written.bytes;
        // What an earlier part brought is there, and was not there before.
        restored.same = written.same.saturating_sub(restored.files - written.files);
        restored.kept = written.kept;
        Ok(())
    }

    /// Fetches and writes what `plan` lacks.
    pub(super) async fn write(
        &mut self,
        plan: restore::Plan,
        manifest: &Manifest,
    ) -> Result<Written, CliError> {
        let mut written =
            Written { files: 0, bytes: plan.bytes(), same: plan.same, kept: plan.kept };
        self.shared.extend(manifest.files.iter().map(|file| file.path.clone()));
        if !plan.manifest.files.is_empty() {
            let fetched = self.share.fetch(manifest).await?;
            self.report.restored.tier = view::tier(fetched.tier);
            let path = self.folder.path.clone();
            let wanted: Vec<_> = plan.manifest.files.iter().map(|f| f.path.clone()).collect();
            let placed = blocking(move || plan.write(&path, &fetched.manifest, &fetched.pack));
            let placed = placed.await?.map_err(anyhow::Error::from)?;
            written.files = placed.files;
            self.report.restored.outdated = placed.outdated;
            self.report.restored.differs = placed.differs;
            self.uses.note(&self.folder.path, wanted.iter());
        }
        Ok(written)
    }
}

/// What became of a plan.
pub(super) struct Written {
    pub(super) files: usize,
    pub(super) bytes: u64,
    pub(super) same: usize,
    pub(super) kept: usize,
}
