//! Which version of Kiln it takes to read this index, noted in the index itself.
//!
//! A log or a snapshot may have what an earlier program cannot read. Nothing in the bytes
//! says so to that program, which would call them damaged.
//!
//! Invariant: what only a later version reads is written in one batch with the note that
//! names this version, and the note never goes back. So an earlier program refuses to open
//! the index before it reads any of it, and changes nothing.

use parking_lot::Mutex;
use rocksdb::{DB, WriteBatch};
use semver::Version;

use super::{
    db::Store,
    meta::{self, META},
};
use crate::{
    codec,
    error::ClusterError,
    table::{StateError, Table},
    versions::{is_older, since_table},
};

/// What the note says, in memory; `None`: any version reads the index.
#[derive(Default)]
pub(super) struct Needs(Mutex<Option<Version>>);

/// A note of an index that was just opened, of which nothing else was read. `Storage`: it is
/// for a later version than `program`.
pub(super) fn check(db: &DB, program: &str) -> Result<Needs, ClusterError> {
    let Some(needs) = read(db, meta::NEEDS)? else { return Ok(Needs::default()) };
    let Ok(version) = Version::parse(&needs) else {
        return Err(ClusterError::storage(format!(
            "the index says that it needs Kiln {needs:?}, which is no version: it is damaged; empty \
             the data folder and join as a new node"
        )));
    };
    if is_older(program, &version) {
        let opened = read(db, meta::OPENED_BY)?;
        return Err(refused(&version, opened.as_deref().unwrap_or(&needs), program));
    }
    Ok(Needs(Mutex::new(Some(version))))
}

fn refused(needs: &Version, opened_by: &str, program: &str) -> ClusterError {
    ClusterError::storage(format!(
        "the index needs Kiln {needs} or later (it was last opened by {opened_by}), and this is Kiln \
         {program}: nothing was changed; start the node with {needs} or later"
    ))
}

fn read(db: &DB, key: &'static str) -> Result<Option<String>, ClusterError> {
    let Some(meta) = db.cf_handle(META) else { return Ok(None) };
    let bytes = db.get_pinned_cf(meta, key).map_err(|e| StateError::Read(key, e))?;
    Ok(bytes.map(|bytes| codec::decode(&bytes)).transpose()?)
}

impl Store {
    /// The earliest version that reads this index; `None`: any does.
    pub(crate) fn needs(&self) -> Option<Version> {
        self.needs.0.lock().clone()
    }

    /// Adds to `batch` that it takes `version` to read what the batch has.
    pub(super) fn raise_needs(
        &self,
        batch: &mut WriteBatch,
        version: Option<Version>,
    ) -> Result<(), StateError> {
        let mut known = self.needs.0.lock();
        if version > *known
            && let Some(version) = version
        {
            self.put_meta(batch, meta::NEEDS, &version.to_string())?;
            // Ahead of the batch where that fails: then the store has failed, and is opened anew.
            *known = Some(version);
        }
        Ok(())
    }

    /// Notes what an index needs that was written before there was a note, and that
    /// `program` has opened it. `Storage`: it needs a later one.
    pub(super) fn note_opened(&self, program: &str) -> Result<(), ClusterError> {
        let has_records = |table: Table| {
            let mut pairs = self.db.raw_iterator_cf(self.cf(self.live.read().family(table)));
            pairs.seek_to_first();
            pairs.valid()
        };
        // The others need no version, and are not read before somebody asks for them.
        let later = Table::ALL.into_iter().filter_map(|table| Some((table, since_table(table)?)));
        let needs = later.filter(|(table, _)| has_records(*table)).map(|(_, since)| since).max();
        if let Some(needs) = needs.as_ref().filter(|needs| is_older(program, needs)) {
            return Err(refused(needs, "it, or a later one", program));
        }
        let mut batch = WriteBatch::default();
        self.raise_needs(&mut batch, needs)?;
        if read(&self.db, meta::OPENED_BY)?.as_deref() != Some(program) {
            self.put_meta(&mut batch, meta::OPENED_BY, &program)?;
        }
        self.db.write(batch).map_err(ClusterError::storage)
    }
}
