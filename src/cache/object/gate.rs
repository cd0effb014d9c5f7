//! Whether the store is worth asking.
//!
//! Invariant: while the store is down, one caller per pause finds out whether it
//! is back; all others are told at once and wait for nothing. A folder that does
//! not answer (an NFS whose server is away) holds at most one thread in the kernel
//! here, and no caller longer than [`PROBE`].

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::cache::{Health, TierError, TierName};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// In which a folder says whether it is mounted.
const PROBE: Duration = Duration::from_secs(3);

pub(super) struct Gate {
    /// A folder's file that is there as long as the folder is mounted.
    marker: Option<PathBuf>,
    state: Mutex<Option<Down>>,
    /// Held by the one thread that looks for the marker.
    probe: Arc<tokio::sync::Mutex<()>>,
    /// How it looks.
    stat: fn(&Path) -> io::Result<()>,
    probe_limit: Duration,
}

struct Down {
    why: String,
    pause: Duration,
    until: Instant,
}

impl Gate {
    pub(super) fn new(marker: Option<PathBuf>) -> Self {
        let stat = |marker: &Path| marker.symlink_metadata().map(drop);
        Self { marker, state: Mutex::new(None), probe: Arc::default(), stat, probe_limit: PROBE }
    }

    /// Lets the caller try, or says why not.
    pub(super) async fn enter(&self) -> Result<(), TierError> {
        self.enter_at(Instant::now())?;
        let Some(marker) = &self.marker else { return Ok(()) };
        // Without this an unmounted folder would answer "not found" to every
        // question, and take every upload onto the wrong device.
        self.look(marker).await.map_err(|e| {
            let why = format!("{}: {e}; is the folder mounted?", marker.display());
            self.failed(why.clone());
            unavailable(why)
        })
    }

    async fn look(&self, marker: &Path) -> io::Result<()> {
        let (probe, stat, marker) = (Arc::clone(&self.probe), self.stat, marker.to_owned());
        let looked = tokio::time::timeout(self.probe_limit, async {
            let turn = probe.lock_owned().await;
            tokio::task::spawn_blocking(move || {
                // Until the kernel answers: the next one waits here, not there.
                let _turn = turn;
                stat(&marker)
            })
            .await
        });
        match looked.await {
            Ok(looked) => looked?,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
        }
    }

    fn enter_at(&self, now: Instant) -> Result<(), TierError> {
        if let Some(down) = &mut *self.state.lock() {
            if now < down.until {
                return Err(unavailable(down.why.clone()));
            }
            // This caller tries; the next ones wait for its result.
            down.until = now + down.pause;
        }
        Ok(())
    }

    pub(super) fn succeeded(&self) {
        *self.state.lock() = None;
    }

    pub(super) fn failed(&self, why: String) {
        self.failed_at(Instant::now(), why);
    }

    fn failed_at(&self, now: Instant, why: String) {
        let mut state = self.state.lock();
        let pause = match &*state {
            Some(down) => (down.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        *state = Some(Down { why, pause, until: now + pause });
    }

    pub(super) fn health(&self) -> Health {
        match &*self.state.lock() {
            Some(down) => Health::Down { why: down.why.clone() },
            None => Health::Up,
        }
    }
}

fn unavailable(why: String) -> TierError {
    TierError::Unavailable { tier: TierName::Object, why }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A folder whose kernel does not answer closes the gate, and holds one thread.
    #[tokio::test]
    async fn a_folder_that_hangs_is_a_closed_gate_not_a_hung_node() {
        static HANGS: Mutex<bool> = Mutex::new(true);
        static ANSWERS: parking_lot::Condvar = parking_lot::Condvar::new();
        static IN_KERNEL: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let stat = |_: &Path| {
            IN_KERNEL.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            ANSWERS.wait_while(&mut HANGS.lock(), |hangs| *hangs);
            Ok(())
        };
        let probe_limit = Duration::from_millis(20);
        let gate = Gate { stat, probe_limit, ..Gate::new(Some("marker".into())) };
        for _ in 0..5 {
            // As if the pause were over: the caller that tries.
            *gate.state.lock() = None;
            let refused = gate.enter().await.unwrap_err();
            assert!(refused.to_string().contains("no answer"), "{refused}");
            assert!(matches!(gate.health(), Health::Down { .. }));
        }
        let threads = IN_KERNEL.load(std::sync::atomic::Ordering::SeqCst);
        *HANGS.lock() = false;
        ANSWERS.notify_all();
        assert_eq!(threads, 1, "one thread, not five");
        *gate.state.lock() = None;
        let patient = Gate { probe_limit: Duration::from_secs(60), ..gate };
        patient.enter().await.unwrap();
    }

    #[test]
    fn one_caller_a_pause_tries_a_store_that_is_down() {
        let gate = Gate::new(None);
        let mut now = Instant::now();
        assert!(gate.enter_at(now).is_ok() && gate.enter_at(now).is_ok());
        gate.failed_at(now, "away".into());
        assert!(gate.enter_at(now).unwrap_err().to_string().contains("away"));
        now += FIRST_PAUSE;
        assert!(gate.enter_at(now).is_ok(), "the one that tries");
        assert!(gate.enter_at(now).is_err(), "the others do not wait for it");
        gate.failed_at(now, "still away".into());
        now += FIRST_PAUSE;
        assert!(gate.enter_at(now).is_err(), "the pause grows");
        for _ in 0..20 {
            gate.failed_at(now, "away".into());
        }
        now += LONGEST_PAUSE;
        assert!(gate.enter_at(now).is_ok(), "and is bounded");
        gate.succeeded();
        assert!(gate.enter_at(now).is_ok() && gate.enter_at(now).is_ok());
        assert_eq!(gate.health(), Health::Up);
    }
}
