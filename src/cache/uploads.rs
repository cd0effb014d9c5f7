//! Packs on their way to L3.
//!
//! Invariant: an upload that was queued is carried out, or its blob is gone from
//! this node, or nothing refers to it any more: the queue lies in the disk tier's
//! index, written through, and an entry leaves it only after the index was told
//! that the object of the pack's current generation is stored. So an upload, and
//! telling about it, may happen twice, and both may.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use fail::fail_point;
use futures::{FutureExt, StreamExt};
use kiln_proto::Digest;
use tokio_util::sync::CancellationToken;

use super::{
    Blob, Health, IndexError, ObjectName, ObjectTier, Tier, TierError, Tiers, meter,
    upload_queue::Due,
};

/// Packs that are uploaded at a time.
const AT_ONCE: usize = 4;
/// How long a publication waits for uploads to make room.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the uploader asks of the index, and tells it.
#[async_trait]
pub trait UploadIndex: Send + Sync {
    /// The current generation of `pack`; `None`: nothing refers to it any more.
    async fn generation(&self, pack: &Digest) -> Result<Option<u64>, IndexError>;
    /// The object of this generation is in L3. An error makes the upload be tried,
    /// and told, again.
    async fn stored(&self, pack: &Digest, generation: u64) -> Result<(), IndexError>;
}

/// How one upload ended.
enum Outcome {
    Stored,
    /// Not on this node any more.
    Gone,
    /// Nothing refers to it.
    Unneeded,
    Failed,
}

impl Tiers {
    /// Queues an upload to L3, durably. Without an L3 there is nothing to do.
    pub async fn enqueue_upload(&self, pack: &Digest) -> Result<(), TierError> {
        if self.object().is_none() {
            return Ok(());
        }
        self.uploads.check_room()?;
        self.uploads.add(*pack);
        // A disk that does not take the note must not keep the bytes from L3:
        // what is lost then is the upload of a node that crashes in between.
        self.disk().queue_upload(pack).await
    }

    /// [`enqueue_upload`](Self::enqueue_upload) of what does not wait already. One that is
    /// not queued is seen to by the next look for such packs.
    pub async fn ensure_upload(&self, pack: &Digest) {
        if !self.uploads.contains(pack)
            && let Err(e) = self.enqueue_upload(pack).await
        {
            tracing::warn!(%pack, error = %e, "an upload is not queued");
        }
    }

    /// Has all that waits tried now: time is short.
    pub fn hurry_uploads(&self) {
        self.uploads.retry_all_now();
    }

    /// Waits while a publication might push out what was acknowledged and is nowhere else:
    /// while queued uploads fill half of the disk, and L3 takes them. At most [`PATIENCE`]:
    /// where L3 is away, a cache goes on without what is worth least.
    pub async fn upload_room(&self) {
        let Some(object) = self.object() else { return };
        let waiting = async {
            loop {
                let finished = self.uploads.next_finished();
                if !self.disk().is_crowded() || object.health() != Health::Up {
                    return;
                }
                finished.await;
            }
        };
        drop(tokio::time::timeout(PATIENCE, waiting).await);
    }

    /// Uploads that wait.
    pub fn uploads_pending(&self) -> usize {
        self.uploads.len()
    }

    /// Carries out uploads until `stop`, telling `index` of each. Run it once.
    pub async fn run_uploads(&self, index: &dyn UploadIndex, stop: CancellationToken) {
        let Some(object) = self.object() else { return };
        loop {
            let work = match self.uploads.due(Instant::now(), AT_ONCE * 16) {
                Ok(due) => futures::stream::iter(due)
                    .for_each_concurrent(AT_ONCE, |due| self.upload(object, due, index))
                    .left_future(),
                Err(pause) => self.uploads.wait(pause).right_future(),
            };
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn upload(&self, object: &ObjectTier, due: Due, index: &dyn UploadIndex) {
        let pack = due.pack;
        let outcome = match self.try_upload(object, &pack, index).await {
            Ok(outcome) => outcome,
            Err(e) => {
                tracing::warn!(%pack, error = %e, "upload to the object store; it is tried again");
                Outcome::Failed
            }
        };
        meter::upload(match outcome {
            Outcome::Stored => "stored",
            Outcome::Gone => "gone",
            Outcome::Unneeded => "unneeded",
            Outcome::Failed => "failed",
        });
        if let Outcome::Failed = outcome {
            self.uploads.postpone(&pack);
            // L3 may be down now: nobody waits for it then.
            return self.uploads.tell_finished();
        }
        if !self.uploads.finish(&due) {
            return;
        }
        if let Err(e) = self.disk().finish_upload(&pack).await {
            // It is done once more after a restart.
            tracing::warn!(%pack, error = %e, "take a finished upload out of the queue");
        }
        self.uploads.tell_finished();
        // Asked for while the note was taken away: note it again.
        if self.uploads.contains(&pack)
            && let Err(e) = self.disk().queue_upload(&pack).await
        {
            tracing::warn!(%pack, error = %e, "note an upload");
        }
    }

    async fn try_upload(
        &self,
        object: &ObjectTier,
        pack: &Digest,
        index: &dyn UploadIndex,
    ) -> Result<Outcome, IndexError> {
        // Before the bytes are sent: one that is condemned meanwhile is deleted by
        // its name, and a new publication has a new one.
        let Some(generation) = index.generation(pack).await? else {
            return Ok(Outcome::Unneeded);
        };
        let Some(blob) = self.bytes_to_upload(pack).await? else {
            tracing::warn!(%pack, "evicted before it was uploaded");
            return Ok(Outcome::Gone);
        };
        fail_point!("upload.begin");
        let was_down = object.health() != Health::Up;
        object.put(&ObjectName { pack: *pack, generation }, &blob).await?;
        if was_down {
            self.uploads.retry_all_now();
        }
        fail_point!("upload.put");
        index.stored(pack, generation).await?;
        fail_point!("upload.noted");
        Ok(Outcome::Stored)
    }

    /// From where it is, without keeping it in memory: nobody asked for it.
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
