//! Calls of Raft that end although nobody waits for them any more.
//!
//! openraft 0.10.0-alpha.37: when Raft stops, the first call that notices joins Raft's task.
//! If that call is dropped in the middle, by a deadline or by a client that goes away, the
//! task is never joined: every other call panics ("RaftCore should have already quit"), and
//! so does the shutdown, on a poisoned lock.
//!
//! Invariant: a call that is dropped while Raft stops is carried out to its end all the
//! same. Any other that is dropped is dropped.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use openraft::async_runtime::watch::WatchReceiver;

use crate::member::Running;

/// A call of Raft; see the module.
pub(crate) struct Finish<F, S>
where
    F: Future<Output: Send> + Send + 'static,
    S: Fn() -> bool,
{
    /// `None` once it ended.
    call: Option<Pin<Box<F>>>,
    /// Whether Raft stops.
    stops: S,
}

/// `call`, whose own Raft is that of `running`.
pub(crate) fn finish<F>(running: &Running, call: F) -> Finish<F, impl Fn() -> bool + use<F>>
where
    F: Future<Output: Send> + Send + 'static,
{
    let metrics = running.raft.metrics();
    let stops = move || metrics.borrow_watched().running_state.is_err();
    Finish { call: Some(Box::pin(call)), stops }
}

impl<F, S> Future for Finish<F, S>
where
    F: Future<Output: Send> + Send + 'static,
    S: Fn() -> bool + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(call) = &mut self.call else { return Poll::Pending };
        let polled = call.as_mut().poll(context);
        if polled.is_ready() {
            self.call = None;
        }
        polled
    }
}

impl<F, S> Drop for Finish<F, S>
where
    F: Future<Output: Send> + Send + 'static,
    S: Fn() -> bool,
{
    fn drop(&mut self) {
        if let Some(call) = self.call.take()
            && (self.stops)()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(call);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// A call that was polled once and dropped; whether it went on.
    async fn dropped(stops: bool) -> bool {
        let (go, gone) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let call = async move {
            gone.await.ok();
            tell.send(()).ok();
        };
        let mut call = Finish { call: Some(Box::pin(call)), stops: move || stops };
        assert!(futures::poll!(&mut call).is_pending());
        drop(call);
        go.send(()).ok();
        told.await.is_ok()
    }

    #[tokio::test]
    async fn a_call_goes_on_only_where_raft_stops() {
        assert!(dropped(true).await);
        assert!(!dropped(false).await);
    }
}
