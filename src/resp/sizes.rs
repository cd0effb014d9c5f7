//! How many values a namespace has.
//!
//! Invariant: a node counts a namespace once at a time, however many clients ask, and [`AT_ONCE`]
//! namespaces at most; a number that is given out was counted after it was asked for.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

/// Namespaces whose numbers are kept for those who wait.
const MOST: usize = 64;
/// Namespaces that are counted at once: the count of one does not keep the others waiting.
const AT_ONCE: usize = 4;

/// The number of one namespace; held while it is counted.
type Place = Arc<tokio::sync::Mutex<Option<Counted>>>;

/// Counts on demand.
pub(super) struct Sizes {
    places: Mutex<HashMap<Arc<str>, Place>>,
    counts: Semaphore,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { places: Mutex::default(), counts: Semaphore::new(AT_ONCE) }
    }
}

#[derive(Clone, Copy)]
struct Counted {
    began: Instant,
    size: i64,
}

impl Sizes {
    /// The number of `namespace`, by `count` where nobody has begun to count it since this call.
    pub(super) async fn of<E>(
        &self,
        namespace: &Arc<str>,
        count: impl AsyncFnOnce() -> Result<i64, E>,
    ) -> Result<i64, E> {
        let asked = Instant::now();
        let place = self.place(namespace);
        let mut counted = place.lock().await;
        if let Some(Counted { began, size }) = *counted
            && began >= asked
        {
            return Ok(size);
        }
        // Never closed.
        let _permit = self.counts.acquire().await;
        let began = Instant::now();
        let size = count().await?;
        *counted = Some(Counted { began, size });
        Ok(size)
    }

    fn place(&self, namespace: &Arc<str>) -> Place {
        let mut places = self.places.lock();
        if places.len() >= MOST && !places.contains_key(namespace) {
            // Whoever waits for one has it too.
            places.retain(|_, place| Arc::strong_count(place) > 1);
        }
        places.entry(namespace.clone()).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{cell::Cell, time::Duration};

    use futures::future::join_all;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_at_once_are_told_of_one_count_that_began_after_they_asked() {
        let (sizes, walks, now) = (Sizes::default(), Cell::new(0), Cell::new(0));
        let namespace: Arc<str> = "a".into();
        let walk = async || {
            walks.set(walks.get() + 1);
            let size = now.get();
            tokio::time::sleep(SECOND).await;
            Ok::<_, ()>(size)
        };
        let first = sizes.of(&namespace, walk);
        let others = async {
            // The first one has begun, and does not see what comes now.
            tokio::time::sleep(SECOND / 2).await;
            now.set(7);
            join_all((0..100).map(|_| sizes.of(&namespace, walk))).await
        };
        let (first, others) = tokio::join!(first, others);
        assert_eq!(first, Ok(0));
        assert!(others.iter().all(|size| *size == Ok(7)), "{others:?}");
        assert_eq!(walks.get(), 2, "one for all the others");
        tokio::time::advance(SECOND).await;
        now.set(8);
        assert_eq!(sizes.of(&namespace, walk).await, Ok(8), "asked later");
        assert_eq!(sizes.of(&"b".into(), walk).await, Ok(8));
        assert_eq!(walks.get(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn one_namespace_is_counted_while_another_is_and_few_are_at_once() {
        let (sizes, running, most) = (Sizes::default(), Cell::new(0), Cell::new(0));
        let long = async || {
            running.set(running.get() + 1);
            most.set(most.get().max(running.get()));
            tokio::time::sleep(SECOND).await;
            running.set(running.get() - 1);
            Ok::<_, ()>(1)
        };
        let large: Arc<str> = "large".into();
        let began = Instant::now();
        let of_one = join_all((0..100).map(|_| sizes.of(&large, long)));
        let another: Arc<str> = "another".into();
        let other = async {
            tokio::time::sleep(SECOND / 2).await;
            assert_eq!(sizes.of(&another, async || Ok::<_, ()>(3)).await, Ok(3));
            assert_eq!(began.elapsed(), SECOND / 2, "it waits for nobody");
        };
        tokio::join!(of_one, other);
        most.set(0);
        let names: Vec<Arc<str>> = (0..200).map(|n| format!("n{n}").into()).collect();
        join_all(names.iter().map(|name| sizes.of(name, long))).await;
        assert_eq!(most.get(), AT_ONCE);
        assert_eq!(sizes.of(&large, async || Ok::<_, ()>(2)).await, Ok(2));
        assert!(sizes.places.lock().len() <= MOST, "none is kept for nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_lets_the_next_one_count() {
        let (sizes, namespace) = (Sizes::default(), Arc::<str>::from("a"));
        let stuck = sizes.of(&namespace, async || std::future::pending::<Result<i64, ()>>().await);
        let next = async {
            tokio::task::yield_now().await;
            sizes.of(&namespace, async || Ok::<_, ()>(3)).await
        };
        let (gave_up, next) = tokio::join!(tokio::time::timeout(SECOND, stuck), next);
        assert!(gave_up.is_err());
        assert_eq!(next, Ok(3));
        tokio::time::advance(SECOND).await;
        let failed = sizes.of(&namespace, async || Err("broken")).await;
        assert_eq!(failed, Err("broken"));
    }
}
