//! What a node is for: whether it may vote, and how many voters it was told of.
//!
//! Invariant: a node that abstains has its id only once the cluster knows that it does,
//! so it never votes; what the settings say later is told at the next start, and only
//! where the cluster has it otherwise. A node's own word on the number of voters only
//! ever raises it.

use std::{sync::Arc, time::Duration};

use crate::{
    command::{Command, NewNode},
    core::Core,
    error::ClusterError,
    leader::{Reply, Request},
    settings::Start,
    table::{self, Counters},
};

/// Between two tries while there is no leader.
const RETRY: Duration = Duration::from_millis(300);

impl Core {
    /// Registers a candidate. Only a node that follows is given a vote, and it cannot
    /// follow before it has its id: so the cluster learns first that it abstains. Two
    /// commands that members of every version read, rather than one that some do not.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        candidate: NewNode,
        abstains: bool,
    ) -> Result<Reply, ClusterError> {
        let reply = self.ask(Request::Join(candidate)).await?;
        if let (true, Reply::Joined(owner)) = (abstains, &reply) {
            self.write(Command::SetVoter { node: owner.node, voter: false }).await?;
        }
        Ok(reply)
    }

    /// Makes the cluster's record of this node what its settings say: where they changed
    /// with a restart, and where a member let it in that did not know of abstaining.
    pub(crate) async fn take_standing(self: Arc<Self>, start: Start) {
        loop {
            match self.wrong_standing(&start) {
                Ok(None) => return,
                Ok(Some(command)) => {
                    tracing::info!(%command, "told by this node's settings");
                    // The last that there is to tell; said again it might undo what an
                    // operator has set meanwhile.
                    let last = matches!(command, Command::SetVoters { .. });
                    match self.ask(Request::Write(command)).await {
                        Ok(_) if last => return,
                        Ok(_) => {}
                        Err(e) => {
                            tracing::debug!(error = %e, "this node's standing is not known yet");
                        }
                    }
                }
                Err(e) => tracing::debug!(error = %e, "this node is not registered yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// What the replica has otherwise than the settings, as the command that mends it.
    fn wrong_standing(&self, start: &Start) -> Result<Option<Command>, ClusterError> {
        let node = self.member()?.owner.node;
        let nodes = self.watch.nodes();
        let unknown = || ClusterError::unavailable("not in this replica");
        let known = nodes.get(&node).ok_or_else(unknown)?;
        if known.left {
            return Ok(None);
        }
        if known.eligible != self.voter {
            return Ok(Some(Command::SetVoter { node, voter: self.voter }));
        }
        let counters: Counters = table::read(&*self.store, ())?.ok_or_else(unknown)?;
        Ok(match start {
            Start::Expect { voters, .. } if *voters as u64 > counters.voters => {
                Some(Command::SetVoters { voters: *voters as u64, raise: true })
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
