//! One folder through one run: restored or leased before, captured while and after.
//!
//! Invariant: nothing here ends or delays COMMAND beyond the bounds that the user
//! gave: what goes wrong becomes a line in the report. The lease is given up with
//! the first publication, and at the latest with the session.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use kiln_proto::{ArtifactKey, FailureKind, Manifest};

use super::{
    capture::{self, Found},
    child::Ended,
    folder::{Facts, Folder},
    report::{FolderReport, Outcome},
    restore::{self, Lock},
    scan::{self, Scan, Seen},
    share::{Acquired, Held, Share},
    watch::Watch,
};
use crate::cli::{CliError, view};

/// Ranks of one node restore one after the other for at most this long.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// For a lease that nobody is to be waited for.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Files that change while they are read are looked at again this often at the end.
const ROUNDS: usize = 4;
/// For an artifact that is replaced while it is looked at.
const TRIES: usize = 3;
const BETWEEN_ROUNDS: Duration = Duration::from_millis(50);
/// For the last capture, and the same where `kiln run` was told to end.
const LAST_CAPTURE: Duration = Duration::from_secs(300);
const HURRIED_CAPTURE: Duration = Duration::from_secs(10);

/// What the user decided.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// For another process's files; `None`: not at all.
    pub(crate) wait: Option<Duration>,
    /// Between captures while COMMAND runs.
    pub(crate) every: Duration,
    /// How long a folder rests before it counts as filled.
    pub(crate) settle: Duration,
    pub(crate) max_bytes: u64,
    /// Publish what was in the folder before as well.
    pub(crate) seed: bool,
    /// Publish after a failure of COMMAND as well.
    pub(crate) publish_failed: bool,
}

/// One folder of a run.
pub(crate) struct Session {
    folder: Folder,
    facts: Facts,
    key: ArtifactKey,
    share: Share,
    settings: Settings,
    held: Option<Box<Held>>,
    /// As it was when COMMAND started.
    before: BTreeMap<String, Seen>,
    /// Files of the folder that the cluster had then.
    shared: BTreeSet<String>,
    /// State in which a file went to the cluster, or was found there.
    taken: BTreeMap<String, Seen>,
    watch: Watch,
    started: SystemTime,
    next: Instant,
    pub(crate) report: FolderReport,
}

impl Session {
    /// Restores the folder, or gets the right to fill it, or neither.
    pub(crate) async fn open(
        folder: Folder,
        facts: Facts,
        share: Share,
        settings: Settings,
        waiting: impl Fn(&str),
    ) -> Self {
        let key = folder.key(&facts);
        let report = FolderReport {
            label: folder.label.clone(),
            directory: folder.path.display().to_string(),
            key: key.to_string(),
            target: facts.gpus.clone(),
            ..FolderReport::default()
        };
        let mut session = Self {
            folder,
            facts,
            key,
            share,
            settings,
            held: None,
            before: BTreeMap::new(),
            shared: BTreeSet::new(),
            taken: BTreeMap::new(),
            watch: Watch::default(),
            started: SystemTime::now(),
            next: Instant::now(),
            report,
        };
        match session.enter(waiting).await {
            Ok(outcome) => session.report.outcome = outcome,
            Err(error) => {
                session.held = None;
                session.report.why = Some(error.for_people());
            }
        }
        session
    }

    async fn enter(&mut self, waiting: impl Fn(&str)) -> Result<Outcome, CliError> {
        if let Some(manifest) = self.share.lookup(&self.key).await? {
            self.restore(&manifest).await?;
            return Ok(Outcome::Hit);
        }
        let began = Instant::now();
        let wait = self.settings.wait.unwrap_or(AT_ONCE);
        let acquired = self.share.acquire(&self.key, wait, || waiting(&self.report.label)).await;
        match acquired {
            Ok(Acquired::Granted(held)) => {
                self.report.waited_seconds = began.elapsed().as_secs_f64();
                self.held = Some(held);
                Ok(Outcome::Miss)
            }
            Ok(Acquired::Ready(manifest, waited)) => {
                self.report.waited_seconds = began.elapsed().as_secs_f64();
                self.restore(&manifest).await?;
                Ok(if waited { Outcome::Waited } else { Outcome::Hit })
            }
            Err(CliError::Failed { code, .. }) if code == FailureKind::Timeout.code() => {
                self.report.waited_seconds = began.elapsed().as_secs_f64();
                Err(CliError::Refused("another process still fills it".into()))
            }
            Err(error) => Err(error),
        }
    }

