//! Leaving the cluster: nothing new is taken, what only this node has goes elsewhere, and
//! only then does the membership change.
//!
//! Invariant: from the moment that the membership change is asked for, this process takes
//! nothing any more, whatever is answered: a removal whose outcome is not known is asked
//! for until it is. An attempt that ends before leaves the node as it was. All calls
//! together are one attempt.

use std::{
    sync::Arc,
    time::{Duration, Instant as Began},
};

use kiln_cluster::{Cluster, ClusterError};
use kiln_proto::pb;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    manager::{Manager, OnlyHere},
};

/// What handing over may take where the caller does not say: less than a pod is given to end.
const WITHIN: Duration = Duration::from_secs(60);
/// What a call waits beyond that for the membership to change.
const REMOVAL: Duration = Duration::from_secs(15);
/// Between two questions for a removal whose outcome is not known.
const AGAIN: Duration = Duration::from_secs(1);
/// What giving leases back may take: they run out in any case.
const LEASES: Duration = Duration::from_secs(3);
/// How often the log says what is left.
const TELL: Duration = Duration::from_secs(5);

/// How a node is to leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Also with what no other place has.
    force: bool,
    /// What handing over may take.
    within: Duration,
}

impl From<pb::LeaveRequest> for Terms {
    fn from(wire: pb::LeaveRequest) -> Self {
        // Longer than a year is as good as for ever, and cannot overflow a clock.
        let longest = Duration::from_secs(365 * 24 * 3600);
        let within = wire.within_ms.map_or(WITHIN, Duration::from_millis).min(longest);
        Self { force: wire.force, within }
    }
}

impl From<OnlyHere> for pb::Leaving {
    fn from(OnlyHere { packs, bytes, publications }: OnlyHere) -> Self {
        Self { packs, bytes, publications }
    }
}

/// What was lost, where it was lost by force; or why the node stays.
type Outcome = Result<Option<OnlyHere>, Error>;

/// An attempt to leave.
struct Attempt {
    /// When handing over ends.
    until: watch::Sender<Instant>,
    force: watch::Sender<bool>,
    left: watch::Receiver<OnlyHere>,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The way out of one node.
pub struct Departure {
    cluster: Arc<Cluster>,
    manager: Arc<Manager>,
    attempt: Mutex<Option<Attempt>>,
    stop: CancellationToken,
}

impl Departure {
    /// Of a node that stays until it is asked to leave; `stop` ends an attempt.
    pub fn new(cluster: Arc<Cluster>, manager: Arc<Manager>, stop: CancellationToken) -> Self {
        Self { cluster, manager, attempt: Mutex::default(), stop }
    }

    /// What is left to do, while the node leaves.
    pub(super) fn progress(&self) -> Option<OnlyHere> {
        self.attempt.lock().as_ref().map(|attempt| *attempt.left.borrow())
    }

    /// Leaves, or joins the attempt that is under way: the time of the last call counts,
    /// and one that forces is enough. Goes on when the caller does not wait for it.
    pub(super) async fn leave(self: &Arc<Self>, terms: Terms) -> Outcome {
        let until = Instant::now() + terms.within;
        let mut outcome = {
            let mut attempt = self.attempt.lock();
            match &*attempt {
                Some(running) => {
                    running.force.send_modify(|force| *force |= terms.force);
                    running.until.send_replace(until);
                    running.outcome.clone()
                }
                None => {
                    let (started, outcome) = self.start(until, terms);
                    *attempt = Some(started);
                    outcome
                }
            }
        };
        let ended = timeout_at(until + REMOVAL, outcome.wait_for(Option::is_some)).await;
        match ended {
            Ok(Ok(outcome)) => match &*outcome {
                Some(outcome) => outcome.clone(),
                None => Err(Error::Unavailable("the attempt to leave has no outcome".into())),
            },
            Ok(Err(_)) => Err(Error::Unavailable("this node stops".into())),
            Err(_) => Err(Error::Unavailable(
                "all is handed over, and the cluster has not confirmed yet that the node is no \
                 member: it is asked on; ask again"
                    .into(),
            )),
        }
    }

    fn start(
        self: &Arc<Self>,
        until: Instant,
        terms: Terms,
    ) -> (Attempt, watch::Receiver<Option<Outcome>>) {
        let (until, ends) = watch::channel(until);
        let (force, forced) = watch::channel(terms.force);
        let (tell, left) = watch::channel(OnlyHere::default());
        let (ended, outcome) = watch::channel(None);
        let departure = Arc::clone(self);
        // Closed before the first caller hears anything.
        self.manager.gate().close();
        tokio::spawn(async move {
            let leaving = departure.carry_out(ends, &forced, &tell);
            let stopped = || Err(Error::Unavailable("this node stops".into()));
            let outcome = departure.stop.run_until_cancelled(leaving).await;
            let outcome = outcome.unwrap_or_else(stopped);
            // The next call begins anew.
            drop(departure.attempt.lock().take());
            match &outcome {
                Ok(None) => tracing::info!("this node left its cluster"),
                Ok(Some(lost)) => {
                    tracing::warn!(?lost, "this node left its cluster by force; this is lost");
                }
                Err(error) => tracing::warn!(%error, "this node did not leave its cluster"),
            }
            ended.send_replace(Some(outcome));
        });
        (Attempt { until, force, left, outcome: outcome.clone() }, outcome)
    }

    async fn carry_out(
        &self,
        until: watch::Receiver<Instant>,
        forced: &watch::Receiver<bool>,
        tell: &watch::Sender<OnlyHere>,
    ) -> Outcome {
        tracing::info!("this node leaves its cluster: it hands over what only it has");
        let began = Began::now();
        let stays = |error| {
            self.manager.gate().open();
            Err(error)
        };
        if self.manager.is_alone() {
            return stays(Error::Invalid("the last node cannot leave".into()));
        }
        let handed_over = self.hand_over(until, tell).await;
        let lost = match handed_over {
            Ok(left) if left.is_nothing() => None,
            Ok(left) if *forced.borrow() => Some(left),
            Err(e) if *forced.borrow() => {
                tracing::warn!(error = %e, "what only this node has is not known");
                Some(*tell.borrow())
            }
            Ok(OnlyHere { packs, bytes, publications }) => {
                let within = Duration::from_secs(began.elapsed().as_secs());
                return stays(Error::OnlyHere { packs, bytes, publications, within });
            }
            Err(e) => return stays(e),
        };
        self.manager.gate().shut();
        // They run out in any case.
        drop(timeout(LEASES, self.manager.give_leases_back()).await);
        loop {
            match self.cluster.leave().await {
                Ok(()) => return Ok(lost),
                Err(e @ ClusterError::Invalid(_)) => return stays(e.into()),
                // It is out, and others may count on its vote for a while yet.
                Err(e) if self.cluster.has_left() => return Err(e.into()),
                Err(e) => {
                    tracing::warn!(error = %e, "whether this node is a member is not known yet");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn hand_over(
        &self,
        until: watch::Receiver<Instant>,
        tell: &watch::Sender<OnlyHere>,
    ) -> Result<OnlyHere, Error> {
        let told = Mutex::new(None::<Began>);
        let progress = |left: OnlyHere| {
            tell.send_replace(left);
            let mut told = told.lock();
            if !left.is_nothing() && told.is_none_or(|at| at.elapsed() >= TELL) {
                *told = Some(Began::now());
                let OnlyHere { packs, bytes, publications } = left;
                tracing::info!(packs, bytes, publications, "only here yet");
            }
        };
        self.manager.hand_over(until, progress).await
    }
}
