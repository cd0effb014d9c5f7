//! Verified bytes in sealed memory.
//!
//! Invariant: a [`Blob`] that exists hashes to its digest, and nobody, not even
//! a client that was handed its descriptor, can change a byte of it: the memory
//! is sealed against writing, growing and shrinking. One that was made within a
//! [`Budget`] is charged to it until its last clone is dropped.

use std::{
    fmt, io,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use kiln_proto::{Digest, Hasher};
use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags};

use super::{Budget, Charge, NoRoom};

/// Inputs at least this long are hashed by several threads.
const HASH_IN_PARALLEL: usize = 1 << 20;

/// Immutable bytes, named by their digest; cheap to clone, mappable by others.
#[derive(Clone)]
pub struct Blob(Arc<Sealed>);

struct Sealed {
    digest: Digest,
    memory: OwnedFd,
    /// `None` for the empty blob: nothing to map.
    map: Option<Mmap>,
    /// Given back with the memory.
    charge: Option<Charge>,
}

/// Memory that is being filled, hashed on the way in.
///
/// [`write`](Self::write) goes through the descriptor and costs half of what
/// filling [`spare`](Self::spare) does, which faults on every fresh page.
pub struct BlobWriter {
    memory: OwnedFd,
    /// The same memory; its pages are not touched before [`spare`](Self::spare) is.
    map: Option<MmapMut>,
    filled: usize,
    size: usize,
    hasher: Hasher,
    charge: Option<Charge>,
}

/// Why bytes did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are not what they were said to be: discard this copy, ask another.
    #[error("the bytes hash to {found}, not {wanted}")]
    Corrupt {
        /// The digest asked for.
        wanted: Digest,
        /// The digest found.
        found: Digest,
    },
    /// More or fewer bytes than announced.
    #[error("{found} bytes of {wanted}")]
    Length {
        /// The size announced.
        wanted: u64,
        /// The bytes that came.
        found: u64,
    },
    /// The process's budget for blobs has no room: shed load.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The system has no more memory or descriptors.
    #[error("allocate sealed memory: {0}")]
    Memory(#[from] io::Error),
}

impl Blob {
    /// Copies `bytes` into sealed memory that `budget` has room for; see
    /// [`BlobWriter::within`].
    pub async fn copy_within(budget: &Budget, bytes: &[u8]) -> Result<Self, BlobError> {
        let mut writer = BlobWriter::within(budget, bytes.len() as u64).await?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// Copies `bytes` into sealed memory that no budget counts: for programs that
    /// serve nobody.
    pub fn copy_of(bytes: &[u8]) -> Result<Self, BlobError> {
        let mut writer = BlobWriter::with_size(bytes.len() as u64)?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// The name of these bytes.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.len() as u64
    }

    /// Bytes of a budget that come back when the last clone is dropped.
    pub(super) fn charge(&self) -> u64 {
        self.0.charge.as_ref().map_or(0, Charge::bytes)
    }

    /// Clones that exist now, this one included.
    pub(super) fn clones(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.map.as_deref().unwrap_or_default()
    }
}

impl AsFd for Blob {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({}, {} bytes)", self.0.digest.short(), self.len())
    }
}

impl BlobWriter {
    /// Memory for exactly `size` bytes once `budget` has room for them: at once,
    /// after a bounded wait, or never, which is [`BlobError::NoRoom`].
    pub async fn within(budget: &Budget, size: u64) -> Result<Self, BlobError> {
        Self::charged(budget.charge(size).await?, size)
    }

    /// Memory for exactly `size` bytes, for which `charge` was set aside.
    pub fn charged(charge: Charge, size: u64) -> Result<Self, BlobError> {
        Ok(Self { charge: Some(charge), ..Self::with_size(size)? })
    }

