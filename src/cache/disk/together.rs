//! Wholes and their pieces on the disk, blocking.
//!
//! Invariant: what is remembered across restarts is what the catalog knew; a whole that
//! is not here is not remembered. What is lost of it costs an order of leaving, never a
//! wrong answer: whether all pieces are here is asked for each of them.

use kiln_proto::Digest;

use super::{record::Piece, references::Referred, store::Store};
use crate::cache::meter;

impl Store {
    /// From now on `pieces` leave after `whole`, which was just used, and so were they.
    /// False: it is not here, or there are too many references.
    pub(super) fn keep_together(&self, whole: &Digest, pieces: &[Piece]) -> bool {
        let (now, mut catalog) = (self.clock.now_ms(), self.catalog.lock());
        if catalog.get(whole).is_none() {
            return false;
        }
        let referred = catalog.refer(whole, pieces);
        let used = catalog.touch_whole(whole, now);
        drop(catalog);
        self.touch_all(used);
        match referred {
            Referred::Known => true,
            Referred::New(all) => {
                self.remember_whole(whole, &all);
                true
            }
            Referred::Refused(why) => {
                tracing::debug!(%whole, why, "its pieces are kept as blobs like others");
                false
            }
        }
    }

    /// Writes all pieces of `whole` to the index. What can't be written costs an order of
    /// leaving after the next start.
    pub(super) fn remember_whole(&self, whole: &Digest, pieces: &[Piece]) {
        if let Err(e) = self.index.put_whole(whole, pieces) {
            meter::failed(&e);
            tracing::warn!(%whole, error = %e, "what it is made of is not remembered");
        }
    }
}
