//! A time as ninja's files have it.
//!
//! Invariant: pure; a time never becomes an earlier one than ninja would read from disk.

/// A time as ninja stores it: in nanoseconds, as `like` is; old ones stored seconds.
pub(super) fn stamp(modified: (i64, u32), like: i64) -> i64 {
    const NANOSECONDS_SINCE_1973: i64 = 100_000_000_000_000_000;
    let (seconds, nanoseconds) = modified;
    match like < NANOSECONDS_SINCE_1973 {
        true => seconds,
        false => seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.into()),
    }
}