    /// Memory for exactly `size` bytes that no budget counts: for programs that
    /// serve nobody.
    pub fn with_size(size: u64) -> Result<Self, BlobError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("kiln-blob", flags).map_err(io::Error::from)?;
        rustix::fs::ftruncate(&memory, size).map_err(io::Error::from)?;
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let map = match size {
            0 => None,
            // SAFETY: the memfd is ours alone until it is sealed: no one truncates it.
            _ => Some(unsafe { MmapOptions::new().len(size).map_mut(&memory)? }),
        };
        Ok(Self { memory, map, filled: 0, size, hasher: Hasher::new(), charge: None })
    }

    /// Appends `bytes`; more than announced is an error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if bytes.len() > self.size - self.filled {
            let found = (self.filled + bytes.len()) as u64;
            return Err(BlobError::Length { wanted: self.size as u64, found });
        }
        let (memory, at) = (self.memory.as_fd(), self.filled);
        if bytes.len() < HASH_IN_PARALLEL {
            fill(memory, bytes, at)?;
            self.count(bytes);
            return Ok(());
        }
        // The kernel finds pages for the copy about as fast as they are hashed:
        // both at once take half the time.
        let hasher = &mut self.hasher;
        let hash = || {
            hasher.update_rayon(bytes);
        };
        let ((), copied) = rayon::join(hash, || fill(memory, bytes, at));
        self.filled += bytes.len();
        copied
    }

    /// Where the next bytes go: read into it, then [`advance`](Self::advance).
    pub fn spare(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().map_or(&mut [], |map| &mut map[self.filled..])
    }

    /// Counts the first `n` bytes of [`spare`](Self::spare) in and hashes them.
    pub fn advance(&mut self, n: usize) {
        let Some(map) = self.map.take() else { return };
        self.count(&map[self.filled..self.filled + n]);
        self.map = Some(map);
    }

    fn count(&mut self, fresh: &[u8]) {
        if fresh.len() >= HASH_IN_PARALLEL {
            self.hasher.update_rayon(fresh);
        } else {
            self.hasher.update(fresh);
        }
        self.filled += fresh.len();
    }

    /// Bytes of the whole blob.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Bytes so far: where a broken transfer resumes.
    pub fn filled(&self) -> u64 {
        self.filled as u64
    }

    /// Seals the memory under the digest of what was written.
    pub fn finish(self) -> Result<Blob, BlobError> {
        if self.filled != self.size {
            return Err(BlobError::Length { wanted: self.size as u64, found: self.filled() });
        }
        let digest = self.hasher.finalize().into();
        // A writable mapping must be gone before its memory can be sealed.
        drop(self.map);
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&self.memory, seals).map_err(io::Error::from)?;
        let map = match self.size {
            0 => None,
            // SAFETY: sealed: no one can write or truncate it any more.
            size => Some(unsafe { MmapOptions::new().len(size).map_copy_read_only(&self.memory)? }),
        };
        Ok(Blob(Arc::new(Sealed { digest, memory: self.memory, map, charge: self.charge })))
    }

    /// Seals the memory if it hashes to `wanted`.
    pub fn finish_as(self, wanted: Digest) -> Result<Blob, BlobError> {
        let blob = self.finish()?;
        match blob.digest() {
            found if found == wanted => Ok(blob),
            found => Err(BlobError::Corrupt { wanted, found }),
        }
    }
}

/// Copies `bytes` into `memory` at `at`.
fn fill(memory: BorrowedFd<'_>, bytes: &[u8], at: usize) -> Result<(), BlobError> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(memory, &bytes[done..], (at + done) as u64) {
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(BlobError::Memory(e.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_under_their_digest() {
        for size in [0, 1, 4096, 3 << 20] {
            let bytes = vec![7u8; size];
            let blob = Blob::copy_of(&bytes).unwrap();
            assert_eq!((&*blob, blob.digest()), (bytes.as_slice(), Digest::of(&bytes)));
        }
    }

    #[test]
    fn sealed_memory_cannot_be_written() {
        let blob = Blob::copy_of(b"kiln").unwrap();
        let refused = rustix::io::pwrite(&blob, b"x", 0).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::PERM);
        assert!(rustix::fs::ftruncate(&blob, 0).is_err());
    }

    #[test]
    fn wrong_bytes_do_not_become_a_blob() {
        let mut writer = BlobWriter::with_size(4).unwrap();
        writer.write(b"kiln").unwrap();
        let refused = writer.finish_as(Digest::of(b"kilt")).unwrap_err();
        assert!(matches!(refused, BlobError::Corrupt { .. }));
        let mut writer = BlobWriter::with_size(4).unwrap();
        assert!(matches!(writer.write(b"kilns"), Err(BlobError::Length { .. })));
        writer.write(b"ki").unwrap();
        assert!(matches!(writer.finish(), Err(BlobError::Length { wanted: 4, found: 2 })));
    }
}
