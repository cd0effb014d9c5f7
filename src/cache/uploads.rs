//! Packs on their way to L3.
//!
//! Invariant: an upload that was queued is carried out, or its blob is gone from
//! this node: the queue lies in the disk tier's index, written through, and an
//! entry leaves it only after the sink was told that the object is stored. So an
//! upload, and telling about it, may happen twice, and both may.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use kiln_proto::Digest;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Blob, Hints, ObjectTier, Tier, TierError, TierName, Tiers, meter};

/// Packs that are uploaded at a time.
const AT_ONCE: usize = 4;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Uploads that may wait; some 100 bytes each.
const MOST: usize = 1 << 20;

/// Who wants to know that a pack is in L3.
#[async_trait]
pub trait StoredSink: Send + Sync {
    /// `pack` is in L3. An error makes the upload be tried, and told, again.
    async fn stored(&self, pack: &Digest) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// What waits, in memory; the disk's index remembers it.
#[derive(Default)]
pub(super) struct Uploads {
    waiting: Mutex<BTreeMap<Digest, Attempt>>,
    wake: Notify,
}

#[derive(Clone, Copy)]
struct Attempt {
    failures: u32,
    due: Instant,
}

impl Uploads {
    /// A queue with what a former run left.
    pub(super) fn with(digests: impl IntoIterator<Item = Digest>) -> Self {
        let fresh = Attempt { failures: 0, due: Instant::now() };
        let waiting: BTreeMap<_, _> = digests.into_iter().map(|d| (d, fresh)).collect();
        meter::uploads_pending(waiting.len() as u64);
        Self { waiting: Mutex::new(waiting), wake: Notify::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether there is room for one more.
    pub(super) fn check_room(&self) -> Result<(), TierError> {
        if self.len() < MOST {
            return Ok(());
        }
        let why = format!("{MOST} uploads wait already");
        Err(TierError::Full { tier: TierName::Object, bytes: 0, why })
    }

    pub(super) fn add(&self, digest: Digest) {
        let fresh = Attempt { failures: 0, due: Instant::now() };
        self.waiting.lock().entry(digest).or_insert(fresh);
        meter::uploads_pending(self.len() as u64);
        self.wake.notify_one();
    }

    fn remove(&self, digest: &Digest) {
        self.waiting.lock().remove(digest);
        meter::uploads_pending(self.len() as u64);
    }

    /// After a failure: later, and later each time.
    fn postpone(&self, digest: &Digest) {
        if let Some(attempt) = self.waiting.lock().get_mut(digest) {
            attempt.due = Instant::now() + backoff(digest, attempt.failures);
            attempt.failures += 1;
        }
    }

    /// The store is back: who waited for it waits no longer.
    fn hurry(&self) {
        let now = Instant::now();
        self.waiting.lock().values_mut().for_each(|attempt| attempt.due = now);
    }

    /// What is due, or how long nothing is (`None`: until something is added).
    fn due(&self, now: Instant) -> Result<Vec<Digest>, Option<Duration>> {
        let waiting = self.waiting.lock();
        let due: Vec<_> = waiting
            .iter()
            .filter_map(|(digest, attempt)| (attempt.due <= now).then_some(*digest))
            .take(AT_ONCE * 16)
            .collect();
        if due.is_empty() {
            return Err(waiting.values().map(|attempt| attempt.due - now).min());
        }
        Ok(due)
    }
}

/// Doubles up to a bound; a quarter of it differs from pack to pack, so that a
/// store that comes back does not meet all nodes' queues in one instant.
fn backoff(digest: &Digest, failures: u32) -> Duration {
    let pause = FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY);
    pause - pause.mul_f64(f64::from(digest.as_bytes()[31]) / 1024.0)
}

/// How one upload ended.
enum Outcome {
    Stored,
    /// Not on this node any more.
    Gone,
    Failed,
}

impl Tiers {
    /// Queues an upload to L3, durably. Without an L3 there is nothing to do.
    pub async fn enqueue_upload(&self, pack: &Digest) -> Result<(), TierError> {
        if self.object().is_none() {
            return Ok(());
        }
        self.uploads.check_room()?;
        // A disk that does not take the note must not keep the bytes from L3:
        // what is lost then is the upload of a node that crashes in between.
        let noted = self.disk().queue_upload(pack).await;
        self.uploads.add(*pack);
        noted
    }

    /// Uploads that wait.
    pub fn uploads_pending(&self) -> usize {
        self.uploads.len()
    }

    /// Carries out uploads until `stop`, telling `sink` of each. Run it once.
    pub async fn run_uploads(&self, sink: &dyn StoredSink, stop: CancellationToken) {
        let Some(object) = self.object() else { return };
        loop {
            let work = match self.uploads.due(Instant::now()) {
                Ok(due) => futures::stream::iter(due)
                    .for_each_concurrent(AT_ONCE, |pack| self.upload(object, pack, sink))
                    .left_future(),
                Err(pause) => self.idle(pause).right_future(),
            };
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn idle(&self, pause: Option<Duration>) {
        let woken = self.uploads.wake.notified();
        match pause {
            Some(pause) => drop(tokio::time::timeout(pause, woken).await),
            None => woken.await,
        }
    }

    async fn upload(&self, object: &ObjectTier, pack: Digest, sink: &dyn StoredSink) {
        let outcome = match self.try_upload(object, &pack, sink).await {
            Ok(outcome) => outcome,
            Err(e) => {
                tracing::warn!(%pack, error = %e, "upload to the object store; it is tried again");
                Outcome::Failed
            }
        };
        meter::upload(match outcome {
            Outcome::Stored => "stored",
            Outcome::Gone => "gone",
            Outcome::Failed => "failed",
        });
        if let Outcome::Failed = outcome {
            return self.uploads.postpone(&pack);
        }
        if let Err(e) = self.disk().finish_upload(&pack).await {
            // It is done once more after a restart.
            tracing::warn!(%pack, error = %e, "take a finished upload out of the queue");
        }
        self.uploads.remove(&pack);
    }

    async fn try_upload(
        &self,
        object: &ObjectTier,
        pack: &Digest,
        sink: &dyn StoredSink,
    ) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
        let Some(blob) = self.bytes_to_upload(pack).await? else {
            tracing::warn!(%pack, "evicted before it was uploaded");
            return Ok(Outcome::Gone);
        };
        let was_down = object.health() != super::Health::Up;
        object.put(&blob, Hints::default()).await?;
        if was_down {
            self.uploads.hurry();
        }
        sink.stored(pack).await?;
        Ok(Outcome::Stored)
    }

    /// From where it is, without bringing it up: nobody asked for it.
    async fn bytes_to_upload(&self, pack: &Digest) -> Result<Option<Blob>, TierError> {
        if let Some(blob) = self.memory().peek(pack) {
            return Ok(Some(blob));
        }
        match self.disk().get(pack).await {
            // The only copy here was bad: nothing to upload any more.
            Err(TierError::Corrupt { .. }) => Ok(None),
            found => found,
        }
    }
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
        let uploads = Uploads::with([bad, good]);
        let now = Instant::now();
        assert_eq!(uploads.due(now).unwrap().len(), 2);
        uploads.postpone(&bad);
        assert_eq!(uploads.due(now).unwrap(), [good]);
        uploads.remove(&good);
        assert!(uploads.due(now).unwrap_err().unwrap() <= FIRST_RETRY);
        uploads.hurry();
        assert_eq!(uploads.due(Instant::now()).unwrap(), [bad]);
        uploads.remove(&bad);
        assert_eq!(uploads.due(now), Err(None));
    }
}
