//! Places of a pool: how many jobs run at once, which may change while they run.
//!
//! Invariant: no job begins while as many run as there are places. Places that are taken
//! away while a job has them go when it ends.

use std::num::NonZero;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// How busy a pool is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Most jobs at once.
    pub workers: usize,
    /// Jobs that run.
    pub running: usize,
    /// Jobs that wait.
    pub waiting: usize,
}

/// Places for jobs.
#[derive(Debug)]
pub(super) struct Places {
    permits: Semaphore,
    number: Mutex<Number>,
    /// Wakes who waits for all places, whose number changed.
    resized: Notify,
}

#[derive(Debug)]
struct Number {
    wanted: usize,
    /// With those that jobs have and that go with them.
    existing: usize,
}

/// A job's place, or all of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot<'p> {
    places: &'p Places,
    permit: Option<SemaphorePermit<'p>>,
}

impl Places {
    pub(super) fn new(wanted: NonZero<usize>) -> Self {
        let wanted = wanted.get();
        Self {
            permits: Semaphore::new(wanted),
            number: Mutex::new(Number { wanted, existing: wanted }),
            resized: Notify::new(),
        }
    }

    /// Places that nobody has.
    pub(super) fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// How many there are, and how many are taken.
    pub(super) fn load(&self) -> (usize, usize) {
        let number = self.number.lock();
        (number.wanted, number.existing.saturating_sub(self.permits.available_permits()))
    }

    pub(super) fn resize(&self, wanted: NonZero<usize>) {
        let mut number = self.number.lock();
        number.wanted = wanted.get();
        if number.wanted > number.existing {
            self.permits.add_permits(number.wanted - number.existing);
            number.existing = number.wanted;
        } else {
            number.existing -= self.permits.forget_permits(number.existing - number.wanted);
        }
        drop(number);
        self.resized.notify_waiters();
    }

    pub(super) fn try_acquire(&self) -> Option<Slot<'_>> {
        let permit = self.permits.try_acquire().ok()?;
        Some(Slot { places: self, permit: Some(permit) })
    }

    /// Waits in turn. The semaphore is never closed.
    pub(super) async fn acquire(&self) -> Slot<'_> {
        Slot { places: self, permit: self.permits.acquire().await.ok() }
    }

    /// Waits until no job runs, and takes all places that there are then; how many.
    pub(super) async fn acquire_all(&self) -> (Slot<'_>, usize) {
        loop {
            let resized = self.resized.notified();
            // With those that go when their jobs end: these jobs run.
            let all = self.number.lock().existing;
            let many = u32::try_from(all).unwrap_or(u32::MAX);
            tokio::select! {
                permit = self.permits.acquire_many(many) => {
                    return (Slot { places: self, permit: permit.ok() }, all);
                }
                // So many there may never be again.
                () = resized => {}
            }
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let Some(mut permit) = self.permit.take() else { return };
        let mut number = self.places.number.lock();
        let gone = permit.num_permits().min(number.existing.saturating_sub(number.wanted));
        if gone > 0
            && let Some(gone) = permit.split(gone)
        {
            number.existing -= gone.num_permits();
            gone.forget();
            drop(number);
            self.places.resized.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(n: usize) -> NonZero<usize> {
        NonZero::new(n).unwrap()
    }

    #[tokio::test]
    async fn places_that_are_taken_away_go_with_the_jobs_that_have_them() {
        let places = Places::new(wanted(3));
        let jobs: Vec<_> = (0..3).map(|_| places.try_acquire().unwrap()).collect();
        places.resize(wanted(1));
        assert_eq!(places.load(), (1, 3));
        let mut jobs = jobs.into_iter();
        drop(jobs.next());
        drop(jobs.next());
        assert!(places.try_acquire().is_none(), "one is at work, and one is allowed");
        drop(jobs.next());
        let last = places.try_acquire();
        assert!(last.is_some() && places.try_acquire().is_none());
    }

    #[tokio::test]
    async fn more_places_let_those_begin_that_wait() {
        let places = Places::new(wanted(1));
        let first = places.acquire().await;
        let (second, ()) = tokio::join!(places.acquire(), async { places.resize(wanted(2)) });
        assert_eq!(places.load(), (2, 2));
        // Down and up again while both run: none too many comes of it.
        places.resize(wanted(1));
        places.resize(wanted(2));
        drop((first, second));
        assert_eq!((places.free(), places.load()), (2, (2, 0)));
    }

    #[tokio::test]
    async fn who_wants_all_places_waits_for_as_many_as_there_are() {
        let places = Places::new(wanted(3));
        let job = places.try_acquire().unwrap();
        let all = places.acquire_all();
        tokio::pin!(all);
        assert!(futures::poll!(&mut all).is_pending());
        // Fewer than it waited for.
        places.resize(wanted(2));
        assert!(futures::poll!(&mut all).is_pending());
        drop(job);
        let (slot, number) = all.await;
        assert_eq!((number, places.free(), places.load()), (2, 0, (2, 2)));
        places.resize(wanted(1));
        drop(slot);
        assert_eq!((places.free(), places.load()), (1, (1, 0)));
    }
}
