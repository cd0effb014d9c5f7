//! The least speed of a transfer.
//!
//! Invariant: a transfer that moves less than [`LEAST`] bytes in a window ends,
//! so that a reader or a sender that dribbles cannot hold a blob for ever.

use std::{future::Future, io, time::Duration};

use tokio::time::{Instant, timeout_at};

/// Bytes that a window must see.
const LEAST: usize = 64 << 10;

/// Watches one transfer.
pub(super) struct Progress {
    window: Duration,
    deadline: Instant,
    moved: usize,
}

impl Progress {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, deadline: Instant::now() + window, moved: 0 }
    }

    /// Runs one step; it fails as timed out when the window ends before it does.
    pub(super) async fn step<F>(&mut self, step: F) -> io::Result<usize>
    where
        F: Future<Output = io::Result<usize>>,
    {
        let moved = timeout_at(self.deadline, step).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("stalled for {:?}", self.window))
        })??;
        self.moved += moved;
        if self.moved >= LEAST {
            *self = Self::new(self.window);
        }
        Ok(moved)
    }
}
