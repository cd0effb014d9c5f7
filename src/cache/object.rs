//! L3: packs in an object store that all nodes share, S3 or a folder.
//!
//! Invariant: an object is written whole or not at all, under the digest of its
//! bytes, and nothing that comes from it is believed before it was hashed.
//!
//! A store that fails is left alone for a while (see `gate`), so that a cache
//! miss costs no time-out while L3 is away. Multipart uploads that a crash cut
//! off are invisible, and S3 keeps (and bills) their parts until a lifecycle rule
//! of the bucket, `AbortIncompleteMultipartUpload`, removes them.

mod gate;
mod settings;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::HashSet, fs::File, io, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use kiln_proto::{Digest, MAX_PACK_BYTES};
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path,
};
use parking_lot::Mutex;

use self::gate::Gate;
pub use self::settings::ObjectSettings;
use super::{Blob, BlobError, BlobWriter, Health, Hints, Tier, TierError, TierName, Usage, meter};

/// Times that a broken download goes on where it stopped.
const RESUMES: u32 = 3;
/// Bytes that are read from a folder at a time.
const CHUNK: usize = 1 << 20;
/// Objects that were seen corrupt and not yet replaced, at most.
const SUSPECTS: usize = 1024;

/// The object tier.
pub struct ObjectTier {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Larger blobs are uploaded in parts of this size.
    part_bytes: u64,
    parts_at_once: usize,
    gate: Gate,
    /// What a download found corrupt: the next upload replaces it.
    suspects: Mutex<HashSet<Digest>>,
}

/// One object as the store lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPack {
    /// The digest in its name; nothing was read.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// The store's clock, milliseconds since the Unix epoch.
    pub modified_ms: u64,
}

impl ObjectTier {
    /// The store at `url`: `file:///folder` or `s3://bucket/prefix`. Nothing is
    /// asked of it yet, so a store that is away does not keep a node from starting.
    pub fn from_url(url: &str, settings: &ObjectSettings) -> Result<Self, TierError> {
        let (store, prefix, marker) = settings::connect(url, settings)?;
        Ok(Self {
            store,
            prefix,
            // A folder takes any size at once, and leaves less behind in a crash.
            part_bytes: if marker.is_some() { u64::MAX } else { settings.part_size.as_u64() },
            parts_at_once: settings.parts_at_once.max(1),
            gate: Gate::new(marker),
            suspects: Mutex::default(),
        })
    }

    /// Goes on filling `writer` from where it stands; false when there is no such
    /// object. The caller seals the writer, which verifies the bytes.
    pub async fn fill(&self, digest: &Digest, writer: &mut BlobWriter) -> Result<bool, TierError> {
        let mut resumes = 0;
        loop {
            let (from, missing) = (writer.filled(), writer.size() - writer.filled());
            if missing == 0 {
                return self.contains(digest).await;
            }
            let Some(object) = self.open(digest, from, Some(missing)).await? else {
                return Ok(false);
            };
            if object.meta.size != from + missing {
                return Err(self.corrupt(digest, format!("{} bytes", object.meta.size)));
            }
            match pour(object, writer).await {
                Ok(()) if writer.filled() == writer.size() => return Ok(true),
                Ok(()) if resumes == RESUMES => return Err(self.failed("the object ends early")),
                Err(e) if resumes == RESUMES => return Err(self.failed(e)),
                // A transfer that makes no progress is not worth the same tries.
                _ if writer.filled() == from => resumes = RESUMES,
                _ => resumes += 1,
            }
        }
    }

