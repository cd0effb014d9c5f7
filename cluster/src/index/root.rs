//! What the cluster's root says.
//!
//! Invariant: on return of a change this node's replica has it.

use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use kiln_proto::root::SignedStatement;

use super::Index;
use crate::{
    command::{Command, Response},
    error::ClusterError,
    trust::Trust,
};

impl Index {
    /// What the root says, as the local replica has it.
    pub fn trust(&self) -> Arc<Trust> {
        self.replica.trust()
    }

    /// Tells all nodes what `root` says; false where they knew. `Invalid`: the cluster has
    /// another root, or a later statement about the same thing.
    pub async fn root_says(
        &self,
        root: &VerifyingKey,
        statement: SignedStatement,
    ) -> Result<bool, ClusterError> {
        let node = self.router.owner()?.node;
        let command = Command::RootSays { root: root.to_bytes(), statement, node };
        let (index, response) = self.router.write(command).await?;
        self.wait_applied(index).await?;
        match response {
            Response::Changed(changed) => Ok(changed),
            Response::Refused(why) => Err(ClusterError::Invalid(why)),
            other => Err(ClusterError::unexpected(&other)),
        }
    }
}