    async fn restore(&mut self, manifest: &Manifest) -> Result<(), CliError> {
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
        self.report.restored.seconds = began.elapsed().as_secs_f64();
        Ok(())
    }

    async fn restore_once(&mut self, manifest: &Manifest) -> Result<(), CliError> {
        let (path, patterns) = (self.folder.path.clone(), self.folder.patterns.clone());
        let wanted = manifest.clone();
        let plan = blocking(move || restore::plan(&path, &wanted, &patterns)).await?;
        let plan = plan.with_context(|| format!("read {}", self.report.directory))?;
        let restored = &mut self.report.restored;
        (restored.same, restored.kept) = (plan.same, plan.kept);
        let paths = manifest.files.iter().map(|file| file.path.clone());
        self.shared = paths.collect();
        if !plan.manifest.files.is_empty() {
            let fetched = self.share.fetch(manifest).await?;
            self.report.restored.tier = view::tier(fetched.tier);
            let (bytes, path) = (plan.bytes(), self.folder.path.clone());
            let written = blocking(move || plan.write(&path, &fetched.manifest, &fetched.pack));
            self.report.restored.files = written.await?.map_err(anyhow::Error::from)?;
            self.report.restored.bytes = bytes;
        }
        Ok(())
    }

    /// Takes note of the folder as COMMAND finds it.
    pub(crate) async fn start(&mut self) {
        (self.started, self.next) = (SystemTime::now(), Instant::now());
        match self.scan().await {
            Ok(scan) => {
                self.watch = Watch::new(&scan.files, Instant::now());
                self.before = scan.files;
            }
            Err(error) => self.report.why = Some(error.for_people()),
        }
    }

    /// When to look at the folder again: soon while others wait for it.
    pub(crate) fn pause(&self) -> Duration {
        let soon =
            (self.settings.settle / 4).clamp(Duration::from_millis(25), Duration::from_secs(2));
        if self.held.is_some() { soon } else { self.settings.every }
    }

    /// Looks at the folder while COMMAND runs, and publishes what has settled.
    pub(crate) async fn tick(&mut self) {
        let looked = async {
            let scan = self.scan().await?;
            let now = Instant::now();
            self.watch.look(&scan.files, now);
            let settle = self.settings.settle;
            if now < self.next || self.watch.grows(now, settle) {
                return Ok(());
            }
            let settled: BTreeMap<_, _> = self
                .changed(&scan)
                .filter(|(path, seen)| self.watch.rests(path, seen, now, settle))
                .map(|(path, seen)| (path.clone(), *seen))
                .collect();
            if settled.iter().any(|(path, seen)| self.taken.get(path) != Some(seen)) {
                self.publish(&scan, settled, 1).await?;
                self.next = Instant::now() + self.settings.every;
            }
            Ok::<_, CliError>(())
        };
        if let Err(error) = looked.await {
            // The next capture may do better; the report has the last word.
            self.report.why = Some(error.for_people());
            self.next = Instant::now() + self.settings.every;
        }
    }

    /// The last capture.
    pub(crate) async fn finish(&mut self, ended: Ended) {
        let limit = if ended.told { HURRIED_CAPTURE } else { LAST_CAPTURE };
        let finished = match tokio::time::timeout(limit, self.last(ended)).await {
            Ok(finished) => finished,
            Err(_) => Err(CliError::failed(FailureKind::Timeout, "the last capture took too long")),
        };
        self.held = None;
        if let Err(error) = finished {
            self.report.why = Some(error.for_people());
        }
    }

    async fn last(&mut self, ended: Ended) -> Result<(), CliError> {
        if ended.code != 0 && !ended.told && !self.settings.publish_failed {
            return Err(CliError::Refused(format!("the command ended with {}", ended.code)));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut round = 1;
        loop {
            let scan = self.scan().await?;
            // A command that was ended in the middle may leave half a file.
            let whole = |seen: &Seen| {
                let age = now.checked_sub(seen.age_mark());
                ended.code == 0 || !ended.told || age.is_some_and(|age| age >= self.settings.settle)
            };
            let changed = self.changed(&scan).filter(|(_, seen)| whole(seen));
            let changed: BTreeMap<_, _> =
                changed.map(|(path, seen)| (path.clone(), *seen)).collect();
            let done = self.publish(&scan, changed, ROUNDS - round).await?;
            if done || round == ROUNDS {
                return Ok(());
            }
            round += 1;
            tokio::time::sleep(BETWEEN_ROUNDS).await;
        }
    }

    /// Files that are not as COMMAND found them.
    fn changed<'a>(&'a self, scan: &'a Scan) -> impl Iterator<Item = (&'a String, &'a Seen)> {
        let all = self.settings.seed;
        scan.files.iter().filter(move |(path, seen)| all || self.before.get(*path) != Some(seen))
    }

