//! All randomness of a run, from its seed.
//!
//! Invariant: in a thread that [`seed_this_thread`] seeded, whatever asks the system for
//! random bytes (hash maps, tokio's `select!`, the Raft library's election time-outs, this
//! crate's nonces) gets them from the seed. Every other thread gets the system's.

use std::{cell::Cell, ops::Range, time::Duration};

use kiln_proto::numbers::Numbers;

/// What may happen: equal seeds, equal chances.
#[derive(Debug, Clone)]
pub(super) struct Chance(Numbers);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(Numbers::new(seed))
    }

    /// One more generator, whose numbers tell nothing of this one's.
    pub(super) fn fork(&mut self) -> Self {
        Self::new(self.number() ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0.word()
    }

    /// A number in `range`.
    pub(super) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.number() % (range.end - range.start)
    }

    /// True this many times in a thousand.
    pub(super) fn permille(&mut self, often: u64) -> bool {
        self.within(0..1000) < often
    }

    /// A time in `range`, which is in microseconds.
    pub(super) fn micros(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.within(range))
    }

    /// A time in `range`, which is in milliseconds.
    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.within(range.start * 1000..range.end * 1000))
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let count = u64::try_from(from.len()).ok().filter(|count| *count > 0)?;
        from.get(usize::try_from(self.within(0..count)).ok()?).copied()
    }
}

thread_local! {
    static SYSTEM: Cell<Option<Chance>> = const { Cell::new(None) };
}

/// From here on, the system's random bytes are this seed's for the calling thread. To be
/// called before anything in the thread asked for any.
pub(super) fn seed_this_thread(seed: u64) {
    SYSTEM.set(Some(Chance::new(seed)));
}

/// Takes the place of libc's function in the program of these tests.
///
/// # Safety
///
/// `to` has room for `length` bytes, as for libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(to: *mut u8, length: usize, flags: u32) -> isize {
    let Some(mut chance) = SYSTEM.take() else {
        // SAFETY: the system call with the caller's own arguments.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, to, length, flags) };
        return isize::try_from(got).unwrap_or(-1);
    };
    for at in 0..length {
        let [byte, ..] = chance.number().to_le_bytes();
        // SAFETY: `at` is below `length`, for which the caller has room.
        unsafe { to.add(at).write(byte) };
    }
    SYSTEM.set(Some(chance));
    isize::try_from(length).unwrap_or(-1)
}
