//! Work that may wait for the disk, on threads that nobody else waits for.
//!
//! Invariant: a disk that is slow, or that hangs, delays those who need it; the threads
//! that carry heartbeats and answer from memory go on.

use std::io;

/// Runs `work` on a thread of its own. An error says that it panicked.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Starts `work`, which hands over what it reads through a channel.
pub(crate) fn start(work: impl FnOnce() + Send + 'static) {
    drop(tokio::task::spawn_blocking(work));
}
