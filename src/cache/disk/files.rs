//! The files themselves: where they lie, how they are written and read.
//!
//! Invariant: a file below `blobs/` was complete and synced under another name
//! before it got that name; and no byte of it becomes a [`Blob`] unhashed.
//!
//! ```text
//! blobs/ab/cdef…     the blob abcdef…
//! tmp/               files that are being written; emptied at start
//! quarantine/        the last few files that were not what they said
//! index/             RocksDB
//! ```

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use fail::fail_point;
use kiln_proto::{Digest, Hasher};
use parking_lot::{Mutex, MutexGuard};

use crate::cache::{Blob, BlobError, BlobWriter, Charge, TierError, TierName};

/// Read at once: large enough for the writer to hash and copy side by side, small
/// enough to be in the processor's cache still when it does.
const CHUNK: usize = 1 << 20;

pub(super) struct Files {
    root: PathBuf,
    /// One lock a folder: a name appears or disappears together with its entry
    /// in the catalog.
    folders: [Mutex<()>; 256],
    /// Makes names of temporary and quarantined files unique.
    sequence: AtomicU64,
    quarantine: QuarantineLimits,
    #[cfg(test)]
    pub(super) faults: Faults,
}

/// How much of what was corrupt is kept for people to look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct QuarantineLimits {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

/// A complete, synced file without its name; removed unless it is placed.
pub(super) struct Temporary {
    path: PathBuf,
    placed: bool,
}

/// Why a file did not become a blob.
pub(super) enum ReadError {
    Missing,
    Corrupt(String),
    Io(io::Error),
    Memory(BlobError),
}

#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    /// The next sync fails, as on a dying disk.
    pub(super) sync: std::sync::atomic::AtomicBool,
    /// Files and folders that were synced.
    pub(super) synced: Mutex<Vec<PathBuf>>,
}

