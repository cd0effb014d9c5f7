//! Rows on all cores.
//!
//! Invariant: a row is computed by one thread, in one order: the number of
//! threads changes no bit.

use std::{num::NonZero, thread};

/// Least multiplications for which a thread is worth starting.
const WORTH: usize = 1 << 18;

/// Has `fill` compute all rows of `out`, each of `length` elements, given the
/// number of its first row; `cost` is the work in one row.
pub(super) fn rows<T: Send>(
    out: &mut [T],
    length: usize,
    cost: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.is_empty() {
        return;
    }
    let count = out.len() / length;
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let worth = count.saturating_mul(cost) / WORTH;
    let threads = cores.min(worth).min(count).max(1);
    let each = count.div_ceil(threads);
    thread::scope(|scope| {
        let mut parts = out.chunks_mut(each * length).enumerate();
        let own = parts.next();
        for (i, part) in parts {
            let fill = &fill;
            scope.spawn(move || fill(i * each, part));
        }
        if let Some((_, part)) = own {
            fill(0, part);
        }
    });
}