    /// Publishes `changed` together with what the cluster has. False, where files
    /// kept changing and `rounds` are left to look again: then nothing was published.
    async fn publish(
        &mut self,
        scan: &Scan,
        changed: BTreeMap<String, Seen>,
        rounds: usize,
    ) -> Result<bool, CliError> {
        self.report.published.unfit = scan.unfit;
        if changed.is_empty() {
            return Ok(true);
        }
        let began = Instant::now();
        let mut tries = TRIES;
        let (base, mut wanted, fetched) = loop {
            let base = self.share.latest(&self.key).await?;
            let has = |path: &str| base.as_ref().is_some_and(|base| capture::has(base, path));
            let mut wanted = changed.clone();
            wanted.retain(|path, seen| self.taken.get(path) != Some(seen) || !has(path));
            if wanted.is_empty() {
                return Ok(true);
            }
            let Some(found) = &base else { break (base, wanted, None) };
            tries -= 1;
            match self.share.fetch(found).await {
                Ok(fetched) => break (base, wanted, Some(fetched)),
                // Lost bytes are a miss. What cannot be had now must not be replaced:
                // others' files are in it.
                Err(CliError::NotFound(_)) => break (base, wanted, None),
                Err(CliError::Failed { code, .. }) if code == FailureKind::Corrupt.code() => {
                    break (base, wanted, None);
                }
                Err(CliError::Unreachable(_)) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        };
        if fetched.is_none() {
            // Its bytes are gone: what was restored from it goes along once more.
            let restored = scan.files.iter().filter(|(path, _)| self.shared.contains(*path));
            wanted.extend(restored.map(|(path, seen)| (path.clone(), *seen)));
        }
        let job = capture::Job {
            folder: self.folder.path.clone(),
            wanted,
            base: fetched,
            max_bytes: self.settings.max_bytes,
        };
        let found: Found = blocking(move || job.gather()).await?.context("read the folder")?;
        self.report.published.changing = found.changing;
        if found.changing > 0 && rounds > 0 {
            return Ok(false);
        }
        self.report.published.beyond_limits = found.beyond;
        let Some(pack) = found.pack else {
            self.taken.extend(found.taken);
            return Ok(true);
        };
        let published = &mut self.report.published;
        (published.pack_files, published.pack_bytes) = (pack.files.len(), pack.size);
        let manifest = self.manifest(&pack, found.newest, base.as_ref());
        self.share.publish(&manifest, pack).await?;
        self.taken.extend(found.taken);
        self.held = None;
        let published = &mut self.report.published;
        published.captures += 1;
        published.files += found.files;
        published.bytes += found.bytes;
        published.seconds += began.elapsed().as_secs_f64();
        self.report.why = None;
        Ok(true)
    }

    fn manifest(
        &self,
        pack: &super::spool::Pack,
        newest: Duration,
        base: Option<&Manifest>,
    ) -> Manifest {
        // From COMMAND's start to the last file: what a hit saves, at most.
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mine = newest.saturating_sub(started).as_secs_f64();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Manifest {
            key: self.key,
            namespace: self.facts.namespace.clone(),
            components: self.folder.components(&self.facts),
            fingerprint: self.folder.fingerprint(&self.facts),
            target: self.facts.target,
            files: pack.files.clone(),
            pack_digest: pack.digest,
            pack_size: pack.size,
            producer: 0,
            compile_seconds: base.map_or(mine, |base| base.compile_seconds.max(mine)),
            created_unix_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
            label: match self.facts.tag.as_str() {
                "" => self.folder.label.clone(),
                tag => format!("{} {tag}", self.folder.label),
            },
            pieces: Vec::new(),
            check: None,
        }
    }

    async fn scan(&self) -> Result<Scan, CliError> {
        let (path, patterns) = (self.folder.path.clone(), self.folder.patterns.clone());
        let scanned = blocking(move || scan::scan(&path, &patterns)).await?;
        Ok(scanned.with_context(|| format!("read {}", self.report.directory))?)
    }
}

/// Signals and the lease's connection are served meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CliError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| io::Error::other(e).into())
}