    /// All packs in the store, in no order.
    pub fn list(&self) -> impl Stream<Item = Result<StoredPack, TierError>> + Send + '_ {
        let objects = self.store.list(Some(&self.prefix.clone().join("packs")));
        objects.filter_map(async |object| match object {
            Ok(meta) => stored(&meta).map(Ok),
            Err(e) => Some(Err(self.failed(e))),
        })
    }

    /// Whether the store answers.
    pub fn health(&self) -> Health {
        self.gate.health()
    }

    /// One pack as the store has it now.
    pub async fn stat(&self, digest: &Digest) -> Result<Option<StoredPack>, TierError> {
        self.gate.enter()?;
        let head = self.answer(self.store.head(&self.path(digest)).await)?;
        Ok(head.as_ref().and_then(stored))
    }

    fn path(&self, digest: &Digest) -> Path {
        let name = digest.to_string();
        self.prefix.clone().join("packs").join(&name[..2]).join(name.as_str())
    }

    async fn open(
        &self,
        digest: &Digest,
        from: u64,
        bytes: Option<u64>,
    ) -> Result<Option<GetResult>, TierError> {
        self.gate.enter()?;
        let range = bytes.map(|bytes| GetRange::Bounded(from..from + bytes));
        let options = GetOptions { range, ..GetOptions::default() };
        self.answer(self.store.get_opts(&self.path(digest), options).await)
    }

    async fn put_whole(&self, blob: &Blob, mode: PutMode) -> Result<(), StoreError> {
        let payload = PutPayload::from_bytes(bytes_of(blob));
        self.store.put_opts(&self.path(&blob.digest()), payload, mode.into()).await.map(drop)
    }

    async fn put_parts(&self, blob: &Blob) -> Result<(), StoreError> {
        let mut upload = self.store.put_multipart(&self.path(&blob.digest())).await?;
        let sent = self.send_parts(blob, upload.as_mut()).await;
        if sent.is_err()
            && let Err(e) = upload.abort().await
        {
            tracing::warn!(error = %e, "abort upload: parts stay until the bucket's rule");
        }
        sent
    }

    async fn send_parts(
        &self,
        blob: &Blob,
        upload: &mut dyn MultipartUpload,
    ) -> Result<(), StoreError> {
        let bytes = bytes_of(blob);
        let part = usize::try_from(self.part_bytes).unwrap_or(usize::MAX);
        // Parts are slices of the blob's own memory: only those in flight cost.
        let starts = (0..bytes.len()).step_by(part);
        let parts = starts.map(|at| bytes.slice(at..bytes.len().min(at + part)));
        let sends: Vec<_> = parts.map(|part| upload.put_part(part.into())).collect();
        futures::stream::iter(sends)
            .buffer_unordered(self.parts_at_once)
            .try_collect::<()>()
            .await?;
        upload.complete().await.map(drop)
    }

    /// Creates the object, or makes sure that it is there and whole.
    async fn store_once(&self, blob: &Blob) -> Result<(), StoreError> {
        let replace = self.suspects.lock().contains(&blob.digest());
        let small = blob.size() <= self.part_bytes;
        let outcome = match (small, replace) {
            (true, false) => self.put_whole(blob, PutMode::Create).await,
            (true, true) => return self.put_whole(blob, PutMode::Overwrite).await,
            (false, true) => return self.put_parts(blob).await,
            // Parts have no create-if-absent: ask, and at worst write the same twice.
            (false, false) => match self.store.head(&self.path(&blob.digest())).await {
                Ok(meta) if meta.size == blob.size() => return Ok(()),
                Ok(_) | Err(StoreError::NotFound { .. }) => return self.put_parts(blob).await,
                Err(e) => Err(e),
            },
        };
        match outcome {
            Err(StoreError::AlreadyExists { .. }) => {
                match self.store.head(&self.path(&blob.digest())).await?.size {
                    size if size == blob.size() => Ok(()),
                    _ => self.put_whole(blob, PutMode::Overwrite).await,
                }
            }
            // A store without conditional writes: the same bytes go by the same name.
            Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => {
                self.put_whole(blob, PutMode::Overwrite).await
            }
            outcome => outcome,
        }
    }

    /// Turns the store's answer into the tier's: not found is an answer.
    fn answer<T>(&self, result: Result<T, StoreError>) -> Result<Option<T>, TierError> {
        match result {
            Ok(value) => {
                self.gate.succeeded();
                Ok(Some(value))
            }
            Err(StoreError::NotFound { .. }) => {
                self.gate.succeeded();
                Ok(None)
            }
            Err(e) => Err(self.failed(e)),
        }
    }

    fn failed(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TierError {
        let (tier, error) = (TierName::Object, error.into());
        let why = chain(&*error);
        self.gate.failed(why.clone());
        let error = match device_is_full(&*error) {
            true => TierError::Full { tier, bytes: 0, why },
            false => TierError::Unavailable { tier, why },
        };
        meter::failed(&error);
        error
    }

    fn corrupt(&self, digest: &Digest, why: String) -> TierError {
        let mut suspects = self.suspects.lock();
        if suspects.len() < SUSPECTS {
            suspects.insert(*digest);
        }
        drop(suspects);
        let error = TierError::Corrupt { tier: TierName::Object, digest: *digest, why };
        meter::failed(&error);
        error
    }
}

