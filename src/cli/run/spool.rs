//! A pack in the making, in an unnamed temporary file.
//!
//! Invariant: what [`Spool::read`] took is the file as it was at one moment: a
//! file that changed while it was read leaves nothing behind.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use kiln::clock;
use kiln_proto::{Digest, FileEntry};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{
    index::{self, FolderIndex, Meta},
    scan::Seen,
};

/// Bytes of one message to the node.
const CHUNK_BYTES: u64 = 1 << 20;
/// A file that changed this recently may change again within one tick of the
/// clock that would tell.
const TICK: Duration = Duration::from_millis(20);

/// What came of reading a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Took {
    /// It is in the spool.
    File(Digest),
    /// It is not what was seen, or changed meanwhile: look again later.
    Changing,
}

/// Files read so far.
pub(crate) struct Spool {
    bytes: File,
    filled: u64,
    pieces: BTreeMap<String, Piece>,
    index: FolderIndex,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    size: u64,
    digest: Digest,
}

/// A finished pack: bytes in the spool's order, entries in path order.
pub(crate) struct Pack {
    bytes: File,
    offsets: Vec<u64>,
    pub(crate) files: Vec<FileEntry>,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Spool {
    pub(crate) fn new() -> io::Result<Self> {
        let bytes = tempfile::tempfile()?;
        let (pieces, index) = (BTreeMap::new(), FolderIndex::default());
        Ok(Self { bytes, filled: 0, pieces, index })
    }

    /// Files taken.
    pub(crate) fn files(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.filled
    }

    /// Whether the file `path` is taken.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.pieces.contains_key(path)
    }

    /// Takes the file `path` below `folder`, which looked like `seen`, as `adapt` has it.
    pub(crate) fn read(
        &mut self,
        folder: &OwnedFd,
        path: &str,
        seen: &Seen,
        adapt: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) -> io::Result<Took> {
        if recently(seen.changed) {
            return Ok(Took::Changing);
        }
        match read(folder, path, seen)? {
            Some(bytes) => self.add(path, &adapt(bytes), Some(seen.into())).map(Took::File),
            None => Ok(Took::Changing),
        }
    }

    /// Takes `bytes` as the file `path`.
    pub(crate) fn add(
        &mut self,
        path: &str,
        bytes: &[u8],
        meta: Option<Meta>,
    ) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        self.bytes.write_all_at(bytes, self.filled)?;
        let piece = Piece { offset: self.filled, size: bytes.len() as u64, digest };
        self.filled += piece.size;
        self.pieces.insert(path.to_owned(), piece);
        if let Some(meta) = meta {
            self.index.insert(path.to_owned(), meta);
        }
        Ok(digest)
    }

    /// Adds the index, and settles order and digest.
    pub(crate) fn finish(mut self) -> io::Result<Pack> {
        let index = self.index.encode();
        self.add(index::PATH, &index, None)?;
        self.bytes.flush()?;
        let mut hasher = blake3::Hasher::new();
        let (mut files, mut offsets, mut size) = (Vec::new(), Vec::new(), 0);
        for (path, piece) in self.pieces {
            for chunk in chunks(&self.bytes, piece.offset, piece.size) {
                hasher.update(&chunk?);
            }
            files.push(FileEntry { path, offset: size, size: piece.size, digest: piece.digest });
            offsets.push(piece.offset);
            size += piece.size;
        }
        let digest = hasher.finalize().into();
        Ok(Pack { bytes: self.bytes, offsets, files, digest, size })
    }
}

impl Pack {
    /// The bytes in pack order. One that cannot be read ends them early, which
    /// the node refuses.
    pub(crate) fn into_chunks(self) -> impl Iterator<Item = Bytes> + Send + 'static {
        let Self { bytes, offsets, files, .. } = self;
        let pieces = offsets.into_iter().zip(files.into_iter().map(|file| file.size));
        let bytes = std::sync::Arc::new(bytes);
        let all = pieces.flat_map(move |(offset, size)| {
            let bytes = bytes.clone();
            starts(size).map(move |at| chunk(&bytes, offset + at, size - at))
        });
        all.map_while(Result::ok).map(Bytes::from)
    }
}

fn starts(size: u64) -> impl Iterator<Item = u64> {
    (0..size).step_by(CHUNK_BYTES as usize)
}

