//! What joining takes.
//!
//! Invariant: on return of a change this node's replica has it.

use std::sync::Arc;

use kiln_proto::NodeId;

use super::Index;
use crate::{
    admission::{Admission, Admissions, NewJoinToken},
    caller::Caller,
    command::{Command, Response},
    error::ClusterError,
    watch::NodeInfo,
};

impl Index {
    /// What joining takes, by the local replica, with all tokens for candidates.
    pub fn admissions(&self) -> Arc<Admissions> {
        self.replica.admissions()
    }

    /// Whether the certificate of `caller` names a node that has joined, as far as the local replica
    /// knows, or nobody. Who left since is not asked here.
    pub fn has_joined(&self, caller: &Caller) -> bool {
        let Caller { node, key, .. } = caller;
        let is_it = |(id, info): (&NodeId, &NodeInfo)| {
            node.is_none_or(|node| node == *id) && key.is_none_or(|key| key == info.key.to_bytes())
        };
        node.is_none() && key.is_none() || self.replica.nodes().iter().any(is_it)
    }

    /// Makes a token for candidates good. `Invalid`: it is none, or there are too many.
    pub async fn issue_join_token(&self, token: NewJoinToken) -> Result<(), ClusterError> {
        let node = self.router.owner()?.node;
        let issue = Admission::Issue { token, node, at_unix_ms: 0 };
        let (index, response) = self.router.write(Command::Admission(issue)).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Done => Ok(()),
            Response::Refused(why) => Err(ClusterError::Invalid(why)),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// Says whether joining needs a token, from now on; false where it was so before.
    pub async fn need_join_token(&self, needs_token: bool) -> Result<bool, ClusterError> {
        let node = self.router.owner()?.node;
        let need = Admission::Need { needs_token, node, first: false };
        let (index, response) = self.router.write(Command::Admission(need)).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Changed(changed) => Ok(changed),
            other => Err(ClusterError::unexpected(&other)),
        }
    }
}
