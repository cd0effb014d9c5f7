//! Start of the disk tier: files and index are made to agree again.
//!
//! Invariant: after the sweep the catalog has only files that were there with
//! the right size; a file that the index does not know is offered only after
//! it was hashed, which happens in the background, within the capacity.

use std::{collections::HashMap, fs, io, path::Path, sync::atomic::Ordering};

use kiln_proto::Digest;

use super::{catalog::Catalog, files::Files, index::Index, record::Record, store::Store};
use crate::cache::{Change, Hints, TierError, TierName, meter};

/// What the sweep at start found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Half-written files that were removed.
    pub temporaries: u64,
    /// Files that have no place here, and were removed.
    pub strangers: u64,
    /// Index entries whose file was gone or had another size.
    pub dropped: u64,
    /// Files without index entry that were verified and are offered again.
    pub adopted: u64,
    /// Files without index entry that were corrupt, or for which is no room.
    pub rejected: u64,
    /// The index could not be read and was built anew.
    pub index_rebuilt: bool,
}

/// A file without index entry, for which room is reserved.
pub(super) type Stray = (Digest, u64);

/// Fills the catalog. Returns what is left to verify.
pub(super) fn sweep(
    files: &Files,
    index: &Index,
    catalog: &mut Catalog,
) -> Result<(Swept, Vec<Stray>), TierError> {
    let cleared = files.clear_temporaries();
    let mut swept = Swept {
        temporaries: cleared.map_err(|e| TierError::disk("clear temporary files", 0, e))?,
        ..Swept::default()
    };
    // Before the first file: what L3 does not have goes last, found now or later.
    for digest in index.uploads()? {
        catalog.set_only_copy(&digest, true);
    }
    // And what belongs together stays together while room is made.
    let wholes = index.wholes()?;
    for (whole, pieces) in &wholes {
        catalog.refer(whole, pieces);
    }
    let mut records: HashMap<_, _> = index.files()?.into_iter().collect();
    let mut unknown = Vec::new();
    let mut forgotten = Vec::new();
    files.walk(|digest, size, path| {
        match digest.map(|digest| (digest, records.remove(&digest))) {
            None => {
                remove_stranger(path)?;
                swept.strangers += 1;
            }
            Some((digest, Some(record))) if record.size == size => {
                catalog.insert(digest, record);
            }
            Some((digest, Some(_))) => {
                // Torn by a power loss, or touched by somebody: the hash decides.
                forgotten.push(digest);
                unknown.push((digest, size));
            }
            Some((digest, None)) => unknown.push((digest, size)),
        }
        Ok(())
    })?;
    forgotten.extend(records.into_keys());
    swept.dropped = forgotten.len() as u64;
    unknown.sort_by_key(|(digest, _)| !catalog.is_only_copy(digest));
    let (mut strays, mut excess) = (Vec::new(), Vec::new());
    for (digest, size) in unknown {
        // Others make room for the only copy of what was acknowledged.
        let evicted = match catalog.is_only_copy(&digest) {
            true => catalog.reserve(size, 0),
            false => catalog.reserve_spare(size).then(Vec::new),
        };
        match evicted {
            Some(evicted) => {
                strays.push((digest, size));
                forgotten.extend(evicted.iter().map(|(digest, _)| *digest));
                excess.extend(evicted.into_iter().map(|(digest, record)| (digest, record.size)));
            }
            None => excess.push((digest, size)),
        }
    }
    index.write(&[], &forgotten)?;
    for (digest, _) in &strays {
        catalog.unsettle(digest);
    }
    for (whole, _) in &wholes {
        // Neither here nor a stray.
        if catalog.get(whole).is_none() && catalog.is_settled(whole) {
            catalog.forget_pieces(whole);
            index.put_whole(whole, &[])?;
        }
    }
    for (digest, _) in &excess {
        files.remove(digest).map_err(|e| TierError::disk("remove file", 0, e))?;
    }
    swept.rejected = excess.len() as u64;
    for (what, count) in [
        ("temporary", swept.temporaries),
        ("stranger", swept.strangers),
        ("dropped", swept.dropped),
        ("rejected", swept.rejected),
    ] {
        meter::swept(TierName::Disk, what, count);
    }
    Ok((swept, strays))
}

/// Verifies one stray and offers it from then on; whether it was what it says.
pub(super) fn adopt(store: &Store, stray: Stray) -> bool {
    let adopted = verify(store, stray);
    store.catalog.lock().settle(&stray.0);
    adopted
}

fn verify(store: &Store, (digest, size): Stray) -> bool {
    let read = store.files.verify(&digest, size);
    let folder = store.files.lock_folder(&digest);
    let mut catalog = store.catalog.lock();
    catalog.release(size);
    // Stored again in the meantime: nothing to judge any more.
    if catalog.get(&digest).is_some() {
        return true;
    }
    let adopted = read
        .is_ok()
        .then(|| catalog.insert(digest, Record::new(size, Hints::default(), store.clock.now_ms())));
    if adopted.is_none() {
        catalog.forget_pieces(&digest);
    }
    let pieces = catalog.pieces(&digest);
    drop((catalog, folder));
    meter::swept(TierName::Disk, if adopted.is_some() { "adopted" } else { "rejected" }, 1);
    match (adopted, read) {
        (Some(record), _) => {
            store.remember(&[(digest, record)], &[]);
            store.remember_whole(&digest, &pieces);
            // No receiver: nobody wants to know.
            let _ = store.changes.send(Change::Gained(digest));
            true
        }
        (None, Err(why)) => {
            store.set_unreadable_aside(&digest, None, &why);
            false
        }
        (None, Ok(_)) => false,
    }
}

/// Verifies all strays, until the tier is closed.
pub(super) fn adopt_all(store: &Store, strays: Vec<Stray>, swept: &mut Swept) {
    for stray in strays {
        if store.stop.load(Ordering::Relaxed) {
            return;
        }
        match adopt(store, stray) {
            true => swept.adopted += 1,
            false => swept.rejected += 1,
        }
    }
}

fn remove_stranger(path: &Path) -> Result<(), TierError> {
    tracing::warn!(path = %path.display(), "removing what is no blob");
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(TierError::disk("remove what is no blob", 0, e))
        }
        _ => Ok(()),
    }
}
