//! Who did what: the audit log of a node.
//!
//! ```text
//!  Audit::record ── a bounded queue ──▶ Writers (a thread) ──▶ audit/NUMBER.jsonl
//!                                          │ refusals ─────────▶ audit/refused/NUMBER.jsonl
//!                                          │ Redis values ─────▶ audit/values/NUMBER.jsonl
//!                                          │ each line has the digest of the one before
//!                                          └─ once a minute the first's head goes to the index
//! ```
//!
//! Invariant: what anybody can bring about in numbers never pushes out what was done. nobody's request waits for the log, and none is refused because it cannot be
//! written: what it lacks is counted, and said in its next line. A line that is written is
//! never changed here; it is on the disk, power loss included, within [`SYNC`] and a write.

mod chain;
mod line;
mod verify;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, SyncSender, TrySendError},
    },
    time::Duration,
};

use kiln_cluster::Index;
use kiln_proto::NodeId;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use self::{chain::Head, writer::Writer};
pub use self::{
    line::Line,
    verify::{Found, Problem, verify},
};
use crate::access::Identity;

/// Longest time between two syncs while lines come.
const SYNC: Duration = Duration::from_secs(1);
/// Events that wait for the writer; one more is lost, and counted.
const WAITING: usize = 16 << 10;
/// Between two notes of the head in the index.
const NOTE: Duration = Duration::from_secs(60);
/// What is written of a call that was refused.
pub const DENIED: &str = "denied";
/// Below the data folder.
const FOLDER: &str = "audit";
/// Longest text of an event, in bytes.
const LONGEST: usize = 1024;

/// What the log is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its files are.
    pub folder: PathBuf,
    /// A file that is as long is followed by another one.
    pub file_bytes: u64,
    /// Files that are kept; the oldest goes.
    pub files: usize,
}

/// The folder of the log below a node's data folder.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// Which files a line is in: each part has its own, and its own bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Part {
    /// What was done.
    #[default]
    Deeds,
    /// What was refused: anybody can bring that about.
    Refusals,
    /// What Redis clients stored and removed: thousands a second.
    Values,
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Deeds, Self::Refusals, Self::Values];

    /// Its folder below the log's.
    const fn folder(self) -> &'static str {
        match self {
            Self::Deeds => "",
            Self::Refusals => "refused",
            Self::Values => "values",
        }
    }
}

/// Something that was done, or refused.
#[derive(Debug, Clone, Default)]
pub struct Event {
    /// `publish`, `pin`, `remove`, `denied`...
    pub what: &'static str,
    /// Where it is written.
    pub part: Part,
    /// Who asked, as [`Identity`] writes it.
    pub who: String,
    /// Of which artifact, node or token.
    pub subject: String,
    /// In which namespace.
    pub namespace: String,
    /// For people: a reason, a role, a door.
    pub detail: String,
}

impl Event {
    /// Something that `who` did.
    pub fn new(what: &'static str, who: &Identity) -> Self {
        let part = if what == DENIED { Part::Refusals } else { Part::Deeds };
        Self { what, part, who: who.to_string(), ..Self::default() }
    }

    /// In the files of values.
    pub fn of_values(mut self) -> Self {
        self.part = Part::Values;
        self
    }

    /// Of this artifact, node or token.
    #[allow(clippy::needless_pass_by_value)] // keys and numbers, as they come
    pub fn of(mut self, subject: impl ToString) -> Self {
        self.subject = subject.to_string();
        self
    }

    /// In this namespace.
    pub fn within(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// With these words.
    pub fn saying(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn bounded(mut self) -> Self {
        for text in [&mut self.who, &mut self.subject, &mut self.namespace, &mut self.detail] {
            text.truncate(text.floor_char_boundary(LONGEST));
        }
        self
    }
}

/// The handle with which events are recorded. Clones share the log.
#[derive(Debug, Clone, Default)]
pub struct Audit(Option<Arc<Log>>);

#[derive(Debug)]
struct Log {
    queue: SyncSender<Event>,
    /// Events that no line has.
    lost: Arc<AtomicU64>,
    /// Of what was done, as far as it is on the disk.
    head: Arc<Mutex<Head>>,
    folder: PathBuf,
}

impl Audit {
    /// No log at all.
    pub fn off() -> Self {
        Self(None)
    }

    /// Opens the log and goes on where it ends. Returns also what writes it until `stop`,
    /// for a thread of its own.
    pub fn open(
        settings: Settings,
        stop: &CancellationToken,
    ) -> std::io::Result<(Self, impl FnOnce() + Send + use<>)> {
        let (queue, events) = mpsc::sync_channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        let mut writers = Vec::new();
        for part in Part::ALL {
            let folder = settings.folder.join(part.folder());
            // What the queue has not taken is said by the next deed.
            let lost = if part == Part::Deeds { lost.clone() } else { Arc::default() };
            writers.push(Writer::open(Settings { folder, ..settings.clone() }, lost)?);
        }
        let head = writers[Part::Deeds as usize].head();
        let log = Log { queue, lost, head, folder: settings.folder };
        let stop = stop.clone();
        Ok((Self(Some(Arc::new(log))), move || writer::run(writers, events, &stop)))
    }

    /// Notes that something was done. Never waits.
    pub fn record(&self, event: Event) {
        let Some(log) = &self.0 else { return };
        match log.queue.try_send(event.bounded()) {
            Ok(()) => metrics::counter!("kiln_audit_events_total").increment(1),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                log.lost.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("kiln_audit_lost_total").increment(1);
            }
        }
    }

    /// Tells the index of `node` now and then how far the log has come, until `stop`.
    pub async fn note(self, index: Index, node: NodeId, stop: CancellationToken) {
        let Some(log) = &self.0 else { return };
        let mut noted = 0;
        match index.audit_head(node).await {
            Ok(Some(known)) => {
                noted = known.sequence;
                let (folder, of) = (log.folder.clone(), (known.sequence, known.digest));
                let checked = tokio::task::spawn_blocking(move || verify::has(&folder, of)).await;
                if !matches!(checked, Ok(Ok(true))) {
                    let here = log.head.lock().sequence;
                    tracing::error!(
                        here,
                        cluster = known.sequence,
                        "the audit log is not the one that the cluster knows: it was shortened or \
                         replaced (kiln audit verify)"
                    );
                    let said = format!(
                        "the log went on behind line {here}, and has not the line {} of digest {} \
                         that the cluster knows",
                        known.sequence,
                        hex::encode(known.digest)
                    );
                    let who = Identity::Member(Some(node));
                    self.record(Event::new("log_broken", &who).of(node).saying(said));
                    // What the cluster knows stays the proof of it.
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "how far the audit log was is not known"),
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(NOTE) => {}
                () = stop.cancelled() => return,
            }
            let Head { sequence, digest } = *log.head.lock();
            if sequence <= noted {
                continue;
            }
            match index.note_audit(sequence, digest).await {
                Ok(_) => noted = sequence,
                // Without a quorum, or while a member runs an earlier version.
                Err(error) => tracing::debug!(%error, "the audit log's head is not noted yet"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
