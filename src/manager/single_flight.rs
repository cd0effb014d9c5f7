//! Node-local single flight: one task for a key, any number of callers.
//!
//! Invariant: while a key is in flight, every caller on this node watches the
//! same task; the task goes on when callers leave, and its place is free again
//! when it ends, however it ends.

use std::{collections::HashMap, future::Future, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::Instrument;

/// The tasks of one node, by key. `S` is what callers see of one: how far it is, and
/// at the end its result.
pub struct SingleFlight<K, S>(Arc<Mutex<HashMap<K, watch::Receiver<S>>>>);

/// Where a task says how far it is.
pub struct Progress<S>(watch::Sender<S>);

impl<S> Progress<S> {
    /// Lets all callers see `state`.
    pub fn set(&self, state: S) {
        self.0.send_replace(state);
    }

    /// What callers see now.
    pub fn get(&self) -> S
    where
        S: Clone,
    {
        self.0.borrow().clone()
    }
}

impl<K, S> Default for SingleFlight<K, S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, S> Clone for SingleFlight<K, S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, S> SingleFlight<K, S>
where
    K: Eq + Hash + Clone + Send + 'static,
    S: Send + Sync + 'static,
{
    /// Joins the task of `key`, or starts it with `run`, which returns the last state.
    /// True: it was started here.
    pub fn join<F>(
        &self,
        key: K,
        first: S,
        run: impl FnOnce(Arc<Progress<S>>) -> F,
    ) -> (watch::Receiver<S>, bool)
    where
        F: Future<Output = S> + Send + 'static,
    {
        let mut tasks = self.0.lock();
        if let Some(task) = tasks.get(&key) {
            return (task.clone(), false);
        }
        let (sender, receiver) = watch::channel(first);
        tasks.insert(key.clone(), receiver.clone());
        drop(tasks);
        let progress = Arc::new(Progress(sender));
        let place = Place { tasks: self.clone(), key };
        let task = run(progress.clone());
        let flight = async move {
            let last = task.await;
            // Callers that come after this line find what it left in the tiers.
            drop(place);
            progress.set(last);
        };
        // In the trace of who came first.
        tokio::spawn(flight.in_current_span());
        (receiver, true)
    }

    /// What callers see of each key now, of at most `most`.
    pub fn states(&self, most: usize) -> Vec<(K, S)>
    where
        S: Clone,
    {
        let tasks = self.0.lock();
        tasks.iter().take(most).map(|(key, task)| (key.clone(), task.borrow().clone())).collect()
    }

    /// Keys in flight now.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A task's entry; gone with the task, a panicking one too.
struct Place<K: Eq + Hash, S> {
    tasks: SingleFlight<K, S>,
    key: K,
}

impl<K: Eq + Hash, S> Drop for Place<K, S> {
    fn drop(&mut self) {
        self.tasks.0.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn one_task_serves_all_callers_and_leaves_its_place() {
        let flights = SingleFlight::<u8, Option<u8>>::default();
        let (release, held) = tokio::sync::oneshot::channel::<()>();
        let (first, started) = flights.join(1, None, |_| async {
            held.await.unwrap();
            Some(7)
        });
        assert!(started);
        let (mut second, started) = flights.join(1, None, |_| async { Some(8) });
        assert!(!started && flights.len() == 1);
        assert_eq!(flights.states(9), [(1, None)]);
        assert!(flights.states(0).is_empty());
        drop(first);
        release.send(()).unwrap();
        assert_eq!(*second.wait_for(Option::is_some).await.unwrap(), Some(7));
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn a_task_that_panics_leaves_its_place() {
        let flights = SingleFlight::<u8, Option<u8>>::default();
        let (mut watched, _) = flights.join(1, None, |_| async { panic!("a bug") });
        assert!(watched.wait_for(Option::is_some).await.is_err());
        assert!(flights.is_empty());
    }
}
