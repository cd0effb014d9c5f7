//! Limits and order of a catalog, changed while it is in use.
//!
//! Invariant: after a change every entry has the place that it would have had if the
//! catalog had been opened so.

use kiln_proto::Digest;

use super::{Catalog, Record};
use crate::cache::eviction::Policy;

impl Catalog {
    /// At most so many bytes from now on; what has to leave for that.
    pub(in crate::cache::disk) fn resize(&mut self, bytes: u64) -> Vec<(Digest, Record)> {
        self.limits.bytes = bytes;
        self.shrink()
    }

    /// What leaves first is what `policy` says from now on.
    pub(in crate::cache::disk) fn set_policy(&mut self, policy: Box<dyn Policy>) {
        self.policy = policy;
        // What wholes lend their pieces first, for their places depend on it.
        let wholes: Vec<Digest> = self.entries.keys().copied().collect();
        for whole in &wholes {
            let pieces = self.references.pieces(whole);
            if pieces.is_empty() {
                continue;
            }
            let before = self.references.standing(whole);
            let after = self.entries.get(whole).map(|entry| self.own_standing(whole, entry));
            for piece in &*pieces {
                self.references.change_hold(whole, &piece.pack, before, after);
            }
            self.references.hold(whole, after);
        }
        let entries = self.entries.iter();
        let evictable = entries.filter(|(digest, entry)| !self.is_fixed(digest, entry));
        let order = evictable.map(|(digest, entry)| self.place(digest, entry)).collect();
        self.order = order;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{
        Hints,
        disk::{
            catalog::{Limits, Piece},
            record::Record,
        },
        eviction::{CostAware, Lru},
    };

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    /// Six entries: the later used, the cheaper to have again. The last is a whole.
    fn filled(policy: Box<dyn Policy>) -> Catalog {
        let mut catalog = Catalog::new(Limits { bytes: 1000, entries: 100 }, policy);
        for n in 0..6u8 {
            let hints =
                Hints { compile_seconds: 1e6 / 10f64.powi(i32::from(n)), ..Hints::default() };
            catalog.insert(digest(n), Record::new(10, hints, u64::from(n)));
        }
        let pieces = [Piece { pack: digest(0), size: 10 }, Piece { pack: digest(1), size: 10 }];
        catalog.refer(&digest(5), &pieces);
        catalog
    }

    fn cost() -> Box<dyn Policy> {
        Box::new(CostAware { half_life: std::time::Duration::from_secs(3600) })
    }

    fn leaving(catalog: &mut Catalog) -> Vec<Digest> {
        (0..6).flat_map(|n| catalog.resize(50 - 10 * n)).map(|(digest, _)| digest).collect()
    }

    #[test]
    fn another_policy_makes_the_order_that_it_would_have_made() {
        for (from, to) in
            [(cost(), (cost as fn() -> _, "cost")), (cost(), (lru, "lru")), (lru(), (cost, "cost"))]
        {
            let (make, name) = to;
            let mut changed = filled(from);
            changed.set_policy(make());
            assert_eq!(leaving(&mut changed), leaving(&mut filled(make())), "{name}");
        }
        assert_ne!(leaving(&mut filled(lru())), leaving(&mut filled(cost())));
    }

    fn lru() -> Box<dyn Policy> {
        Box::new(Lru)
    }

    #[test]
    fn a_smaller_catalog_gives_up_what_is_worth_least() {
        let mut catalog = filled(Box::new(Lru));
        let gone = catalog.resize(30);
        assert_eq!(gone.len(), 3);
        assert_eq!(catalog.usage().bytes, 30);
        assert!(catalog.reserve(31, 0).is_none(), "it never fits");
        assert_eq!(catalog.resize(1000), []);
    }
}
