//! Packs that wait for their upload to L3, in memory; the disk's index remembers
//! them across restarts.
//!
//! Invariant: a pack that is added while its upload is under way stays in the
//! queue when that one ends: it may have been added for a new generation.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kiln_proto::Digest;
use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

use super::{TierError, TierName, meter};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Uploads that may wait; some 100 bytes each.
const MOST: usize = 1 << 20;

#[derive(Default)]
pub(super) struct UploadQueue {
    waiting: Mutex<BTreeMap<Digest, Attempt>>,
    wake: Notify,
    finished: Notify,
}

#[derive(Clone, Copy)]
struct Attempt {
    failures: u32,
    due: Instant,
    /// How often it was asked for.
    asked: u64,
}

/// A pack whose upload is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) pack: Digest,
    asked: u64,
}

impl UploadQueue {
    /// A queue with what a former run left.
    pub(super) fn with(digests: impl IntoIterator<Item = Digest>) -> Self {
        let fresh = Attempt { failures: 0, due: Instant::now(), asked: 0 };
        let waiting: BTreeMap<_, _> = digests.into_iter().map(|d| (d, fresh)).collect();
        meter::uploads_pending(waiting.len() as u64);
        Self { waiting: Mutex::new(waiting), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    pub(super) fn contains(&self, pack: &Digest) -> bool {
        self.waiting.lock().contains_key(pack)
    }

    /// Whether there is room for one more.
    pub(super) fn check_room(&self) -> Result<(), TierError> {
        if self.len() < MOST {
            return Ok(());
        }
        let why = format!("{MOST} uploads wait already");
        Err(TierError::Full { tier: TierName::Object, bytes: 0, why })
    }

    pub(super) fn add(&self, pack: Digest) {
        let fresh = Attempt { failures: 0, due: Instant::now(), asked: 0 };
        self.waiting.lock().entry(pack).or_insert(fresh).asked += 1;
        meter::uploads_pending(self.len() as u64);
        self.wake.notify_one();
    }

    /// Takes a finished upload out; false where it was asked for again since.
    pub(super) fn finish(&self, due: &Due) -> bool {
        let mut waiting = self.waiting.lock();
        let last = waiting.get(&due.pack).is_none_or(|attempt| attempt.asked == due.asked);
        if last {
            waiting.remove(&due.pack);
        }
        drop(waiting);
        meter::uploads_pending(self.len() as u64);
        last
    }

    /// Tells those who wait that an upload is over, and noted to be.
    pub(super) fn tell_finished(&self) {
        self.finished.notify_waiters();
    }

    /// Returns at the next [`tell_finished`](Self::tell_finished) after this call, awaited
    /// or not.
    pub(super) fn next_finished(&self) -> Notified<'_> {
        self.finished.notified()
    }

    /// After a failure: later, and later each time.
    pub(super) fn postpone(&self, pack: &Digest) {
        if let Some(attempt) = self.waiting.lock().get_mut(pack) {
            attempt.due = Instant::now() + backoff(pack, attempt.failures);
            attempt.failures += 1;
        }
    }

    /// What waits for its next try waits no longer: the store is back, or time is short.
    pub(super) fn retry_all_now(&self) {
        let now = Instant::now();
        self.waiting.lock().values_mut().for_each(|attempt| attempt.due = now);
        self.wake.notify_one();
    }

    /// At most `most` that are due, or how long nothing is (`None`: until
    /// something is added).
    pub(super) fn due(&self, now: Instant, most: usize) -> Result<Vec<Due>, Option<Duration>> {
        let waiting = self.waiting.lock();
        let due: Vec<_> = waiting
            .iter()
            .filter(|(_, attempt)| attempt.due <= now)
            .map(|(pack, attempt)| Due { pack: *pack, asked: attempt.asked })
            .take(most)
            .collect();
        if due.is_empty() {
            return Err(waiting.values().map(|attempt| attempt.due - now).min());
        }
        Ok(due)
    }

    /// Until something is added, at most for `pause`.
    pub(super) async fn wait(&self, pause: Option<Duration>) {
        let woken = self.wake.notified();
        match pause {
            Some(pause) => drop(tokio::time::timeout(pause, woken).await),
            None => woken.await,
        }
    }
}

/// Doubles up to a bound; a quarter of it differs from pack to pack, so that a
/// store that comes back does not meet all nodes' queues in one instant.
fn backoff(digest: &Digest, failures: u32) -> Duration {
    let pause = FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY);
    pause - pause.mul_f64(f64::from(digest.as_bytes()[31]) / 1024.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_waits_longer_each_time_within_bounds() {
        let digest = Digest::of(b"x");
        let pauses: Vec<_> = (0..40).map(|n| backoff(&digest, n)).collect();
        assert!(pauses.is_sorted());
        assert!(pauses[0] <= FIRST_RETRY && pauses[0] > FIRST_RETRY / 2);
        assert!(pauses[39] <= LAST_RETRY && pauses[39] > LAST_RETRY / 2);
    }

    #[test]
    fn one_bad_pack_does_not_block_the_others() {
        let [bad, good] = [b"1", b"2"].map(|b| Digest::of(b));
        let queue = UploadQueue::with([bad, good]);
        let now = Instant::now();
        assert_eq!(queue.due(now, 9).unwrap().len(), 2);
        queue.postpone(&bad);
        let due = queue.due(now, 9).unwrap();
        assert_eq!((due.len(), due[0].pack), (1, good));
        assert!(queue.finish(&due[0]));
        assert!(queue.due(now, 9).unwrap_err().unwrap() <= FIRST_RETRY);
        queue.retry_all_now();
        let due = queue.due(Instant::now(), 9).unwrap();
        assert!(queue.finish(&due[0]));
        assert_eq!(queue.due(now, 9), Err(None));
    }

    #[test]
    fn what_was_asked_for_during_its_upload_is_uploaded_again() {
        let queue = UploadQueue::default();
        let pack = Digest::of(b"x");
        queue.add(pack);
        let due = queue.due(Instant::now(), 9).unwrap()[0];
        queue.add(pack);
        assert!(!queue.finish(&due) && queue.contains(&pack));
        let due = queue.due(Instant::now(), 9).unwrap()[0];
        assert!(queue.finish(&due) && !queue.contains(&pack));
    }
}
