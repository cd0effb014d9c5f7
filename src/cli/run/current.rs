//! Which of a pack's outputs may be put into a folder, and ninja's files for them.
//!
//! Invariant: no tool is made to believe that an output is current which was made from
//! other bytes than are here: such a one is not written, and ninja's files do not know
//! it. What ninja has here already is never contradicted.

use std::{collections::BTreeSet, fs, path::Path};

use kiln::{artifact, clock};
use kiln_proto::Manifest;

use super::{
    builds::{self, Folders},
    inputs::{self, Inputs, Verdict},
};

/// What a restore has to heed about outputs of builds.
#[derive(Debug, Default)]
pub(crate) struct Current {
    /// Files that are not written as they are in the pack.
    pub(crate) left_out: BTreeSet<String>,
    /// Written in the place of those: ninja's files.
    pub(crate) renewed: Vec<(String, Vec<u8>)>,
    pub(crate) verdict: Verdict,
    /// When current outputs were made, as far as tools are told: later than any input.
    pub(crate) modified: (i64, u32),
    /// Outputs that were made from other bytes than are here.
    pub(crate) outdated: usize,
}

/// Looks at all that `whole` has, of which the folder lacks `missing`.
pub(crate) fn check(folder: &Path, whole: &Manifest, missing: &Manifest, pack: &[u8]) -> Current {
    let lacks = |path: &str| missing.files.iter().any(|file| file.path == path);
    let records: Vec<_> = whole.files.iter().filter(|file| builds::is_record(&file.path)).collect();
    let known = artifact::file(whole, pack, inputs::PATH).map(Inputs::decode).unwrap_or_default();
    if records.is_empty() && known.is_empty() {
        return Current::default();
    }
    let verdict = known.compare(folder, whole);
    let now = clock::since_epoch();
    let now = (i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos());
    let mut current = Current { modified: now.max(verdict.newest), ..Current::default() };
    current.left_out.extend(verdict.stale.iter().filter(|path| lacks(path)).cloned());
    current.outdated = current.left_out.len();
    let folders = Folders::new(folder);
    let bytes = |path: &str| artifact::file(whole, pack, path).unwrap_or_default();
    // ninja's own files that are here know nothing of the pack's outputs, or know others.
    let taken: BTreeSet<&str> = records
        .iter()
        .map(|file| builds::folder_of(&file.path))
        .filter(|from| [builds::LOG, builds::DEPS].iter().any(|n| is_here(folder, from, n)))
        .collect();
    for record in &records {
        let from = builds::folder_of(&record.path);
        if taken.contains(from) {
            let outputs = builds::outputs(&folders, &record.path, bytes(&record.path));
            current.left_out.extend(outputs.into_iter().filter(|path| lacks(path)));
            current.left_out.insert(record.path.clone());
        }
    }
    for record in records.iter().filter(|record| lacks(&record.path)) {
        if !current.left_out.insert(record.path.clone()) {
            continue;
        }
        let made = |path: &str| verdict.current.contains(path);
        let bytes = bytes(&record.path);
        let renewed = builds::renewed(&folders, &record.path, bytes, &made, current.modified);
        current.renewed.extend(renewed.map(|bytes| (record.path.clone(), bytes)));
    }
    current.verdict = verdict;
    current
}

fn is_here(folder: &Path, from: &str, name: &str) -> bool {
    fs::symlink_metadata(folder.join(from).join(name)).is_ok()
}
