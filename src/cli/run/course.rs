//! One folder through one run: restored or leased before, captured while and after.
//!
//! Invariant: nothing here ends or delays COMMAND beyond the bounds that the user
//! gave: what goes wrong becomes a line in the report. The right to fill is kept
//! until the folder is filled, and at the latest for as long as the session.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use kiln::clock;
use kiln_proto::FailureKind;

use super::{
    child::Ended,
    folder::{Facts, Folder},
    moved,
    publish::Stage,
    scan::Seen,
    session::{AT_ONCE, Session, Settings, blocking},
    share::Share,
    watch::Watch,
};
use crate::cli::CliError;

/// Files that change while they are read are looked at again this often at the end.
const ROUNDS: usize = 4;
const BETWEEN_ROUNDS: Duration = Duration::from_millis(50);
/// For the last capture, and the same where `kiln run` was told to end.
const LAST_CAPTURE: Duration = Duration::from_secs(300);
const HURRIED_CAPTURE: Duration = Duration::from_secs(10);

impl Session {
    /// Restores the folder, or gets the right to fill it, or neither.
    pub(crate) async fn open(
        folder: Folder,
        facts: Facts,
        share: Share,
        settings: Settings,
        waiting: impl Fn(&str),
    ) -> Self {
        let mut session = Self::new(folder, facts, share, settings);
        match session.enter(waiting).await {
            Ok(outcome) => session.report.outcome = outcome,
            Err(error) => {
                session.held = None;
                session.report.why = Some(error.for_people());
            }
        }
        session
    }

    /// Takes note of the folder as COMMAND finds it.
    pub(crate) async fn start(&mut self) {
        (self.started, self.next) = (SystemTime::now(), Instant::now());
        self.look_next = self.next + self.settings.every;
        match self.scan().await {
            Ok(scan) => {
                self.watch = Watch::new(&scan.files, Instant::now());
                self.before = scan.files;
            }
            Err(error) => self.report.why = Some(error.for_people()),
        }
    }

    /// Looks at the folder while COMMAND runs: publishes what has settled, and
    /// brings what others published.
    pub(crate) async fn tick(&mut self) {
        let looked = async {
            self.keep_right().await;
            if let Err(error) = self.follow().await {
                tracing::debug!(error = error.for_people(), "look for what others published");
            }
            let scan = self.scan().await?;
            let now = Instant::now();
            self.watch.look(&scan.files, now);
            let settle = self.settings.settle;
            // The first file may take as long as it takes: a model is loaded before.
            let some = !(self.taken.is_empty() && self.shared.is_empty());
            let filled = self.held.is_some()
                && some
                && now >= self.done_next
                && self.watch.silent(now) >= self.settings.filled;
            if !filled && (now < self.next || self.watch.grows(now, settle)) {
                return Ok(());
            }
            let settled: BTreeMap<_, _> = self
                .changed(&scan)
                .filter(|(path, seen)| self.watch.rests(path, seen, now, settle))
                .map(|(path, seen)| (path.clone(), *seen))
                .collect();
            if filled {
                self.done_next = now + settle;
                if self.publish(&scan, settled, 0, Stage::Done).await? {
                    self.held = None;
                }
            } else if settled.iter().any(|(path, seen)| self.taken.get(path) != Some(seen)) {
                self.publish(&scan, settled, 1, Stage::More).await?;
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

    /// Asks for the right to fill once more where the node that granted it went away.
    async fn keep_right(&mut self) {
        if !self.held.as_mut().is_some_and(|held| held.is_lost()) {
            return;
        }
        self.held = None;
        self.held = self.share.acquire(&self.right, AT_ONCE, || {}).await.ok();
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
        self.tell_use(ended).await;
    }

    /// Reports whether what was restored was of use, here and to the cluster.
    async fn tell_use(&mut self, ended: Ended) {
        if self.uses.is_empty() {
            return;
        }
        let (uses, folder) = (std::mem::take(&mut self.uses), self.folder.path.clone());
        let new: Vec<String> = self.taken.keys().cloned().collect();
        let looked = blocking(move || {
            let used = uses.count(&folder)?;
            let moved = (used.files == 0).then(|| moved::moved(&folder, &used.unused, &new));
            Some((used, moved.flatten()))
        });
        let Ok(Some((used, moved))) = looked.await else { return };
        let restored = &mut self.report.restored;
        restored.used = Some(used.files);
        restored.used_bytes = Some(used.bytes);
        // One that failed may have ended before it got that far.
        if used.files > 0 || (ended.code != 0 && !ended.told) {
            restored.unused = (used.files > 0).then_some(false);
        } else {
            restored.unused = Some(true);
            restored.moved = moved.or_else(|| {
                restored.differs.as_ref().map(|input| format!("{input} has other bytes"))
            });
        }
        if let Some(unused) = restored.unused {
            let moved = restored.moved.as_deref().unwrap_or_default();
            self.share.tell_use(&self.key, unused.then_some(moved)).await;
        }
    }

    async fn last(&mut self, ended: Ended) -> Result<(), CliError> {
        if ended.code != 0 && !ended.told && !self.settings.publish_failed {
            return Err(CliError::Refused(format!("the command ended with {}", ended.code)));
        }
        let now = clock::since_epoch();
        // One that was ended while it filled was not done: the next run goes on with it.
        let stage = if ended.code == 0 && !ended.told { Stage::Done } else { Stage::More };
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
            let done = self.publish(&scan, changed, ROUNDS - round, stage).await?;
            if done || round == ROUNDS {
                return Ok(());
            }
            round += 1;
            tokio::time::sleep(BETWEEN_ROUNDS).await;
        }
    }
}
