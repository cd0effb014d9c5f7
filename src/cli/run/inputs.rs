//! What a pack's files were made from, and whether that is the same here.
//!
//! Invariant: an output counts as current only where every file that its build names
//! has the bytes that it was made from: content decides, never a time. What cannot be
//! compared counts as different.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use kiln_proto::{Digest, Manifest};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{builds::Rules, scan::Seen};

/// Its path within the pack.
pub(crate) const PATH: &str = ".kiln/inputs.json";
pub(super) const VERSION: u32 = 1;
/// Bounds what comparing costs: beyond it nothing is compared.
const MOST_BYTES: u64 = 2 << 30;
const MOST_FILES: usize = 50_000;

/// Outputs of a pack with what they were made from.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Inputs {
    version: u32,
    /// Path and digest; no digest: there was no such file.
    files: Vec<(String, Option<Digest>)>,
    /// By output, its inputs' places in `files`; none where they are not known.
    made: BTreeMap<String, Option<Vec<u32>>>,
}

impl Inputs {
    /// Reads one; what cannot be read says that nothing is known.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let read: Result<Self, _> = serde_json::from_slice(bytes);
        read.ok().filter(|inputs| inputs.version == VERSION).unwrap_or_default()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Of lists and maps of text and numbers: it cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// What was made in `folder` by `rules`. `outputs` are the files that are meant, as
    /// they were seen; `old` tells of one that COMMAND found there.
    pub(crate) fn of(
        folder: &Path,
        rules: &Rules,
        outputs: &BTreeMap<String, Seen>,
        old: impl Fn(&str) -> bool,
    ) -> Self {
        let mut here = Here::new(folder);
        let mut inputs = Self { version: VERSION, ..Self::default() };
        let mut places = HashMap::new();
        for (output, made_from) in rules {
            let seen = outputs.get(output);
            let mut found = Some(Vec::new());
            for path in made_from {
                let Some(list) = &mut found else { break };
                // What another rule makes is as current as that one says.
                let state = match rules.contains_key(path) {
                    true => Some(State::default()),
                    false => here.state(path),
                };
                // A later change than the output's: who knows which bytes it was made from.
                let late = |state: &State| match seen {
                    Some(seen) if old(output) => state.modified > seen.modified,
                    Some(seen) => state.changed > seen.changed,
                    None => false,
                };
                if state.as_ref().is_none_or(late) {
                    found = None;
                    break;
                }
                let digest = state.and_then(|state| state.digest);
                let next = places.len() as u32;
                let place = *places.entry((path.clone(), digest)).or_insert(next);
                if place == next {
                    inputs.files.push((path.clone(), digest));
                }
                list.push(place);
            }
            inputs.made.insert(output.clone(), found);
        }
        inputs
    }

    /// Outputs of which it is not known what they were made from.
    pub(crate) fn doubtful(&self) -> BTreeSet<String> {
        let unknown = self.made.iter().filter(|(_, list)| list.is_none());
        unknown.map(|(output, _)| output.clone()).collect()
    }

    /// Takes from `other` what it says of outputs that `from` names.
    pub(crate) fn add(&mut self, other: &Self, from: impl Fn(&str) -> bool) {
        self.version = VERSION;
        let mut places: HashMap<_, _> = self.files.iter().cloned().zip(0..).collect();
        for (output, list) in other.made.iter().filter(|(output, _)| from(output)) {
            let moved = |place: &u32| {
                let file = other.files.get(*place as usize)?.clone();
                let next = self.files.len() as u32;
                Some(*places.entry(file.clone()).or_insert_with(|| {
                    self.files.push(file);
                    next
                }))
            };
            let list = list.as_ref().and_then(|list| list.iter().map(moved).collect());
            self.made.insert(output.clone(), list);
        }
    }

