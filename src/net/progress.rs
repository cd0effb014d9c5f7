//! The least speed of a connection that moves bytes.
//!
//! Invariant: a transfer that moves less than [`LEAST`] bytes in a window ends,
//! so that a reader or a sender that dribbles cannot hold a blob for ever.

use std::{future::Future, io, time::Duration};

use tokio::time::{Instant, timeout_at};

/// Bytes that a window must see.
const LEAST: usize = 64 << 10;

/// Watches one transfer.
pub(crate) struct Progress {
    window: Duration,
    deadline: Instant,
    moved: usize,
}

impl Progress {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, deadline: Instant::now() + window, moved: 0 }
    }

    /// Runs one step; it fails as timed out when the window ends before it does.
    pub(crate) async fn step<F>(&mut self, step: F) -> io::Result<usize>
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn moves(bytes: usize) -> io::Result<usize> {
        tokio::task::yield_now().await;
        Ok(bytes)
    }

    #[tokio::test]
    async fn who_dribbles_is_cut_off_at_the_end_of_the_window() {
        let window = Duration::from_millis(30);
        let (mut progress, start) = (Progress::new(window), Instant::now());
        let mut moved = 0;
        let error = loop {
            // The last byte that a window allows does not renew it.
            match progress.step(moves(usize::from(moved + 1 < LEAST))).await {
                Ok(n) => moved += n,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= window);
    }

    #[tokio::test]
    async fn who_moves_enough_gets_another_window() {
        let window = Duration::from_millis(20);
        let (mut progress, start) = (Progress::new(window), Instant::now());
        while start.elapsed() < window * 3 {
            progress.step(moves(LEAST)).await.unwrap();
        }
    }
}
