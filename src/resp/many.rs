//! Commands that name many keys, tens of thousands in one request, and transactions of many.
//!
//! Invariant: such a command begins with no further key once its time is over; what it has begun
//! ends within its own bound; and it says how many keys it has left out. So it ends, and gives
//! back the memory of its request, however slow this node or its cluster is.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, sleep_until};

use super::reply::Reply;

/// The time of one command, or of a whole transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    end: Instant,
    longest: Duration,
}

impl Time {
    /// It begins, and is over after `longest`.
    pub(super) fn begin(longest: Duration) -> Self {
        Self { end: Instant::now() + longest, longest }
    }

    /// Whether no further key is to be begun with.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// When it is over.
    pub(super) fn end(&self) -> Instant {
        self.end
    }

    /// The answer where `left` of `all` keys were left out.
    pub(super) fn left_out(&self, left: usize, all: usize) -> Reply {
        let Self { longest, .. } = self;
        Reply::error(format!(
            "ERR {left} of {all} keys were left out after {longest:?}: name fewer at once"
        ))
    }

    /// The answer to a command of a transaction whose time is over.
    pub(super) fn not_begun(&self) -> Reply {
        let Self { longest, .. } = self;
        let text = format!("ERR left out after {longest:?} of its transaction: send fewer at once");
        Reply::error(text)
    }

    /// Runs `jobs`, `at_once` of them at a time, and begins none when the time is over; what
    /// came of those that were begun, in their order.
    pub(super) fn run<J: Future>(
        self,
        jobs: impl Iterator<Item = J>,
        at_once: usize,
    ) -> impl Stream<Item = J::Output> {
        stream::iter(jobs).take_until(sleep_until(self.end)).buffered(at_once)
    }
}

/// How many values a command that takes values in has, which is `args` words long with its name.
pub(super) fn values_of(name: &str, args: usize) -> usize {
    match name {
        "mset" => args / 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MOST: Duration = Duration::from_secs(60);

    /// What is begun ends, and nothing else is.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_begun_when_the_time_is_over() {
        let (begun, second) = (Cell::new(0), Duration::from_secs(1));
        let jobs = (0..1000).map(|n| {
            begun.set(begun.get() + 1);
            async move {
                tokio::time::sleep(second).await;
                n
            }
        });
        let started = Instant::now();
        let done: Vec<_> = Time::begin(MOST).run(jobs, 4).collect().await;
        assert!(started.elapsed() <= MOST + second, "{:?}", started.elapsed());
        assert_eq!(done.len(), begun.get(), "each that was begun");
        let most = 4 * MOST.as_secs() as usize;
        assert!((most - 4..=most + 4).contains(&done.len()), "{}", done.len());
        assert!(done.is_sorted());

        let few: Vec<_> = Time::begin(MOST).run((0..9).map(async |n| n), 4).collect().await;
        assert_eq!(few.len(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_over_after_a_while_and_not_before() {
        let time = Time::begin(MOST);
        tokio::time::advance(MOST - Duration::from_millis(1)).await;
        assert!(!time.is_over());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(time.is_over());
        let Reply::Error(text) = time.left_out(3, 7) else { panic!("no error") };
        assert!(text.starts_with("ERR 3 of 7 keys were left out after 60s"), "{text}");
        assert_eq!((values_of("mset", 7), values_of("setex", 4)), (3, 1));
    }
}
