//! Searches of the index, beside the threads that answer.
//!
//! Invariant: no thread of the runtime waits for a search.

use crate::error::Error;

/// Runs `work` on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Storage(e.to_string()))
}
