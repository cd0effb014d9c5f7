//! From a folder's files, and what the cluster has, to one pack.
//!
//! Invariant: a pack without a file of its own is never made: it would be a hit
//! that restores nothing. It keeps within the artifact's and the user's limits.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    time::Duration,
};

use kiln::artifact;
use kiln_proto::{MAX_FILES, MAX_PACK_BYTES, Manifest};

use super::{
    builds, fill,
    index::{self, FolderIndex},
    inputs::{self, Inputs},
    scan::Seen,
    spool::{self, Pack, Spool, Took},
};
use crate::cli::fetch::Fetched;

/// What is to be captured.
pub(crate) struct Job {
    pub(crate) folder: PathBuf,
    /// Files to read, as they were seen.
    pub(crate) wanted: BTreeMap<String, Seen>,
    /// Files of the folder that say what others were made from.
    pub(crate) build_files: Vec<String>,
    /// Those of `wanted` that COMMAND found there.
    pub(crate) old: BTreeSet<String>,
    /// What the cluster has.
    pub(crate) base: Option<Fetched>,
    /// Whether more is to come, from this process or from another one that fills it.
    pub(crate) filling: bool,
    pub(crate) max_bytes: u64,
}

/// What came of it.
pub(crate) struct Found {
    /// Absent where the cluster has all of it.
    pub(crate) pack: Option<Pack>,
    /// Files that are in the pack, or equal in the cluster.
    pub(crate) taken: BTreeMap<String, Seen>,
    /// Files that the cluster did not have, and their bytes.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Files that changed while they were read.
    pub(crate) changing: usize,
    /// Files that do not fit.
    pub(crate) beyond: usize,
    /// When the newest of them changed, since the Unix epoch.
    pub(crate) newest: Duration,
}

/// Whether the artifact has the file `path`.
pub(crate) fn has(manifest: &Manifest, path: &str) -> bool {
    manifest.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()
}

impl Job {
    pub(crate) fn gather(self) -> io::Result<Found> {
        // One byte of room for each entry of the index is not exact, and need not be.
        let limit = self.max_bytes.min(MAX_PACK_BYTES - (16 << 20));
        let most = MAX_FILES - 1;
        let root = spool::open_folder(&self.folder)?;
        let mut spool = Spool::new()?;
        let mut found = Found {
            pack: None,
            taken: BTreeMap::new(),
            files: 0,
            bytes: 0,
            changing: 0,
            beyond: 0,
            newest: Duration::ZERO,
        };
        let mut equal = BTreeSet::new();
        for (path, seen) in self.by_need(limit, most) {
            if spool.files() >= most || spool.bytes() + seen.size > limit {
                found.beyond += 1;
                continue;
            }
            let adapt = |bytes| self.with_others(path, bytes);
            let Took::File(digest) = spool.read(&root, path, seen, adapt)? else {
                found.changing += 1;
                continue;
            };
            found.taken.insert(path.clone(), *seen);
            let theirs = self.base.as_ref().and_then(|base| {
                let files = &base.manifest.files;
                let at = files.binary_search_by(|file| file.path.cmp(path));
                at.ok().map(|at| files[at].digest)
            });
            if theirs == Some(digest) {
                equal.insert(path.clone());
            } else {
                found.files += 1;
                found.bytes += seen.size;
                found.newest = found.newest.max(seen.age_mark());
            }
        }
        if found.files > 0 || self.finishes() {
            if self.filling {
                spool.add(fill::PATH, fill::TEXT, None)?;
            }
            let inputs = self.inputs(&found.taken, &equal);
            if !inputs.is_empty() {
                spool.add(inputs::PATH, &inputs.encode(), None)?;
            }
            found.beyond += self.add_base(&mut spool, limit, most)?;
            found.pack = Some(spool.finish()?);
        }
        Ok(found)
    }

    /// ninja's files tell of what others made as well.
    fn with_others(&self, path: &str, bytes: Vec<u8>) -> Vec<u8> {
        let base = self.base.as_ref().filter(|_| builds::is_record(path));
        let theirs = base.and_then(|base| artifact::file(&base.manifest, &base.pack, path).ok());
        theirs.and_then(|theirs| builds::merged(path, &bytes, theirs)).unwrap_or(bytes)
    }

    /// What the pack's files were made from: those of `taken` as the folder tells, the
    /// others, and those that are `equal` and of which it cannot tell, as the cluster has it.
    fn inputs(&self, taken: &BTreeMap<String, Seen>, equal: &BTreeSet<String>) -> Inputs {
        let base = self.base.as_ref();
        let theirs = base.and_then(|base| {
            artifact::file(&base.manifest, &base.pack, inputs::PATH).map(Inputs::decode).ok()
        });
        let mut rules = builds::rules(&self.folder, &self.build_files);
        rules.retain(|output, _| {
            taken.contains_key(output) || !base.is_some_and(|base| has(&base.manifest, output))
        });
        let mut inputs = Inputs::of(&self.folder, &rules, taken, |path| self.old.contains(path));
        if let Some(theirs) = theirs {
            let open = |output: &str| !rules.contains_key(output);
            let doubtful = inputs.doubtful();
            let better = |output: &str| doubtful.contains(output) && equal.contains(output);
            inputs.add(&theirs, |output| open(output) || better(output));
        }
        inputs
    }

    /// Whether what the cluster has is to lose its filler's mark.
    fn finishes(&self) -> bool {
        !self.filling && self.base.as_ref().is_some_and(|base| fill::unfinished(&base.manifest))
    }

    /// In path order; the newest first where not all of them fit.
    fn by_need(&self, limit: u64, most: usize) -> Vec<(&String, &Seen)> {
        let mut wanted: Vec<_> = self.wanted.iter().collect();
        let bytes: u64 = wanted.iter().map(|(_, seen)| seen.size).sum();
        if bytes > limit || wanted.len() > most {
            wanted.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.changed));
        }
        wanted
    }

    /// What the cluster has beside it stays, as far as it fits.
    fn add_base(&self, spool: &mut Spool, limit: u64, most: usize) -> io::Result<usize> {
        let Some(base) = &self.base else { return Ok(0) };
        let file = |path: &str| artifact::file(&base.manifest, &base.pack, path);
        let index = file(index::PATH).map(FolderIndex::decode).unwrap_or_default();
        let mut beyond = 0;
        for entry in &base.manifest.files {
            // Kiln's own files are made anew.
            if entry.path.starts_with(index::OWN) || spool.has(&entry.path) {
                continue;
            }
            if spool.files() >= most || spool.bytes() + entry.size > limit {
                beyond += 1;
                continue;
            }
            let bytes = file(&entry.path).map_err(io::Error::other)?;
            spool.add(&entry.path, bytes, index.get(&entry.path))?;
        }
        Ok(beyond)
    }
}