fn chunk(file: &File, at: u64, left: u64) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; left.min(CHUNK_BYTES) as usize];
    file.read_exact_at(&mut chunk, at)?;
    Ok(chunk)
}

fn chunks(file: &File, offset: u64, size: u64) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    starts(size).map(move |at| chunk(file, offset + at, size - at))
}

fn recently(changed: (i64, u32)) -> bool {
    let now = clock::since_epoch();
    let changed = Duration::new(changed.0.unsigned_abs(), changed.1);
    // In the future: another machine's clock, which tells nothing.
    now.checked_sub(changed).is_some_and(|age| age < TICK)
}

/// The bytes of the file `path` below `folder`; `None` where it is not what was
/// `seen`, or not any more when all was read. No link is followed on the way.
pub(crate) fn read(folder: &OwnedFd, path: &str, seen: &Seen) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = |flags| rustix::fs::openat2(folder, path, flags, Mode::empty(), within);
    // That COMMAND opened a file is seen by its time of access. Another user's file can
    // only be opened with that.
    let opened = match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => file,
        // Gone, a link by now, moved meanwhile, or not ours to read.
        Err(
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV | Errno::AGAIN | Errno::ACCESS,
        ) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if Seen::of(&rustix::fs::fstat(&file)?) != *seen {
        return Ok(None);
    }
    let mut file = File::from(file);
    let mut bytes = Vec::with_capacity(usize::try_from(seen.size).unwrap_or_default());
    // One byte more than there were tells that it grows.
    (&mut file).take(seen.size + 1).read_to_end(&mut bytes)?;
    let whole = bytes.len() as u64 == seen.size && Seen::of(&rustix::fs::fstat(&file)?) == *seen;
    Ok(whole.then_some(bytes))
}

/// Opens the folder itself, for [`Spool::read`].
pub(crate) fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::{
        super::{patterns::Patterns, scan::scan},
        *,
    };

    fn seen(dir: &Path) -> BTreeMap<String, Seen> {
        scan(dir, &Patterns::new(&[], &[])).unwrap().files
    }

    /// As if it had been written a while ago.
    fn aged(seen: Seen) -> Seen {
        while recently(seen.changed) {
            std::thread::yield_now();
        }
        seen
    }

    #[test]
    fn a_pack_is_in_path_order_with_its_index() {
        let mut spool = Spool::new().unwrap();
        spool.add("b", b"two", None).unwrap();
        spool.add("a/x", &vec![7; 3 << 20], None).unwrap();
        spool.add("empty", b"", None).unwrap();
        let pack = spool.finish().unwrap();
        let paths: Vec<_> = pack.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [index::PATH, "a/x", "b", "empty"]);
        let (digest, size) = (pack.digest, pack.size);
        let bytes: Vec<u8> = pack.into_chunks().flatten().collect();
        assert_eq!((Digest::of(&bytes), bytes.len() as u64), (digest, size));
    }

    #[test]
    fn what_changes_while_it_is_read_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "one").unwrap();
        let folder = open_folder(dir.path()).unwrap();
        let before = aged(seen(dir.path())["f"]);
        let mut spool = Spool::new().unwrap();
        assert!(matches!(spool.read(&folder, "f", &before, |b| b).unwrap(), Took::File(_)));
        fs::write(dir.path().join("f"), "two").unwrap();
        let mut spool = Spool::new().unwrap();
        assert_eq!(spool.read(&folder, "f", &before, |b| b).unwrap(), Took::Changing);
        let fresh = seen(dir.path())["f"];
        if recently(fresh.changed) {
            assert_eq!(spool.read(&folder, "f", &fresh, |b| b).unwrap(), Took::Changing);
        }
        assert_eq!(spool.files(), 0);
    }

    #[test]
    fn a_link_put_in_the_way_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("f"), "secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        // As if the folder had been there with this very file at the last look.
        let before = aged(seen(outside.path())["f"]);
        symlink(outside.path(), dir.path().join("a")).unwrap();
        let folder = open_folder(dir.path()).unwrap();
        let taken = Spool::new().unwrap().read(&folder, "a/f", &before, |b| b).unwrap();
        assert_eq!(taken, Took::Changing);
    }
}