    /// Compares what was recorded with what is in `folder`, and around it, now.
    pub(crate) fn compare(&self, folder: &Path, manifest: &Manifest) -> Verdict {
        let mut here = Here::new(folder);
        let mut newest = (0, 0);
        let mut differs = None;
        let equal: Vec<bool> = self
            .files
            .iter()
            .map(|(path, digest)| {
                if self.made.contains_key(path) {
                    return true;
                }
                let file = |path: &str| {
                    let files = &manifest.files;
                    files
                        .binary_search_by(|file| file.path.as_str().cmp(path))
                        .ok()
                        .map(|at| &files[at])
                };
                let state = here.state(path);
                newest = newest.max(state.as_ref().map_or((0, 0), |state| state.modified));
                let found = match state {
                    Some(State { digest: None, .. }) => Some(file(path).map(|file| file.digest)),
                    Some(state) => Some(state.digest),
                    None => None,
                };
                let equal = found == Some(*digest);
                if !equal && differs.is_none() {
                    differs = Some(path.clone());
                }
                equal
            })
            .collect();
        // Outputs that are inputs of others: those are only as current as these.
        let mut stale: BTreeSet<&str> = BTreeSet::new();
        let mut more = true;
        while more {
            more = false;
            for (output, list) in &self.made {
                let good = |place: &u32| {
                    let file = self.files.get(*place as usize);
                    file.is_some_and(|(path, _)| !stale.contains(path.as_str()))
                        && equal.get(*place as usize) == Some(&true)
                };
                let current = list.as_ref().is_some_and(|list| list.iter().all(good));
                if !current && !stale.contains(output.as_str()) {
                    stale.insert(output);
                    more = true;
                }
            }
        }
        let made = self.made.keys();
        let current = made.filter(|output| !stale.contains(output.as_str())).cloned().collect();
        let stale = stale.into_iter().map(str::to_owned).collect();
        Verdict { current, stale, differs, newest }
    }
}

/// How a pack's outputs stand to the files here.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Made from the very bytes that are here.
    pub(crate) current: BTreeSet<String>,
    /// Made from others, or nobody knows.
    pub(crate) stale: BTreeSet<String>,
    /// An input that differs.
    pub(crate) differs: Option<String>,
    /// When the newest input changed.
    pub(crate) newest: (i64, u32),
}

/// A file now.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// None: there is no such regular file.
    digest: Option<Digest>,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// Files in and around a folder, each read once.
struct Here<'a> {
    folder: &'a Path,
    states: HashMap<String, Option<State>>,
    bytes: u64,
}

impl<'a> Here<'a> {
    fn new(folder: &'a Path) -> Self {
        Self { folder, states: HashMap::new(), bytes: 0 }
    }

    /// `None`: it cannot be read, or there is too much to read.
    fn state(&mut self, path: &str) -> Option<State> {
        if let Some(state) = self.states.get(path) {
            return *state;
        }
        let state = match self.states.len() < MOST_FILES {
            true => self.read(path),
            false => None,
        };
        self.states.insert(path.to_owned(), state);
        state
    }

    fn read(&mut self, path: &str) -> Option<State> {
        // A path from the root stands for itself.
        let path = self.folder.join(path);
        let Ok(data) = fs::metadata(&path) else {
            return Some(State::default());
        };
        let time = |seconds: i64, nanoseconds: i64| (seconds, nanoseconds as u32);
        let modified = time(data.mtime(), data.mtime_nsec());
        let changed = time(data.ctime(), data.ctime_nsec());
        // A folder stands for being there.
        if !data.is_file() {
            return Some(State::default());
        }
        self.bytes = self.bytes.saturating_add(data.len());
        if self.bytes > MOST_BYTES {
            return None;
        }
        let quiet = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags: OFlags| {
            File::options().read(true).custom_flags(flags.bits().cast_signed()).open(&path)
        };
        // Reading is not to look like COMMAND's, where that is allowed.
        let file = open(quiet | OFlags::NOATIME).or_else(|_| open(quiet)).ok()?;
        let mut hasher = blake3::Hasher::new();
        let mut limited = file.take(data.len() + 1);
        let read = std::io::copy(&mut limited.by_ref(), &mut hasher).ok()?;
        let digest = Some(Digest::from(hasher.finalize()));
        (read == data.len()).then_some(State { digest, modified, changed })
    }
}