impl Files {
    pub(super) fn open(root: &Path, quarantine: QuarantineLimits) -> io::Result<Self> {
        for folder in ["blobs", "tmp", "quarantine"] {
            fs::create_dir_all(root.join(folder))?;
        }
        let files = Self {
            root: root.to_owned(),
            folders: [const { Mutex::new(()) }; 256],
            sequence: AtomicU64::new(0),
            quarantine,
            #[cfg(test)]
            faults: Faults::default(),
        };
        files.sync(root)?;
        Ok(files)
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    pub(super) fn lock_folder(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.folders[usize::from(digest.as_bytes()[0])].lock()
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join("blobs").join(&name[..2]).join(&name[2..])
    }

    /// `blobs`, `tmp` or `quarantine`.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Bytes of the device, and what it has left for us.
    pub(super) fn device_bytes(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok((bytes(stat.f_blocks), bytes(stat.f_bavail)))
    }

    /// Bytes that the device has left for us.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Writes and syncs `blob` under a temporary name.
    pub(super) fn write(&self, blob: &Blob) -> io::Result<Temporary> {
        let path = self.root.join("tmp").join(self.unique(&blob.digest()));
        let mut file = File::create_new(&path)?;
        // From here on the file is removed, also when the sync fails: a sync
        // that failed once says nothing when it succeeds the second time.
        let temporary = Temporary { path, placed: false };
        fail_point!("blob.created");
        file.write_all(blob)?;
        fail_point!("blob.written");
        self.sync_file(&file, &temporary.path)?;
        fail_point!("blob.synced");
        Ok(temporary)
    }

    /// Gives the file its name, durably. The caller holds the folder's lock.
    pub(super) fn place(&self, mut temporary: Temporary, digest: &Digest) -> io::Result<()> {
        let path = self.path(digest);
        let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
        if let Err(e) = fs::rename(&temporary.path, &path) {
            if e.kind() != ErrorKind::NotFound {
                return Err(e);
            }
            fs::create_dir_all(folder)?;
            self.sync(&self.root.join("blobs"))?;
            fs::rename(&temporary.path, &path)?;
        }
        temporary.placed = true;
        fail_point!("blob.renamed");
        self.sync(folder).inspect_err(|_| {
            // Whether the name survives a power loss is unknown: rather none.
            if let Err(e) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), error = %e, "remove unsynced file");
            }
        })
    }

    /// Reads and verifies a file of `size` bytes into memory that was set aside.
    pub(super) fn read(
        &self,
        digest: &Digest,
        size: u64,
        charge: Charge,
    ) -> Result<Blob, ReadError> {
        let mut file = self.open_sized(digest, size)?;
        let mut writer = BlobWriter::charged(charge, size).map_err(ReadError::Memory)?;
        let mut chunk = vec![0; usize::try_from(size).unwrap_or(CHUNK).min(CHUNK)];
        while writer.filled() < size {
            match read_up_to(&mut file, &mut chunk).map_err(ReadError::Io)? {
                // Shorter than it was a moment ago: `finish` says so.
                0 => break,
                n => writer.write(&chunk[..n]).map_err(ReadError::from)?,
            }
        }
        writer.finish_as(*digest).map_err(ReadError::from)
    }

    /// Reads a file and hashes it; keeps nothing.
    pub(super) fn verify(&self, digest: &Digest, size: u64) -> Result<(), ReadError> {
        let mut file = self.open_sized(digest, size)?;
        let mut hasher = Hasher::new();
        let mut chunk = vec![0; usize::try_from(size).unwrap_or(CHUNK).clamp(1, CHUNK)];
        loop {
            match read_up_to(&mut file, &mut chunk).map_err(ReadError::Io)? {
                0 => break,
                n => hasher.update(&chunk[..n]),
            };
        }
        match Digest::from(hasher.finalize()) {
            found if found == *digest => Ok(()),
            found => Err(ReadError::Corrupt(format!("the bytes hash to {found}"))),
        }
    }

    /// Whether the file of `blob` is there and holds the same bytes. Cheaper than
    /// [`read`](Self::read): nothing is hashed or kept.
    pub(super) fn compare(&self, blob: &Blob) -> Result<(), ReadError> {
        let mut file = self.open_sized(&blob.digest(), blob.size())?;
        let mut chunk = vec![0; blob.len().min(CHUNK)];
        for expected in blob.chunks(CHUNK) {
            let found = read_up_to(&mut file, &mut chunk).map_err(ReadError::Io)?;
            if chunk[..found] != *expected {
                return Err(ReadError::Corrupt("not the bytes that were put".into()));
            }
        }
        Ok(())
    }

    /// Whether the file is there with so many bytes.
    pub(super) fn check_size(&self, digest: &Digest, size: u64) -> Result<(), ReadError> {
        self.open_sized(digest, size).map(drop)
    }

    fn open_sized(&self, digest: &Digest, size: u64) -> Result<File, ReadError> {
        let file = match File::open(self.path(digest)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(ReadError::Missing),
            opened => opened.map_err(ReadError::Io)?,
        };
        match file.metadata().map_err(ReadError::Io)?.len() {
            found if found == size => Ok(file),
            found => Err(ReadError::Corrupt(format!("{found} bytes on disk, {size} expected"))),
        }
    }

    /// Removes a file; whether it was there. The caller holds the folder's lock.
    pub(super) fn remove(&self, digest: &Digest) -> io::Result<bool> {
        found(fs::remove_file(self.path(digest)))
    }

    /// Moves a file out of the way, and the oldest out of quarantine.
    /// The caller holds the folder's lock.
    pub(super) fn quarantine(&self, digest: &Digest) -> io::Result<bool> {
        let folder = self.root.join("quarantine");
        let kept = folder.join(self.unique(digest));
        let moved = found(fs::rename(self.path(digest), kept))?;
        fail_point!("quarantine.moved");
        let mut files = Vec::new();
        for file in fs::read_dir(&folder)? {
            let file = file?;
            let meta = file.metadata()?;
            files.push((meta.modified()?, meta.len(), file.path()));
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|f| f.1).sum();
        let mut count = files.len();
        for (_, size, path) in files {
            if count <= self.quarantine.files && bytes <= self.quarantine.bytes {
                break;
            }
            found(fs::remove_file(path))?;
            (count, bytes) = (count - 1, bytes - size);
        }
        Ok(moved)
    }

    /// Removes what a crash left half-written; how many.
    pub(super) fn clear_temporaries(&self) -> io::Result<u64> {
        let mut removed = 0;
        for file in fs::read_dir(self.root.join("tmp"))? {
            removed += u64::from(found(fs::remove_file(file?.path()))?);
        }
        Ok(removed)
    }

    /// Calls `each` for every file below `blobs/`: its digest, if its name is
    /// one, its size and its path.
    pub(super) fn walk(
        &self,
        mut each: impl FnMut(Option<Digest>, u64, &Path) -> Result<(), TierError>,
    ) -> Result<(), TierError> {
        let failed = |e| TierError::disk("list files", 0, e);
        for folder in fs::read_dir(self.root.join("blobs")).map_err(failed)? {
            let folder = folder.map_err(failed)?;
            if !folder.file_type().map_err(failed)?.is_dir() {
                each(None, 0, &folder.path())?;
                continue;
            }
            for file in fs::read_dir(folder.path()).map_err(failed)? {
                let file = file.map_err(failed)?;
                let meta = file.metadata().map_err(failed)?;
                let digest =
                    meta.is_file().then(|| named(&folder.file_name(), &file.file_name())).flatten();
                each(digest, meta.len(), &file.path())?;
            }
        }
        Ok(())
    }

    fn unique(&self, digest: &Digest) -> String {
        let n = self.sequence.fetch_add(1, Ordering::Relaxed);
        format!("{digest}.{}.{n}", std::process::id())
    }

    fn sync(&self, folder: &Path) -> io::Result<()> {
        self.sync_file(&File::open(folder)?, folder)
    }

    #[cfg_attr(not(test), allow(unused_variables))]
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        {
            self.faults.synced.lock().push(path.to_owned());
            if self.faults.sync.swap(false, Ordering::SeqCst) {
                return Err(rustix::io::Errno::IO.into());
            }
        }
        file.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "remove temporary file");
        }
    }
}

