//! Whether this node takes what it would have to keep: publications, leases, copies.
//!
//! Invariant: what was let in before the gate closed is counted until it ends, and nothing
//! is let in after. So once the gate is closed and the count is nought, nothing more is
//! acknowledged that only this node has. What was let in and has not begun to write may be
//! turned away still, by [`Gate::shut`].

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::Error;

/// How far a node lets writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Door {
    /// In.
    #[default]
    Open,
    /// None in; those that are in may write.
    Closed,
    /// None in; those that write may end.
    Shut,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    door: Door,
    /// Let in, writing or not.
    inside: u64,
    /// Of these, those whose outcome must be waited for.
    writing: u64,
}

/// The gate of one node.
#[derive(Debug, Clone)]
pub struct Gate(Arc<watch::Sender<State>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

/// Somebody who may begin to write. What began before the gate closed is waited for.
#[derive(Debug)]
#[must_use = "who is not inside may not write"]
pub struct Inside(Gate);

/// A write that nobody turns away: between the bytes' arrival and the answer.
#[derive(Debug)]
#[must_use = "a write that is not counted is not waited for"]
pub struct Writing(Gate);

impl Gate {
    /// Lets a publication, a lease or a copy in, until what is returned is dropped.
    pub fn enter(&self) -> Result<Inside, Error> {
        let open = |state: &State| state.door == Door::Open;
        self.count(open, |state| state.inside += 1)?;
        Ok(Inside(self.clone()))
    }

    /// Whether the gate is open.
    pub fn check(&self) -> Result<(), Error> {
        if self.0.borrow().door == Door::Open { Ok(()) } else { Err(Error::Leaving) }
    }

    /// Returns when the gate is not open.
    pub async fn closed(&self) {
        self.reached(|state| state.door != Door::Open).await;
    }

    /// Returns when the gate is shut: who has not begun to write is turned away.
    pub async fn turned_away(&self) {
        self.reached(|state| state.door == Door::Shut).await;
    }

    /// Lets nobody in from now on.
    pub(crate) fn close(&self) {
        self.0.send_if_modified(|state| {
            let open = state.door == Door::Open;
            if open {
                state.door = Door::Closed;
            }
            open
        });
    }

    /// Turns away who is inside and has not begun to write.
    pub(crate) fn shut(&self) {
        self.0.send_if_modified(|state| {
            let changed = state.door != Door::Shut;
            state.door = Door::Shut;
            changed
        });
    }

    /// As before.
    pub(crate) fn open(&self) {
        self.0.send_modify(|state| state.door = Door::Open);
    }

    /// Who must be waited for: once the gate is shut, those that write.
    pub(crate) fn busy(&self) -> u64 {
        let state = *self.0.borrow();
        if state.door == Door::Shut { state.writing } else { state.inside }
    }

    async fn reached(&self, reached: impl FnMut(&State) -> bool) {
        // The sender is in `self`.
        drop(self.0.subscribe().wait_for(reached).await);
    }

    fn count(
        &self,
        may: impl FnOnce(&State) -> bool,
        change: impl FnOnce(&mut State),
    ) -> Result<(), Error> {
        // No look and change apart from each other: nobody slips in while it closes.
        let counted = self.0.send_if_modified(|state| {
            let may = may(state);
            if may {
                change(state);
            }
            may
        });
        if counted { Ok(()) } else { Err(Error::Leaving) }
    }
}

impl Inside {
    /// Begins to write.
    pub fn write(&self) -> Result<Writing, Error> {
        self.0.count(|state| state.door != Door::Shut, |state| state.writing += 1)?;
        Ok(Writing(self.0.clone()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.inside -= 1);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.writing -= 1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_those_inside_write_and_a_shut_one_does_not() {
        let gate = Gate::default();
        let (first, second) = (gate.enter().unwrap(), gate.enter().unwrap());
        gate.close();
        assert!(matches!(gate.enter(), Err(Error::Leaving)));
        assert_eq!(gate.busy(), 2);
        let writing = first.write().unwrap();
        gate.shut();
        assert!(second.write().is_err() && first.write().is_err(), "turned away");
        drop(first);
        assert_eq!(gate.busy(), 1, "what it writes has no outcome yet");
        gate.close();
        assert!(second.write().is_err(), "closing a gate that is shut opens nothing");
        drop(writing);
        assert_eq!(gate.busy(), 0);
        gate.open();
        assert!(second.write().is_ok() && gate.check().is_ok());
    }

    #[tokio::test]
    async fn who_waits_for_the_gate_hears_of_it() {
        let gate = Gate::default();
        let waiting = {
            let gate = gate.clone();
            tokio::spawn(async move { tokio::join!(gate.closed(), gate.turned_away()) })
        };
        gate.close();
        gate.closed().await;
        assert!(!waiting.is_finished());
        gate.shut();
        waiting.await.unwrap();
    }
}
