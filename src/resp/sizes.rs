//! How many values a namespace has.
//!
//! Invariant: a node counts one namespace at a time, however many clients ask; a number that
//! is given out was counted after it was asked for.

use std::{collections::HashMap, sync::Arc};

use tokio::{sync::Mutex, time::Instant};

/// Namespaces whose numbers are kept for those who wait.
const MOST: usize = 64;

/// Counts on demand.
#[derive(Default)]
pub(super) struct Sizes(Mutex<HashMap<Arc<str>, Counted>>);

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
        let mut counted = self.0.lock().await;
        if let Some(Counted { began, size }) = counted.get(namespace)
            && *began >= asked
        {
            return Ok(*size);
        }
        let began = Instant::now();
        let size = count().await?;
        if counted.len() >= MOST {
            counted.clear();
        }
        counted.insert(namespace.clone(), Counted { began, size });
        Ok(size)
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
