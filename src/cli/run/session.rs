//! What is known of one folder in one run.
//!
//! Invariant: `before` and `shared` only grow, so that what came from others is
//! never taken for COMMAND's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use kiln_proto::{ArtifactKey, Digest};

use super::{
    folder::{Facts, Folder},
    report::FolderReport,
    scan::{self, Scan, Seen},
    share::{Held, Share},
    uses::Uses,
    watch::Watch,
};
use crate::cli::CliError;

/// For a lease that nobody is to be waited for.
pub(super) const AT_ONCE: Duration = Duration::from_secs(1);

/// What the user decided.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// For another process's files; `None`: not at all.
    pub(crate) wait: Option<Duration>,
    /// Between captures while COMMAND runs.
    pub(crate) every: Duration,
    /// How long a file rests before it is published.
    pub(crate) settle: Duration,
    /// How long nothing new appears before the folder counts as filled.
    pub(crate) filled: Duration,
    pub(crate) max_bytes: u64,
    /// Publish what was in the folder before as well.
    pub(crate) seed: bool,
    /// Publish after a failure of COMMAND as well.
    pub(crate) publish_failed: bool,
}

/// One folder of a run.
pub(crate) struct Session {
    pub(super) folder: Folder,
    pub(super) facts: Facts,
    pub(super) key: ArtifactKey,
    /// The key whose lease is the right to fill.
    pub(super) right: ArtifactKey,
    pub(super) share: Share,
    pub(super) settings: Settings,
    pub(super) held: Option<Box<Held>>,
    /// Files that are not COMMAND's: as it found them, or as others' came meanwhile.
    pub(super) before: BTreeMap<String, Seen>,
    /// Files that the cluster has, as far as was seen.
    pub(super) shared: BTreeSet<String>,
    /// State in which a file went to the cluster, or was found there.
    pub(super) taken: BTreeMap<String, Seen>,
    /// Restored files, to see which of them COMMAND opens.
    pub(super) uses: Uses,
    /// The pack that was restored or published last.
    pub(super) known: Option<Digest>,
    pub(super) watch: Watch,
    pub(super) started: SystemTime,
    /// When to publish again, and when to look for what others published.
    pub(super) next: Instant,
    /// When to say again that the folder is filled.
    pub(super) done_next: Instant,
    pub(super) look_next: Instant,
    pub(crate) report: FolderReport,
}

impl Session {
    /// Nothing is done about the folder yet.
    pub(super) fn new(folder: Folder, facts: Facts, share: Share, settings: Settings) -> Self {
        let (key, right) = (folder.key(&facts), folder.right_key(&facts));
        let report = FolderReport {
            label: folder.label.clone(),
            directory: folder.path.display().to_string(),
            key: key.to_string(),
            target: facts.gpus.clone(),
            ..FolderReport::default()
        };
        Self {
            folder,
            facts,
            key,
            right,
            share,
            settings,
            held: None,
            before: BTreeMap::new(),
            shared: BTreeSet::new(),
            taken: BTreeMap::new(),
            uses: Uses::default(),
            known: None,
            watch: Watch::new(&BTreeMap::new(), Instant::now()),
            started: SystemTime::now(),
            next: Instant::now(),
            done_next: Instant::now(),
            look_next: Instant::now(),
            report,
        }
    }

    /// When to look at the folder again: soon while others wait for it.
    pub(crate) fn pause(&self) -> Duration {
        let soon =
            (self.settings.settle / 4).clamp(Duration::from_millis(25), Duration::from_secs(2));
        if self.held.is_some() { soon } else { self.settings.every }
    }

    /// Files that are not as COMMAND found them.
    pub(super) fn changed<'a>(
        &'a self,
        scan: &'a Scan,
    ) -> impl Iterator<Item = (&'a String, &'a Seen)> {
        let all = self.settings.seed;
        scan.files.iter().filter(move |(path, seen)| all || self.before.get(*path) != Some(seen))
    }

    pub(super) async fn scan(&self) -> Result<Scan, CliError> {
        let (path, patterns) = (self.folder.path.clone(), self.folder.patterns.clone());
        let scanned = blocking(move || scan::scan(&path, &patterns)).await?;
        Ok(scanned.with_context(|| format!("read {}", self.report.directory))?)
    }
}

/// Signals and the lease's connection are served meanwhile.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CliError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| io::Error::other(e).into())
}
