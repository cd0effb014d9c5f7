//! The disk tier, looked at and swept while it is in use.
//!
//! Invariant: nothing that is whole is lost by it. What is dropped was missing, of another
//! size, or not what its digest says; the quarantine holds only such files.

use std::{
    fs,
    io::{self, Read, Write},
    time::{Duration, Instant, SystemTime},
};

use kiln_proto::Digest;

use super::{
    files::{Files, ReadError},
    store::Store,
};
use crate::cache::TierError;

/// Of the file that shows how the device does.
const PROBE: usize = 4096;
/// A file that is being written is younger.
const ABANDONED: Duration = Duration::from_secs(3600);
/// What a renewal may spend on reading blobs.
const VERIFYING: Duration = Duration::from_secs(20);

/// What a renewal did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Renewed {
    /// Files that left the quarantine for good.
    pub quarantined: u64,
    /// Half-written files of long ago that were removed.
    pub temporaries: u64,
    /// Blobs whose file was gone, of another size or corrupt: they are not offered any more.
    pub dropped: u64,
    /// Blobs that were read and are what they should be.
    pub verified: u64,
    /// All blobs were read; else the time for it was over.
    pub complete: bool,
}

impl Store {
    /// Empties the quarantine, compares what is here with its files, and sees whether the
    /// device and the index take writes.
    pub(super) fn renew(&self) -> Result<Renewed, TierError> {
        let failed = |action| move |e| TierError::disk(action, 0, e);
        self.files.make_folders().map_err(failed("make folders"))?;
        // First, for it is what most probably fails.
        self.files.probe().map_err(failed("probe"))?;
        self.index.write(&[], &[Digest::of(b"no blob has this name")])?;
        let quarantined = self.files.empty("quarantine", Duration::ZERO);
        let temporaries = self.files.empty("tmp", ABANDONED);
        let mut renewed = Renewed {
            quarantined: quarantined.map_err(failed("empty the quarantine"))?,
            temporaries: temporaries.map_err(failed("remove abandoned files"))?,
            complete: true,
            ..Renewed::default()
        };
        let ends = Instant::now() + VERIFYING;
        let contents = self.catalog.lock().contents();
        for (digest, size) in contents {
            let file = self.catalog.lock().file(&digest);
            let read = match Instant::now() < ends {
                true => self.files.verify(&digest, size).map(|()| renewed.verified += 1),
                false => {
                    renewed.complete = false;
                    self.files.check_size(&digest, size)
                }
            };
            match read {
                Ok(()) => {}
                Err(why @ (ReadError::Missing | ReadError::Corrupt(_))) => {
                    if file.is_some() {
                        self.set_unreadable_aside(&digest, file, &why);
                        renewed.dropped += 1;
                    }
                }
                Err(why) => why.report(&digest).map_or(Ok(()), Err)?,
            }
        }
        Ok(renewed)
    }
}

impl Files {
    /// Writes, syncs, reads and removes a small file, and compares.
    pub(super) fn probe(&self) -> io::Result<Duration> {
        let began = Instant::now();
        let mut file = tempfile::Builder::new().prefix("probe.").tempfile_in(self.folder("tmp"))?;
        let bytes = [0xa5; PROBE];
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        let mut read = Vec::with_capacity(PROBE);
        file.reopen()?.read_to_end(&mut read)?;
        file.close()?;
        match read == bytes {
            true => Ok(began.elapsed()),
            false => Err(io::Error::other("a file did not keep what was written")),
        }
    }

    fn make_folders(&self) -> io::Result<()> {
        ["blobs", "tmp", "quarantine"]
            .iter()
            .try_for_each(|name| fs::create_dir_all(self.folder(name)))
    }

    /// Removes the files of a folder that are at least so old; how many.
    fn empty(&self, folder: &str, age: Duration) -> io::Result<u64> {
        let mut removed = 0;
        for file in fs::read_dir(self.folder(folder))? {
            let file = file?;
            let changed = file.metadata().and_then(|meta| meta.modified());
            // One that is gone meanwhile, or from the future, is not ours to remove.
            let old = changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if age.is_zero() || old.is_some_and(|old| old >= age) {
                match fs::remove_file(file.path()) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    done => {
                        done?;
                        removed += 1;
                    }
                }
            }
        }
        Ok(removed)
    }
}
