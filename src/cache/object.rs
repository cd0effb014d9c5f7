//! L3: packs in an object store that all nodes share, S3 or a folder.
//!
//! Invariant: an object is written whole or not at all, under the digest of its
//! bytes and the generation of their publication, and nothing that comes from it is
//! believed before it was hashed: an upload that finds its object there reads it,
//! and replaces one that is wrong.
//!
//! A store that fails is left alone for a while (see `gate`), so that a cache
//! miss costs no time-out while L3 is away. Multipart uploads that a crash cut
//! off are invisible, and S3 keeps (and bills) their parts until a lifecycle rule
//! of the bucket, `AbortIncompleteMultipartUpload`, removes them.

mod gate;
mod name;
mod partial;
#[cfg(test)]
mod quirks;
mod settings;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    fs::File,
    future::Future,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use kiln_proto::Hasher;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path,
};

use self::gate::Gate;
pub use self::{
    name::ObjectName,
    settings::{MARKER as STORE_MARKER, ObjectSettings},
};
use super::{Blob, BlobWriter, Health, TierError, TierName, meter};

/// Times that a broken download goes on where it stopped.
const RESUMES: u32 = 3;
/// Bytes that are read from a folder at a time.
const CHUNK: usize = 1 << 20;
/// In which a folder must answer: it has no time-out of its own. S3's client has.
const FOLDER_ANSWERS: Duration = Duration::from_secs(20);
/// Bytes that a folder takes in a second, at the very least.
const FOLDER_SPEED: u64 = 1 << 20;

/// The library's words for a success without an ETag, which it has no type for.
const NO_TAG: &str = "ETag Header missing";

/// The object tier.
pub struct ObjectTier {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Larger blobs are uploaded in parts of this size.
    part_bytes: u64,
    parts_at_once: usize,
    gate: Gate,
    /// Where the store lies, if it is a folder.
    root: Option<PathBuf>,
    /// The store was seen to refuse "create if absent" and to take plain writes.
    unconditional: AtomicBool,
    /// The store was seen to give the parts of an upload no ETag, and to take whole objects.
    undivided: AtomicBool,
}

/// One object as the store lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPack {
    /// As listed; nothing was read.
    pub name: ObjectName,
    /// Bytes.
    pub size: u64,
    /// The store's clock, milliseconds since the Unix epoch.
    pub modified_ms: u64,
}

impl ObjectTier {
    /// The store at `url`: `file:///folder` or `s3://bucket/prefix`. Nothing is
    /// asked of it yet, so a store that is away does not keep a node from starting.
    pub async fn open(url: String, settings: ObjectSettings) -> Result<Self, TierError> {
        let unavailable = |why: String| TierError::Unavailable { tier: TierName::Object, why };
        let shown = url.clone();
        // A folder is made and marked, which may hang: on a thread, for a while.
        let opening = tokio::task::spawn_blocking(move || Self::from_url(&url, &settings));
        match tokio::time::timeout(FOLDER_ANSWERS, opening).await {
            Ok(opened) => opened.map_err(|e| unavailable(e.to_string()))?,
            Err(_) => Err(unavailable(format!("{shown} does not answer"))),
        }
    }

    fn from_url(url: &str, settings: &ObjectSettings) -> Result<Self, TierError> {
        let (store, prefix, marker) = settings::connect(url, settings)?;
        Ok(Self {
            store,
            prefix,
            // A folder takes any size at once, and leaves less behind in a crash.
            part_bytes: if marker.is_some() { u64::MAX } else { settings.part_size.as_u64() },
            parts_at_once: settings.parts_at_once.max(1),
            root: marker.as_ref().and_then(|marker| marker.parent()).map(Into::into),
            gate: Gate::new(marker),
            unconditional: AtomicBool::new(false),
            undivided: AtomicBool::new(false),
        })
    }

