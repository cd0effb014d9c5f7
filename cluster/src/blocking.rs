//! Work that may wait for the disk, on threads that nobody else waits for.
//!
//! Invariant: a disk that is slow, or that hangs, delays those who need it; the threads
//! that carry heartbeats and answer from memory go on.

use std::io;

/// Runs `work` on a thread of its own. An error says that it panicked.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    #[cfg(test)]
    if simulated::IN_PLACE.get() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Starts `work`, which hands over what it reads through a channel.
pub(crate) fn start(work: impl FnOnce() + Send + 'static) {
    #[cfg(test)]
    if simulated::IN_PLACE.get() {
        return simulated::finish(work);
    }
    drop(tokio::task::spawn_blocking(work));
}

/// How the simulation does it: its time stands still while any work is done, and its
/// tasks take turns in an order that no other thread has a say in.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;

    thread_local! {
        /// Whether this thread does all work itself.
        pub(crate) static IN_PLACE: Cell<bool> = const { Cell::new(false) };
    }

    /// Waits for the end of work that blocks on channels, which no runtime's thread may do.
    /// What it hands over must fit into its channel.
    pub(super) fn finish(work: impl FnOnce() + Send + 'static) {
        drop(std::thread::spawn(work).join());
    }
}