impl From<BlobError> for ReadError {
    fn from(e: BlobError) -> Self {
        match e {
            BlobError::Memory(_) | BlobError::NoRoom(_) => Self::Memory(e),
            BlobError::Corrupt { .. } | BlobError::Length { .. } => Self::Corrupt(e.to_string()),
        }
    }
}

impl ReadError {
    /// Whether the file itself is to blame: not the lack of memory or descriptors
    /// of this process, which says nothing about the bytes on the disk.
    pub(super) fn condemns(&self) -> bool {
        use rustix::io::Errno;
        match self {
            Self::Missing | Self::Corrupt(_) => true,
            Self::Memory(_) => false,
            Self::Io(e) => !matches!(
                Errno::from_io_error(e),
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::ACCESS)
            ),
        }
    }

    /// As the tier reports it; a missing file is no error.
    pub(super) fn report(self, digest: &Digest) -> Option<TierError> {
        let (tier, digest) = (TierName::Disk, *digest);
        match self {
            Self::Missing => None,
            Self::Corrupt(why) => Some(TierError::Corrupt { tier, digest, why }),
            Self::Io(e) => Some(TierError::disk("read file", 0, e)),
            Self::Memory(source) => Some(TierError::Memory { tier, source }),
        }
    }
}

fn named(folder: &OsStr, file: &OsStr) -> Option<Digest> {
    let (folder, file) = (folder.to_str()?, file.to_str()?);
    (folder.len() == 2).then(|| format!("{folder}{file}").parse().ok()).flatten()
}

/// Whether the thing that was removed or moved was there.
fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