    /// Goes on filling `writer` from where it stands; false when there is no such
    /// object. The caller seals the writer, which verifies the bytes.
    pub async fn fill(
        &self,
        name: &ObjectName,
        writer: &mut BlobWriter,
    ) -> Result<bool, TierError> {
        let mut resumes = 0;
        loop {
            let (from, missing) = (writer.filled(), writer.size() - writer.filled());
            if missing == 0 {
                return Ok(self.stat(name).await?.is_some());
            }
            let Some(object) = self.read(name, from, missing).await? else {
                return Ok(false);
            };
            if object.meta.size != from + missing {
                return Err(self.corrupt(name, format!("{} bytes", object.meta.size)));
            }
            match self.pour(object, |chunk| Ok(writer.write(chunk)?)).await {
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

    /// Whether the store takes "create if absent", as far as it was tried.
    pub fn is_conditional(&self) -> bool {
        !self.unconditional.load(Ordering::Relaxed)
    }

    /// Whether the store answers.
    pub fn health(&self) -> Health {
        self.gate.health()
    }

    /// One pack as the store has it now.
    pub async fn stat(&self, name: &ObjectName) -> Result<Option<StoredPack>, TierError> {
        self.gate.enter().await?;
        let head = self.answer(self.head(name).await)?;
        Ok(head.as_ref().and_then(stored))
    }

    /// Makes sure that the object is there and holds the bytes of `blob`.
    pub async fn put(&self, name: &ObjectName, blob: &Blob) -> Result<(), TierError> {
        debug_assert_eq!(name.pack, blob.digest(), "an object is named by its bytes");
        self.gate.enter().await?;
        let stored = self.store_once(name, blob).await;
        self.answer(stored).map(drop)
    }

    /// Deletes an object. One that is not there is as good as deleted.
    pub async fn delete(&self, name: &ObjectName) -> Result<(), TierError> {
        self.gate.enter().await?;
        let path = name.path(&self.prefix);
        let deleted = self.bounded(0, self.store.delete(&path)).await;
        self.answer(deleted).map(drop)
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        let path = name.path(&self.prefix);
        self.bounded(0, self.store.head(&path)).await
    }

    async fn read(
        &self,
        name: &ObjectName,
        from: u64,
        bytes: u64,
    ) -> Result<Option<GetResult>, TierError> {
        self.gate.enter().await?;
        let range = Some(GetRange::Bounded(from..from + bytes));
        let options = GetOptions { range, ..GetOptions::default() };
        let path = name.path(&self.prefix);
        self.answer(self.bounded(0, self.store.get_opts(&path, options)).await)
    }

    /// Lets a folder take `bytes` in a bounded time: a thread that hangs in the
    /// kernel is left behind, and the gate closes.
    async fn bounded<T>(
        &self,
        bytes: u64,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if self.root.is_none() {
            return operation.await;
        }
        let limit = FOLDER_ANSWERS + Duration::from_secs(bytes / FOLDER_SPEED);
        tokio::time::timeout(limit, operation).await.unwrap_or_else(|_| {
            let why = format!("the folder did not answer for {limit:?}");
            Err(StoreError::Generic { store: "folder", source: why.into() })
        })
    }

    async fn put_whole(
        &self,
        name: &ObjectName,
        blob: &Blob,
        mode: PutMode,
    ) -> Result<(), StoreError> {
        let payload = PutPayload::from_bytes(bytes_of(blob));
        let path = name.path(&self.prefix);
        let put = self.store.put_opts(&path, payload, mode.into());
        match self.bounded(blob.size(), put).await {
            // Some stores take an object and give it no tag; nothing here asks for one.
            Err(e) if chain(&e).contains(NO_TAG) => match self.head(name).await? {
                meta if meta.size == blob.size() => Ok(()),
                _ => Err(e),
            },
            stored => stored.map(drop),
        }
    }

    async fn put_parts(&self, name: &ObjectName, blob: &Blob) -> Result<(), StoreError> {
        let mut upload = self.store.put_multipart(&name.path(&self.prefix)).await?;
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

    async fn write(&self, name: &ObjectName, blob: &Blob) -> Result<(), StoreError> {
        if blob.size() <= self.part_bytes || self.undivided.load(Ordering::Relaxed) {
            return self.put_whole(name, blob, PutMode::Overwrite).await;
        }
        match self.put_parts(name, blob).await {
            // An upload in parts ends with the tags of all of them: without, it cannot.
            Err(e) if chain(&e).contains(NO_TAG) => {
                self.put_whole(name, blob, PutMode::Overwrite).await?;
                if !self.undivided.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        error = chain(&e),
                        "the object store gives the parts of an upload no ETag: objects of more \
                        than object.part_size are uploaded whole from now on"
                    );
                }
                Ok(())
            }
            written => written,
        }
    }

    async fn store_once(&self, name: &ObjectName, blob: &Blob) -> Result<(), StoreError> {
        // Parts have no create-if-absent: ask, and at worst write the same twice.
        if blob.size() > self.part_bytes {
            return self.write_unless_whole(name, blob).await;
        }
        if self.unconditional.load(Ordering::Relaxed) {
            return self.write(name, blob).await;
        }
        match self.put_whole(name, blob, PutMode::Create).await {
            Err(StoreError::AlreadyExists { .. }) => self.write_unless_whole(name, blob).await,
            // The store may not know conditions: the same bytes go by the same name.
            Err(e) if may_refuse_conditions(&e) => {
                self.write(name, blob).await?;
                if !self.unconditional.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        error = chain(&e),
                        "the object store refuses conditional \
                        writes: plain ones from now on"
                    );
                }
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Writes the object unless it is there with the right bytes: a name and a size
    /// prove nothing.
    async fn write_unless_whole(&self, name: &ObjectName, blob: &Blob) -> Result<(), StoreError> {
        match self.head(name).await {
            Ok(meta) if meta.size == blob.size() => match self.verify(name, blob).await? {
                true => return Ok(()),
                false => {
                    self.corrupt(name, "found by an upload".into());
                    tracing::warn!(object = %name, "a corrupt object is replaced");
                }
            },
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
        self.write(name, blob).await
    }

    /// Whether the object's bytes hash to its name. Reads all of it, keeps nothing.
    async fn verify(&self, name: &ObjectName, blob: &Blob) -> Result<bool, StoreError> {
        let path = name.path(&self.prefix);
        let object = self.bounded(0, self.store.get(&path)).await?;
        if object.meta.size != blob.size() {
            return Ok(false);
        }
        let mut hasher = Hasher::new();
        let read = self.pour(object, |chunk| {
            hasher.update(chunk);
            Ok(())
        });
        read.await.map_err(|source| StoreError::Generic { store: "verify", source })?;
        Ok(kiln_proto::Digest::from(hasher.finalize()) == name.pack)
    }

    /// Hands all that the store sends to `take`.
    async fn pour(
        &self,
        object: GetResult,
        mut take: impl FnMut(&[u8]) -> Result<(), BoxError>,
    ) -> Result<(), BoxError> {
        let range = object.range.clone();
        match object.payload {
            GetResultPayload::File(file, _) => {
                let file = Arc::new(file);
                let mut at = range.start;
                while at < range.end {
                    let length = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
                    let chunk = read_at(Arc::clone(&file), at, length);
                    take(&self.bounded(0, chunk).await?)?;
                    at += length as u64;
                }
            }
            GetResultPayload::Stream(mut chunks) => {
                while let Some(chunk) = chunks.next().await {
                    take(&chunk?)?;
                }
            }
        }
        Ok(())
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

    fn corrupt(&self, name: &ObjectName, why: String) -> TierError {
        let error = TierError::Corrupt { tier: TierName::Object, digest: name.pack, why };
        meter::failed(&error);
        error
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The blob's memory without a copy.
fn bytes_of(blob: &Blob) -> Bytes {
    Bytes::from_owner(blob.clone())
}

/// A piece of a folder's file, larger than the library's own stream reads.
async fn read_at(file: Arc<File>, at: u64, length: usize) -> Result<Vec<u8>, StoreError> {
    use std::os::unix::fs::FileExt;
    let read = tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; length];
        file.read_exact_at(&mut chunk, at).map(|()| chunk)
    });
    let failed = |source: BoxError| StoreError::Generic { store: "folder", source };
    read.await.map_err(|e| failed(e.into()))?.map_err(|e| failed(e.into()))
}

/// Whether a store that answers so may take the same write without a condition:
/// "not implemented" (501), or a client error that is neither about who asks nor
/// about the time of the question. The library knows neither by a type.
fn may_refuse_conditions(error: &StoreError) -> bool {
    match error {
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => true,
        StoreError::Generic { source, .. } => {
            let text = chain(&**source);
            ["501", "400", "405", "411", "415", "422"]
                .iter()
                .any(|code| text.contains(&format!("status code: {code} ")))
        }
        _ => false,
    }
}

/// `None` for an object that is no pack.
fn stored(meta: &ObjectMeta) -> Option<StoredPack> {
    Some(StoredPack {
        name: ObjectName::parse(meta.location.filename()?)?,
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
