//! The order of a listing.
//!
//! Invariant: of one order every node and every client makes the same sequence, as no two
//! entries have the same place.

use std::cmp::Reverse;

use kiln_proto::{ArtifactKey, Manifest, pb::ListOrder};

/// By what entries are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The field; `Unspecified` is the key.
    pub field: ListOrder,
    /// The other way round.
    pub reverse: bool,
}

/// What an entry has of which a listing may be ordered.
#[derive(Debug, Clone, Copy)]
pub struct Ordered<'a> {
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// Reported uses.
    pub hits: u64,
    /// When it was last used, in Unix milliseconds; 0: never.
    pub last_used_unix_ms: u64,
}

/// The place of an entry: the least one comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(Rank, ArtifactKey);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Rising(Value),
    Falling(Reverse<Value>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Name(String),
    Key(ArtifactKey),
    Figure(u64),
}

impl Order {
    /// Where `entry` stands among others.
    pub fn place(self, entry: Ordered<'_>) -> Place {
        let manifest = entry.manifest;
        // Of figures the largest comes first, of times the earliest.
        let (value, largest) = match self.field {
            ListOrder::Unspecified | ListOrder::Key => (Value::Key(manifest.key), false),
            ListOrder::Label => (Value::Name(manifest.label.clone()), false),
            ListOrder::Target => (Value::Name(manifest.target.to_string()), false),
            ListOrder::Compiler => (Value::Name(manifest.fingerprint.to_string()), false),
            ListOrder::Namespace => (Value::Name(manifest.namespace.clone()), false),
            ListOrder::Bytes => (Value::Figure(bytes(manifest)), true),
            ListOrder::CompileSeconds => {
                (Value::Figure(manifest.compile_seconds.max(0.0).to_bits()), true)
            }
            ListOrder::Hits => (Value::Figure(entry.hits), true),
            ListOrder::Age => (Value::Figure(manifest.created_unix_ms), false),
            ListOrder::LastUsed => (Value::Figure(entry.last_used_unix_ms), false),
        };
        let rank = match largest == self.reverse {
            true => Rank::Rising(value),
            false => Rank::Falling(Reverse(value)),
        };
        Place(rank, manifest.key)
    }
}

/// The bytes of an artifact, those of its pieces too.
pub fn bytes(manifest: &Manifest) -> u64 {
    let pieces = manifest.pieces.iter().map(|piece| piece.pack_size);
    pieces.fold(manifest.pack_size, u64::saturating_add)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kiln_proto::{Digest, value};

    use super::*;

    fn manifest(name: &str, bytes: u64, seconds: f64, created: u64) -> Manifest {
        let digest = Digest::of(name.as_bytes());
        let manifest = value::manifest("t", name.as_bytes(), digest, bytes, seconds);
        Manifest { created_unix_ms: created, ..manifest }
    }

    fn sorted(field: ListOrder, reverse: bool) -> String {
        let made = [
            (manifest("b", 5, 0.25, 30), 0, 0),
            (manifest("a", 70, 1000.0, 20), 9, 50),
            (manifest("c", 6, 3.0, 10), 100, 40),
        ];
        let order = Order { field, reverse };
        let mut placed: Vec<_> = made
            .iter()
            .map(|(manifest, hits, last_used_unix_ms)| {
                let (hits, last_used_unix_ms) = (*hits, *last_used_unix_ms);
                (order.place(Ordered { manifest, hits, last_used_unix_ms }), &manifest.label)
            })
            .collect();
        placed.sort();
        placed.into_iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn names_rise_figures_fall_and_what_is_oldest_comes_first() {
        for (field, expected) in [
            (ListOrder::Label, "abc"),
            (ListOrder::Bytes, "acb"),
            (ListOrder::CompileSeconds, "acb"),
            (ListOrder::Hits, "cab"),
            (ListOrder::Age, "cab"),
            (ListOrder::LastUsed, "bca"),
        ] {
            assert_eq!(sorted(field, false), expected, "{field:?}");
            let back: String = expected.chars().rev().collect();
            assert_eq!(sorted(field, true), back, "{field:?} in reverse");
        }
    }

    #[test]
    fn what_is_equal_keeps_the_order_of_the_keys() {
        let by_key = sorted(ListOrder::Key, false);
        assert_eq!(sorted(ListOrder::Namespace, false), by_key);
        assert_eq!(sorted(ListOrder::Target, true), by_key);
    }
}