#[async_trait]
impl Tier for ObjectTier {
    fn name(&self) -> TierName {
        TierName::Object
    }

    async fn get(&self, digest: &Digest) -> Result<Option<Blob>, TierError> {
        let Some(object) = self.open(digest, 0, None).await? else {
            meter::miss(TierName::Object);
            return Ok(None);
        };
        let size = object.meta.size;
        if size > MAX_PACK_BYTES {
            return Err(self.corrupt(digest, format!("{size} bytes, at most {MAX_PACK_BYTES}")));
        }
        let out_of_memory = |source| TierError::Memory { tier: TierName::Object, source };
        let mut writer = BlobWriter::with_size(size).map_err(out_of_memory)?;
        let poured = pour(object, &mut writer).await;
        if (poured.is_err() || writer.filled() < size) && !self.fill(digest, &mut writer).await? {
            meter::miss(TierName::Object);
            return Ok(None);
        }
        match writer.finish_as(*digest) {
            Ok(blob) => {
                meter::hit(TierName::Object);
                Ok(Some(blob))
            }
            Err(e @ (BlobError::Memory(_) | BlobError::NoRoom(_))) => Err(out_of_memory(e)),
            Err(e) => Err(self.corrupt(digest, e.to_string())),
        }
    }

    async fn put(&self, blob: &Blob, _: Hints) -> Result<(), TierError> {
        self.gate.enter()?;
        let stored = self.store_once(blob).await;
        self.answer(stored)?;
        self.suspects.lock().remove(&blob.digest());
        Ok(())
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, TierError> {
        // S3 does not say whether there was something to delete.
        if self.stat(digest).await?.is_none() {
            return Ok(false);
        }
        let deleted = self.store.delete(&self.path(digest)).await;
        Ok(self.answer(deleted)?.is_some())
    }

    async fn contains(&self, digest: &Digest) -> Result<bool, TierError> {
        Ok(self.stat(digest).await?.is_some())
    }

    /// A store that others fill too has no usage of ours.
    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// The blob's memory without a copy.
fn bytes_of(blob: &Blob) -> Bytes {
    Bytes::from_owner(blob.clone())
}

/// Appends all that the store sends.
async fn pour(
    object: GetResult,
    writer: &mut BlobWriter,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let range = object.range.clone();
    match object.payload {
        GetResultPayload::File(file, _) => pour_file(file, range, writer).await,
        GetResultPayload::Stream(mut chunks) => {
            while let Some(chunk) = chunks.next().await {
                writer.write(&chunk?)?;
            }
            Ok(())
        }
    }
}

/// A file of a shared folder, in larger pieces than the library's own stream.
async fn pour_file(
    file: File,
    range: std::ops::Range<u64>,
    writer: &mut BlobWriter,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use std::os::unix::fs::FileExt;
    let file = Arc::new(file);
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
        let file = Arc::clone(&file);
        let chunk = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; length];
            file.read_exact_at(&mut chunk, at).map(|()| chunk)
        });
        writer.write(&chunk.await??)?;
        at += length as u64;
    }
    Ok(())
}

/// `None` for an object that is no pack.
fn stored(meta: &ObjectMeta) -> Option<StoredPack> {
    Some(StoredPack {
        digest: meta.location.filename()?.parse().ok()?,
        size: meta.size,
        modified_ms: u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0),
    })
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        // Many errors print their source themselves.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn device_is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        source = error.source();
    }
    false
}
