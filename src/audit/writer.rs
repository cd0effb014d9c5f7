//! The thread that writes the log.
//!
//! Invariant: the file ends with a whole line whenever nothing is being written: what
//! could not be written whole is cut off again, and its event counts as lost.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    Event, SYNC, Settings,
    chain::{self, Head},
    line::{LET_GO, Line},
};

/// How often the thread looks whether the node stops, where nothing comes.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two lines in the node's log about a log that cannot be written.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Writes what comes until `stop`, and then what came before it: one writer for each part.
#[allow(clippy::needless_pass_by_value)] // dropped with it, the queue is closed
pub(super) fn run(mut writers: Vec<Writer>, events: Receiver<Event>, stop: &CancellationToken) {
    let mut synced = Instant::now();
    loop {
        match events.recv_timeout(PAUSE) {
            Ok(event) => {
                if let Some(writer) = writers.get_mut(event.part as usize) {
                    writer.take(event);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if stop.is_cancelled() => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if synced.elapsed() >= SYNC {
            writers.iter_mut().for_each(Writer::sync_or_complain);
            synced = Instant::now();
        }
    }
    writers.iter_mut().for_each(Writer::sync_or_complain);
}

/// One part's files.
pub(super) struct Writer {
    settings: Settings,
    lost: Arc<AtomicU64>,
    head: Arc<Mutex<Head>>,
    at: Head,
    file: Option<File>,
    /// Bytes of whole lines in it.
    length: u64,
    unsynced: bool,
    complained: Option<Instant>,
}

impl Writer {
    /// Goes on where the log in the folder ends.
    pub(super) fn open(settings: Settings, lost: Arc<AtomicU64>) -> io::Result<Self> {
        if !settings.folder.is_dir() {
            fs::DirBuilder::new().mode(0o700).create(&settings.folder)?;
        }
        let mut writer = Self {
            settings,
            lost,
            head: Arc::default(),
            at: Head::default(),
            file: None,
            length: 0,
            unsynced: false,
            complained: None,
        };
        writer.resume()?;
        Ok(writer)
    }

    fn resume(&mut self) -> io::Result<()> {
        let mut listed = chain::list(&self.settings.folder)?;
        let Some((first, path)) = listed.pop() else { return Ok(()) };
        let mut bytes = fs::read(&path)?;
        let mut of = (first, path);
        let mut found = chain::end(&bytes);
        // A crash, or a full disk, between a new file and its first whole line.
        if found.is_some_and(|(head, _)| head.sequence == 0)
            && let Some((before, path)) = listed.pop()
        {
            bytes = fs::read(&path)?;
            let ends =
                chain::end(&bytes).filter(|(head, _)| head.sequence.checked_add(1) == Some(first));
            if ends.is_some() {
                fs::remove_file(&of.1)?;
                (of, found) = ((before, path), ends);
            } else {
                found = None;
            }
        }
        let (first, path) = of;
        let (head, whole) = found.unwrap_or_default();
        if found.is_none() || (head.sequence == 0 && first > 1) {
            // Somebody wrote something else there: what is left of the log stays for whoever
            // looks into it, and a new chain begins behind it.
            tracing::error!(file = %path.display(), "the audit log is damaged: kiln audit verify");
            let last = first.max(head.sequence);
            let sequence = last.checked_add(1_000_000).ok_or_else(|| {
                io::Error::other(format!(
                    "{}: no file of an audit log has such a number",
                    path.display()
                ))
            })?;
            self.at = Head { sequence, digest: [0; 32] };
            *self.head.lock() = self.at;
            return Ok(());
        }
        let file = OpenOptions::new().append(true).open(&path)?;
        if whole < bytes.len() {
            // A crash in the middle of a line.
            file.set_len(whole as u64)?;
        }
        // The cluster is told only of what a loss of power leaves.
        file.sync_data()?;
        (self.file, self.length, self.at) = (Some(file), whole as u64, head);
        *self.head.lock() = head;
        Ok(())
    }

    /// Where the log ends, as it goes on.
    pub(super) fn head(&self) -> Arc<Mutex<Head>> {
        self.head.clone()
    }

    pub(super) fn take(&mut self, event: Event) {
        if let Err(error) = self.write(event) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("kiln_audit_lost_total").increment(1);
            self.complain(&error);
        }
    }

    fn write(&mut self, event: Event) -> io::Result<()> {
        if self.file.is_none() || self.length >= self.settings.file_bytes {
            self.begin_file()?;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let line = self.line(event, lost).and_then(|line| self.append(&line));
        if line.is_err() {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
        line
    }

    fn line(&self, event: Event, lost: u64) -> io::Result<Vec<u8>> {
        let Event { what, part: _, who, subject, namespace, detail } = event;
        let line = Line {
            sequence: self.at.sequence + 1,
            at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            event: what.to_owned(),
            who,
            subject,
            namespace,
            detail,
            lost,
            previous: hex::encode(self.at.digest),
        };
        Ok(serde_json::to_vec(&line)?)
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let written = file.write_all(&[line, b"\n"].concat());
        if let Err(error) = written {
            // A part of a line is no line. Where it stays, the next start cuts it off.
            let _ = file.set_len(self.length);
            return Err(error);
        }
        self.length += line.len() as u64 + 1;
        self.at = Head { sequence: self.at.sequence + 1, digest: chain::digest(line) };
        self.unsynced = true;
        Ok(())
    }

    fn begin_file(&mut self) -> io::Result<()> {
        self.sync()?;
        let path = chain::name(&self.settings.folder, self.at.sequence + 1);
        let options = OpenOptions::new().append(true).create_new(true).mode(0o600).clone();
        // One that could not be written to before is empty.
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = OpenOptions::new().append(true).open(&path)?;
                file.set_len(0)?;
                file
            }
            opened => opened?,
        };
        File::open(&self.settings.folder)?.sync_all()?;
        (self.file, self.length) = (Some(file), 0);
        let mut kept = chain::list(&self.settings.folder)?;
        let old = kept.len().saturating_sub(self.settings.files.max(1));
        let let_go: Vec<_> = kept.drain(..old).collect();
        if let (false, Some((first, _))) = (let_go.is_empty(), kept.first()) {
            // Said before they go, so that what somebody else takes away is told apart.
            let event = Event { what: LET_GO, subject: first.to_string(), ..Event::default() };
            let line = self.line(event, 0)?;
            self.append(&line)?;
            self.sync()?;
        }
        for (_, old) in let_go {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| self.unsynced) else { return Ok(()) };
        file.sync_data()?;
        self.unsynced = false;
        *self.head.lock() = self.at;
        Ok(())
    }

    pub(super) fn sync_or_complain(&mut self) {
        if let Err(error) = self.sync() {
            self.complain(&error);
        }
    }

    fn complain(&mut self, error: &io::Error) {
        metrics::counter!("kiln_audit_failures_total").increment(1);
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::error!(
                %error,
                folder = %self.settings.folder.display(),
                "THE AUDIT LOG IS NOT WRITTEN: the node serves on, and what is done now is in no line"
            );
        }
    }
}
