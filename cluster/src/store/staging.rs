//! A snapshot from another node, as a file until it is installed.
//!
//! Invariant: a [`Staged`] file is complete and durable; its reader reaches the end
//! only if every byte is as it was written. All but [`Staging::receive`] blocks.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    pin::pin,
};

use bytes::Bytes;
use fail::fail_point;
use futures::{Stream, StreamExt};

use super::moving::{Direction, Moving};
use crate::{blocking, codec, error::io_error, raft::SnapshotMeta};

/// Largest record or chunk that is taken from another node, in bytes.
const MOST_CHUNK: usize = 64 << 20;

/// A received snapshot on disk; the file goes with it.
pub(crate) struct Staged {
    pub(super) path: PathBuf,
    pub(super) keep: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove a snapshot");
        }
    }
}

/// A snapshot that is being received.
pub(crate) struct Staging {
    staged: Staged,
    file: BufWriter<File>,
    hasher: kiln_proto::Hasher,
}

impl Staging {
    /// Starts a file in `dir`.
    pub(super) fn create(dir: &Path, meta: &SnapshotMeta) -> io::Result<Self> {
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(io_error)?;
        let path = dir.join(format!("{}.snapshot", hex::encode(name)));
        let file = BufWriter::new(File::create_new(&path)?);
        let staged = Staged { path, keep: false };
        let mut staging = Self { staged, file, hasher: kiln_proto::Hasher::new() };
        staging.push(&codec::encode(meta).map_err(io_error)?)?;
        fail_point!("snapshot.created");
        Ok(staging)
    }

    /// Receives a whole snapshot into `dir`. An error among its chunks leaves no file.
    pub(crate) async fn receive(
        dir: PathBuf,
        meta: SnapshotMeta,
        chunks: impl Stream<Item = io::Result<Bytes>>,
    ) -> io::Result<Staged> {
        let mut chunks = pin!(chunks);
        let mut staging = blocking::run(move || Self::create(&dir, &meta)).await??;
        let moving = Moving::begin(Direction::Received);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            moving.add(chunk.len());
            staging = blocking::run(move || staging.push(&chunk).map(|()| staging)).await??;
        }
        blocking::run(move || staging.finish()).await?
    }

    /// Adds one chunk.
    pub(super) fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        if chunk.is_empty() || chunk.len() > MOST_CHUNK {
            return Err(io::Error::other(format!("a snapshot chunk of {} bytes", chunk.len())));
        }
        let size = u32::try_from(chunk.len()).map_err(io_error)?.to_be_bytes();
        self.hasher.update(&size);
        self.hasher.update(chunk);
        self.file.write_all(&size)?;
        fail_point!("snapshot.torn");
        self.file.write_all(chunk)
    }

    /// Ends the file and makes it durable.
    pub(super) fn finish(mut self) -> io::Result<Staged> {
        self.file.write_all(&0u32.to_be_bytes())?;
        self.file.write_all(self.hasher.finalize().as_bytes())?;
        self.file.flush()?;
        fail_point!("snapshot.written");
        self.file.get_ref().sync_all()?;
        if let Some(dir) = self.staged.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        fail_point!("snapshot.synced");
        Ok(self.staged)
    }
}

/// Reads a staged file's chunks in order, the meta data first; the end is
/// reached only if the whole file is as it was written.
pub(super) fn read_chunks(
    path: &Path,
    mut take: impl FnMut(usize, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let mut hasher = kiln_proto::Hasher::new();
    let mut chunk = Vec::new();
    for at in 0.. {
        let mut size = [0; 4];
        file.read_exact(&mut size)?;
        let length = u32::from_be_bytes(size) as usize;
        if length == 0 {
            break;
        }
        if length > MOST_CHUNK {
            return Err(io::Error::other("a staged snapshot is damaged"));
        }
        chunk.resize(length, 0);
        file.read_exact(&mut chunk)?;
        hasher.update(&size);
        hasher.update(&chunk);
        take(at, &chunk)?;
    }
    let mut digest = [0; 32];
    file.read_exact(&mut digest)?;
    if hasher.finalize().as_bytes() != &digest {
        return Err(io::Error::other("a staged snapshot is damaged"));
    }
    Ok(())
}
